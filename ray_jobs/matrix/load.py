"""Launches under load -> columns of rows: how many calls a second each variant answers, and what they cost."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from chatbot.variants import BASELINE, CONTROL
from ray_jobs import statistics
from ray_jobs.load.points import Point, capacities, lateness_ns, points
from ray_jobs.matrix.row_warnings import imprecision
from ray_jobs.measure.result import SERVED, LaunchResult
from ray_jobs.measure.trial import Trial
from ray_jobs.scenario import Load, Scenario, price_for
from ray_jobs.statistics import Interval, Verdict

LEAST_FOUND = 0.8  # of the launches, that a mean over them may rest on
NEAR = 0.1  # of ln of the rate: windows that tell of the capacity
LATE_WARNING = 0.2  # of the windows, in which the generator was late


def asked(trial: Trial) -> dict[str, Any]:
    """The columns that say how calls came."""
    load = trial.load
    if load is None:
        return {"scenario": Scenario.SINGLE_STREAM}
    who = {"replicas": load.replicas, "replica_kind": load.kind, "max_batch": load.max_batch}
    return {"scenario": load.scenario, "slo": load.slo, "through": load.through, **who}


def told(trial: Trial, label: str, hardware: str | None, launches: Sequence[LaunchResult]) -> dict[str, Any]:
    """The columns of a sound variant, with its warnings."""
    load = trial.load
    assert load is not None
    every = [capacities(launch) for launch in launches]
    mine = _over_launches([math.log(one[label]) for one in every if label in one], len(every))
    windows = [point for launch in launches for point in points(launch) if point.variant == label]
    calls = sum(int((launch.samples.variant == launch.variants.index(label)).sum()) for launch in launches)
    found: dict[str, Any] = {"samples": calls, "generator_late_p99_us": _late(load, label, launches)}
    warnings = list(_doubts(load, windows))
    if mine is None:
        held = {} if _holds_at_some(load, windows) else {"capacity_rps": 0.0}
        return {**found, **held, "warnings": (*warnings, _why_none(load, windows, every, label))}
    found |= mine.columns("capacity_rps") | _near(load, mine, windows)
    price = price_for(trial.prices, hardware)
    if price is not None:
        found["cost_per_million"] = price / 3600 / (mine.value * trial.workload.batch) * 1e6
    compared = _compared(trial, label, every)
    if (lacking := sum(label not in one for one in every)) and label != BASELINE:
        warnings.append(f"{lacking} of {len(every)} launches found no capacity of it, and are not in its interval")
    return {**found, **compared, "warnings": (*warnings, *compared.get("warnings", ()))}


def _over_launches(logs: Sequence[float], launches: int) -> Interval | None:
    """exp of a mean over launches with its interval; None where too many of them have no value: not by accident."""
    return statistics.speedup(logs) if len(logs) >= LEAST_FOUND * launches else None


def _holds_at_some(load: Load, windows: Sequence[Point]) -> bool:
    """Whether there is a rate at which the bound was held, or may be: every window that counts has broken it else."""
    bound, counted = load.bound, [point.bound_ms for point in windows if point.kept and point.bound_ms is not None]
    return bound is None or not counted or min(counted) <= bound.seconds * 1e3


def _why_none(load: Load, windows: Sequence[Point], every: Sequence[dict[str, float]], label: str) -> str:
    """Why a variant has no capacity with an interval."""
    if count := sum(label in one for one in every):
        return f"only {count} of {len(every)} launches found a capacity of it: which ones is no accident"
    counted = [point for point in windows if point.kept and point.bound_ms is not None]
    bound = load.bound
    if bound is None or not counted:
        return "no window of it could be used"
    if _holds_at_some(load, windows):
        return "where it stops to hold the bound was not found"
    lowest = min(counted, key=lambda point: point.offered_rps or 0.0)
    latency = "above the bound" if lowest.abandoned else f"{lowest.bound_ms:.3g} ms"
    at = f"{bound.percentile} is {latency} at {lowest.offered_rps:.3g} calls a second"
    return f"it holds the bound at no rate that was tried: {at}"


def _doubts(load: Load, windows: Sequence[Point]) -> Iterable[str]:
    bound = load.bound
    if bound is not None and windows and all(point.bound_ms is None for point in windows):
        yield f"too few requests for a {bound.percentile}: give a larger --budget, or a lower percentile"
    late = sum(point.late for point in windows)
    if late > LATE_WARNING * len(windows):
        counted = f"{late} of {len(windows)} windows, which do not count"
        yield f"requests were sent late in {counted}: who sends them needs a core of its own"


def _near(load: Load, capacity: Interval, windows: Sequence[Point]) -> dict[str, float]:
    """What was offered and answered within the bound, in the windows nearest to the capacity."""
    if load.bound is None:
        return {}
    kept = [one for one in windows if one.kept and one.offered_rps and not one.abandoned]
    near = [one for one in kept if abs(math.log((one.offered_rps or 1.0) / capacity.value)) <= NEAR]
    if not near:
        return {}
    offered = float(np.mean([one.offered_rps or 0.0 for one in near]))
    return {"offered_rps": offered, "goodput_rps": float(np.mean([one.good_rps or 0.0 for one in near]))}


def _compared(trial: Trial, label: str, every: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The ratio of the capacities of a launch, and the verdict on it."""
    if label == BASELINE:
        return {"capacity_ratio": 1.0, "capacity_verdict": Verdict.BASELINE}
    logs = [math.log(one[label] / one[BASELINE]) for one in every if label in one and BASELINE in one]
    interval = _over_launches(logs, len(every))
    verdict = statistics.verdict(interval, trial.margin)
    if interval is None:
        few = "too few launches have a capacity of it and of the baseline"
        return {"capacity_verdict": verdict, "warnings": (few,)}
    wide = f"against {BASELINE}, {imprecision(interval, trial.precision)}"  # the capacity itself may be surer
    warnings = [wide] if interval.half_width > trial.precision else []
    if label == CONTROL and verdict in (Verdict.FASTER, Verdict.SLOWER):
        warnings.append("the control differs from the baseline, which is the same program: distrust this trial")
    return {**interval.columns("capacity_ratio"), "capacity_verdict": verdict, "warnings": tuple(warnings)}


def _late(load: Load, label: str, launches: Sequence[LaunchResult]) -> float | None:
    """How late requests were seen, in us at the 99th percentile: the median over launches."""
    if load.bound is None:
        return None
    found = []
    for launch in launches:
        samples = launch.samples
        mine = (samples.phase == SERVED) & (samples.variant == launch.variants.index(label))
        if launch.served is not None and mine.any():
            found.append(float(np.quantile(lateness_ns(launch, launch.served, mine), 0.99)) / 1e3)
    return float(np.median(found)) if found else None
