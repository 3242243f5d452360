"""What the windows of a launch under load say: each by itself, then the capacity of each variant."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chatbot.variants import BASELINE
from ray_jobs.load.queueing import pauses
from ray_jobs.load.search import Seen, met_at
from ray_jobs.measure.requests import Requests, Served, Window
from ray_jobs.measure.result import SERVED, LaunchResult
from ray_jobs.scenario import Bound, Scenario, Through
from ray_jobs.statistics import least_samples

LATE_NS = 200_000  # from which a request counts as sent late
LATE_SHARE = 0.01  # of the bound, if that is more
LATE_PART = 0.5  # of the requests that may break the bound: as many may be sent late without telling much
GIVEN_UP_S = 2.0  # beyond the bound: so long nobody waits to be told that a queue grows
NEARLY = 0.95  # of what can be answered at all: a rate that is held there is held up to it
ABANDONED = 3.0  # times the bound that the oldest request waits when a window is given up

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Point:
    """What one window told."""

    variant: str  # its label
    round: int
    offered_rps: float | None  # None: all that are answered
    answered_rps: float
    p50_ms: float
    bound_ms: float | None  # the latency at the bound's percentile; None: too few requests for one, or no bound
    abandoned: bool  # the queue grew: the rate could not be held
    kept: bool  # else the machine was disturbed, or who sends the requests was late
    good_rps: float | None = None  # answered within the bound
    late: bool = False  # who sends the requests was


def given_up_s(bound: Bound) -> float:
    """The wait of the oldest request at which a window is given up, whose latency is then taken for that."""
    return min(ABANDONED * bound.seconds, bound.seconds + GIVEN_UP_S)


def points(launch: LaunchResult) -> list[Point]:
    """The windows of a launch in their order; those in which nothing was answered are left out."""
    served = launch.served
    return [] if served is None else list(_points(launch, served))


def _points(launch: LaunchResult, served: Served) -> Iterator[Point]:
    for window in served.windows:
        mine = _mine(launch, window)
        if mine.any():
            yield _point(launch, served, window, mine)


def _mine(launch: LaunchResult, window: Window) -> Mask:
    """(samples,): those of a window."""
    samples = launch.samples
    chosen = (samples.phase == SERVED) & (samples.round == window.round) & (samples.variant == window.variant)
    return np.asarray(chosen)


def _point(launch: LaunchResult, served: Served, window: Window, mine: Mask) -> Point:
    latencies, bound = launch.samples.wall_ns[mine], served.load.bound
    late = _is_late(launch, served, mine)
    kept = bool(launch.kept_rounds[window.round]) and not late
    label = launch.variants[window.variant]
    if bound is None:
        rate = throughput(launch, served, mine)
        return Point(label, window.round, None, rate, float(np.median(latencies)) / 1e6, None, False, kept)
    span_ns = (launch.samples.start_ns[mine] + latencies).max() - launch.samples.start_ns[mine].min()
    good = int((latencies <= bound.seconds * 1e9).sum())
    return Point(
        label,
        window.round,
        window.offered_rps,
        len(latencies) / (span_ns / 1e9),
        float(np.median(latencies)) / 1e6,
        _at_bound(latencies, window, bound),
        window.abandoned,
        kept,
        good / (span_ns / 1e9),
        late,
    )


def _at_bound(latencies: NDArray[np.int64], window: Window, bound: Bound) -> float | None:
    """The latency in ms at the bound's percentile; of a window that was given up ``given_up_s``, or more."""
    if window.abandoned:
        return given_up_s(bound) * 1e3
    if len(latencies) < least_samples(bound.share):
        return None
    return float(np.quantile(latencies, bound.share)) / 1e6


def _is_late(launch: LaunchResult, served: Served, mine: Mask) -> bool:
    bound = served.load.bound
    if bound is None or served.load.through == Through.SERVE:  # what keeps who sends them is the handle's own work
        return False
    late = lateness_ns(launch, served, mine) > max(LATE_NS, LATE_SHARE * bound.seconds * 1e9)
    return bool(late.mean() > LATE_PART * (1 - bound.share))


def lateness_ns(launch: LaunchResult, served: Served, mine: Mask) -> NDArray[np.int64]:
    """How late the generator saw each request that was due."""
    return served.requests.seen_ns[mine] - launch.samples.start_ns[mine]


