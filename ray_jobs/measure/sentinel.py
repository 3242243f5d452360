"""A fixed computation that no variant has a part in: it tells a machine that got slower from a variant that did."""

import time
from collections.abc import Callable

import numpy as np

LOOPS = 50_000  # of the interpreter, about 2 ms
FLOATS = 1_000_000  # 8 MB read from the caches or memory, three times
REPEATS = 5


def sentinel_ns(clock: Callable[[], int] = time.perf_counter_ns) -> int:
    """The median time of the computation, about 5 ms: half interpreter, half memory."""
    floats = np.ones(FLOATS)
    times = []
    for _ in range(REPEATS):
        start = clock()
        total = 0
        for i in range(LOOPS):
            total += i
        for _ in range(3):
            floats.sum()
        times.append(clock() - start)
    return sorted(times)[REPEATS // 2]
