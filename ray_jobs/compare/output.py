"""A comparison for people, for a pull request and for scripts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.compare.gate import BaselineChange, Change, ChangeVerdict, Exit, RunComparison
from ray_jobs.compare.match import Cell
from ray_jobs.machine import another_machine
from ray_jobs.measure.method import version_in
from ray_jobs.provenance import PACKAGES, changed
from ray_jobs.report import text
from ray_jobs.report.tables import plain, table
from ray_jobs.results.run import FinishedRun

HEAD = ("variant", "workload and hardware", "speedup BASE", "speedup NEW", "NEW / BASE (95%)", "verdict")
WHY = "Speedups over the baseline are compared, because the machine's drift between two runs cancels out in them."
BASELINE_NOTE = (
    "The baseline's own speed has nothing to be compared with and is not gated: its latency changes with the "
    "machine, as the sentinel, a fixed computation next to it, shows. If the baseline itself changed, every speedup "
    "moved with it."
)
SENTENCES = {
    Exit.WITHIN: "within the gate",
    Exit.BEYOND: "beyond the gate",
    Exit.UNDECIDED: "undecided; measure longer (--budget), or on a quieter machine",
}
OTHER_METHOD = "undecided; measure one of the runs again, by the method of the other"


@dataclass(frozen=True)
class Page:
    """The content of a comparison, whatever its form."""

    base: FinishedRun
    new: FinishedRun
    comparison: RunComparison
    gate: float | None
    margin: float  # the gate, or without one what the runs call the same
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        count = len(self.comparison.gated)
        cells = f"{count} {'cell' if count == 1 else 'cells'}" if count else "no cell that both runs have"
        if self.gate is None:
            return f"{self.new.id} against {self.base.id}: {cells}"
        decided = SENTENCES[self.comparison.exit] if self.comparison.one_method else OTHER_METHOD
        outcome = f"{decided} (no variant more than {100 * self.gate:g}% slower)"
        return f"{self.new.id} against {self.base.id}: {cells}, {outcome}"

    def render(self, form: str) -> str:
        """The comparison in one of the formats."""
        return {"text": self._text, "markdown": self._markdown, "json": self._json}[form]()

    def _text(self) -> str:
        rows = [HEAD, *map(_columns, self.comparison.changes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.headline, "", *lines, "", *self._remarks()])

    def _markdown(self) -> str:
        lines = table(HEAD, list(map(_columns, self.comparison.changes)))
        remarks = [f"- {plain(remark)}" for remark in self._remarks()]
        return "\n".join([f"### Latency: {plain(self.headline)}", "", *lines, "", *remarks])

    def _remarks(self) -> Iterator[str]:
        yield from self.notes
        for change in self.comparison.changes:
            if change.reason is not None:
                yield f"{change.verdict}: {change.new.name}: {change.reason}"
            if change.verdict == ChangeVerdict.UNDECIDED:
                rows = {"BASE": change.base.row, "NEW": change.new.row}
                yield from (f"{which}: {row.name}: {said}" for which, row in rows.items() for said in row.warnings)
        yield from _named("not measured in NEW, though asked for", self.comparison.missing)
        missing = {id(cell) for cell in self.comparison.missing}
        yield from _named("only in BASE", [cell for cell in self.comparison.only_base if id(cell) not in missing])
        yield from _named("only in NEW", self.comparison.only_new)
        yield from (_of_baseline(one) for one in self.comparison.baselines)
        yield WHY
        if self.comparison.baselines:
            yield BASELINE_NOTE
        if sources := sorted({change.source for change in self.comparison.changes if change.source}):
            yield f"Intervals are made from the {', '.join(sources)}."

    def _json(self) -> str:
        content = {
            "base": self.base.id,
            "new": self.new.id,
            "gate": self.gate,
            "margin": self.margin,
            "exit_code": None if self.gate is None else int(self.comparison.exit),
            "cells": [_plain(change) for change in self.comparison.changes],
            "baselines": [
                {**_cell(one.new), "p50_ratio": one.latency, "sentinel_ratio": one.sentinel}
                for one in self.comparison.baselines
            ],
            "only_base": [_cell(cell) for cell in self.comparison.only_base],
            "only_new": [_cell(cell) for cell in self.comparison.only_new],
            "missing": [_cell(cell) for cell in self.comparison.missing],
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, allow_nan=False)


def _columns(change: Change) -> tuple[str, ...]:
    row = change.new.row
    sizes = text.short_sizes(row)
    verdict = change.verdict if change.gates else f"{change.verdict} (the control: no gate)"
    speedups = [text.times(cell.row).removesuffix("x") for cell in (change.base, change.new)]
    found = change.ratio and text.ratio_of(change.ratio)
    return (row.name, f"{sizes}, {change.new.hardware}", *speedups, found or text.DASH, verdict)


def _named(what: str, cells: Sequence[Cell]) -> Iterator[str]:
    if cells:
        yield f"{what}: {'; '.join(cell.name for cell in cells)}"


def _of_baseline(one: BaselineChange) -> str:
    before, after = (f"{p50:.2f}" if (p50 := cell.row.p50_ms) else "unknown" for cell in (one.base, one.new))
    times = "" if one.latency is None else f" (x{one.latency:.3f})"
    sentinel = "unknown in one of the runs" if one.sentinel is None else f"x{one.sentinel:.3f}"
    return f"For information: {one.new.name}: p50 {before} -> {after} ms{times}; the sentinel {sentinel}"


def _plain(change: Change) -> dict[str, Any]:
    ratio = change.ratio
    estimates = {"base_speedup": change.base.row.speedup, "new_speedup": change.new.row.speedup}
    interval = {"ratio": ratio and ratio.value, "low": ratio and ratio.low, "high": ratio and ratio.high}
    told = {"verdict": change.verdict, "reason": change.reason, "gates": change.gates, "source": change.source}
    return {**_cell(change.new), **estimates, **interval, **told}


def _cell(cell: Cell) -> dict[str, Any]:
    row = cell.row
    names = ("variant", "side", "station", "device", "batch", "prompt_tokens", "reply_tokens", "threads")
    return {"hardware": cell.hardware, **{name: getattr(row, name) for name in names}}


def notes_of(base: FinishedRun, new: FinishedRun, comparison: RunComparison) -> Iterator[str]:
    """Notes on how far the comparison can be trusted."""
    if not comparison.one_method:
        first, second = (version_in(run.run) for run in (base, new))
        yield f"nothing is decided: the runs were measured by methods {first} and {second}, which estimate other things"
    parts = {
        "code": "this program's sources",
        "spec": "the specs",
        "variants": "the sources of own variants",
        "model_code": "the sources of the model",
    }
    for part, what in parts.items():
        if not (base.run.get("identity") and new.run.get("identity")):
            yield "one run does not say which weights and prompts it used: whether they are the same was not checked"
            break
        if base.run["identity"].get(part) != new.run["identity"].get(part):
            yield f"differs between the runs: {what}"
    for name, (before, after) in _packages(base, new).items():
        yield f"differs between the runs: {name} {before} -> {after}"
    pairs = [(one.base, one.new) for one in comparison.changes]
    pairs += [(one.base, one.new) for one in comparison.baselines]
    for one, other in {(one.row.station, other.row.station): (one, other) for one, other in pairs}.values():
        yield from _of_stations(one, other)
    for change in comparison.changes:
        if not change.gates and change.verdict in (ChangeVerdict.SLOWER, ChangeVerdict.FASTER, ChangeVerdict.BROKEN):
            yield f"the control itself is {change.verdict}: distrust this comparison, and measure again"


def _of_stations(base: Cell, new: Cell) -> Iterator[str]:
    """Notes on the differences between two stations whose cells were compared."""
    if another_machine(base.facts, new.facts):
        yield f"{new.row.station} of NEW is another machine than {base.row.station} of BASE, of the same hardware class"
    for name, before, after in changed(base.facts, new.facts, [*PACKAGES, "compiler"]):
        yield f"differs between the runs: {name} {before} -> {after}"
    if base.row.cores and new.row.cores and base.row.cores != new.row.cores:
        yield f"differs between the runs: the measured cores {base.row.cores} -> {new.row.cores}"


def _packages(base: FinishedRun, new: FinishedRun) -> dict[str, tuple[str | None, str | None]]:
    first, second = (_versions(run) for run in (base, new))
    return {name: (first[name], second[name]) for name in second if name in first and first[name] != second[name]}


def _versions(run: FinishedRun) -> dict[str, str | None]:
    driver = run.run.get("environment", {}).get("driver", {})
    return {"python": driver.get("python"), **(driver.get("packages") or {})}
