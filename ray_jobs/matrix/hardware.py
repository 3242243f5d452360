"""Stations of one hardware class: the class's mean, its spread, and the stations that disagree with it.

Launches of several stations are never pooled: launches of one station share its silicon, so each station is one
estimate with its own error, and stations differ by more than these errors (a random-effects meta-analysis). All
estimates are natural logarithms, so that spreads are ratios. Pure functions.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from scipy import optimize

from ray_jobs.matrix.rows import Row, Status, grouped
from ray_jobs.statistics import CONFIDENCE, LEAST_ERROR, Estimate, Floats, Verdict, error_of_sum, quantile

MEDIAN_ERROR = math.sqrt(math.pi / 2)  # of a median over that of a mean, for many normal values
CLASS = ("hardware", "device", "model", "batch", "prompt_tokens", "reply_tokens", "threads", "variant", "stop_at_eos")


@dataclass(frozen=True)
class RandomEffects:
    """The mean of a class of which the measured stations are a sample; None where one station is not enough."""

    mean: float
    low: float | None = None
    high: float | None = None
    tau: float | None = None  # standard deviation between stations
    heterogeneity: float | None = None  # I^2: share of the variance that the stations' own errors do not explain


@dataclass(frozen=True)
class Disagreement:
    """A station that differs from the others of its class."""

    station: str
    others: tuple[str, ...]
    value: float
    mean: float  # of the others
    limit: float  # how far from it the station might lie by chance


@dataclass(frozen=True)
class HardwareClass:
    """One variant and workload over all stations of a class. Only stations with two launches or more count."""

    hardware: str
    device: str
    model: str
    batch: int
    prompt_tokens: int | None
    reply_tokens: int | None
    threads: int
    variant: str
    stations: int
    p50_ms: float | None = None
    p50_low_ms: float | None = None  # the limits and spreads of a single station are unknown
    p50_high_ms: float | None = None
    p50_spread: float | None = None  # between stations, a standard deviation as a share
    speedup: float | None = None  # the baseline has none
    speedup_low: float | None = None
    speedup_high: float | None = None
    speedup_spread: float | None = None
    heterogeneity: float | None = None  # I^2 of the speedup
    disagreeing: tuple[str, ...] = ()  # a sentence each
    stop_at_eos: bool = False


def short(hardware: str) -> str:
    """A class's name without what earlier versions did not tell: ``AMD EPYC [25.1.1, AVX2], 2 cores``."""
    return re.sub(r" \[[^\]]*\]", "", hardware)


def same_class(one: str, other: str) -> bool:
    """Whether two names may be of one class: where either is from before the CPU's model was told, it is not asked."""
    return one == other or (short(one) == short(other) and (one == short(one) or other == short(other)))


def random_effects(estimates: Collection[Estimate]) -> RandomEffects | None:
    """The mean of stations with its 95% interval, and their spread; None of no estimates.

    The variance between stations, tau^2, is Paule and Mandel's (1982, https://doi.org/10.6028/jres.087.022); the
    interval is Hartung and Knapp's with t(k - 1) (2001, https://doi.org/10.1002/sim.791; IntHout et al. 2014,
    https://doi.org/10.1186/1471-2288-14-25), never narrower than the plain one: their factor max(1, q) is 1 here, since
    q = Q(tau^2) / (k - 1) is what Paule and Mandel set to 1, or is less where tau is 0. I^2 is Higgins and Thompson's
    (2002, https://doi.org/10.1002/sim.1186). An error below ``LEAST_ERROR`` counts as that.
    """
    y, variances = _values(estimates)
    k = len(y)
    if k == 0:
        return None
    if k == 1:
        return RandomEffects(float(y[0]))
    tau2 = _between(y, variances)
    weights = 1 / (variances + tau2)
    mean = float(np.average(y, weights=weights))
    reach = quantile(k - 1, CONFIDENCE) / math.sqrt(weights.sum())
    plain = _dispersion(0.0, y, variances)
    unexplained = (plain - (k - 1)) / plain if plain > k - 1 else 0.0
    return RandomEffects(mean, mean - reach, mean + reach, math.sqrt(tau2), unexplained)


def _values(estimates: Collection[Estimate]) -> tuple[Floats, Floats]:
    """(k,) each: values and variances."""
    values, errors = (np.array([getattr(one, name) for one in estimates], np.float64) for name in ("value", "error"))
    return values, np.maximum(errors, LEAST_ERROR) ** 2


def _dispersion(tau2: float, y: Floats, variances: Floats) -> float:
    """Q: the weighted sum of squares about the weighted mean."""
    weights = 1 / (variances + tau2)
    return float((weights * (y - np.average(y, weights=weights)) ** 2).sum())


def _between(y: Floats, variances: Floats) -> float:
    """tau^2 by Paule and Mandel: where Q(tau^2) is what it is expected to be, k - 1; 0 where it never reaches that."""
    expected = len(y) - 1
    if expected < 1 or _dispersion(0.0, y, variances) <= expected:  # one value's dispersion is rounding
        return 0.0
    # Q(t) is at most the sum of squares / t, so at twice the sample variance it is at most half of what is expected.
    most = 2 * float(np.var(y, ddof=1))
    root = optimize.brentq(lambda tau2: _dispersion(tau2, y, variances) - expected, 0.0, most, xtol=1e-18)
    return float(root)


