"""Is there a memory of answers behind a variant that outlives its process, or that it shares with other ones?

No input is asked twice of a variant in a launch, so a process has nothing to remember. A file or a server has: later
launches draw from the same inputs, and other sides are asked the same ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from chatbot.variants import Reply
from ray_jobs.measure.timing import Timer

DRAWS, CALLS = 3, 10  # made before they are asked, as those of a turn are; the second draw only if the first is slow
QUICKER = 3.0  # times: what caches of the processor, or a slower machine by then, can't explain thirty times in a row


def memory_fault(
    reply: Reply, timed_ns: Sequence[int], draw: Callable[[], tuple[Any, Tensor]], timer: Timer
) -> str | None:
    """Says that a quarter of the timed calls were several times as quick as any answer to new inputs; else None.

    Most often one call tells. ``draw`` gives inputs that nobody has asked before.
    """
    quick = float(np.quantile(timed_ns, 0.25))
    slow: list[int] = []
    for _ in range(DRAWS):
        for asked in [draw() for _ in range(CALLS)]:
            slow.append(timer.call(reply, *asked)[1].wall_ns)
            if slow[-1] <= QUICKER * quick:
                return None
    anew = f"each of {len(slow)} answers to what nobody had asked before at least {min(slow) / 1e6:.3g} ms"
    return f"it answers from a memory: a quarter of its timed calls took at most {quick / 1e6:.3g} ms, {anew}"
