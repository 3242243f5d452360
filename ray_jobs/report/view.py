"""Reads a finished run from its directory for the report."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from chatbot.variants import CONTROL
from ray_jobs import statistics
from ray_jobs.load.points import Point
from ray_jobs.load.points import points as points_of
from ray_jobs.matrix.hardware import HardwareClass, classes_of
from ray_jobs.matrix.rows import Row, grouped
from ray_jobs.measure.result import LaunchResult
from ray_jobs.report import under_load
from ray_jobs.report.series import TrialSeries, trial_series
from ray_jobs.report.text import ranked
from ray_jobs.results import schema
from ray_jobs.results.run import FinishedRun, read_index
from ray_jobs.results.store import RunDirectory
from ray_jobs.statistics import Verdict

MOST_DRAWN = 100  # trials with charts of their samples


@dataclass(frozen=True)
class Trace:
    """A profile of one variant, beside the report."""

    href: str
    title: str
    trial_id: str
    variant: str
    kind: str


@dataclass(frozen=True)
class Fastest:
    """The fastest exact or the fastest approximate variant of a trial."""

    row: Row
    rivals: tuple[str, ...] | None  # indistinguishable from it; None: samples were not read, so it was not compared


@dataclass(frozen=True)
class RunView:
    """Everything that the report of one run shows."""

    id: str
    run: Mapping[str, Any]  # run.json
    rows: tuple[Row, ...]  # of latencies
    margin: float  # differences below it are called the same
    classes: tuple[HardwareClass, ...]
    series: Mapping[str, TrialSeries] = field(default_factory=dict)  # by trial
    traces: tuple[Trace, ...] = ()
    load_rows: tuple[Row, ...] = ()  # of trials under load
    points: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)  # windows by trial, in launch order

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.run.get("spec") or {}

    @cached_property
    def trials(self) -> dict[str, tuple[Row, ...]]:
        """The rows of each trial, the fastest variant first."""
        return {name: tuple(ranked(rows)) for name, rows in grouped(self.rows, lambda row: row.trial_id).items()}

    @cached_property
    def load_trials(self) -> dict[str, tuple[Row, ...]]:
        """The rows of each trial under load, that of the most calls a second first."""
        found = grouped(self.load_rows, lambda row: row.trial_id)
        return {name: tuple(under_load.ranked(rows)) for name, rows in found.items()}

    @property
    def every_row(self) -> tuple[Row, ...]:
        """All rows, those under load last."""
        return (*self.rows, *self.load_rows)

    def fastest(self, trial: str, exact: bool) -> Fastest | None:
        """The variant of its kind with the greatest speedup among those faster than the baseline beyond doubt.

        The control never competes, nor does an invalid variant.
        """
        rows = [row for row in self.trials[trial] if row.exact == exact and row.name not in (row.baseline, CONTROL)]
        rows = [row for row in rows if row.of_base]
        rows = [row for row in rows if row.speedup is not None and row.verdict != Verdict.INVALID]
        faster = {row.variant: row for row in rows if row.verdict == Verdict.FASTER}
        if not faster:
            return None
        if trial not in self.series:
            row = max(faster.values(), key=lambda row: row.speedup or 0.0)
            return Fastest(row, () if len(rows) == 1 else None)
        base = rows[0].baseline
        names = {base, *(row.variant for row in rows)}
        series = self.series[trial]
        turns = [{n: ns for n, ns in launch.items() if n in names} for launch in series.turns]
        best = statistics.best_of(turns, base, faster, series.centre)
        return None if best is None else Fastest(faster[best.name], best.rivals)


def load(directory: RunDirectory, most_drawn: int = MOST_DRAWN) -> RunView:
    """Reads a finished run; only the samples of its first ``most_drawn`` measured trials, and of as many under load.

    Raises:
        UsageError: it is not finished.
    """
    found = FinishedRun.within(directory)
    rows, loads = ([row for row in found.rows if row.under_load is kind] for kind in (False, True))
    drawn, under = (_measured(some)[:most_drawn] for some in (rows, loads))
    launches: dict[str, list[LaunchResult]] = {}
    points: dict[str, tuple[Point, ...]] = {}
    for trial, launch in found.launches({*drawn, *under}):
        if trial in under:
            points[trial] = (*points.get(trial, ()), *points_of(launch))
        else:
            launches.setdefault(trial, []).append(launch)
    series = {trial: trial_series(of) for trial, of in launches.items()}
    return RunView(
        found.id,
        found.run,
        tuple(rows),
        found.margin,
        _classes(found),
        series,
        _traces(directory),
        tuple(loads),
        points,
    )


def _measured(rows: Iterable[Row]) -> list[str]:
    """The trials that have samples."""
    return list(dict.fromkeys(row.trial_id for row in rows if row.samples))


def _classes(found: FinishedRun) -> tuple[HardwareClass, ...]:
    """The written classes; computed for a run without them (compacted, or older)."""
    try:
        content = schema.renamed(json.loads(found.directory.read("classes.json")))
        return tuple(schema.known(HardwareClass, one) for one in content)
    except (FileNotFoundError, ValueError, TypeError):
        return tuple(classes_of(found.rows, found.margin))


def _traces(directory: RunDirectory) -> tuple[Trace, ...]:
    names = ("title", "trial_id", "variant", "kind")
    index = read_index(directory)
    return tuple(Trace(_link(one["file"]), *(str(one.get(name) or "") for name in names)) for one in index)


def _link(file: str) -> str:
    return f"traces/{quote(file.removeprefix('traces/'))}"
