"""The cells of two runs beside each other: what each run says of one variant and workload on one kind of hardware."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_jobs.matrix.hardware import LEAST_ERROR
from ray_jobs.matrix.rows import Row
from ray_jobs.report import text
from ray_jobs.results.run import FinishedRun
from ray_jobs.statistics import NOMINAL, Verdict, quantile

SAMPLES, ROWS = "samples", "rows"

Key = tuple[object, ...]


@dataclass(frozen=True)
class Estimate:
    """ln of a speedup over launches, with its standard error and that error's degrees of freedom."""

    value: float
    error: float
    degrees: int
    source: str  # SAMPLES, or ROWS where the run has none

    @classmethod
    def of_launches(cls, logs: Sequence[float]) -> "Estimate | None":
        """From each launch's own; None for fewer than two that tell."""
        known = [log for log in logs if not math.isnan(log)]
        if len(known) < 2:
            return None
        error = float(np.std(known, ddof=1)) / math.sqrt(len(known))
        return cls(float(np.mean(known)), max(error, LEAST_ERROR), len(known) - 1, SAMPLES)

    @classmethod
    def of_row(cls, row: Row) -> "Estimate | None":
        """From the interval of ``statistics.speedup``, which it gives back exactly: it reached so many errors."""
        if not (row.speedup and row.speedup_low and row.speedup_high and row.launches):
            return None
        degrees = row.launches - 1
        reach = math.log(row.speedup_high / row.speedup_low) / 2
        return cls(math.log(row.speedup), max(reach / quantile(degrees, NOMINAL), LEAST_ERROR), degrees, ROWS)


@dataclass(frozen=True)
class Cell:
    """One row of one run, with its estimate where it is valid."""

    row: Row
    estimate: Estimate | None

    @property
    def hardware(self) -> str:
        """The class of its station; runs from before classes know the device only."""
        return self.row.hardware or str(self.row.device_name)

    @property
    def asked(self) -> Key:
        """What was asked for, wherever it was measured. The model's path is not compared: its weights are."""
        row = self.row
        return row.device, row.batch, row.prompt_tokens, row.reply_tokens, row.threads, row.variant

    @property
    def name(self) -> str:
        row = self.row
        sizes = text.short_sizes(row)
        return f"{row.variant}, {sizes} on {self.hardware} ({row.station or 'no station'})"


@dataclass(frozen=True)
class Matched:
    """The cells of both runs that stand for the same, and those that only one of them has."""

    both: tuple[tuple[Cell, Cell], ...]
    only_base: tuple[Cell, ...]
    only_new: tuple[Cell, ...]


def cells_of(run: FinishedRun) -> list[Cell]:
    """A cell for each row."""
    logs: dict[tuple[str, str], list[float]] = {}
    for trial, launch in run.launches():
        for variant, log in launch.log_speedups().items():
            logs.setdefault((trial, variant), []).append(log)
    return [Cell(row, _estimate(row, logs)) for row in run.rows]


def _estimate(row: Row, logs: Mapping[tuple[str, str], Sequence[float]]) -> Estimate | None:
    if row.verdict in (None, Verdict.INVALID) or row.variant == row.baseline:
        return None
    own = logs.get((row.trial_id, row.variant))
    return Estimate.of_row(row) if own is None else Estimate.of_launches(own)


def match(base: Iterable[Cell], new: Iterable[Cell]) -> Matched:
    """Pairs cells by their station, and what is left by its hardware where each run has one station of it.

    Several stations of a class whose names changed are not paired: which of them is which is not known, and they are
    never pooled. A run from before classes is paired by the name of its device.
    """
    left_base, left_new = _measured(base), _measured(new)
    both: list[tuple[Cell, Cell]] = []
    for key in (_by_station, _by_hardware, _by_device):
        first, second = _grouped(left_base, key), _grouped(left_new, key)
        pairs = [(*first[k], *second[k]) for k in first.keys() & second.keys() if len(first[k]) == len(second[k]) == 1]
        both += [(one, other) for one, other in pairs if key is not _by_device or _classless(one, other)]
        taken = {id(cell) for pair in both for cell in pair}
        left_base = [cell for cell in left_base if id(cell) not in taken]
        left_new = [cell for cell in left_new if id(cell) not in taken]
    return Matched(tuple(sorted(both, key=lambda pair: pair[1].name)), tuple(left_base), tuple(left_new))


def _measured(cells: Iterable[Cell]) -> list[Cell]:
    """Those that were placed on a station."""
    return [cell for cell in cells if cell.row.station is not None]


def _by_station(cell: Cell) -> Key:
    return (cell.row.station, cell.hardware, *cell.asked)


def _by_hardware(cell: Cell) -> Key:
    return (cell.hardware, *cell.asked)


def _by_device(cell: Cell) -> Key:
    return (cell.row.device_name, *cell.asked)


def _classless(one: Cell, other: Cell) -> bool:
    return one.row.hardware is None or other.row.hardware is None


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups
