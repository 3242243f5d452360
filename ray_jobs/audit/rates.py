"""From comparisons to rates with their intervals, and whether the tool's promises hold: pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ray_jobs.audit.peers import PEERS
from ray_jobs.statistics import CONFIDENCE, Interval, verdict

CLAIMED = 0.05  # share of intervals that miss the truth
MOST_FALSE = 0.10  # where the interval of the false-verdict rate must end
LEAST_FOUND = 0.90  # of differences of at least ``PROMISED_PERCENT``
PROMISED_PERCENT = 2
LEAST_COMPARISONS = 10  # below which shares found say nothing
MOST_BIAS = 0.005
WRONG = ("faster", "slower")

KEPT, BROKEN, TOO_FEW = "kept", "broken", "too few comparisons to tell"
EXIT = {KEPT: 0, BROKEN: 1, TOO_FEW: 3}


@dataclass(frozen=True)
class Comparison:
    """One trial of two programs whose true speedup is known, and what other ways of timing said of them."""

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
    def interval(self) -> Interval | None:
        """The speedup with its limits; None where the trial brought none."""
        if self.speedup is None or self.speedup_low is None or self.speedup_high is None:
            return None
        return Interval(self.speedup, self.speedup_low, self.speedup_high)


def share(count: int, of: int) -> tuple[float, float]:
    """The exact 95% interval of a share (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404)."""
    if of == 0:
        return 0.0, 1.0
    found = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def false_verdicts(comparisons: Sequence[Comparison], margin: float) -> dict[str, Any]:
    """How often identical programs were called different, by this tool and by its peers."""
    told = [c for c in comparisons if c.interval is not None]
    wrong = sum(c.verdict in WRONG for c in told)
    low, high = share(wrong, len(told))
    missing = sum(not c.speedup_low <= c.truth <= c.speedup_high for c in told if c.speedup_low and c.speedup_high)
    missing_low, missing_high = share(missing, len(told))
    return {
        "comparisons": len(told),
        "false_verdicts": wrong,
        "rate_low": low,
        "rate_high": high,
        "intervals_missing_1": missing,
        "missing_low": missing_low,
        "missing_high": missing_high,
        "median_half_width": _median([c.interval.half_width for c in told if c.interval]),
        "same": sum(c.verdict == "same" for c in told),
        "failed": len(comparisons) - len(told),
        "disturbed_share": _disturbed(told),
        "seconds_each": _median([c.seconds for c in told]),
        "seconds": sum(c.seconds for c in comparisons),
        "peers": {peer: _peer(peer, told, margin) for peer in PEERS},
        "promise": aa_promise(wrong, len(told)),
    }


def aa_promise(wrong: int, comparisons: int) -> str:
    """Kept where the rate's interval reaches below 5% and ends under 10%."""
    low, high = share(wrong, comparisons)
    if low >= CLAIMED:
        return BROKEN
    return KEPT if high < MOST_FALSE else TOO_FEW


def _peer(peer: str, comparisons: Sequence[Comparison], margin: float) -> dict[str, Any]:
    """A peer gives a number without an interval: a false verdict is a difference of more than the margin."""
    asked = [c for c in comparisons if getattr(c, peer) is not None]
    ratios = [getattr(c, peer) for c in asked]
    wrong = sum(verdict(Interval(ratio, ratio, ratio), margin) in WRONG for ratio in ratios)
    low, high = share(wrong, len(asked))
    off = [abs(math.log(ratio)) for ratio in ratios]
    return {
        "comparisons": len(asked),
        "false_verdicts": wrong,
        "rate_low": low,
        "rate_high": high,
        "worst_error": max(off, default=None),
        "seconds_each": _median([getattr(c, f"{peer}_s") for c in asked]),
    }


def effects_found(comparisons: Sequence[Comparison], percent: int) -> dict[str, Any]:
    """How often a known slowdown was found (an interval wholly below 1), and the bias of its estimate."""
    told = [c for c in comparisons if c.interval is not None]
    found = sum(c.speedup_high < 1 for c in told if c.speedup_high is not None)
    low, high = share(found, len(told))
    errors = [math.log(c.speedup / c.truth) for c in told if c.speedup is not None]
    bias_low, bias_high = _mean_interval(errors)
    return {
        "percent": percent,
        "comparisons": len(told),
        "found": found,
        "found_low": low,
        "found_high": high,
        "bias": float(np.mean(errors)) if errors else None,
        "bias_low": bias_low,
        "bias_high": bias_high,
        "median_half_width": _median([c.interval.half_width for c in told if c.interval]),
        "failed": len(comparisons) - len(told),
        "disturbed_share": _disturbed(told),
        "seconds_each": _median([c.seconds for c in told]),
        "most_seconds": max((c.seconds for c in told), default=None),
        "seconds": sum(c.seconds for c in comparisons),
        "promise": effect_promise(percent, found, len(told), bias_low, bias_high),
    }


def effect_promise(percent: int, found: int, comparisons: int, bias_low: float | None, bias_high: float | None) -> str:
    """Kept where a difference of at least 2% is found 9 times in 10, and the bias is not beyond doubt above 0.5%."""
    if bias_low is not None and bias_high is not None and (bias_low > MOST_BIAS or bias_high < -MOST_BIAS):
        return BROKEN
    if comparisons < LEAST_COMPARISONS:
        return TOO_FEW
    if percent < PROMISED_PERCENT or found / comparisons >= LEAST_FOUND:
        return KEPT
    return BROKEN if share(found, comparisons)[1] < LEAST_FOUND else TOO_FEW


def _mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def _disturbed(comparisons: Sequence[Comparison]) -> float | None:
    rounds = sum(c.launches * c.rounds for c in comparisons)
    return sum(c.disturbed_rounds for c in comparisons) / rounds if rounds else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
