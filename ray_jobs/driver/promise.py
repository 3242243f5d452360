"""What a trial will be able to tell, from the scatter of one like it: known before anything is measured."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ray_jobs.matrix.rows import Row
from ray_jobs.measure.orders import up_to_multiple
from ray_jobs.statistics import LEAST_LAUNCHES, NOMINAL, Estimate, Interval, quantile

POWER = 0.9  # how often a difference is found that is called found
MOST_LAUNCHES = 100_000
Z_POWER = NormalDist().inv_cdf(POWER)


@dataclass(frozen=True)
class Earlier:
    """A trial that was measured: how far its launches scatter in the worst of its speedups, and how long each took."""

    run_id: str
    scatter: float  # the standard deviation over launches of ln of a speedup
    launch_s: float

    @classmethod
    def of(cls, run_id: str, rows: Iterable[Row], seconds: float) -> "Earlier | None":
        """None where no speedup has an interval."""
        rows = list(rows)
        launches = max((row.launches or 0 for row in rows), default=0)
        scatters = [scatter for row in rows for scatter in _scatters(row)]
        return cls(run_id, max(scatters), seconds / launches) if scatters else None


def _scatters(row: Row) -> Iterable[float]:
    sides = row.side_speedup, row.side_speedup_low, row.side_speedup_high
    for value, low, high in ((row.speedup, row.speedup_low, row.speedup_high), sides):
        launches = row.launches or 0
        if launches >= 2 and value is not None and low is not None and high is not None:
            yield Estimate.of_speedup(Interval(value, low, high), launches).error * math.sqrt(launches)


@dataclass(frozen=True)
class Promise:
    """What a trial will tell."""

    half_width: float  # of the widest interval
    seconds: float  # until it is reached
    in_time: bool  # else the budget ends before the interval is as narrow as asked
    found: float  # the difference that is found 9 times in 10
    run_id: str  # whose scatter this is from

    @property
    def text(self) -> str:
        """The promise as a person reads it."""
        when = f"in about {self.seconds:.0f} s" if self.in_time else f"when the budget ends, after {self.seconds:.0f} s"
        return (
            f"it should tell speedups to ±{self.half_width:.1%} {when}, and find a difference of {self.found:.1%} "
            f"9 times in 10 (from the scatter of run {self.run_id})"
        )


def promise(earlier: Earlier, precision: float, budget_s: float, block: int) -> Promise:
    """What a trial like ``earlier`` will tell that stops at ``precision`` or when its budget ends.

    Args:
        earlier: the trial to go by.
        precision: the half-width at which launches end.
        budget_s: seconds after which they do.
        block: launches come in multiples of it.
    """
    least = up_to_multiple(LEAST_LAUNCHES, block)
    affordable = max(least, int(budget_s / earlier.launch_s) // block * block)
    needed = _needed(earlier.scatter, precision, range(least, min(affordable, MOST_LAUNCHES) + 1, block))
    launches = affordable if needed is None else needed
    error = earlier.scatter / math.sqrt(launches)
    reach = quantile(launches - 1, NOMINAL) * error
    found = math.expm1(reach + Z_POWER * error)
    return Promise(math.sinh(reach), launches * earlier.launch_s, needed is not None, found, earlier.run_id)


def _needed(scatter: float, precision: float, counts: Sequence[int]) -> int | None:
    """The fewest launches whose interval is as narrow as asked; None if none of ``counts`` suffices.

    By bisection: intervals get narrower with every block.
    """

    def enough(launches: int) -> bool:
        return math.sinh(quantile(launches - 1, NOMINAL) * scatter / math.sqrt(launches)) <= precision

    place = bisect_left(counts, True, key=enough)
    return counts[place] if place < len(counts) else None
