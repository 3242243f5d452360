"""Counters of other activity on the machine, read between rounds; and the sentinel, which shows a slower machine.

Sources: proc(5), https://docs.kernel.org/accounting/psi.html, https://docs.kernel.org/scheduler/sched-stats.html.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from ray_jobs import machine
from ray_jobs.measure.gpu import Device, State

TICK_NS = round(1e9 / os.sysconf("SC_CLK_TCK"))  # resolution of /proc/stat

LOOPS = 50_000  # of the interpreter, about 2 ms
FLOATS = 1_000_000  # 8 MB read from the caches or memory, three times
REPEATS = 5

T = TypeVar("T")


class Counters(NamedTuple):
    """Running totals in ns, None where the machine does not tell; the GPU's are states, not totals."""

    wall_ns: int
    cpu_ns: int  # of this process, and of the others that are ours
    run_delay_ns: int | None = None  # the threads of what is measured were ready to run and waited for a core
    steal_ns: int | None = None  # the hypervisor ran something else on the measured cores
    throttled_ns: int | None = None  # this control group had used up its quota
    pressure_ns: int | None = None  # anything on the machine waited for a core; no rule uses it, a reader may
    busy_ns: int | None = None  # all cores, whoever used them
    gpu_clock_mhz: int | None = None  # no rule uses it, a reader may
    gpu_throttle: int | None = None  # NVML's bit mask of the reasons that cost speed
    gpu_foreign: int | None = None  # other processes that compute on the GPU


class Watch(Protocol):
    """Reads the counters."""

    def read(self) -> Counters:
        """The counters now."""
        ...


@dataclass(frozen=True)
class MachineWatch:
    """The counters of this process, of the cores that it is pinned to, and of its GPU."""

    cores: tuple[int, ...]
    gpu: Callable[[], State] | None = None
    root: Path = machine.ROOT
    counted: tuple[int, ...] | None = None  # the station's share of the cores; None: it has the whole machine
    sides: tuple[int, ...] = ()  # processes that take turns with this one on its cores
    beside: tuple[int, ...] = ()  # processes of ours on other cores
    itself: bool = True  # this process is measured too; else it is one of those on other cores

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def read(self) -> Counters:
        """Reads all counters in about 100 us; a GPU's driver may take milliseconds, so it is read before the clock."""
        clock, throttle, others = self.gpu() if self.gpu else (None, None, None)
        steal, busy = _told(self._cpu_times) or (None, None)
        return Counters(
            wall_ns=time.perf_counter_ns(),
            cpu_ns=time.process_time_ns() + sum(map(cpu_ns_of, (*self.sides, *self.beside))),
            run_delay_ns=_told(self._run_delay),
            steal_ns=steal,
            throttled_ns=self._throttled(),
            pressure_ns=_told(self._pressure),
            busy_ns=busy,
            gpu_clock_mhz=clock,
            gpu_throttle=throttle,
            gpu_foreign=None if others is None else max(0, others - len(self.sides)),
        )

    def _run_delay(self) -> int:
        """Summed over the threads of what is measured."""
        measured = (*(("self",) if self.itself else ()), *self.sides)
        folders = [self.proc / f"{process}/task" for process in measured]
        tasks = [folder / task for folder in folders for task in os.listdir(folder)]
        return sum(int(_read(task / "schedstat").split()[1]) for task in tasks)

    def _cpu_times(self) -> tuple[int | None, int]:
        """(steal of the measured cores, use of the counted cores)."""
        rows = [line.split() for line in _read(self.proc / "stat").splitlines() if line.startswith(b"cpu")]
        own = {f"cpu{core}".encode() for core in self.cores}
        stolen = [int(row[8]) for row in rows if row[0] in own]
        # user, nice, system, irq, softirq; neither idle nor waiting for a disk, nor stolen
        used = {row[0]: sum(int(row[i]) for i in (1, 2, 3, 6, 7)) for row in rows}
        if not used[b"cpu"]:  # a sandbox's zeros: something has run on any machine
            raise ValueError("no core has ever been used")
        counted = {b"cpu"} if self.counted is None else {f"cpu{core}".encode() for core in self.counted}
        busy = sum(used.get(name, 0) for name in counted)
        return sum(stolen) * TICK_NS if stolen else None, busy * TICK_NS

    def _throttled(self) -> int | None:
        """Summed over this process's control group and all above it: each may have a quota of its own."""
        told = [_told(partial(_throttled, *each)) for each in self._groups]
        known = [value for value in told if value is not None]
        return sum(known) if known else None

    @cached_property
    def _groups(self) -> list[tuple[Path, int]]:
        return list(machine.groups(self.root))

    def _pressure(self) -> int:
        return int(_read(self.proc / "pressure/cpu").split(b"total=")[1].split()[0]) * 1000


@dataclass(frozen=True)
class HelpedWatch(MachineWatch):
    """The same where other threads of ours share the cores of those that compute, and processes of ours may.

    What they use is part of what is measured. So of the time in which the computing threads waited for their cores
    only what exceeds that counts: so long at least they waited for somebody else.
    """

    computing: tuple[tuple[int, int], ...] = ()  # (process, thread), each process one of ``sides``

    def _run_delay(self) -> int:
        """May fall: what was used while no thread waited is taken off too."""
        places = [self.proc / f"{process}/task/{thread}/schedstat" for process, thread in self.computing]
        told = [[int(word) for word in _read(place).split()] for place in places]
        ours = sum(map(cpu_ns_of, (*self.sides, *self.beside)))
        return sum(waited for _, waited, *_ in told) - (ours - sum(used for used, *_ in told))


def cpu_ns_of(pid: int) -> int:
    """The CPU time of all threads of another process, by the clock of clock_getcpuclockid(3). Raises OSError."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def _throttled(group: Path, version: int) -> int:
    """ns, from microseconds in version 2; a group of that version without a quota only says what it used."""
    told = dict(line.split() for line in _read(group / "cpu.stat").splitlines())
    if version == 1:
        return int(told[b"throttled_time"])
    return 0 if b"usage_usec" in told and b"throttled_usec" not in told else int(told[b"throttled_usec"]) * 1000


def _told(read: Callable[[], T]) -> T | None:
    """The result of ``read``; None if the machine does not report it."""
    try:
        return read()
    except (OSError, ValueError, LookupError):
        return None


def _read(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(1 << 16)


def watch_for(
    device: Device | str | None = None,
    counted: tuple[int, ...] | None = None,
    sides: tuple[int, ...] = (),
    beside: tuple[int, ...] = (),
) -> MachineWatch:
    """The watch of this process as it is pinned now; ``device`` is its GPU, or why NVML does not tell of it.

    ``counted`` are the cores whose use matters where others of the machine belong to other trials; None: all of them.
    ``sides`` and ``beside`` are further processes of ours, as ``MachineWatch`` has them.
    """
    state = device.state if isinstance(device, Device) else None
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return MachineWatch(cores, state, counted=counted, sides=sides, beside=beside)


def sentinel_ns(clock: Callable[[], int] = time.perf_counter_ns) -> int:
    """The median time of a fixed computation unrelated to any variant: about 5 ms, half interpreter, half memory.

    It distinguishes a slower machine from a slower variant.
    """
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
