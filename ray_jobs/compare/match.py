"""The cells of two runs, paired: one variant and workload on one kind of hardware in each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray_jobs.machine import another_machine
from ray_jobs.matrix.hardware import same_class, short, speedup_of
from ray_jobs.matrix.rows import Row
from ray_jobs.report import text
from ray_jobs.results.run import FinishedRun
from ray_jobs.statistics import Estimate, Verdict

SAMPLES, ROWS = "samples", "rows"

Key = tuple[object, ...]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One row of one run, with ln of its speedup where it is valid."""

    row: Row
    estimate: Estimate | None
    source: str = SAMPLES  # of the estimate; ROWS where the run has no samples
    facts: Facts = field(default_factory=dict, hash=False)  # of its station

    @property
    def hardware(self) -> str:
        """The hardware class of its station; runs older than classes record the device only."""
        return self.row.hardware or str(self.row.device_name)

    @property
    def asked(self) -> Key:
        """The requested workload and variant, wherever measured. The model's path is not compared: its weights are."""
        row = self.row
        return row.device, row.batch, row.prompt_tokens, row.reply_tokens, row.threads, row.name

    @property
    def name(self) -> str:
        row = self.row
        sizes = text.short_sizes(row)
        return f"{row.name}, {sizes} on {self.hardware} ({row.station or 'no station'})"


@dataclass(frozen=True)
class Matched:
    """The cells of both runs that stand for the same, and those that only one of them has."""

    both: tuple[tuple[Cell, Cell], ...]
    only_base: tuple[Cell, ...]
    only_new: tuple[Cell, ...]


def cells_of(run: FinishedRun) -> list[Cell]:
    """A cell for each row, of calls that follow each other: two runs are not compared by what they hold under load."""
    logs: dict[tuple[str, str], list[float]] = {}
    for trial, launch in run.launches():
        for variant, log in ({} if launch.served else launch.log_speedups()).items():
            logs.setdefault((trial, variant), []).append(log)
    facts = run.run.get("environment", {}).get("stations", {})
    rows = [row for row in run.rows if not row.under_load]
    cells = (_cell(row, logs.get((row.trial_id, row.name))) for row in rows)
    return [replace(cell, facts=facts.get(cell.row.station) or {}) for cell in cells]


def _cell(row: Row, logs: Sequence[float] | None) -> Cell:
    if row.verdict in (None, Verdict.INVALID) or row.variant == row.baseline:
        return Cell(row, None)
    return Cell(row, speedup_of(row), ROWS) if logs is None else Cell(row, Estimate.of(logs))


def match(base: Iterable[Cell], new: Iterable[Cell]) -> Matched:
    """Pairs cells by their machine, then by their station, and what is left by its hardware if each run has one of it.

    Several stations of a class whose names changed are not paired: which of them is which is not known, and they are
    never pooled. A station of the same name is not paired with another machine's. A run from before classes is paired
    by the name of its device, one from before models of CPUs by the class without them.
    """
    left_base, left_new = ([cell for cell in cells if cell.row.station is not None] for cells in (base, new))
    both: list[tuple[Cell, Cell]] = []
    for key, may in KEYS:
        first, second = _grouped(left_base, key), _grouped(left_new, key)
        pairs = [(*first[k], *second[k]) for k in first.keys() & second.keys() if len(first[k]) == len(second[k]) == 1]
        both += [(one, other) for one, other in pairs if may(one, other)]
        taken = {id(cell) for pair in both for cell in pair}
        left_base = [cell for cell in left_base if id(cell) not in taken]
        left_new = [cell for cell in left_new if id(cell) not in taken]
    return Matched(tuple(sorted(both, key=lambda pair: pair[1].name)), tuple(left_base), tuple(left_new))


def _by_machine(cell: Cell) -> Key | None:
    ids = tuple((cell.facts.get("machine_ids") or {}).values())
    return (ids, cell.hardware, *cell.asked) if any(ids) else None


def _by_station(cell: Cell) -> Key:
    return (cell.row.station, short(cell.hardware), *cell.asked)


def _by_hardware(cell: Cell) -> Key:
    return (cell.hardware, *cell.asked)


def _by_old_hardware(cell: Cell) -> Key:
    return (short(cell.hardware), *cell.asked)


def _by_device(cell: Cell) -> Key:
    return (cell.row.device_name, *cell.asked)


def _one_place(one: Cell, other: Cell) -> bool:
    return same_class(one.hardware, other.hardware) and not another_machine(one.facts, other.facts)


def _alike(one: Cell, other: Cell) -> bool:
    return same_class(one.hardware, other.hardware)


def _classless(one: Cell, other: Cell) -> bool:
    return one.row.hardware is None or other.row.hardware is None


KEYS: tuple[tuple[Callable[[Cell], Key | None], Callable[[Cell, Cell], bool]], ...] = (
    (_by_machine, _one_place),
    (_by_station, _one_place),
    (_by_hardware, _alike),
    (_by_old_hardware, _alike),
    (_by_device, _classless),
)


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], Key | None]) -> dict[Key, list[Cell]]:
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        if (found := key(cell)) is not None:
            groups.setdefault(found, []).append(cell)
    return groups
