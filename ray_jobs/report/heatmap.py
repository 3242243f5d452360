"""The matrix as a heat map: trials or their sides, and variants, the fastest first; the more of both are its rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row, Status, compared_sides
from ray_jobs.report import text
from ray_jobs.report.sentences import state
from ray_jobs.report.view import RunView
from ray_jobs.sides import AGAIN, BASE
from ray_jobs.statistics import Verdict

STEPS = (1.1, 1.5, 3.0)  # speedups, or their inverses, at which the colour grows stronger
CROWDED = 12  # rows above which they are drawn low
MANY = 7  # columns above which there is room for little more than a figure in each
MOST = 22  # columns above which there is no room for all
LONG, SHORT = 36, 24  # characters of a variant's name, where there is room and where there is little
ABREAST = 3  # columns that a phone shows beside each other
SIDE, SIDES = "over base", {BASE: "over its baseline", AGAIN: "the control, over base"}
SIZES = {  # of a workload, in short
    "model": "model {}",
    "batch": "batch {}",
    "prompt_tokens": "prompt {}",
    "reply_tokens": "reply {}",
    "threads": "threads {}",
}


@dataclass(frozen=True)
class Tile:
    """One variant of one trial."""

    kind: str  # CSS classes
    big: str
    word: str
    small: str
    tip: str


@dataclass(frozen=True)
class MatrixRow:
    """One trial of one run, or one of its sides."""

    head: str
    more: str
    run: str  # empty where there is only one
    anchor: str
    cells: tuple[Tile | None, ...]  # None: the trial has no such variant


@dataclass(frozen=True)
class Heatmap:
    """Every trial of every run."""

    variants: tuple[tuple[str, str, str], ...]  # name, the same short enough for a column, what it is beyond that
    rows: tuple[MatrixRow, ...]
    shared: str  # what all workloads have in common
    sides: bool  # some row is of a side

    @property
    def crowded(self) -> bool:
        """True if its rows must be low."""
        return (len(self.variants) if self.turned else len(self.rows)) > CROWDED

    @property
    def turned(self) -> bool:
        """True if variants are its rows: they are many, and trials are fewer."""
        return MANY < len(self.variants) > len(self.rows) and not self.sides

    def label(self, row: MatrixRow) -> str:
        """A row's head, with what tells it from others of the same head."""
        alike = sum(other.head == row.head for other in self.rows) > 1
        return " ".join(filter(None, (row.head, row.run, row.more if alike else "")))

    @property
    def columns(self) -> int:
        """How many columns of figures it has."""
        return len(self.rows) if self.turned else len(self.variants)

    @property
    def dense(self) -> bool:
        """True if its columns must be narrow, their heads upright."""
        return self.columns > MANY

    @property
    def wide(self) -> bool:
        """True if it must be scrolled sideways even so."""
        return self.columns > MOST

    @property
    def tiled(self) -> bool:
        """True if a phone shows its columns as tiles, each with its head in it."""
        return self.columns > ABREAST


def heatmap_of(runs: Sequence[RunView]) -> Heatmap:
    """Runs of the same workload on the same hardware are listed together."""
    rows = [row for run in runs for trial in run.trials.values() for row in trial]
    names, sides = text.ranked_variants(rows), any(row.side for row in rows)
    varying = [name for name in ("hardware", *SIZES) if len({_part(row, name) for row in rows}) > 1]
    common = [name for name in ("hardware", *SIZES) if name not in varying][not varying :]  # a row's own head is that
    parts = [_part(rows[0], name) for name in common] if rows else []
    shared = filter(None, parts)
    places: dict[tuple[object, ...], list[MatrixRow]] = {}
    for number, run in enumerate(runs):
        for place, found in enumerate(run.trials.values()):
            label = run.id if len(runs) > 1 else ""
            lines = [_row(run, mine, names, varying, (label, anchor(number, place))) for mine in _by_side(found)]
            key = tuple(getattr(found[0], name) for name in ("device", "device_name", "station", *SIZES))
            places.setdefault(key, []).extend(lines)
    roles = {row.variant: "" if sides else "baseline" for row in rows if row.variant == row.baseline}
    roles |= {row.variant: "approximate" for row in rows if not row.exact}
    roles[CONTROL] = "control"
    every = tuple(line for group in places.values() for line in group)
    most = SHORT if len(names) > MANY else LONG
    heads = tuple((name, _narrow(name, most), roles.get(name, "")) for name in names)
    return Heatmap(heads, every, ", ".join(shared), sides)


def _by_side(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of a trial, side by side: what is compared first, ``base`` itself last."""
    sections = text.sections([*compared_sides(rows), *(row for row in rows if row.of_base)])
    return [section.rows for section in sections]


def _narrow(name: str, most: int) -> str:
    """A name without its middle if it is long: names differ at their ends."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def anchor(run: int, trial: int) -> str:
    """The name of a trial's section within the page."""
    return f"trial-{run}-{trial}"


def _row(
    run: RunView, rows: Sequence[Row], names: Sequence[str], varying: Sequence[str], labels: tuple[str, str]
) -> MatrixRow:
    first, by_name = rows[0], {row.variant: text.against_base(row) for row in rows}
    cells = tuple(_cell(by_name[name], run) if name in by_name else None for name in names)
    told = [part for name in varying if (part := _part(first, name))] or [_part(first, "hardware")]
    head, more = (told[:1], told[1:]) if "hardware" in varying or not varying else (told, [])
    if first.side:
        head, more = [first.side], [SIDES.get(first.side, SIDE), *head, *more]
    return MatrixRow(", ".join(head), ", ".join([*more, *([first.station] if first.station else [])]), *labels, cells)


def _part(row: Row, name: str) -> str:
    """One property of a row, abbreviated; empty if it does not apply to its model."""
    if name == "hardware":
        return f"{row.device} {row.device_name or ''}".strip()
    value = getattr(row, name)
    return "" if value is None else SIZES[name].format(value)


def _cell(row: Row, run: RunView) -> Tile:
    kind, word = state(row), text.verdict(row, run.margin)
    tip = f"{row.name}: {word}"
    if kind in (Status.FAILED, Status.SKIPPED, Verdict.INVALID):
        return Tile(kind, "", word, "", f"{tip}: {row.reason}")
    unfinished = "" if row.status == Status.DONE else row.status
    tip += f", p50 {text.latency(row)} ms, same replies {text.replies(row)}"
    milliseconds = f"{text.digits(row.p50_ms)} ms"
    if kind == Verdict.BASELINE:
        return Tile("baseline", milliseconds, word, unfinished, tip)
    tip += f", speedup {text.speedup(row)}, {text.counted(row.samples or 0, 'call')}"
    return Tile(f"{kind} {step(row)}", text.times(row), word, unfinished or milliseconds, tip)


def step(row: Row) -> str:
    """The strength of the colour: ``up1`` to ``up4`` faster, ``down1`` to ``down4`` slower; none for the same."""
    if row.speedup is None or row.verdict not in (Verdict.FASTER, Verdict.SLOWER):
        return ""
    strength = 1 + sum(abs(math.log(row.speedup)) >= math.log(limit) for limit in STEPS)
    return f"{'up' if row.speedup > 1 else 'down'}{strength}"
