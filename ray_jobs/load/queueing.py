"""A queue that several servers answer in the order of its arrivals, request by request."""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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


def arrivals(count: int, rng: np.random.Generator) -> Floats:
    """(N,): when the requests of a Poisson process come, in mean gaps, in an interval that holds just so many.

    Given how many of them an interval holds, they lie in it like so many independent uniform numbers. So every window
    offers exactly the rate that it names.
    """
    return np.sort(rng.uniform(0.0, count, count))


def capacity_of(
    gaps: Floats, service_s: float, servers: int, share: float, bound_s: float, least: float = 0.05
) -> float:
    """The most requests a second of which this share is answered within the bound, where each takes the same time.

    A first guess for the search; at most what the servers can answer at all, and at least ``least`` of it.
    """
    most = servers / service_s
    low, high = least * most, most
    for _ in range(24):
        middle = math.sqrt(low * high)
        found = latencies(gaps / middle, np.full(len(gaps), service_s), servers)
        low, high = (middle, high) if np.quantile(found, share) <= bound_s else (low, middle)
    return low
