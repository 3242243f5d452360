"""When the tokens of a call come, of a model whose loop stays Python: a stamp as each call of its last part ends.

Taken in calls of their own after all timing, since a stamp is Python beside the loop: the latency of a call stays what
it is without them. A timed call of the same launch is the sum of these times, but for the stamps.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from chatbot.variants import Reply
from chatbot.variants.parts import loop_behind

CALLS = 5  # after one that refills the caches

Stamp = Callable[[], Any]


@dataclass(frozen=True)
class TokenTimes:
    """The medians over calls, in ms."""

    first_ms: float  # from the start of a call to the end of the last part's first call
    further_ms: float  # from there to the end of its last call, shared among the calls after the first


def token_times(
    reply: Reply, asked: tuple[Any, Tensor], device: str, clock: Callable[[], int] = time.perf_counter_ns
) -> TokenTimes | None:
    """Asks a variant ``CALLS`` times; None where it has no parts, or calls the last of them but once: no loop."""
    loop = loop_behind(reply)
    if loop is None:
        return None
    last = list(loop.parts)[-1]
    stamp, read = _on_cuda() if device == "cuda" else (clock, lambda start, end: (end - start) / 1e6)
    ends: list[Any] = []
    found: list[tuple[float, float]] = []
    with loop.watched(lambda *_: None, lambda name, _: ends.append(stamp()) if name == last else None):
        for _ in range(1 + CALLS):
            ends.clear()
            start = stamp()
            reply(*asked)
            if len(ends) < 2:
                return None
            if device == "cuda":
                torch.cuda.synchronize()
            found.append((read(start, ends[0]), read(ends[0], ends[-1]) / (len(ends) - 1)))
    first, further = zip(*found[1:], strict=True)
    return TokenTimes(median(first), median(further))


def _on_cuda() -> tuple[Stamp, Callable[[Any, Any], float]]:
    """Events of the current stream: the device is not waited for at each token."""

    def stamp() -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    return stamp, lambda start, end: float(start.elapsed_time(end))
