"""Answers typed lines."""

from dataclasses import dataclass
from time import perf_counter

import torch

from chatbot.checkpoint import Trained
from chatbot.corpus import MAX_LENGTH, normalise
from chatbot.errors import UsageError
from chatbot.safe_text import printable
from chatbot.variants import Reply, UnavailableError, Workload, prepared, variant_named
from chatbot.vocabulary import EOS

WARMUP_CALLS = 3  # TorchScript profiles its first calls and compiles: the first line should not pay for that


@dataclass(frozen=True)
class Answer:
    """A reply; the words of the prompt that the chatbot does not know; the time of the search alone."""

    text: str
    unknown: tuple[str, ...]
    latency_ms: float


class Speaker:
    """Answers lines with a trained chatbot, run as one variant on the CPU."""

    def __init__(self, trained: Trained, variant: str = "eager") -> None:
        self._words = trained.vocabulary
        self._reply = _reply_of(variant, trained)
        for _ in range(WARMUP_CALLS):
            self._timed([EOS])

    def answer(self, line: str) -> Answer:
        """Answers the known words of a line; a line without any gets an empty reply."""
        known, unknown = self._words.split_known(normalise(line))
        if not known:
            return Answer("", tuple(unknown), 0.0)
        tokens, latency_ms = self._timed(self._words.encode(known))
        return Answer(readable(self._words.decode(tokens)), tuple(unknown), latency_ms)

    def _timed(self, prompt: list[int]) -> tuple[list[int], float]:
        prompts, lengths = torch.tensor([prompt]), torch.tensor([len(prompt)])
        with torch.inference_mode():
            start = perf_counter()
            reply = self._reply(prompts, lengths)
            elapsed = perf_counter() - start
        tokens: list[int] = reply[0].tolist()
        return tokens, elapsed * 1000


def _reply_of(name: str, trained: Trained) -> Reply:
    variant = variant_named(name)
    if not variant.any_shape:
        raise UsageError(f"variant {name!r} takes only prompts of one length; choose another one to chat with")
    try:
        with torch.inference_mode():
            return prepared(variant, trained.chatbot, Workload(reply_tokens=MAX_LENGTH))
    except UnavailableError as error:
        raise UsageError(f"variant {name!r} can't run here: {error}") from None


def readable(words: str) -> str:
    """Attaches ``.!?`` to the preceding words; a vocabulary may hold what a terminal would obey."""
    for mark in ".!?":
        words = words.replace(f" {mark}", mark)
    return printable(words)
