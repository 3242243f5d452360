"""Decides whether a side became slower than ``base``, by how much, and how sure that is. Pure functions of cells.

Both ran in the same rounds, so times themselves are compared, the baseline's too. Verdicts and exit codes are those of
``gate``, explained in docs/method.md, "Comparing sides".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ray_jobs.compare.gate import ChangeVerdict, Exit, exit_of, judged, replies_fell, together
from ray_jobs.matrix.rows import Row, Status, compared_sides, grouped
from ray_jobs.results.run import FinishedRun
from ray_jobs.sides import AGAIN, BASE
from ray_jobs.statistics import Estimate, Interval, Verdict, verdict


@dataclass(frozen=True)
class SideCell:
    """A variant of a side, next to the same variant of ``base`` in the same trial."""

    base: Row
    row: Row
    log: Estimate | None  # ln(base / side): below 0 the side is slower
    identical: tuple[float | None, float | None] = (None, None)  # share of replies to the same prompts: base's, its own


@dataclass(frozen=True)
class SideChange:
    """The change that a side makes to a variant."""

    cell: SideCell
    verdict: ChangeVerdict
    reason: str | None = None
    speedup: Interval | None = None  # base over side, with its own 95% interval
    shared: Interval | None = None  # the same, with an interval that holds together with those of all gated cells


@dataclass(frozen=True)
class SideGate:
    """Every cell of the sides of a run with its verdict."""

    share: float  # the largest slowdown to accept
    margin: float  # within which the run calls speedups the same
    changes: tuple[SideChange, ...]
    controls: tuple[SideCell, ...] = ()  # a second process of base: it does not gate

    @property
    def exit(self) -> Exit:
        return exit_of({change.verdict for change in self.changes})

    @cached_property
    def by_side(self) -> dict[str, list[SideChange]]:
        """The changes of each side, in the order of the matrix."""
        return grouped(self.changes, lambda change: str(change.cell.row.side))

    @cached_property
    def differing(self) -> list[tuple[SideCell, Interval | None]]:
        """The controls that failed or certainly differ from base, which they are: then nothing here is to be trusted.

        Certainly: with intervals that hold together, else one of many would by chance; and not within the margin.
        """
        found: list[tuple[SideCell, Interval | None]] = []
        for cell in self.controls:
            interval = cell.log and together(cell.log, len(self.controls))
            if fault_of(cell.row) is not None and fault_of(cell.base) is None:
                found.append((cell, None))
            elif interval and verdict(interval, self.margin) in (Verdict.FASTER, Verdict.SLOWER):
                found.append((cell, interval))
        return found


def side_cells(run: FinishedRun) -> list[SideCell]:
    """The cells of all sides but ``base``, from the samples. Of what ``base`` skipped there are none.

    Raises:
        UsageError: a launch can't be read.
    """
    logs: dict[tuple[str, str], list[float]] = {}
    replies: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for trial, launch in run.launches():
        for label, log in launch.log_side_speedups().items():
            logs.setdefault((trial, label), []).append(log)
        for label, facts in launch.facts.items():
            replies.setdefault((trial, label), []).append((facts.identical, facts.replies))
    bases = {(row.trial_id, row.variant): row for row in run.rows if row.side == BASE}
    pairs = [(bases.get((row.trial_id, row.variant)), row) for row in compared_sides(run.rows)]
    return [
        SideCell(
            base,
            row,
            Estimate.of(logs.get((row.trial_id, row.name), ())),
            (_share(replies, base), _share(replies, row)),
        )
        for base, row in pairs
        if base is not None and base.status != Status.SKIPPED
    ]


def _share(replies: Mapping[tuple[str, str], Sequence[tuple[int, int]]], row: Row) -> float | None:
    """The share of a row's timed replies that equal the baseline's of base. Those of a side are to no other prompts."""
    found = replies.get((row.trial_id, row.name), ())
    total = sum(asked for _, asked in found)
    return sum(identical for identical, _ in found) / total if total else None


def gate_sides(cells: Sequence[SideCell], share: float, margin: float) -> SideGate:
    """Every cell with its verdict.

    Args:
        cells: of all sides of a run.
        share: a side is too slow where a variant takes more than this share longer.
        margin: within which the run calls speedups the same.
    """
    gated = [cell for cell in cells if cell.row.side != AGAIN]
    changes = tuple(_change(cell, share, len(gated)) for cell in gated)
    return SideGate(share, margin, changes, tuple(cell for cell in cells if cell.row.side == AGAIN))


def _change(cell: SideCell, share: float, tests: int) -> SideChange:
    if (fault := fault_of(cell.base)) is not None:
        return SideChange(cell, ChangeVerdict.UNDECIDED, f"base itself is not sound: {fault}")
    if (fault := fault_of(cell.row) or _other_replies(cell)) is not None:
        return SideChange(cell, ChangeVerdict.BROKEN, fault)
    if cell.log is None:
        return SideChange(cell, ChangeVerdict.UNDECIDED, cell.row.reason or "there is no interval for it")
    own, shared = together(cell.log, 1), together(cell.log, tests)
    return SideChange(cell, judged(cell.log, share, tests), None, own, shared)


def fault_of(row: Row) -> str | None:
    """Why a row has no figures that count, or None."""
    if row.status == Status.FAILED:
        return f"{row.status}: {row.reason}"
    return f"{row.verdict}: {row.reason}" if row.verdict == Verdict.INVALID else None


def _other_replies(cell: SideCell) -> str | None:
    before, after = cell.identical
    if not replies_fell(before, after):
        return None
    return f"its replies changed: {before:.1%} are those of the baseline in base, {after:.1%} here"
