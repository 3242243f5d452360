"""Intervals, speedups and verdicts: pure functions of numbers.

The unit is the launch. Samples of one process are not independent (a t test over them calls four of five pairs of
identical programs different), so every interval is taken over launches.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
# Launches stop when the interval is narrow, which it is more often where the scatter happens to come out small. To hold
# 95% after looking at every block, an interval is made with this much: simulated in tests/test_stopping.py.
NOMINAL = 0.963
LEAST_LAUNCHES = 10
LEAST_ERROR = 1e-6  # no clock tells less; keeps weights finite where launches came out equal

Floats = NDArray[np.float64]


class Verdict(StrEnum):
    """The verdict on a speedup's interval; ``invalid`` if the program is not what its label says."""

    BASELINE = "baseline"
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


class Centre(StrEnum):
    """The estimator of where a launch's rounds lie."""

    MEDIAN = "median"
    HODGES_LEHMANN = "hodges-lehmann"

    def of(self, values: Floats) -> Floats:
        """Of each column; NaN is left out."""
        return median_present(values) if self == Centre.MEDIAN else hodges_lehmann(values)


@dataclass(frozen=True)
class Interval:
    """An estimate between its confidence limits."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, as a share of the estimate."""
        return (self.high - self.low) / 2 / self.value

    def exp(self) -> "Interval":
        """A ratio, where this is its natural logarithm."""
        return Interval(math.exp(self.value), math.exp(self.low), math.exp(self.high))

    def columns(self, name: str) -> dict[str, float]:
        """The three columns of a row that hold it: ``name``, ``name_low``, ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and that error's degrees of freedom."""

    value: float
    error: float
    degrees: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate | None":
        """The mean of independent values; NaN is left out. None for fewer than two."""
        known = [value for value in values if not math.isnan(value)]
        if len(known) < 2:
            return None
        return cls(float(np.mean(known)), float(np.std(known, ddof=1)) / math.sqrt(len(known)), len(known) - 1)

    @classmethod
    def of_speedup(cls, speedup: Interval, launches: int) -> "Estimate":
        """ln of a speedup with the error that its interval was made with: the inverse of ``speedup``."""
        reach = math.log(speedup.high / speedup.low) / 2
        return cls(math.log(speedup.value), reach / quantile(launches - 1, NOMINAL), launches - 1)

    def interval(self, confidence: float) -> Interval:
        """Student's t interval."""
        reach = quantile(self.degrees, confidence) * self.error
        return Interval(self.value, self.value - reach, self.value + reach)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates. An error below ``LEAST_ERROR`` counts as that."""
        variances = [max(one.error, LEAST_ERROR) ** 2 for one in (self, other)]
        return Estimate(self.value - other.value, *error_of_sum(variances, (self.degrees, other.degrees)))


def error_of_sum(variances: Sequence[float] | Floats, degrees: Sequence[float] | Floats) -> tuple[float, float]:
    """The standard error of a sum of independent parts, and Welch and Satterthwaite's degrees of freedom.

    Source: Satterthwaite 1946, https://doi.org/10.2307/3002019.
    """
    parts = np.asarray(variances, dtype=np.float64)
    total = parts.sum()
    return math.sqrt(total), float(total**2 / (parts**2 / np.asarray(degrees)).sum())


def median_present(values: Floats) -> Floats:
    """The median along the first axis, ignoring NaN; NaN where there is nothing else. A fast ``np.nanmedian``."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = len(values) - np.isnan(values).sum(axis=0)
    middle = np.stack([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(values) - 1)])
    return np.asarray(np.take_along_axis(ordered, middle, axis=0).mean(axis=0))


def hodges_lehmann(values: Floats) -> Floats:
    """Along the first axis: the median of the means of all pairs, each value with itself too; NaN is left out.

    Of normal values it needs 1.05 times as many as their mean does to be as precise, where the median needs 1.57. It
    bears up to 29% of values that are anything at all. Source: Hodges and Lehmann 1963,
    https://doi.org/10.1214/aoms/1177704172.
    """
    first, second = np.triu_indices(len(values))
    return median_present((values[first] + values[second]) / 2)


