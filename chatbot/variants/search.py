"""Greedy search as a variant's callable, for exactly the requested steps or until every reply has ended."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from chatbot.model import Chatbot, GreedySearch
from chatbot.variants.base import Reply, Workload
from chatbot.vocabulary import EOS, PAD


class StoppingSearch(GreedySearch):
    """Greedy search that ends once every reply of the batch has ended: at most ``max_length`` steps."""

    pad: Final[int]  # type: ignore[misc]  # TorchScript reads the annotations of the class itself only
    sos: Final[int]  # type: ignore[misc]
    eos: Final[int]

    def __init__(self, encoder: nn.Module, decoder: nn.Module, decoder_layers: int) -> None:
        super().__init__(encoder, decoder, decoder_layers)
        self.eos = EOS

    def forward(self, prompts: Tensor, lengths: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and (B,) lengths on the CPU -> tokens (B, n) and their probabilities (B, n)."""
        outputs, hidden = self.encoder(prompts.t(), lengths)
        hidden = hidden[: self.decoder_layers]
        blocked = (prompts == self.pad).t()
        token = torch.full((1, prompts.size(0)), self.sos, dtype=torch.long, device=prompts.device)
        ended = torch.zeros(prompts.size(0), dtype=torch.bool, device=prompts.device)
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        for _ in range(max_length):
            logits, hidden = self.decoder(token, hidden, outputs, blocked)
            score, best = torch.max(torch.softmax(logits, dim=1), dim=1)
            tokens.append(best)
            scores.append(score)
            token = best.unsqueeze(0)
            ended = ended | (best == self.eos)
            if bool(ended.all()):
                break
        return torch.stack(tokens, 1), torch.stack(scores, 1)


def search_of(encoder: nn.Module, decoder: nn.Module, chatbot: Chatbot, workload: Workload) -> GreedySearch:
    """The search that the workload asks for, over these networks or traces of them."""
    kind = StoppingSearch if workload.stop_at_eos else GreedySearch
    return kind(encoder, decoder, chatbot.config.decoder_layers).eval()


def replying(search: nn.Module, workload: Workload) -> Reply:
    """The callable of such a search, a script of it among them."""
    steps = workload.reply_tokens

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = search(prompts, lengths, steps)[0]
        return tokens

    def reply_until_the_end(prompts: Tensor, lengths: Tensor) -> Tensor:
        return filled(search(prompts, lengths, steps)[0], steps)

    return reply_until_the_end if workload.stop_at_eos else reply


def filled(tokens: Tensor, steps: int) -> Tensor:
    """(B, n) tokens of a search that stopped -> (B, ``steps``) with PAD after each reply's EOS."""
    if tokens.size(0) > 1:  # one reply alone ends where the search did
        ends = tokens == EOS
        tokens = tokens.masked_fill(ends.cumsum(1) - ends.long() > 0, PAD)
    return pad(tokens, (0, steps - tokens.size(1)), value=PAD)
