"""One timed call, and what the machine did to this process during it.

Between the two clock readings there is only the call and, on CUDA, recording an event and a synchronisation. What they
cost is measured in each launch (``floor_ns``) and never subtracted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage, struct_rusage
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chatbot.variants import Reply

Clock = Callable[[], int]
FLOOR_CALLS = 51


class Reading(NamedTuple):
    """One call: its start (ns of the clock), its duration, and the counters around it.

    The counters disqualify nothing: they are kept with each sample to explain why it was slow.
    """

    start_ns: int
    wall_ns: int
    device_ns: int | None  # between two CUDA events of the current stream, its idle times included
    cpu_ns: int  # of all threads of this process
    involuntary_switches: int


class Timer(Protocol):
    """Times calls on one kind of device."""

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        """Returns the reply's tokens and the reading."""
        ...


@dataclass(frozen=True)
class CpuTimer:
    """Wall time of a synchronous call."""

    clock: Clock = time.perf_counter_ns

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        clock = self.clock
        before = getrusage(RUSAGE_SELF)
        start = clock()
        tokens = reply(prompts, lengths)
        stop = clock()
        return tokens, Reading(start, stop - start, None, *_spent(before, getrusage(RUSAGE_SELF)))


class CudaTimer:
    """Wall time between two synchronisations, together with the device's own time from events."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self.clock = clock
        self.first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        clock, synchronize = self.clock, torch.cuda.synchronize
        before = getrusage(RUSAGE_SELF)
        synchronize()
        self.first.record()
        start = clock()
        tokens = reply(prompts, lengths)
        self.last.record()
        synchronize()
        stop = clock()
        after = getrusage(RUSAGE_SELF)
        device_ns = round(self.first.elapsed_time(self.last) * 1e6)
        return tokens, Reading(start, stop - start, device_ns, *_spent(before, after))


def floor_ns(timer: Timer) -> int:
    """The median of calls that do nothing: what timing itself adds to each sample."""
    nothing = torch.empty(0)
    walls = [timer.call(lambda prompts, _: prompts, nothing, nothing)[1].wall_ns for _ in range(FLOOR_CALLS)]
    return sorted(walls)[FLOOR_CALLS // 2]


def timer_for(device: str) -> Timer:
    """The timer of a device kind."""
    return CudaTimer() if device == "cuda" else CpuTimer()


def _spent(before: struct_rusage, after: struct_rusage) -> tuple[int, int]:
    """(CPU ns of all threads, involuntary switches); one system call returns both, to the microsecond."""
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return round(cpu_s * 1e9), after.ru_nivcsw - before.ru_nivcsw
