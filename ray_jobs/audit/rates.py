"""Turns comparisons into rates with their intervals, and judges the tool's promises: pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ray_jobs.audit.alternatives import PEERS
from ray_jobs.matrix.rows import Status
from ray_jobs.statistics import CONFIDENCE, Estimate, Interval, Verdict, verdict

CLAIMED = 0.05  # share of intervals that miss the truth
MOST_FALSE = 0.10  # where the interval of the false-verdict rate must end
LEAST_FOUND = 0.90  # of differences of at least ``PROMISED_PERCENT``
PROMISED_PERCENT = 2
LEAST_COMPARISONS = 10  # below which shares found say nothing
MOST_BIAS = 0.005
MOST_FAILED = 0.05  # share of trials without a result, above which nothing is promised of the rest
WRONG = (Verdict.FASTER, Verdict.SLOWER, Verdict.INVALID)  # verdicts on two identical programs


class Promise(StrEnum):
    """The state of a promise."""

    KEPT = "kept"
    BROKEN = "broken"
    TOO_FEW = "too few comparisons to tell"
    NONE = "none made"


EXIT: dict[str, int] = {Promise.KEPT: 0, Promise.BROKEN: 1, Promise.TOO_FEW: 3, Promise.NONE: 0}


@dataclass(frozen=True)
class Comparison:
    """One trial of two programs whose true speedup is known, and what alternatives reported for them."""

    number: int
    beside_load: bool
    variant: str
    truth: float
    status: str
    reason: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    verdict: str | None = None
    warnings: tuple[str, ...] = ()
    launches: int = 0
    lost_launches: int = 0  # run again
    rounds: int = 0  # of each launch
    discarded_rounds: int = 0  # of all
    disturbed_rounds: int = 0
    p50_ms: float | None = None  # of the baseline
    sentinel_ms: float | None = None
    timed_s: float = 0.0  # inside timed calls
    seconds: float = 0.0  # of the trial, start of its launch server included
    torch_benchmark: float | None = None  # speedups
    torch_benchmark_s: float | None = None
    mean_of_100: float | None = None
    mean_of_100_s: float | None = None

    @property
    def told(self) -> bool:
        """True if the trial ended with a finding, even if only that a variant is invalid."""
        return self.status == Status.DONE and (self.interval is not None or self.verdict == Verdict.INVALID)

    @property
    def interval(self) -> Interval | None:
        """The speedup with its limits; None if the trial found none."""
        if self.speedup is None or self.speedup_low is None or self.speedup_high is None:
            return None
        return Interval(self.speedup, self.speedup_low, self.speedup_high)


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The exact 95% interval of a share (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404)."""
    if of == 0:
        return 0.0, 1.0
    interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def _limits(name: str, count: int, of: int) -> dict[str, float]:
    low, high = share_interval(count, of)
    return {f"{name}_low": low, f"{name}_high": high}


def false_verdicts(comparisons: Sequence[Comparison], margin: float) -> dict[str, Any]:
    """Counts how often identical programs were called different, by this tool and by the alternatives."""
    told = [c for c in comparisons if c.told]
    intervals = [c.interval for c in told if c.interval is not None]
    wrong = sum(c.verdict in WRONG for c in told)
    missing = sum(not interval.low <= 1 <= interval.high for interval in intervals)
    beyond = sum(_beyond(interval.value, margin) for interval in intervals)
    failed = len(comparisons) - len(told)
    return {
        "comparisons": len(told),
        "false_verdicts": wrong,
        **_limits("rate", wrong, len(told)),
        "same": sum(c.verdict == Verdict.SAME for c in told),
        "inconclusive": sum(c.verdict == Verdict.INCONCLUSIVE for c in told),
        "beyond_margin": beyond,
        "intervals_missing_1": missing,
        **_limits("missing", missing, len(intervals)),
        "median_half_width": _median([interval.half_width for interval in intervals]),
        "failed": failed,
        "lost_launches": sum(c.lost_launches for c in comparisons),
        "disturbed_share": _disturbed(told),
        "seconds_each": _median([c.seconds for c in told]),
        "seconds": sum(c.seconds for c in comparisons),
        "peers": {peer: _peer(peer, comparisons, margin) for peer in PEERS},
        "promise": aa_promise(wrong, len(told), missing, failed),
    }


