"""From a typed line to an answer."""

from dataclasses import dataclass
from time import perf_counter

import torch

from chatbot.checkpoint import Trained
from chatbot.corpus import MAX_LENGTH, normalise
from chatbot.variants import Reply, Workload, variant_named


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
        workload = Workload(reply_tokens=MAX_LENGTH)
        self._reply: Reply = variant_named(variant).prepare(trained.chatbot, workload)

    def answer(self, line: str) -> Answer:
        """The reply to the known words of a line; to a line without any, an empty one."""
        known, unknown = self._words.split_known(normalise(line))
        if not known:
            return Answer("", tuple(unknown), 0.0)
        prompts = torch.tensor([self._words.encode(known)])
        lengths = torch.tensor([prompts.size(1)])
        with torch.inference_mode():
            start = perf_counter()
            tokens = self._reply(prompts, lengths)
            elapsed = perf_counter() - start
        return Answer(readable(self._words.decode(tokens[0].tolist())), tuple(unknown), elapsed * 1000)


def readable(words: str) -> str:
    """Puts ``.!?`` back to the words before them."""
    for mark in ".!?":
        words = words.replace(f" {mark}", mark)
    return words