def turn_medians(
    variant: NDArray[np.integer], rounds: NDArray[np.integer], wall_ns: NDArray[np.integer], shape: tuple[int, int]
) -> Floats:
    """(rounds, variants): the median of each turn's timed calls in ns; NaN where a variant had no turn."""
    turn = rounds.astype(np.int64) * shape[1] + variant
    order = np.argsort(turn, kind="stable")
    turns, starts, counts = np.unique(turn[order], return_index=True, return_counts=True)
    calls = np.full((counts.max(initial=1), len(turns)), np.nan)
    place = np.arange(len(turn)) - np.repeat(starts, counts)
    calls[place, np.repeat(np.arange(len(turns)), counts)] = wall_ns[order]
    medians = np.full(shape[0] * shape[1], np.nan)
    medians[turns] = median_present(calls)
    return medians.reshape(shape)


def log_speedups(turns: Floats, baseline: int, centre: Centre) -> Floats:
    """(variants,): each variant's r of a launch, the centre over rounds of ln(baseline / variant); NaN if absent."""
    logs = np.log(turns[:, [baseline]] / turns)
    present = ~np.isnan(logs).all(axis=0)
    ratios = np.full(turns.shape[1], np.nan)
    ratios[present] = centre.of(logs[:, present])
    return ratios


def speedup(logs: Sequence[float], confidence: float = NOMINAL) -> Interval | None:
    """The speedup over launches, exp(mean r), with its Student-t interval; None for fewer than two launches.

    Made with ``NOMINAL`` confidence, it holds ``CONFIDENCE`` under the rule for stopping. Launches without a value
    (NaN) are left out.
    """
    estimate = Estimate.of(logs)
    return None if estimate is None else estimate.interval(confidence).exp()


@dataclass(frozen=True)
class Best:
    """The fastest of several programs that took turns with each other."""

    name: str
    rivals: tuple[str, ...]  # indistinguishable from it


def paired(
    turns: Sequence[Mapping[str, Floats]], other: str, centre: Centre, confidence: float = NOMINAL
) -> dict[str, Interval | None]:
    """The speedup of each program over ``other``, from the launches that have both.

    Args:
        turns: of each launch and program, (rounds,) the median of its turn in ns; NaN where it had none.
        other: the program to compare with.
        centre: over the rounds of a launch.
        confidence: of each interval by itself.
    """
    logs: dict[str, list[float]] = {name: [] for launch in turns for name in launch}
    for launch in turns:
        if other in launch:
            found = log_speedups(np.stack(list(launch.values()), axis=1), list(launch).index(other), centre)
            for name, log in zip(launch, found, strict=True):
                logs[name].append(float(log))
    return {name: speedup(mine, confidence) for name, mine in logs.items()}


def best_of(
    turns: Sequence[Mapping[str, Floats]], baseline: str, eligible: Collection[str], centre: Centre
) -> Best | None:
    """The one of ``eligible`` with the greatest speedup; None where none is faster than the baseline beyond doubt.

    Which one leads is chosen by the same data, and the one that leads of many identical programs has had luck. So every
    pair that could have been compared counts, the baseline's too: each interval is made with one k(k-1)/2-th of the
    error, so that all of them hold at once whatever was chosen (Bonferroni; Dunn 1961, Multiple comparisons among
    means, https://doi.org/10.2307/2282330). To count only the leader's k-1 comparisons would be too few.

    Args:
        turns: as in ``paired``, of everything that took part, whether eligible or not.
        baseline: which of them that is.
        eligible: those that may be named.
        centre: over the rounds of a launch.
    """
    pairs = math.comb(len({name for launch in turns for name in launch}), 2)
    confidence = 1 - (1 - NOMINAL) / max(1, pairs)
    speedups = paired(turns, baseline, centre, confidence)
    faster = {name: i.value for name, i in speedups.items() if name in eligible and i is not None and i.low > 1}
    if not faster:
        return None
    first = max(faster, key=faster.__getitem__)
    others = paired(turns, first, centre, confidence)
    return Best(first, tuple(name for name, i in others.items() if name != first and (i is None or i.high >= 1)))


