"""Other activity on the machine: counters read between rounds, and the rounds they disqualify.

Rounds are discarded whole and by these counters alone, never by a latency: a rule that looked at latencies would
choose its results. Sources: proc(5), https://docs.kernel.org/accounting/psi.html,
https://docs.kernel.org/scheduler/sched-stats.html.
"""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_jobs import machine
from ray_jobs.measure.gpu import Device, State

ABSENT = -1  # in arrays of integers, what the machine does not tell
TICK_NS = round(1e9 / os.sysconf("SC_CLK_TCK"))  # resolution of /proc/stat
WAKE_UPS_NS = 500_000  # what the kernel's own threads take of a core now and then, on an idle machine too
WARN_SHARE = 0.2  # of disturbed rounds, above which a row says so

LOOPS = 50_000  # of the interpreter, about 2 ms
FLOATS = 1_000_000  # 8 MB read from the caches or memory, three times
REPEATS = 5

Ints = NDArray[np.int64]
T = TypeVar("T")


class Counters(NamedTuple):
    """Running totals in ns, None where the machine does not tell; the GPU's are states, not totals."""

    wall_ns: int
    cpu_ns: int  # of this process
    run_delay_ns: int | None = None  # this process's threads were ready to run and waited for a core
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
class Interference:
    """The machine's activity in each round of a launch: one entry per round, ``ABSENT`` where it reports nothing."""

    round_ns: Ints
    run_delay_ns: Ints
    steal_ns: Ints
    throttled_ns: Ints
    pressure_ns: Ints
    foreign_cpu_ns: Ints  # cores' time that other processes used, anywhere on the machine
    gpu_clock_mhz: Ints
    gpu_throttle: Ints
    gpu_foreign: Ints


COUNTERS = tuple(f.name for f in fields(Interference))


def per_round(readings: Sequence[Counters]) -> Interference:
    """Rounds from the readings before the first, between any two, and after the last."""
    pairs = list(itertools.pairwise(readings))

    def differences(name: str) -> Ints:
        values = [(getattr(a, name), getattr(b, name)) for a, b in pairs]
        return np.array([ABSENT if a is None or b is None else max(0, b - a) for a, b in values], dtype=np.int64)

    def states(name: str) -> Ints:
        values = [getattr(after, name) for _, after in pairs]
        return np.array([ABSENT if value is None else value for value in values], dtype=np.int64)

    busy = differences("busy_ns")
    foreign = np.where(busy == ABSENT, ABSENT, np.maximum(0, busy - differences("cpu_ns")))
    totals = {name: differences(name) for name in ("run_delay_ns", "steal_ns", "throttled_ns", "pressure_ns")}
    gpu = {name: states(name) for name in ("gpu_clock_mhz", "gpu_throttle", "gpu_foreign")}
    return Interference(round_ns=differences("wall_ns"), foreign_cpu_ns=foreign, **totals, **gpu)


@dataclass(frozen=True)
class Cause:
    """A kind of disturbance: how much of it a round tolerates, and its wording."""

    column: str
    limit: float  # share of the round's time (of one core), or a count
    sentence: str  # with {0}, the typical amount in a disturbed round
    name: str
    slack_ns: int = 0  # what the counter's resolution may add

    def typical(self, amounts: NDArray[np.float64]) -> float:
        """The median; of bit masks, all their bits."""
        if self.column == "gpu_throttle":
            return float(np.bitwise_or.reduce(amounts.astype(np.int64)))
        return float(np.median(amounts))

    def severity(self, watched: Interference) -> NDArray[np.float64]:
        """(rounds,): above 1 the round is disturbed."""
        if self.column == "gpu_throttle":
            return np.asarray((self.amount(watched) > 0) / self.limit)
        return np.asarray(np.maximum(0.0, self.amount(watched, self.slack_ns)) / self.limit)

    def amount(self, watched: Interference, less_ns: int = 0) -> NDArray[np.float64]:
        """(rounds,): the share (of the launch's median round, so that no round's own latency counts) or the count.

        0 where it is unknown.
        """
        values = np.asarray(getattr(watched, self.column)).astype(np.float64)
        if self.column.endswith("_ns"):
            values = (values - less_ns) / max(1.0, float(np.median(watched.round_ns))) if len(values) else values
        return np.maximum(0.0, values)


# The limits: a core lost for 2% of a round moves its median turn by less than the default margin. Foreign use
# elsewhere on the machine costs shared caches and memory bandwidth; half a core of it is far above an idle system's.
CAUSES = (
    Cause("foreign_cpu_ns", 0.5, "other processes used {0:.1f} cores", "other processes", slack_ns=2 * TICK_NS),
    Cause(
        "run_delay_ns",
        0.02,
        "the launch waited {0:.0%} of the time for its cores",
        "waiting for cores",
        slack_ns=WAKE_UPS_NS,
    ),
    Cause("steal_ns", 0.02, "the hypervisor took {0:.0%} of the time away", "steal"),
    Cause("throttled_ns", 0.001, "the cgroup's quota stopped the launch for {0:.0%} of the time", "throttling"),
    Cause("gpu_throttle", 0.5, "the GPU was slowed down (NVML's bit mask of reasons: {0:.0f})", "the GPU's clocks"),
    Cause("gpu_foreign", 0.5, "{0:.0f} other processes used the GPU", "other processes on the GPU"),
)


