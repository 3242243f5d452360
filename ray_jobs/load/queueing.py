"""A queue that several servers answer in the order of its arrivals, request by request."""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.scenario import Load

CALLS = 400  # of a window in which two programs are compared

Floats = NDArray[np.float64]
Times = NDArray[np.int64]
Mask = NDArray[np.bool_]


def latencies(due: Sequence[float] | Floats, service: Sequence[float] | Floats, servers: int = 1) -> Floats:
    """(N,): from when each request was due until it was answered, in the unit of both, which are in order of arrival.

    Of one server this is Lindley's recursion, of several Kiefer and Wolfowitz's. Sources: Lindley 1952,
    https://doi.org/10.1017/S0305004100027638; Kiefer and Wolfowitz 1955, https://doi.org/10.2307/1992852.
    """
    if servers == 1:  # the same recursion, all at once
        arrived, lengths = np.asarray(due, dtype=np.float64), np.asarray(service, dtype=np.float64)
        worked = np.cumsum(lengths)
        return np.asarray(worked + np.maximum.accumulate(arrived - worked + lengths) - arrived)
    free = [-math.inf] * servers
    found = []
    for arrival, length in zip(due, service, strict=True):
        end = max(arrival, free[0]) + length
        heapq.heapreplace(free, end)
        found.append(end - arrival)
    return np.array(found, dtype=np.float64)


def pauses(sent: Times, began: Times, ended: Times, replica: Times) -> tuple[Mask, Times]:
    """(waited, pauses): which calls waited for their replica, (N,), and what passed before each of those, (W,).

    All four (N,): when the last request of a call joined the queue, when its replica began and ended it, and which one
    that was; a replica answers one call at a time.
    """
    waited, passed = np.zeros(len(sent), dtype=bool), np.zeros(len(sent), dtype=np.int64)
    for one in np.unique(replica):
        mine = np.flatnonzero(replica == one)
        mine = mine[np.argsort(began[mine])]
        before, this = mine[:-1], mine[1:]
        waited[this] = sent[this] <= ended[before]
        passed[this] = began[this] - ended[before]
    return waited, passed[waited]


def needed(sent: Times, began: Times, ended: Times, replica: Times, each: bool = False) -> Floats:
    """(N,): how long each request by itself keeps its replica; arguments as of ``pauses``, each call of one request.

    One that found its replica idle needs what passed since it was sent, waking it included; one that waited needs its
    answer and what typically passes between two, the median over all of them; with ``each`` what did before it.
    """
    waited, passed = pauses(sent, began, ended, replica)
    found = (ended - sent).astype(np.float64)
    found[waited] = (ended - began)[waited] + (passed if each or not len(passed) else np.median(passed))
    return found


def quantile(values: Floats, share: float) -> float:
    """What ``np.quantile`` gives of (N,) values, ten times as fast for the few hundred of a window."""
    place = share * (len(values) - 1)
    below = min(int(place), max(0, len(values) - 2))
    parted = np.partition(values, [below, min(below + 1, len(values) - 1)])
    low, high = parted[below], parted[min(below + 1, len(values) - 1)]
    return float(low + (high - low) * (place - below))


def joined(due: Sequence[float] | Floats, service: float, servers: int, most: int, window: float = 0.0) -> Floats:
    """(N,): as ``latencies``, where a server answers up to ``most`` requests at once, in the same time as one.

    It takes those that are there, and where they are fewer it waits so long for others.
    """
    free, found = [-math.inf] * servers, np.empty(len(due))
    arrived = np.asarray(due, dtype=np.float64)
    first = 0
    while first < len(arrived):
        start = max(arrived[first], free[0])
        last = min(first + most, len(arrived)) - 1
        full = arrived[last] if last == first + most - 1 else math.inf
        begins = max(start, min(start + window, full))
        behind = min(int(np.searchsorted(arrived, begins, side="right")), first + most)
        heapq.heapreplace(free, begins + service)
        found[first:behind] = begins + service - arrived[first:behind]
        first = behind
    return found


def arrivals(count: int, rng: np.random.Generator) -> Floats:
    """(N,): when the requests of a Poisson process come, in mean gaps, in an interval that holds just so many.

    Given how many of them an interval holds, they lie in it like so many independent uniform numbers. So every window
    offers exactly the rate that it names.
    """
    return np.sort(rng.uniform(0.0, count, count))


def ratio_of(services_s: tuple[float, float], load: Load, rng: np.random.Generator, windows: int = 200) -> float:
    """What the second of two programs holds, over what the first holds, where each always takes as long.

    The geometric mean over so many windows, each of which both answer; for scenario ``server``.
    """
    bound, logs = load.bound, []
    assert bound is not None
    together = (load.max_batch, load.batch_window_ns / 1e9)
    for _ in range(windows):
        gaps = arrivals(CALLS, rng)
        first, second = (
            capacity_of(gaps, one, load.replicas, bound.share, bound.seconds, together=together) for one in services_s
        )
        logs.append(math.log(second / first))
    return math.exp(float(np.mean(logs)))


def capacity_of(
    gaps: Floats,
    service_s: float,
    servers: int,
    share: float,
    bound_s: float,
    least: float = 0.05,
    together: tuple[int, float] = (1, 0.0),
) -> float:
    """The most requests a second of which this share is answered within the bound, where each takes the same time.

    A first guess for the search; at most what the servers can answer at all, and at least ``least`` of it.
    ``together``: how many are answered at once, and how long they are waited for, as of ``joined``.
    """
    most = together[0] * servers / service_s
    low, high = least * most, most
    for _ in range(24):
        middle = math.sqrt(low * high)
        if together[0] > 1:
            found = joined(gaps / middle, service_s, servers, *together)
        else:
            found = latencies(gaps / middle, np.full(len(gaps), service_s), servers)
        low, high = (middle, high) if quantile(found, share) <= bound_s else (low, middle)
    return low
