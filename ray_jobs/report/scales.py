"""Scales of the charts, with round ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ray_jobs.statistics import Floats

WIDTH = 1000.0  # of every drawing, which the page stretches to the room that it has
Ticks = list[tuple[float, str]]  # percent of the width, text
WIDE = 4.0  # a range of so many times is drawn on a logarithmic scale


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on a drawing's width."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, low: float, high: float, log: bool | None = None) -> "Scale":
        """A scale with a little room on both sides; logarithmic for a wide range, unless given."""
        if not high > low:
            low, high = low * 0.9, high * 1.1 or 1.0
        wide = low > 0 and high / low > WIDE if log is None else log
        room = 0.03
        if wide:
            grown = (high / low) ** room
            return cls(low / grown, high * grown, True)
        least = low - room * (high - low)
        return cls(least if low < 0 else max(0.0, least), high + room * (high - low))

    def at(self, value: float) -> float:
        """The position of a value, 0 to ``WIDTH``; at the edge if it is beyond."""
        return float(self.places(np.array([value]))[0])

    def places(self, values: Floats) -> Floats:
        """The positions of many values."""
        inside = np.clip(values, self.low, self.high)
        if self.log:
            return np.asarray(WIDTH * np.log(inside / self.low) / math.log(self.high / self.low))
        return np.asarray(WIDTH * (inside - self.low) / (self.high - self.low))

    def ticks(self) -> Ticks:
        """Some round values."""
        values = _decades(self.low, self.high) if self.log and self.high / self.low > WIDE else []
        if len(values) < 3:
            values = _round_steps(self.low, self.high)
        return [(self.at(value) / WIDTH * 100, f"{value:g}") for value in values if self.low <= value <= self.high]


def percent_ticks(scale: Scale, values: Iterable[float]) -> Ticks:
    """Deviations in percent, with their signs."""
    said = ((value, f"{value:+g}%".replace("-", "\N{MINUS SIGN}") if value else "0") for value in values)
    return [(scale.at(value) / WIDTH * 100, text) for value, text in said]


def _round_steps(low: float, high: float, most: int = 6) -> list[float]:
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(times * 10.0**power, 12) for power in powers for times in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) <= 7 else [value for value in inside if f"{value:e}".startswith("1.")]
