"""What is asked of a variant, the form of its answer, and how it says that it can't answer here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Reply = Callable[[Tensor, Tensor], Tensor]  # (prompts (B, T), lengths (B,)) -> tokens (B, S)

DEVICES = ("cpu", "cuda")


class UnavailableError(Exception):
    """A variant can't run here, through no fault of its own; the message says what is missing, and what would help."""


@dataclass(frozen=True)
class Workload:
    """Every call reads ``batch`` prompts of ``prompt_tokens`` tokens, EOS counted, and writes ``reply_tokens`` each."""

    device: str = "cpu"  # a kind: "cpu" or "cuda"
    batch: int = 1
    prompt_tokens: int = 8
    reply_tokens: int = 10
    threads: int = 1
    model: str = "small"
    stop_at_eos: bool = False  # a call ends when each reply has; behind a reply's EOS stands PAD

    @property
    def own_model(self) -> bool:
        """Whether the model is not the chatbot; prompts and replies have no meaning then."""
        return is_own(self.model)


def is_own(model: str) -> bool:
    """Whether a model's name is of the form ``package.module:factory``."""
    return ":" in model and "/" not in model