def trend(turns: Sequence[Floats], variant: int, baseline: int) -> Interval | None:
    """How much slower a variant's first turns of a launch were than its last, as a ratio, over launches.

    Args:
        turns: of each launch, (rounds, variants) in ns.
        variant: whose trend; the baseline's own is taken off it, so that the machine's drift is not held against it.
        baseline: which one that is; the same index gives the baseline's own trend.

    A 99.9% interval: it is asked of every row. None for fewer than two launches that tell.
    """
    logs = []
    for launch in turns:
        pair = np.log(launch[:, [variant, baseline]])
        halves = pair[: len(pair) // 2], pair[len(pair) // 2 :]
        if any(np.isnan(half).all(axis=0).any() for half in halves):
            continue
        own, of_baseline = median_present(halves[0]) - median_present(halves[1])
        logs.append(float(own if variant == baseline else own - of_baseline))
    return speedup(logs, confidence=0.999)


def quantile(degrees: float, confidence: float) -> float:
    """How many standard errors a two-sided Student-t interval reaches."""
    from scipy import special  # here and below: a launch computes no interval, and need not wait for SciPy

    return float(special.stdtrit(degrees, (1 + confidence) / 2))


def precise_enough(speedups: Sequence[Mapping[str, float]], precision: float) -> bool:
    """Tells whether every variant's interval is as narrow as requested, whatever it says."""
    names = {name for launch in speedups for name in launch}
    intervals = [speedup([launch[name] for launch in speedups if name in launch]) for name in names]
    return all(i is not None and i.half_width <= precision for i in intervals)


def verdict(interval: Interval | None, margin: float) -> Verdict:
    """``same`` if the interval lies in [1/(1+m), 1+m]; else ``faster`` or ``slower`` if it excludes 1.

    Else ``inconclusive``.
    """
    if interval is None:
        return Verdict.INCONCLUSIVE
    if 1 / (1 + margin) <= interval.low and interval.high <= 1 + margin:
        return Verdict.SAME
    if interval.low > 1:
        return Verdict.FASTER
    if interval.high < 1:
        return Verdict.SLOWER
    return Verdict.INCONCLUSIVE


def median_interval(values: Sequence[float]) -> Interval | None:
    """The median of independent values between order statistics, wherever they come from (of ten, the 2nd and the 9th).

    The narrowest symmetric pair that covers the median with at least 95%; None where even the extremes do not
    (fewer than six values). Source: Conover, Practical Nonparametric Statistics, section 3.2.
    """
    from scipy import special

    ordered = sorted(values)
    n = len(ordered)
    rank = 0
    while special.bdtr(rank, n, 0.5) <= (1 - CONFIDENCE) / 2:  # rank + 1 values left out at either end
        rank += 1
    if rank == 0:
        return None
    return Interval(float(np.median(ordered)), ordered[rank - 1], ordered[n - rank])


def percentile(values: NDArray[np.number], share: float) -> float | None:
    """The ``share`` quantile; None where so many values can't bound it: below 59 for p95, 299 for p99.

    That many are needed for the largest to lie beyond the quantile with 95% confidence (Wilks 1941).
    """
    if len(values) < least_samples(share):
        return None
    return float(np.quantile(values, share))


def tail_speedup(launches: Iterable[tuple[NDArray[np.number], NDArray[np.number]]], share: float) -> Interval | None:
    """How many times faster a program's slow calls are than the baseline's: the ratio of their ``share`` quantiles.

    As ``speedup``: exp of the mean over launches of each one's ln. None where a launch has too few calls for it.

    Args:
        launches: of each, the baseline's calls and the program's.
        share: which quantile, 0.9 say.
    """
    logs = []
    for pair in launches:
        baseline, other = (percentile(walls, share) for walls in pair)
        if baseline is None or other is None:
            return None
        logs.append(math.log(baseline / other))
    return speedup(logs)


def most_by_chance(count: int, rate: float) -> int:
    """The number of events that so many chances at this rate exceed once in 20 times, or more seldom."""
    from scipy import special

    return next(k for k in range(count + 1) if special.bdtr(k, count, rate) >= CONFIDENCE - 1e-12)


def least_samples(share: float) -> int:
    """The smallest n with 1 - share**n >= 95%."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share))
