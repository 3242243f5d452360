"""Models whose loop stays Python around named parts: named by tests as ``own_loops:NAME``."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.variants import Workload
from ray_jobs import OwnModel

WORDS, WIDTH, STEPS = 40, 16, 5


def words(i: int, workload: Workload) -> tuple[Tensor, ...]:
    return (torch.randint(WORDS, (workload.batch, 6)),)


class Encoder(nn.Module):
    """Token ids (B, T) -> states (B, T, H) and the last one (1, B, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(WORDS, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(self.embedding(tokens))
        return outputs, state


class Decoder(nn.Module):
    """A token (B, 1) and a state (1, B, H) -> scores (B, V) and the next state."""

    start = 1

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(WORDS, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, token: Tensor, state: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden, state = self.gru(self.embedding(token), state)
        weights = (hidden @ outputs.transpose(1, 2)).softmax(-1)
        return self.out((hidden + weights @ outputs)[:, 0] * 2.0), state


class Greedy(nn.Module):
    """A greedy search over an encoder and a decoder: (B, T) -> tokens (B, S)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, state = self.encoder(tokens)
        token = torch.full((tokens.size(0), 1), self.decoder.start)
        found = []
        for _ in range(STEPS):
            scores, state = self.decoder(token, state, outputs)
            token = scores.argmax(-1, keepdim=True)
            found.append(token)
        return torch.cat(found, 1)


def greedy() -> OwnModel:
    return OwnModel(Greedy(), words, parts=("encoder", "decoder"))


def by_name() -> OwnModel:
    return OwnModel(Greedy(), lambda i, w: {"tokens": words(i, w)[0]}, parts=("encoder", "decoder"))


@dataclass
class Hidden:
    """A part's answer that PyTorch does not know as a container."""

    last: Tensor


class Attention(nn.Module):
    """Causal attention over a sequence (B, T), as keyword arguments, None among them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embedding, self.three = kind, nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        queries, keys, values = self.three(self.embedding(tokens)).chunk(3, -1)
        later = torch.ones(tokens.size(1), tokens.size(1), dtype=torch.bool).triu(1)
        energies = (queries @ keys.transpose(1, 2) * scale).masked_fill(later, -1e9)
        last = (energies.softmax(-1) @ values)[:, -1]
        return Hidden(last) if self.kind == "odd" else {"last": last, "mask": mask}


class Growing(nn.Module):
    """Each step reads the whole sequence so far, which grows."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.net, self.head = Attention(kind), nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        for _ in range(STEPS):
            answer = self.net(tokens=tokens, mask=None, scale=2.0)
            last = answer.last if isinstance(answer, Hidden) else answer["last"]
            tokens = torch.cat([tokens, self.head(last).argmax(-1, keepdim=True)], 1)
        return tokens


def growing() -> OwnModel:
    return OwnModel(Growing(), words, parts=("net", "head"))


def odd() -> OwnModel:
    """A part that answers with an object."""
    return OwnModel(Growing("odd"), words, parts=("net", "head"))


class Cache:
    """What a decoder keeps from step to step; no tensor."""

    def __init__(self) -> None:
        self.state: Tensor | None = None


class Caching(nn.Module):
    """A cell that keeps its state in an object it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, scores: Tensor, cache: Cache) -> Tensor:
        cache.state = self.cell(scores, cache.state)
        return self.out(cache.state)  # type: ignore[no-any-return]


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = Caching()

    def forward(self, scores: Tensor) -> Tensor:
        cache = Cache()
        for _ in range(STEPS):
            scores = self.step(scores, cache)
        return scores


def cached() -> OwnModel:
    return OwnModel(Cached(), lambda i, w: (torch.rand(w.batch, WORDS),), parts=("step",))


class Sized(nn.Module):
    """A part that its trace answers for one size alone: it counts in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Counting()

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([self.net(values[:, :size]) for size in (2, 3, 4)], 1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, values: Tensor) -> Tensor:
        columns = [self.layer(values[:, i : i + 1]) for i in range(values.size(1))]
        return torch.cat(columns, 1).sum(1, keepdim=True)


def sized() -> OwnModel:
    return OwnModel(Sized(), lambda i, w: (torch.rand(w.batch, 4),), parts=("net",))


class Late(Sized):
    """Later inputs reach the part in a size that the first ones did not."""

    def forward(self, values: Tensor) -> Tensor:
        sizes = (2, 5) if values[0, 0] > 1 else (2, 3)
        return torch.cat([self.net(values[:, :size]) for size in sizes], 1)


def late() -> OwnModel:
    return OwnModel(Late(), lambda i, w: (torch.rand(w.batch, 5) + (i > 2),), parts=("net",))


class Bare(nn.Module):
    """Its part holds nothing to quantise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        return self.net(values)  # type: ignore[no-any-return]


def bare() -> OwnModel:
    return OwnModel(Bare(), lambda i, w: (torch.rand(w.batch, 1, 9),), parts=("net",))


def wrong_part() -> OwnModel:
    return OwnModel(Greedy(), words, parts=("encoder", "decode"))


def nested_parts() -> OwnModel:
    return OwnModel(Greedy(), words, parts=("decoder", "decoder.gru"))


def twice() -> OwnModel:
    return OwnModel(Greedy(), words, parts=("decoder", "decoder"))


def one_string() -> OwnModel:
    return OwnModel(Greedy(), words, parts="encoder")  # type: ignore[arg-type]


class Beside(Greedy):
    """One of its parts is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def uncalled() -> OwnModel:
    return OwnModel(Beside(), words, parts=("encoder", "spare"))


def whole() -> OwnModel:
    """The same search, taken whole."""
    return OwnModel(Greedy(), words)
