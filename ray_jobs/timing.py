"""One timed call, and what the machine did to this process meanwhile.

Between the two readings of the clock stands the call and, on CUDA, a synchronisation; nothing else.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chatbot.variants import Reply

Clock = Callable[[], int]


class Reading(NamedTuple):
    """One call: when it began (ns of the clock), how long it took, and the counters around it."""

    start_ns: int
    wall_ns: int
    device_ns: int | None  # between two CUDA events
    cpu_ns: int  # of all threads of this process
    involuntary_switches: int


class Timer(Protocol):
    """Times calls on one kind of device."""

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        """The reply's tokens, and the reading."""
        ...


@dataclass(frozen=True)
class CpuTimer:
    """Wall time of a synchronous call."""

    clock: Clock = time.perf_counter_ns

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        clock = self.clock
        switches, cpu = _switches(), time.process_time_ns()
        start = clock()
        tokens = reply(prompts, lengths)
        stop = clock()
        cpu = time.process_time_ns() - cpu
        return tokens, Reading(start, stop - start, None, cpu, _switches() - switches)


class CudaTimer:
    """Wall time between two synchronisations, with the device's own time from events beside it."""

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self.clock = clock
        self.first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        clock, synchronize = self.clock, torch.cuda.synchronize
        switches, cpu = _switches(), time.process_time_ns()
        synchronize()
        start = clock()
        self.first.record()
        tokens = reply(prompts, lengths)
        self.last.record()
        synchronize()
        stop = clock()
        cpu = time.process_time_ns() - cpu
        device_ns = round(self.first.elapsed_time(self.last) * 1e6)
        return tokens, Reading(start, stop - start, device_ns, cpu, _switches() - switches)


def timer_for(device: str) -> Timer:
    """The timer of a device kind."""
    return CudaTimer() if device == "cuda" else CpuTimer()


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
