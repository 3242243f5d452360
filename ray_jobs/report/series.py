"""The data of one trial's charts: samples of all launches, on one clock, one dot per turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs import statistics
from ray_jobs.measure.result import TIMED, WARMUP, LaunchResult
from ray_jobs.statistics import Centre, Floats

FIRST_CALLS = 10  # of the warm-up, in which a program that compiles itself does so


@dataclass(frozen=True)
class LaunchSpan:
    """The time span of a launch's rounds."""

    index: int
    start_s: float  # since the trial began
    end_s: float
    discarded_rounds: int


@dataclass(frozen=True)
class VariantSeries:
    """One variant of a trial: its calls, and its turns over time."""

    variant: str
    calls_ms: Floats  # (n,): timed calls of the rounds that are kept
    turn_s: Floats  # (m,): when each turn began
    turn_ms: Floats  # (m,): its median
    discarded: NDArray[np.bool_]  # (m,): its round was
    slow_start_ms: float | None  # what a launch's first calls took above its median, the median over launches


@dataclass(frozen=True)
class TrialSeries:
    """All variants of a trial on one clock."""

    launches: tuple[LaunchSpan, ...]
    variants: tuple[VariantSeries, ...]
    on_one_clock: bool  # else launches stand one after the other, without the time between them
    turns: tuple[Mapping[str, Floats], ...]  # of each launch, every variant's turns in ns, by the round they share
    centre: Centre  # of the rounds of a launch, by the method that measured it


def trial_series(launches: Sequence[LaunchResult]) -> TrialSeries:
    """Joins the launches of a trial, in order."""
    ends = [_last_s(launch) for launch in launches]
    timed = all(launch.elapsed_s is not None for launch in launches)
    if timed:
        starts = [max(0.0, (launch.elapsed_s or 0.0) - end) for launch, end in zip(launches, ends, strict=True)]
    else:
        starts = [0.0, *map(float, np.cumsum(ends)[:-1])]
    spans = [_span(*each) for each in zip(launches, starts, ends, strict=True)]
    names = dict.fromkeys(name for launch in launches for name in launch.variants)
    turns = tuple(dict(zip(launch.variants, launch.turn_medians.T, strict=True)) for launch in launches)
    variants = tuple(_variant(name, launches, starts) for name in names)
    return TrialSeries(tuple(spans), variants, timed, turns, launches[0].centre)


def _last_s(launch: LaunchResult) -> float:
    samples = launch.samples
    return float((samples.start_ns[-1] + samples.wall_ns[-1]) / 1e9) if len(samples.wall_ns) else 0.0


def _span(launch: LaunchResult, start_s: float, length_s: float) -> LaunchSpan:
    timed = launch.samples.start_ns[launch.samples.phase != WARMUP]
    first_s = float(timed[0] / 1e9) if len(timed) else 0.0
    return LaunchSpan(launch.launch.index, start_s + first_s, start_s + length_s, int((~launch.kept_rounds).sum()))


def _variant(name: str, launches: Sequence[LaunchResult], starts: Sequence[float]) -> VariantSeries:
    mine = [(launch, start) for launch, start in zip(launches, starts, strict=True) if name in launch.variants]
    turns = [_turns(launch, name, start) for launch, start in mine]
    slow = [extra for launch, _ in mine if (extra := _slow_start_ms(launch, name)) is not None]
    return VariantSeries(
        name,
        calls_ms=np.concatenate([launch.timed_ms(name) for launch, _ in mine]),
        turn_s=np.concatenate([began for began, _, _ in turns]),
        turn_ms=np.concatenate([ms for _, ms, _ in turns]),
        discarded=np.concatenate([discarded for _, _, discarded in turns]),
        slow_start_ms=float(np.median(slow)) if slow else None,
    )


def _turns(launch: LaunchResult, name: str, start_s: float) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(turns,) each: seconds, ms, whether discarded."""
    samples = launch.samples
    chosen = (samples.phase == TIMED) & (samples.variant == launch.variants.index(name))
    rounds, first = np.unique(samples.round[chosen], return_index=True)
    zeros = np.zeros(chosen.sum(), dtype=np.int64)
    medians = statistics.turn_medians(zeros, samples.round[chosen], samples.wall_ns[chosen], (launch.rounds, 1))
    began = samples.start_ns[chosen][first] / 1e9 + start_s
    return began, medians[rounds, 0] / 1e6, ~launch.kept_rounds[rounds]


def _slow_start_ms(launch: LaunchResult, name: str) -> float | None:
    samples, steady = launch.samples, launch.timed_ms(name)
    first = (samples.phase == WARMUP) & (samples.variant == launch.variants.index(name))
    if not first.any() or not len(steady):
        return None
    return float((samples.wall_ns[first][:FIRST_CALLS] / 1e6 - np.median(steady)).sum())
