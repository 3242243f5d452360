"""Models that are not the chatbot, good and bad, and variants of them: named by tests as ``own_models:NAME``."""

from typing import Any

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants import Reply, UnavailableError, Variant, Workload
from ray_jobs.measure.custom_model import OwnModel


class Pair(nn.Module):
    """Two layers whose answer is a dict of tensors: nothing of it is the chatbot's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, values: Tensor, scale: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.first(values)) * scale
        return {"scores": self.second(hidden), "more": hidden.sum(1)}


def pair_inputs(i: int, workload: Workload) -> tuple[Tensor, ...]:
    return torch.randn(workload.batch, 8), torch.full((1,), 1.0 + i % 7)


def pair_same(answer: dict[str, Any], baselines: dict[str, Any]) -> bool:
    scores = torch.allclose(answer["scores"], baselines["scores"], rtol=1e-3, atol=1e-4)
    return scores and torch.allclose(answer["more"], baselines["more"], rtol=1e-3, atol=1e-4)


def pair() -> OwnModel:
    return OwnModel(Pair(), pair_inputs, pair_same)


def kept() -> OwnModel:
    """Its inputs are parts of what it keeps."""
    values, scale = torch.randn(101, 8, generator=torch.Generator().manual_seed(1)), torch.full((1,), 2.0)
    return OwnModel(Pair(), lambda i, w: (values[i % 100 : i % 100 + w.batch], scale), pair_same)


def strict() -> OwnModel:
    """Its ``same`` finds no 8 or 16 bits good enough."""
    return OwnModel(Pair(), pair_inputs, lambda a, b: torch.equal(a["scores"], b["scores"]))


class Wide(nn.Module):
    """Its answer to a row takes 4 MB, as a language model's scores do."""

    def forward(self, values: Tensor) -> Tensor:
        return values.sum(1, keepdim=True) + torch.arange(1_000_000.0)


def wide() -> OwnModel:
    return OwnModel(Wide(), lambda i, workload: (torch.full((workload.batch, 2), float(i)),))


def never() -> OwnModel:
    """Not even the baseline's answer is the same as itself."""
    return OwnModel(Pair(), pair_inputs, lambda a, b: False)


class Nested(Pair):
    """An answer that ``torch.jit.trace`` does not take."""

    def forward(self, values: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"both": (super().forward(values, scale), values)}


def nested() -> OwnModel:
    return OwnModel(Nested(), pair_inputs, lambda a, b: pair_same(a["both"][0], b["both"][0]))


def bare() -> OwnModel:
    """Nothing in it to quantise, and a dropout."""
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Dropout(0.5))
    return OwnModel(module, lambda i, w: (torch.rand(1, 1, 9),), torch.equal)


def broken() -> OwnModel:
    raise RuntimeError("no weights on this machine\nsecond line")


def half() -> OwnModel:
    return OwnModel(Pair().half(), pair_inputs, pair_same)


def listed() -> OwnModel:
    return OwnModel(Pair(), lambda i, w: [torch.rand(2)], pair_same)  # type: ignore[arg-type, return-value]


def mixed() -> OwnModel:
    return OwnModel(Pair(), lambda i, w: (torch.rand(2), 3), pair_same)  # type: ignore[arg-type, return-value]


def failing() -> OwnModel:
    return OwnModel(Pair(), lambda i, w: (torch.rand(w.batch, -1),), pair_same)


NUMBER = 3


def nothing() -> None:
    """Returns something else."""


def only_modules(chatbot: Chatbot, workload: Workload) -> Reply:
    raise UnavailableError("it is for other models")


class Off(nn.Module):
    """The model with its answer a little wrong."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> dict[str, Any]:
        answer: dict[str, Any] = self.module(*inputs)
        return {**answer, "scores": answer["scores"] + 0.01}


class Buffered(nn.Module):
    """The model, each answer in the memory of the one before: right when it is timed, overwritten after."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.kept = module, dict[str, Any]()

    def forward(self, *inputs: Tensor) -> dict[str, Any]:
        answer: dict[str, Any] = self.module(*inputs)
        for name, value in {"scores": answer["scores"], "sum": answer["more"]}.items():
            self.kept.setdefault(name, torch.empty_like(value)).copy_(value)
        return {"scores": self.kept["scores"], "more": self.kept["sum"]}


class Spoiling(nn.Module):
    """The model, which changes what it is asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, values: Tensor, scale: Tensor) -> Any:
        answer = self.module(values, scale)
        values.add_(1)
        return answer


def own_variant(name: str, kind: type[nn.Module]) -> Variant:
    return Variant(name, "", only_modules, True, "eager", prepare_module=lambda module, _, __: kind(module).eval())


OFF, BUFFERED, SPOILING = own_variant("off", Off), own_variant("buffered", Buffered), own_variant("spoiling", Spoiling)


class Spectrum(nn.Module):
    """A Fourier transform, of which nobody counts the bytes and FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(9, 4)

    def forward(self, values: Tensor) -> Tensor:
        return self.scores(torch.fft.rfft(values).abs())  # type: ignore[no-any-return]


def spectrum() -> OwnModel:
    return OwnModel(Spectrum(), lambda i, w: (torch.rand(w.batch, 16),), torch.equal)
