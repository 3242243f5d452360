"""The most requests a second that hold a bound: where to look next, and what the windows say together.

Nothing rests on the largest rate that passed: on one ladder of rates identical programs would share it to the digit,
and an interval over launches would have no width. A latency that grows with the rate is fitted, and where it meets the
bound is read off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FIRST = 0.12  # of ln of the rate, the breadth in which the first windows of launches lie
CLOSE = 0.05  # of ln of the rate, the breadth of windows around where the bound is met; steps towards it are longer
STEEP = 2.5  # ln of a latency over ln of the rate, about, in windows that are short for a queue to grow
FARTHEST = 0.5  # of ln of the rate, that a step may be
OVER = 1.05  # times as much as can be answered at all: beyond that a rate tells nothing new
LEAST = 0.2  # of what can be answered at all: a bound that is broken there is held at no rate worth waiting for

Floats = NDArray[np.float64]
Seen = tuple[float, float]  # a rate, and the latency there at the bound's percentile; any unit


@dataclass
class Search:
    """Where one variant of a launch looks. Offsets are the launch's own, the same for each of its variants."""

    bound: float
    first: float  # guess of the rate
    most: float  # that can be answered at all
    seen: list[Seen] = field(default_factory=list)
    least: float = LEAST  # of ``most``

    def next(self, offset: float) -> float:
        """The next rate; ``offset``: from -0.5 to 0.5."""
        if self.at_the_end:
            return self.least * self.most
        return min(self._middle() * math.exp(offset * self._breadth()), OVER * self.most)

    @property
    def at_the_end(self) -> bool:
        """Whether the next rate is the least that is tried, whatever the offset."""
        return self._middle() * math.exp(-self._breadth() / 2) <= self.least * self.most

    @property
    def hopeless(self) -> bool:
        """Whether even the least rate broke the bound: there is nothing to look for."""
        return any(rate <= self.least * self.most and latency > self.bound for rate, latency in self.seen)

    def _bracketed(self) -> bool:
        return bool(self._held()) and len(self._held()) < len(self.seen)

    def _held(self) -> list[float]:
        return [rate for rate, latency in self.seen if latency <= self.bound]

    def _breadth(self) -> float:
        return CLOSE if self.seen else FIRST

    def _middle(self) -> float:
        if not self.seen:
            return self.first
        if self._bracketed():
            return met_at(self.seen, self.bound)
        rate, latency = max(self.seen) if self._held() else min(self.seen)
        gap = math.log(self.bound / latency)
        step = min(FARTHEST, max(abs(gap) / STEEP, CLOSE * 2 ** len(self.seen)))
        return rate * math.exp(math.copysign(step, gap))


def crossing(seen: Sequence[Seen], bound: float) -> float | None:
    """The rate at which a latency that never falls as the rate grows meets the bound; None outside of the windows.

    Between two of them ln of the latency is a straight line over ln of the rate.
    """
    if not seen:
        return None
    ordered = sorted(seen)
    rates, values = (np.log(np.array(column)) for column in zip(*ordered, strict=True))
    rates, fitted = isotonic(rates, values)
    wanted = math.log(bound)
    if fitted[0] > wanted or fitted[-1] < wanted:
        return None
    return float(np.exp(np.interp(wanted, fitted, rates)))


def met_at(seen: Sequence[Seen], bound: float) -> float:
    """The rate at which the bound is met, where some windows held it and some did not.

    Noise may leave a fit that meets it nowhere: then it is the middle of the highest rate that held and the lowest that
    did not.
    """
    held, over = ([rate for rate, latency in seen if (latency <= bound) == holds] for holds in (True, False))
    return crossing(seen, bound) or math.sqrt(max(held) * min(over))


def isotonic(places: Floats, values: Floats) -> tuple[Floats, Floats]:
    """(places, values) of the closest steps that never fall, each step a point in the middle of its places.

    Source: pool adjacent violators, Ayer et al. 1955, https://doi.org/10.1214/aoms/1177728423.
    """
    pools: list[tuple[float, float, int]] = []  # sums of places and values, and how many
    for place, value in zip(places, values, strict=True):
        pools.append((float(place), float(value), 1))
        while len(pools) > 1 and pools[-2][1] * pools[-1][2] >= pools[-1][1] * pools[-2][2]:
            last, before = pools.pop(), pools.pop()
            pools.append((last[0] + before[0], last[1] + before[1], last[2] + before[2]))
    counts = np.array([count for *_, count in pools], dtype=np.float64)
    sums = np.array([pool[:2] for pool in pools])
    return sums[:, 0] / counts, sums[:, 1] / counts