def throughput(launch: LaunchResult, served: Served, mine: Mask) -> float:
    """Calls a second that all replicas answered, until the first of them had nothing left to do."""
    requests = served.requests
    began, ended, whom = requests.began_ns[mine], requests.ended_ns[mine], requests.replica[mine]
    last = min(int(ended[whom == one].max()) for one in np.unique(whom))
    start = int(began.min())
    shares = np.clip((last - began) / np.maximum(1, ended - began), 0.0, 1.0)  # of the call that it was still busy with
    return float(shares.sum() / ((last - start) / 1e9))


def capacities(launch: LaunchResult) -> dict[str, float]:
    """Calls a second of each sound variant; of ``server`` the most that hold the bound, if any rate does."""
    served = launch.served
    if served is None:
        return {}
    found: dict[str, float] = {}
    every = points(launch)
    for label in filter(launch.sound, launch.variants):
        mine = [point for point in every if point.variant == label and point.kept]
        capacity = _answered(mine) if served.load.scenario == Scenario.OFFLINE else _held(launch, served, label, mine)
        if capacity is not None:
            found[label] = capacity
    return found


def _answered(mine: list[Point]) -> float | None:
    return float(np.median([point.answered_rps for point in mine])) if mine else None


def _held(launch: LaunchResult, served: Served, label: str, mine: list[Point]) -> float | None:
    """Where the fit meets the bound; never more than can be answered at all, which short windows would not show."""
    bound = served.load.bound
    seen = seen_of(mine)
    if bound is None or not seen:
        return None
    most = saturation(launch, served, launch.variants.index(label), {point.round for point in mine})
    holding = [rate for rate, latency in seen if latency <= bound.seconds * 1e3]
    over = [rate for rate, latency in seen if latency > bound.seconds * 1e3]
    if not holding:
        return None
    if not over:
        return most if max(holding) >= NEARLY * most else None  # else it was not looked for far enough
    return min(most, met_at(seen, bound.seconds * 1e3))


def seen_of(mine: list[Point]) -> list[Seen]:
    """The windows as the search has them, latencies in ms."""
    known = [(point.offered_rps, point.bound_ms) for point in mine]
    return [(rate, latency) for rate, latency in known if rate is not None and latency is not None]


def saturation(launch: LaunchResult, served: Served, variant: int, rounds: set[int]) -> float:
    """Calls a second that replicas could answer without a pause: by the mean time of an answer and that between two."""
    return served.load.replicas * served.load.max_batch / (sum(cycle_ns(launch, served, variant, rounds)) / 1e9)


def cycle_ns(launch: LaunchResult, served: Served, variant: int, rounds: set[int]) -> tuple[float, float]:
    """Of a variant, by its index: how long a call takes in the mean, and what typically passes between two."""
    requests, samples = served.requests, launch.samples
    answers, between, whole = [], [], []
    for window in served.windows:
        if window.variant == variant and window.round in rounds:
            mine = _mine(launch, window)
            whole.append((samples.start_ns + samples.wall_ns - requests.sent_ns)[mine])
            took, passed = _calls_ns(requests, mine, served.load.max_batch)
            answers.append(took)
            between.append(passed)
    answer, known = float(np.concatenate(answers).mean()), np.concatenate(between)
    if not known.size:  # in a run of before replicas took requests by themselves: none was sent to a busy one
        return answer, float(np.concatenate(whole).mean()) - answer
    return answer, float(np.median(known))


def _calls_ns(requests: Requests, mine: Mask, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of one window: how long its calls took, and what passed before each that waited and is full."""
    who = np.stack([requests.replica[mine], requests.began_ns[mine]])
    (replica, began), index, call, counts = np.unique(who, True, True, True, axis=1)
    ended, last_sent = requests.ended_ns[mine][index], np.zeros(len(began), dtype=np.int64)
    np.maximum.at(last_sent, call.ravel(), requests.sent_ns[mine])
    waited, passed = pauses(last_sent, began, ended, replica)
    return ended - began, passed[counts[waited] == most]


def log_ratios(launch: LaunchResult) -> dict[str, float]:
    """ln(variant / baseline) of the capacities of a launch under load; empty where the baseline has none."""
    found = capacities(launch)
    base = found.get(BASELINE)
    return {} if base is None else {name: math.log(one / base) for name, one in found.items() if name != BASELINE}


def logs_of(launch: LaunchResult) -> Mapping[str, float]:
    """What the rule for stopping looks at: ln of the ratio with the baseline, of speeds or of capacities."""
    return launch.log_speedups() if launch.served is None else log_ratios(launch)
