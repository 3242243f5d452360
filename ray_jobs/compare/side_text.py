"""What the gate of sides found, as sentences for the terminal, as Markdown for a pull request and for scripts."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.compare.gate import ChangeVerdict
from ray_jobs.compare.sides import SideCell, SideChange, SideGate, fault_of, gate_sides, side_cells
from ray_jobs.matrix.rows import Row, grouped
from ray_jobs.report import text
from ray_jobs.report.tables import plain, table
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.sides import AGAIN, BASE
from ray_jobs.statistics import Interval

HEAD = ("side", "variant", "workload and hardware", "p50 ms, base", "p50 ms, side", text.AGAINST, "verdict")
MOST_NAMED = 6  # cells in a sentence; the table has all of them
COMMIT = 7  # characters of a commit's name
HASH = re.compile(r"\b[0-9a-f]{40}\b")
WORST_FIRST = (ChangeVerdict.BROKEN, ChangeVerdict.SLOWER, ChangeVerdict.UNDECIDED)
LONGER = "measure longer (--budget), or on a quieter machine"
WHY = (
    "Both commits, or environments, ran in the same rounds, so the machine's drift between two runs is not in these "
    "figures. base / side above 1: the side is faster."
)


@dataclass(frozen=True)
class SidePage:
    """What the gate of a run found, whatever its form."""

    gate: SideGate
    base: str  # as sentences name it

    @classmethod
    def of(cls, directory: RunDirectory, share: float) -> "SidePage":
        """Asks a finished run whether a side is slower than base by more than ``share``. Raises UsageError."""
        run = FinishedRun.within(directory)
        return cls(gate_sides(side_cells(run), share, run.margin), _base_of(run))

    def sentences(self) -> list[str]:
        """One sentence for each side, those that fail first; then one where the control differs."""
        if not self.gate.changes:
            return [f"can't tell whether a side is slower than {self.base}: nothing was measured in both"]
        told = [(_rank(changes), self._of_side(side, changes)) for side, changes in self.gate.by_side.items()]
        return [*(sentence for _, sentence in sorted(told, key=lambda one: one[0])), *self._doubts()]

    def lines(self) -> list[str]:
        """The sentences as the terminal has them."""
        return [f"gate {100 * self.gate.share:g}%: {sentence}" for sentence in self.sentences()]

    def markdown(self) -> str:
        """The sentences, the worst as the headline, then a table of all cells."""
        first, *others = self.lines()
        rows = [_columns(change.cell, change.verdict) for change in self.gate.changes]
        rows += [_columns(cell, "the control: no gate") for cell in self.gate.controls]
        told = [f"- {plain(line)}" for line in others]
        remarks = [f"- {plain(remark)}" for remark in (*self._remarks(), WHY)]
        return "\n".join([f"### Latency: {plain(first)}", *told, "", *table(HEAD, rows), "", *remarks]) + "\n"

    def content(self) -> dict[str, Any]:
        """Plain values for scripts."""
        return {
            "share": self.gate.share,
            "exit_code": int(self.gate.exit),
            "base": self.base,
            "sentences": self.sentences(),
            "cells": [_plain(change) for change in self.gate.changes],
        }

    def _of_side(self, side: str, changes: Sequence[SideChange]) -> str:
        """``rev abc is slower than base (def) in eager: ...; it is not slower in 3 cells``."""
        by_verdict = grouped(changes, lambda change: change.verdict if change.verdict in WORST_FIRST else None)
        said = [part for kind in WORST_FIRST for part in self._parts(kind, by_verdict.get(kind, []), len(changes))]
        if passed := by_verdict.get(None):
            said.append(f"is not slower{'' if said else f' than {self.base}'} in {text.counted(len(passed), 'cell')}")
        unsure = any(change.verdict == ChangeVerdict.UNDECIDED and change.reason is None for change in changes)
        return "; ".join([f"{HASH.sub(_shown, side)} {'; it '.join(said)}", *([LONGER] if unsure else [])])

    def _parts(self, kind: ChangeVerdict, changes: Sequence[SideChange], of: int) -> Iterator[str]:
        """What is said of the cells with one of the verdicts that do not pass, by their reasons."""
        for reason, mine in grouped(changes, lambda change: change.reason).items():
            if reason is not None:
                does = "is broken" if kind == ChangeVerdict.BROKEN else f"can't be compared with {self.base}"
                where = f"all {text.counted(of, 'cell')}" if len(mine) == of > 1 else self._named(mine, lambda _: None)
                yield f"{does} in {where}: {reason}"
            elif kind == ChangeVerdict.SLOWER:
                count = len(self.gate.changes)
                certain = f", certain for all {count} cells together" if count > 1 else ""
                yield f"is slower than {self.base} in {self._named(mine, lambda change: change.shared)}{certain}"
            else:
                yield f"may or may not be slower than {self.base} in {self._named(mine, lambda change: change.speedup)}"

    def _named(self, changes: Sequence[SideChange], interval: Callable[[SideChange], Interval | None]) -> str:
        """The cells, with how many times as long each takes."""
        shown = [self._cell(change.cell, interval(change)) for change in changes[:MOST_NAMED]]
        more = len(changes) - len(shown)
        return ", ".join(shown) + (f" and {text.counted(more, 'other cell')}" if more else "")

    def _cell(self, cell: SideCell, interval: Interval | None) -> str:
        several = len({change.cell.row.trial_id for change in self.gate.changes}) > 1
        name = f"{cell.row.variant} [{_place(cell.row)}]" if several else cell.row.variant
        return name if interval is None else f"{name}: {_as_long(interval)}"

    def _doubts(self) -> Iterator[str]:
        named = [
            self._cell(cell, interval) if interval else f"{self._cell(cell, None)}: {fault_of(cell.row)}"
            for cell, interval in self.gate.differing[:MOST_NAMED]
        ]
        if named:
            what = f"{AGAIN}, the same as {self.base}, differs in {', '.join(named)}"
            yield f"{what}: distrust this comparison, and measure again"

    def _remarks(self) -> Iterator[str]:
        """The warnings of what is undecided, each once."""
        undecided = [change for change in self.gate.changes if change.verdict == ChangeVerdict.UNDECIDED]
        rows = [row for change in undecided for row in (change.cell.base, change.cell.row)]
        yield from dict.fromkeys(f"{row.name}: {warning}" for row in rows for warning in row.warnings)


def _base_of(run: FinishedRun) -> str:
    """``base (1a2b3c4)``: it is the checkout that the tool ran in, where that is known."""
    commit = run.run.get("environment", {}).get("driver", {}).get("git_commit")
    return f"{BASE} ({HASH.sub(_shown, commit)})" if commit else BASE


def _shown(commit: re.Match[str]) -> str:
    return commit[0][:COMMIT]


def _rank(changes: Sequence[SideChange]) -> int:
    """The place of a side whose cells have these verdicts, the worst first."""
    verdicts = {change.verdict for change in changes}
    return next((place for place, kind in enumerate(WORST_FIRST) if kind in verdicts), len(WORST_FIRST))


def _as_long(speedup: Interval) -> str:
    """``1.052 times as long (1.041 to 1.063)``, of base over side."""
    long = Interval(1 / speedup.value, 1 / speedup.high, 1 / speedup.low)
    value, _, limits = text.ratio_of(long).partition(" ")
    return f"{value} times as long {limits}"


def _place(row: Row) -> str:
    return f"{text.short_sizes(row)} on {row.station or 'no station'}"


def _columns(cell: SideCell, said: str) -> tuple[str, ...]:
    row, found = cell.row, text.speedup(text.against_base(cell.row))
    where = f"{text.short_sizes(row)}, {row.hardware or row.device_name}"
    return str(row.side), row.variant, where, text.latency(cell.base), text.latency(row), found, said


def _plain(change: SideChange) -> dict[str, Any]:
    row, own, shared = change.cell.row, change.speedup, change.shared
    names = ("side", "variant", "trial_id", "station", "device", "batch", "prompt_tokens", "reply_tokens", "threads")
    return {
        **{name: getattr(row, name) for name in names},
        "verdict": change.verdict,
        "reason": change.reason,
        "side_speedup": own and own.value,
        "side_speedup_low": own and own.low,
        "side_speedup_high": own and own.high,
        "together_low": shared and shared.low,
        "together_high": shared and shared.high,
    }
