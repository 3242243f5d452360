"""Whether a variant became slower, by how much, and how sure that is. Pure functions of cells.

The machine's own speed drifts between two runs, so only speedups are compared: a variant's against the baseline's in
the same launches of the same run. Verdicts and exit codes are explained in docs/method.md, "Comparing two runs".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from chatbot.variants import CONTROL
from ray_jobs.compare.match import Cell, Matched
from ray_jobs.matrix.rows import Status
from ray_jobs.statistics import NOMINAL, Estimate, Interval

SLOWER, FASTER, SAME, NOT_SLOWER, UNKNOWN = "slower", "faster", "same", "not slower", "can't tell"
BROKEN = "broken"
REPLIES_MARGIN = 0.01  # share of identical replies; below it lie ties, which fall with the rounds that were run


class Exit(IntEnum):
    """What a gate ends with."""

    WITHIN, BEYOND, UNKNOWN = 0, 1, 3


@dataclass(frozen=True)
class Change:
    """One variant and workload in both runs."""

    base: Cell
    new: Cell
    ratio: Interval | None  # speedup in NEW / speedup in BASE, with its own 95% interval: below 1 is slower
    verdict: str
    reason: str | None = None
    gates: bool = True  # the control does not: it is the baseline

    @property
    def source(self) -> str | None:
        """What the two estimates were made of."""
        found = [cell.source for cell in (self.base, self.new) if cell.estimate is not None]
        return " and ".join(dict.fromkeys(found)) or None


@dataclass(frozen=True)
class BaselineChange:
    """The baseline's own speed, which has nothing to be held against: information only."""

    base: Cell
    new: Cell

    @property
    def latency(self) -> float | None:
        """p50 in NEW / p50 in BASE."""
        return _ratio(self.base.row.p50_ms, self.new.row.p50_ms)

    @property
    def sentinel(self) -> float | None:
        """The same of the fixed computation beside the launches: what of it is the machine's."""
        return _ratio(self.base.row.sentinel_ms, self.new.row.sentinel_ms)


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other."""

    changes: tuple[Change, ...]
    baselines: tuple[BaselineChange, ...]
    only_base: tuple[Cell, ...]
    only_new: tuple[Cell, ...]
    missing: tuple[Cell, ...]  # of those only in BASE: NEW was asked for them too

    @property
    def gated(self) -> list[Change]:
        return [change for change in self.changes if change.gates]

    @property
    def exit(self) -> Exit:
        """A failure outweighs what is not known; a gate that nothing went through says that it can't tell."""
        verdicts = {change.verdict for change in self.gated}
        if verdicts & {SLOWER, BROKEN}:
            return Exit.BEYOND
        return Exit.UNKNOWN if UNKNOWN in verdicts or not verdicts or self.missing else Exit.WITHIN


def compare(matched: Matched, new_cells: Sequence[Cell], gate: float) -> Comparison:
    """Every pair of cells with its verdict.

    Args:
        matched: the cells of both runs.
        new_cells: all of NEW, also those that were not measured.
        gate: a variant is too slow where it is slower by more than this share.
    """
    baselines = [pair for pair in matched.both if pair[0].row.variant == pair[0].row.baseline]
    others = [pair for pair in matched.both if pair[0].row.variant != pair[0].row.baseline]
    tests = sum(new.row.variant != CONTROL for _, new in others)
    asked = {cell.asked for cell in new_cells}
    lost = [cell for cell in matched.only_base if cell.asked in asked and cell.row.variant != CONTROL]
    return Comparison(
        tuple(_change(base, new, gate, max(tests, 1)) for base, new in others),
        tuple(BaselineChange(base, new) for base, new in baselines),
        matched.only_base,
        matched.only_new,
        tuple(cell for cell in lost if cell.estimate is not None),
    )


def _change(base: Cell, new: Cell, gate: float, tests: int) -> Change:
    gates = new.row.variant != CONTROL
    if (broken := _broken(base, new)) is not None:
        return Change(base, new, None, BROKEN, broken, gates)
    if base.estimate is None or new.estimate is None:
        which = "BASE" if base.estimate is None else "NEW"
        return Change(base, new, None, UNKNOWN, f"{which} has no interval for it", gates)
    return Change(
        base,
        new,
        ratio(base.estimate, new.estimate),
        verdict(base.estimate, new.estimate, gate, tests if gates else 1),
        None,
        gates,
    )


def _broken(base: Cell, new: Cell) -> str | None:
    """Why the variant of NEW fails whatever its speed, or None."""
    if new.row.verdict == "invalid" or new.row.status == Status.FAILED:
        return f"{'invalid' if new.row.verdict == 'invalid' else 'failed'}: {new.row.reason}"
    before, after = base.row.identical_replies, new.row.identical_replies
    if before is not None and after is not None and after < before - REPLIES_MARGIN:
        return f"its replies changed: {before:.1%} were the baseline's, now {after:.1%}"
    return None


def ratio(base: Estimate, new: Estimate, confidence: float = NOMINAL) -> Interval:
    """Speedup in NEW / speedup in BASE.

    Each run stopped when its intervals were narrow, so ``NOMINAL`` confidence is what holds 95% here as well
    (tests/test_compare.py).
    """
    return new.minus(base).interval(confidence).exp()


def verdict(base: Estimate, new: Estimate, gate: float, tests: int) -> str:
    """``slower`` beyond the gate beyond doubt, or what can be said else.

    One false alarm among many cells fails the gate, so the cells share the 2.5% on that side of 95% (Bonferroni). All
    of them must be within it for the gate to pass, so that needs no more than each one's own 95%.
    """
    limit = 1 / (1 + gate)
    if ratio(base, new, 1 - (1 - NOMINAL) / tests).high < limit:
        return SLOWER
    own = ratio(base, new)
    if own.low < limit:
        return UNKNOWN
    if own.high <= 1 + gate:
        return SAME
    return FASTER if own.low > 1 else NOT_SLOWER


def _ratio(before: float | None, after: float | None) -> float | None:
    return after / before if before and after else None