def disagreements(estimates: Mapping[str, Estimate], margin: float) -> list[Disagreement]:
    """The stations that differ from the others of their class by more than chance and by more than the margin.

    Each station is compared with the mean of the others (leave one out); chance gives one name or more to 5% of the
    classes of equal stations (Bonferroni). Two stations are one comparison, reported for the second.
    """
    names = list(estimates)
    asked = names if len(names) > 2 else names[1:]
    found = [_held_against(name, estimates, 1 - (1 - CONFIDENCE) / len(asked)) for name in asked]
    return [one for one in found if (off := abs(one.value - one.mean)) > one.limit and math.expm1(off) > margin]


def _held_against(station: str, estimates: Mapping[str, Estimate], confidence: float) -> Disagreement:
    """The variance of the difference adds up from parts, each with its own degrees of freedom."""
    one, others = estimates[station], {name: other for name, other in estimates.items() if name != station}
    y, variances = _values(others.values())
    tau2 = _between(y, variances)
    shares = 1 / (variances + tau2) / (1 / (variances + tau2)).sum()
    between = tau2 * (1 + (shares**2).sum())  # of this station and of the others' mean
    parts = np.array([*_values([one])[1], between, *(shares**2 * variances)])
    error, degrees = error_of_sum(parts, [one.degrees, max(1, len(others) - 1), *(o.degrees for o in others.values())])
    return Disagreement(station, tuple(others), one.value, float(shares @ y), quantile(degrees, confidence) * error)


def classes_of(rows: Sequence[Row], margin: float) -> list[HardwareClass]:
    """Every hardware class with every workload and variant that was validly measured on it, in the rows' order."""
    done = [row for row in rows if row.status == Status.DONE and row.verdict not in (None, Verdict.INVALID)]
    done = [row for row in done if row.of_base]  # what another environment does belongs to its own run
    known = [row for row in done if row.hardware is not None and _latency(row) is not None]
    groups = grouped(known, attrgetter(*CLASS)).values()
    return [_class_of(sorted(group, key=lambda row: row.station or ""), margin) for group in groups]


def off_stations(classes: Sequence[HardwareClass]) -> list[str]:
    """A sentence for each station that answers slower or faster than others of its class, by the baseline."""
    return list(dict.fromkeys(said for one in classes if one.speedup is None for said in one.disagreeing))


def _class_of(rows: Sequence[Row], margin: float) -> HardwareClass:
    latencies = {str(row.station): known for row in rows if (known := _latency(row)) is not None}
    speedups = {str(row.station): known for row in rows if (known := speedup_of(row)) is not None}
    p50, speedup = random_effects(latencies.values()), random_effects(speedups.values())
    return HardwareClass(
        **{name: getattr(rows[0], name) for name in CLASS},
        stations=len(rows),
        **_ratios("p50", "_ms", p50),
        **_ratios("speedup", "", speedup),
        heterogeneity=None if speedup is None else speedup.heterogeneity,
        disagreeing=_sentences(rows[0], latencies, speedups, margin),
    )


def _latency(row: Row) -> Estimate | None:
    """ln of p50 in ms. A median's error is that of a mean times ``MEDIAN_ERROR``."""
    if row.station is None or row.launches is None or row.p50_ms is None or row.p50_scatter is None:
        return None
    error = MEDIAN_ERROR * row.p50_scatter / math.sqrt(row.launches)
    return Estimate(math.log(row.p50_ms), error, row.launches - 1)


def speedup_of(row: Row) -> Estimate | None:
    """ln of the speedup, with the error that ``statistics.speedup`` made its interval of; None without an interval."""
    if row.station is None or row.launches is None or row.interval is None:
        return None
    return Estimate.of_speedup(row.interval, row.launches)


def _ratios(name: str, unit: str, effects: RandomEffects | None) -> dict[str, Any]:
    """The columns of a mean with its limits and spread, off the log scale."""
    if effects is None:
        return {}
    logs = {"": effects.mean, "_low": effects.low, "_high": effects.high}
    columns = {f"{name}{part}{unit}": None if log is None else math.exp(log) for part, log in logs.items()}
    return {**columns, f"{name}_spread": None if effects.tau is None else math.expm1(effects.tau)}


def _sentences(
    row: Row, latencies: Mapping[str, Estimate], speedups: Mapping[str, Estimate], margin: float
) -> tuple[str, ...]:
    """Names the stations that disagree with the class; latency is judged once, by the baseline's rows."""
    if row.variant == row.baseline:
        return tuple(_latency_sentence(found, row) for found in disagreements(latencies, margin))
    return tuple(_speedup_sentence(found, row) for found in disagreements(speedups, margin))


def _latency_sentence(found: Disagreement, row: Row) -> str:
    off = math.expm1(abs(found.value - found.mean))
    how = f"{off:.0%} {'slower' if found.value > found.mean else 'faster'}"
    if len(found.others) == 1:
        return f"{found.others[0]} and {found.station} disagree: {found.station} is {how} ({row.hardware})"
    return f"{found.station} is {how} than the other {len(found.others)} stations of its class ({row.hardware})"


def _speedup_sentence(found: Disagreement, row: Row) -> str:
    own, mean = math.exp(found.value), math.exp(found.mean)
    if len(found.others) == 1:
        both = f"{mean:.3f} on {found.others[0]}, {own:.3f} on {found.station}"
        return f"{found.others[0]} and {found.station} disagree: {row.variant}'s speedup is {both}"
    low, high = math.exp(found.mean - found.limit), math.exp(found.mean + found.limit)
    others = f"the other {len(found.others)} stations, {mean:.3f} (chance allows {low:.3f} to {high:.3f})"
    return f"{found.station}: {row.variant}'s speedup of {own:.3f} differs from that of {others}"
