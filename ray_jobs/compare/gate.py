"""Decides whether a variant became slower, by how much, and how sure that is. Pure functions of cells.

The machine's own speed drifts between two runs, so only speedups are compared: a variant's against the baseline's in
the same launches of the same run. Verdicts and exit codes are explained in docs/method.md, "Comparing two runs".
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from chatbot.variants import CONTROL
from ray_jobs.compare.match import Cell, Matched
from ray_jobs.matrix.rows import Status
from ray_jobs.sides import AGAIN
from ray_jobs.statistics import NOMINAL, Estimate, Interval, Verdict

REPLIES_MARGIN = 0.01  # share of identical replies; below it lie ties, which fall with the rounds that were run


class Exit(IntEnum):
    """The exit code of a gate."""

    WITHIN, BEYOND, UNDECIDED = 0, 1, 3


class ChangeVerdict(StrEnum):
    """The change of one variant and workload between two runs."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "same"
    NOT_SLOWER = "not slower"
    UNDECIDED = "undecided"
    BROKEN = "broken"  # invalid or failed, or its replies changed


@dataclass(frozen=True)
class Change:
    """One variant and workload in both runs."""

    base: Cell
    new: Cell
    ratio: Interval | None  # speedup in NEW / speedup in BASE, with its own 95% interval: below 1 is slower
    verdict: ChangeVerdict
    reason: str | None = None
    gates: bool = True  # a control does not

    @property
    def source(self) -> str | None:
        """The source of the two estimates."""
        found = [cell.source for cell in (self.base, self.new) if cell.estimate is not None]
        return " and ".join(dict.fromkeys(found)) or None


@dataclass(frozen=True)
class BaselineChange:
    """The baseline's own speed, which has nothing to be compared with: information only."""

    base: Cell
    new: Cell

    @property
    def latency(self) -> float | None:
        """p50 in NEW / p50 in BASE."""
        return _ratio(self.base.row.p50_ms, self.new.row.p50_ms)

    @property
    def sentinel(self) -> float | None:
        """The same ratio for the fixed computation next to the launches: the machine's part in the change."""
        return _ratio(self.base.row.sentinel_ms, self.new.row.sentinel_ms)


@dataclass(frozen=True)
class RunComparison:
    """Two runs, cell by cell."""

    changes: tuple[Change, ...]
    baselines: tuple[BaselineChange, ...]
    only_base: tuple[Cell, ...]
    only_new: tuple[Cell, ...]
    missing: tuple[Cell, ...]  # of those only in BASE: NEW was asked for them too
    one_method: bool = True  # measured both; else nothing is decided

    @property
    def gated(self) -> list[Change]:
        return [change for change in self.changes if change.gates]

    @property
    def exit(self) -> Exit:
        if not self.one_method:
            return Exit.UNDECIDED
        return exit_of({change.verdict for change in self.gated}, complete=not self.missing)


def compare_cells(matched: Matched, new_cells: Sequence[Cell], gate: float) -> RunComparison:
    """Every pair of cells with its verdict.

    Args:
        matched: the cells of both runs.
        new_cells: all of NEW, also those that were not measured.
        gate: a variant is too slow where it is slower by more than this share.
    """
    baselines = [pair for pair in matched.both if pair[0].row.variant == pair[0].row.baseline]
    others = [pair for pair in matched.both if pair[0].row.variant != pair[0].row.baseline]
    tests = sum(_gates(new) for _, new in others)
    asked = {cell.asked for cell in new_cells}
    lost = [cell for cell in matched.only_base if cell.asked in asked and _gates(cell)]
    return RunComparison(
        tuple(_change(base, new, gate, max(tests, 1)) for base, new in others),
        tuple(BaselineChange(base, new) for base, new in baselines),
        matched.only_base,
        matched.only_new,
        tuple(cell for cell in lost if cell.estimate is not None),
    )


def _change(base: Cell, new: Cell, gate: float, tests: int) -> Change:
    gates = _gates(new)
    if (broken := _broken(base, new)) is not None:
        return Change(base, new, None, ChangeVerdict.BROKEN, broken, gates)
    if base.estimate is None or new.estimate is None:
        which = "BASE" if base.estimate is None else "NEW"
        return Change(base, new, None, ChangeVerdict.UNDECIDED, f"{which} has no interval for it", gates)
    found = outcome(base.estimate, new.estimate, gate, tests if gates else 1)
    return Change(base, new, ratio(base.estimate, new.estimate), found, None, gates)


def _gates(cell: Cell) -> bool:
    """Not a control: neither the baseline once more, nor what ran in a second process of ``base``."""
    return cell.row.variant != CONTROL and cell.row.side != AGAIN


def _broken(base: Cell, new: Cell) -> str | None:
    """The reason why NEW's variant fails whatever its speed, or None."""
    if new.row.verdict == Verdict.INVALID or new.row.status == Status.FAILED:
        return f"{Verdict.INVALID if new.row.verdict == Verdict.INVALID else Status.FAILED}: {new.row.reason}"
    before, after = base.row.identical_replies, new.row.identical_replies
    if replies_fell(before, after):
        return f"its replies changed: {before:.1%} matched the baseline's before, {after:.1%} do now"
    return None


def replies_fell(before: float | None, after: float | None) -> bool:
    """Whether a share of identical replies fell by more than ties explain; unknown ones did not."""
    return before is not None and after is not None and after < before - REPLIES_MARGIN


def exit_of(verdicts: Collection[ChangeVerdict], complete: bool = True) -> Exit:
    """The exit code of all gated cells.

    A failure outweighs what is undecided, and a gate that nothing went through, or not all that was asked for, is
    undecided.
    """
    if {ChangeVerdict.SLOWER, ChangeVerdict.BROKEN} & {*verdicts}:
        return Exit.BEYOND
    return Exit.WITHIN if verdicts and complete and ChangeVerdict.UNDECIDED not in verdicts else Exit.UNDECIDED


def ratio(base: Estimate, new: Estimate, confidence: float = NOMINAL) -> Interval:
    """Speedup in NEW / speedup in BASE.

    Each run stopped when its intervals were narrow, so ``NOMINAL`` confidence is what holds 95% here as well
    (tests/test_compare.py).
    """
    return new.minus(base).interval(confidence).exp()


def outcome(base: Estimate, new: Estimate, gate: float, tests: int) -> ChangeVerdict:
    """The verdict on a speedup in two runs."""
    return judged(new.minus(base), gate, tests)


def judged(log: Estimate, gate: float, tests: int) -> ChangeVerdict:
    """The verdict on ln of how many times as fast: ``slower`` if certainly by more than the gate, else what holds.

    One false alarm among many cells fails the gate, so the cells share the 2.5% on that side of 95% (Bonferroni). All
    of them must be within it for the gate to pass, so that needs no more than each one's own 95%.
    """
    limit = 1 / (1 + gate)
    if together(log, tests).high < limit:
        return ChangeVerdict.SLOWER
    own = together(log, 1)
    if own.low < limit:
        return ChangeVerdict.UNDECIDED
    if own.high <= 1 + gate:
        return ChangeVerdict.SAME
    return ChangeVerdict.FASTER if own.low > 1 else ChangeVerdict.NOT_SLOWER


def together(log: Estimate, tests: int) -> Interval:
    """The ratio of which this is ln, with an interval that holds together with those of ``tests`` cells."""
    return log.interval(1 - (1 - NOMINAL) / tests).exp()


def _ratio(before: float | None, after: float | None) -> float | None:
    return after / before if before and after else None
