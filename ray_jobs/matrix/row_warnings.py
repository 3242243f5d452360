"""Warnings for the reader of a row: what the machine did meanwhile, and what the variant itself did."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chatbot.variants import BASELINE, Workload
from ray_jobs import statistics
from ray_jobs.measure import interference
from ray_jobs.measure.interference import Interference
from ray_jobs.measure.result import TIMED, LaunchResult, VariantFacts
from ray_jobs.measure.trial import Pair
from ray_jobs.statistics import Interval

STARVED = 0.9  # share of the time of single-threaded calls that they had a core, below which a row says so
DRIFT = 0.1  # of the sentinel, above which a row says so
UNSETTLED = 0.2  # of the launches
TREND = 0.02  # within a launch


def interference_of(launches: Sequence[LaunchResult]) -> list[Interference]:
    """What was watched during each launch; runs from before it was watched have none."""
    return [launch.interference for launch in launches if launch.interference is not None]


def gpus_of(launches: Sequence[LaunchResult]) -> list[Mapping[str, Any]]:
    """The GPU that each launch recorded; older runs did not record it."""
    found = [launch.machine.get("gpu") or {} for launch in launches]
    return [gpu for gpu in found if {"name", "multiprocessors", "sentinel_ns"} <= gpu.keys()]


def sentinel_ms(launches: Sequence[LaunchResult]) -> list[float]:
    """The sentinel's mean time in each launch that recorded it."""
    return [float(np.mean(launch.sentinel_ns)) / 1e6 for launch in launches if launch.sentinel_ns]


def drift_of(speeds: Sequence[float]) -> float:
    """The relative change from the first half of some times to the second: 0.1 is 10% slower."""
    half = len(speeds) // 2
    return float(np.median(speeds[half:]) / np.median(speeds[:half])) - 1


def _starved(launches: Sequence[LaunchResult], workload: Workload) -> str | None:
    """The warning that calls lacked their core, by their CPU time: where no counter of waiting or throttling tells."""
    told = [cause.column for cause in interference.watched_causes(interference_of(launches))]
    if workload.device != "cpu" or workload.threads > 1 or {"run_delay_ns", "throttled_ns"} & {*told}:
        return None
    timed = [launch.samples.phase == TIMED for launch in launches]
    wall, cpu = (
        sum(int(getattr(launch.samples, name)[calls].sum()) for launch, calls in zip(launches, timed, strict=True))
        for name in ("wall_ns", "cpu_ns")
    )
    return f"its timed calls had a core for {cpu / wall:.0%} of their time only" if cpu < STARVED * wall else None


def _doubts(launch: LaunchResult) -> Iterator[str]:
    """Faults of the place where a launch ran."""
    yield from launch.machine.get("doubts", ())
    if (nice := launch.machine.get("niceness", 0)) > 0:
        yield f"its launches ran at nice {nice}, behind all else on the machine: start Ray with RAY_worker_niceness=0"
    if fault := (launch.machine.get("gpu") or {}).get("not_watched"):
        yield f"the GPU's clocks and other users could not be watched: {fault}"


def warnings_of(
    pair: Pair, launches: Sequence[LaunchResult], facts: Sequence[VariantFacts], workload: Workload
) -> list[str]:
    """All warnings about one variant of a trial, except for those of its limit, its replies and its precision."""
    warnings = list(dict.fromkeys(doubt for launch in launches for doubt in _doubts(launch)))
    watched = interference_of(launches)
    warnings += filter(None, [interference.complaint(watched), interference.unwatched(watched, workload.device)])
    warnings += filter(None, [_starved(launches, workload)] if pair.label == BASELINE else [])
    warnings += _drifts(launches)
    restless = sum(not f.settled for f in facts)
    if restless > UNSETTLED * len(facts):
        warnings.append(
            f"it never settled: still getting faster as its warm-up ended, in {restless} of {len(facts)} launches"
        )
    if any(f.scattered for f in facts):
        warnings.append("its GRU's weights are not in one buffer, so cuDNN copies all of them at each call")
    if any(map(_jit_unsupported, launches)) and any("torchscript" in (f.kind or "") for f in facts):
        warnings.append("torch.jit does not support Python 3.14 and later, and may break there: use 3.13 or earlier")
    warnings += _trends(pair, launches)
    return warnings


def _drifts(launches: Sequence[LaunchResult]) -> Iterator[str]:
    """The machine or its GPU became slower or faster from launch to launch."""
    speeds = {"machine": sentinel_ms(launches), "GPU": [float(np.mean(g["sentinel_ns"])) for g in gpus_of(launches)]}
    for what, times in speeds.items():
        drift = drift_of(times) if len(times) >= 2 else 0.0
        if abs(drift) > DRIFT:
            word = "slower" if drift > 0 else "faster"
            yield f"the {what} itself became {abs(drift):.0%} {word} meanwhile; speedups hold, latencies are mixed"


def _trends(pair: Pair, launches: Sequence[LaunchResult]) -> Iterator[str]:
    """The variant became faster or slower, next to the baseline of its side, within its launches."""
    own, baseline = pair.label, Pair(pair.side, BASELINE).label
    columns = {launch.variants: (launch.variants.index(own), launch.variants.index(baseline)) for launch in launches}
    if len(columns) != 1:
        return
    trend = statistics.trend([launch.turn_medians for launch in launches], *next(iter(columns.values())))
    if trend is not None and (trend.low > 1 + TREND or trend.high < 1 / (1 + TREND)):
        word = "slower" if trend.value > 1 else "faster"
        off = abs(trend.value - 1)
        yield f"it never settled: the first half of a launch was {off:.0%} {word} than the second"


def _jit_unsupported(launch: LaunchResult) -> bool:
    """Source: what torch.jit.script warns of on Python 3.14."""
    major, minor = map(int, str(launch.machine.get("python", "3.0")).split(".")[:2])
    return (major, minor) >= (3, 14)


def imprecision(interval: Interval, asked: float) -> str:
    """The warning of an interval that is wider than asked."""
    return f"precision not reached: ±{interval.half_width:.1%} where ±{asked:.1%} was asked; give a larger --budget"


def against_imprecision(interval: Interval, asked: float) -> str:
    """The same of a side's interval over ``base``."""
    return f"against base, {imprecision(interval, asked)}"