def severity(watched: Interference) -> NDArray[np.float64]:
    """(rounds,): how strongly the worst cause disturbed each round; above 1 the round is disturbed."""
    return np.asarray(np.max([cause.severity(watched) for cause in CAUSES], axis=0))


def kept(watched: Interference) -> NDArray[np.bool_]:
    """(rounds,): the rounds to believe: those not disturbed, and never fewer than the least disturbed half.

    If more than half are disturbed, that is the machine's usual state, and keeping fewer rounds would not help: the
    row then says so.
    """
    scores = severity(watched)
    half = -(-len(scores) // 2)
    quiet = scores <= 1
    if quiet.sum() >= half:
        return np.asarray(quiet)
    least = np.zeros(len(scores), dtype=bool)
    every_other = np.arange(len(scores)) % 2  # among equals: not the first half, in which a machine is coolest
    least[np.lexsort((every_other, scores))[:half]] = True
    return least


def disturbed(watched: Interference) -> int:
    """The number of disturbed rounds, kept or not."""
    return int((severity(watched) > 1).sum())


def complaint(launches: Sequence[Interference]) -> str | None:
    """The warning, with the causes, if more than ``WARN_SHARE`` of these launches' rounds were disturbed; else None."""
    rounds = sum(len(watched.round_ns) for watched in launches)
    share = sum(map(disturbed, launches)) / rounds if rounds else 0.0
    if share <= WARN_SHARE:
        return None
    causes = ", ".join(commonest(launches).values())
    return f"{share:.0%} of the rounds were disturbed: {causes}; make the machine quiet and run it again"


def watched_causes(launches: Sequence[Interference]) -> list[Cause]:
    """The causes that the machine told of at least once."""
    return [cause for cause in CAUSES if any((getattr(one, cause.column) != ABSENT).any() for one in launches)]


def unwatched(launches: Sequence[Interference], device: str) -> str | None:
    """The warning that names what the machine did not tell of; None where it told everything."""
    told = watched_causes(launches)
    mine = [cause for cause in CAUSES if device == "cuda" or not cause.column.startswith("gpu")]
    lacking = [cause.name for cause in mine if cause not in told]
    return f"not watched here: {', '.join(lacking)}" if lacking and launches else None


def commonest(launches: Sequence[Interference]) -> dict[str, str]:
    """The two causes that disturbed most rounds of these launches: each one's column and sentence."""
    found: list[tuple[int, Cause, float]] = []
    for cause in CAUSES:
        hits = np.concatenate([cause.amount(watched)[cause.severity(watched) > 1] for watched in launches])
        if len(hits):
            found.append((len(hits), cause, cause.typical(hits)))
    worst = sorted(found, key=lambda one: -one[0])[:2]
    return {cause.column: cause.sentence.format(amount) for _, cause, amount in worst}


@dataclass(frozen=True)
class MachineWatch:
    """The counters of this process, of the cores that it is pinned to, and of its GPU."""

    cores: tuple[int, ...]
    gpu: Callable[[], State] | None = None
    root: Path = machine.ROOT
    counted: tuple[int, ...] | None = None  # the station's share of the cores; None: it has the whole machine

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def read(self) -> Counters:
        """About 100 microseconds; a GPU's driver may take milliseconds, so it is asked before the time is."""
        state = self.gpu() if self.gpu else (None, None, None)
        steal, busy = _told(self._cpu_times) or (None, None)
        return Counters(
            wall_ns=time.perf_counter_ns(),
            cpu_ns=time.process_time_ns(),
            run_delay_ns=_told(self._run_delay),
            steal_ns=steal,
            throttled_ns=self._throttled(),
            pressure_ns=_told(self._pressure),
            busy_ns=busy,
            **dict(zip(("gpu_clock_mhz", "gpu_throttle", "gpu_foreign"), state, strict=True)),
        )

    def _run_delay(self) -> int:
        """Summed over this process's threads."""
        tasks = os.listdir(self.proc / "self/task")
        return sum(int(_read(self.proc / f"self/task/{task}/schedstat").split()[1]) for task in tasks)

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


def watch_for(device: Device | str | None = None, counted: tuple[int, ...] | None = None) -> MachineWatch:
    """The watch of this process as it is pinned now; ``device`` is its GPU, or why NVML does not tell of it.

    ``counted`` are the cores whose use matters where others of the machine belong to other trials; None: all of them.
    """
    state = device.state if isinstance(device, Device) else None
    return MachineWatch(tuple(sorted(os.sched_getaffinity(0))), state, counted=counted)


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
