"""Other activity on the machine in each round of a launch, and the rounds it disqualifies.

Rounds are discarded whole and by the counters of ``watch`` alone, never by a latency: a rule that looked at latencies
would choose its results.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ray_jobs.measure.watch import TICK_NS, Counters

ABSENT = -1  # in arrays of integers: the machine does not report it
WAKE_UPS_NS = 500_000  # what the kernel's own threads take of a core now and then, on an idle machine too
WARN_SHARE = 0.2  # of disturbed rounds, above which a row says so

Ints = NDArray[np.int64]


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
    """The causes that the machine reported at least once."""
    return [cause for cause in CAUSES if any((getattr(one, cause.column) != ABSENT).any() for one in launches)]


def unwatched(launches: Sequence[Interference], device: str) -> str | None:
    """The warning that names the causes that the machine does not report; None if it reports all."""
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