def aa_promise(wrong: int, comparisons: int, missing: int = 0, failed: int = 0) -> Promise:
    """Kept where the rate's interval reaches below 5% and ends under 10%.

    Broken where it lies above 5%, or where more intervals miss the truth than are claimed to, beyond doubt.
    """
    low, high = share_interval(wrong, comparisons)
    if low >= CLAIMED or share_interval(missing, comparisons)[0] >= CLAIMED:
        return Promise.BROKEN
    enough = high < MOST_FALSE and failed <= MOST_FAILED * (comparisons + failed)
    return Promise.KEPT if enough else Promise.TOO_FEW


def _beyond(speedup: float, margin: float) -> bool:
    return verdict(Interval(speedup, speedup, speedup), margin) in WRONG


def _peer(peer: str, comparisons: Sequence[Comparison], margin: float) -> dict[str, Any]:
    """A peer gives a number without an interval: a false verdict is a difference of more than the margin."""
    asked = [c for c in comparisons if getattr(c, peer) is not None]
    ratios = [getattr(c, peer) for c in asked]
    wrong = sum(_beyond(ratio, margin) for ratio in ratios)
    return {
        "comparisons": len(asked),
        "false_verdicts": wrong,
        **_limits("rate", wrong, len(asked)),
        "worst_error": max((math.expm1(abs(math.log(ratio))) for ratio in ratios), default=None),
        "seconds_each": _median([getattr(c, f"{peer}_s") for c in asked]),
    }


def effects_found(comparisons: Sequence[Comparison], percent: int) -> dict[str, Any]:
    """Counts how often a known slowdown was found (an interval wholly below 1), and the bias of its estimate.

    A trial that failed has found nothing. ``called_slower`` is the verdict's word for it, which also asks that the
    interval reaches beyond the margin.
    """
    told = [(c, c.interval) for c in comparisons if c.told and c.interval is not None]
    found = sum(interval.high < 1 for _, interval in told)
    missing = sum(not interval.low <= c.truth <= interval.high for c, interval in told)
    errors = [math.log(interval.value / c.truth) for c, interval in told]
    bias = estimate.interval(CONFIDENCE) if (estimate := Estimate.of(errors)) else None
    bias_low, bias_high = (bias.low, bias.high) if bias else (None, None)
    return {
        "percent": percent,
        "comparisons": len(comparisons),
        "found": found,
        **_limits("found", found, len(comparisons)),
        "called_slower": sum(c.verdict == Verdict.SLOWER for c, _ in told),
        "intervals_missing_truth": missing,
        **_limits("missing", missing, len(told)),
        "bias": float(np.mean(errors)) if errors else None,
        "bias_low": bias_low,
        "bias_high": bias_high,
        "median_half_width": _median([interval.half_width for _, interval in told]),
        "failed": len(comparisons) - len(told),
        "lost_launches": sum(c.lost_launches for c in comparisons),
        "disturbed_share": _disturbed([c for c, _ in told]),
        "seconds_each": _median([c.seconds for c in comparisons]),
        "most_seconds": max((c.seconds for c in comparisons), default=None),
        "seconds": sum(c.seconds for c in comparisons),
        "promise": effect_promise(percent, found, len(comparisons), bias_low, bias_high),
    }


def effect_promise(
    percent: int, found: int, comparisons: int, bias_low: float | None, bias_high: float | None
) -> Promise:
    """Kept where a difference of at least 2% is found 9 times in 10 and the bias is within 0.5%, beyond doubt.

    None is made of smaller differences, but that of the bias. A handful of comparisons decides nothing, whatever they
    say: the interval of a bias over two of them is as wide as chance has it.
    """
    if bias_low is None or bias_high is None or comparisons < LEAST_COMPARISONS:
        return Promise.TOO_FEW
    if bias_low > MOST_BIAS or bias_high < -MOST_BIAS:
        return Promise.BROKEN
    if percent < PROMISED_PERCENT:
        return Promise.NONE
    if share_interval(found, comparisons)[1] < LEAST_FOUND:
        return Promise.BROKEN
    unbiased = bias_low >= -MOST_BIAS and bias_high <= MOST_BIAS
    return Promise.KEPT if unbiased and found / comparisons >= LEAST_FOUND else Promise.TOO_FEW


def _disturbed(comparisons: Sequence[Comparison]) -> float | None:
    rounds = sum(c.launches * c.rounds for c in comparisons)
    return sum(c.disturbed_rounds for c in comparisons) / rounds if rounds else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
