"""The page: everything that its templates show, and the HTML."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from ray_jobs.matrix.hardware import HardwareClass
from ray_jobs.matrix.rows import Row, grouped
from ray_jobs.report import charts, text
from ray_jobs.report.charts import Chart, Named
from ray_jobs.report.cold_start import Start, starts
from ray_jobs.report.environments import HEADS, SideFacts, environments_of
from ray_jobs.report.facts import named_rivals
from ray_jobs.report.front import front, heads
from ray_jobs.report.heatmap import SIZES, anchor, heatmap_of
from ray_jobs.report.load_page import LoadPart, load_part
from ray_jobs.report.scales import Scale
from ray_jobs.report.sentences import compared, sentence
from ray_jobs.report.strips import with_strip
from ray_jobs.report.summary import summarize
from ray_jobs.report.view import RunView
from ray_jobs.sides import AGAIN
from ray_jobs.statistics import Verdict

TEMPLATES = Path(__file__).parent / "templates"
MOST_TOLD = 500  # trials of a page
MOST_OPEN = 3  # trials, or groups of intervals, above which they are folded
DOTS = 60_000  # of a page
MOST_DOTS = 700  # of a strip
LEAST_DOTS = 30
MANY_STATIONS = 8  # of a workload, above which their intervals are folded
PERCENTILE = re.compile(r"p\d")
JOINT = re.compile(r"(?<=[^\W\d])([._:/@-])(?=\w{3})")

Placed = tuple[RunView, Row]


@dataclass(frozen=True)
class TrialPart:
    """A trial's own section."""

    anchor: str
    title: str
    sentence: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    environments: tuple[SideFacts, ...]
    calls: Chart
    time: Chart
    starts: tuple[Start, ...]
    front: Chart
    front_heads: tuple[str, ...]
    drawn: bool


@dataclass(frozen=True)
class Group:
    """The intervals of one workload, of all stations."""

    title: str
    head: str  # of the names
    chart: Chart
    sentences: tuple[str, ...]
    stations: Chart  # each by itself, if they are too many for ``chart``, which then has the means of their classes


@dataclass(frozen=True)
class RunPart:
    """The part about a run as a whole."""

    view: RunView
    started: str
    lasted: str
    command: str
    spec: str
    trials: tuple[TrialPart, ...]
    load: LoadPart
    driver: tuple[tuple[str, str], ...]
    stations: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@cache
def template(name: str, folder: Path = TEMPLATES) -> Template:
    """A template in a folder, which may build on those of the report."""
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"soft": soft, "whole": whole, "head": head}
    return environment.get_template(name)


def page(runs: Sequence[RunView]) -> str:
    """One self-contained HTML document."""
    told = [_first(run) for run in runs]
    strips = sum(len(series.variants) for run in runs for series in run.series.values())
    dots = max(LEAST_DOTS, min(MOST_DOTS, DOTS // max(1, strips)))
    parts = [_run_part(number, run, dots) for number, run in enumerate(told)]
    return template("page.html").render(
        title=", ".join(run.id for run in runs),
        summary=summarize(runs),
        matrix=heatmap_of(told),
        groups=_groups(told),
        runs=parts,
        folded=sum(len(part.trials) for part in parts) > MOST_OPEN,
        most_open=MOST_OPEN,
        left_out=sum(len(run.trials) for run in runs) - sum(len(run.trials) for run in told),
        environment_heads=HEADS,
        text=text,
    )


def _first(run: RunView) -> RunView:
    """A run's first trials, as many as a page can hold."""
    if len(run.trials) <= MOST_TOLD:
        return run
    kept = set(list(run.trials)[:MOST_TOLD])
    return replace(run, rows=tuple(row for row in run.rows if row.trial_id in kept))


def soft(said: str) -> Markup:
    """A text that may break after the characters that join long names."""
    return Markup(JOINT.sub(r"\1<wbr>", str(escape(said))))


def head(name: str) -> str:
    """A column's name as it begins a line, but for percentiles, which are written as they are: ``p50 ms``."""
    return name if PERCENTILE.match(name) else name[:1].upper() + name[1:]


def whole(said: str) -> str:
    """A figure that may break before its limits, but not within them."""
    value, bracket, limits = said.partition(" (")
    return value + bracket + limits.replace(" ", "\N{NO-BREAK SPACE}")


def _run_part(number: int, run: RunView, dots: int) -> RunPart:
    parts = tuple(_trial_part(anchor(number, place), run, name, dots) for place, name in enumerate(run.trials))
    environment: Mapping[str, Any] = run.run.get("environment") or {}
    stations: Mapping[str, Any] = environment.get("stations") or {}
    return RunPart(
        run,
        _date(run.run.get("started")),
        _duration(run.run.get("seconds")),
        shlex.join(map(str, run.run.get("command") or [])),
        spec_toml(run.spec),
        parts,
        load_part(number, run, MOST_TOLD),
        tuple(_flat(environment.get("driver") or {})),
        tuple((name, tuple(_flat(facts))) for name, facts in stations.items()),
    )


def _trial_part(name: str, run: RunView, trial: str, dots: int) -> TrialPart:
    rows, series = run.trials[trial], run.series.get(trial)
    invalid = {row.name for row in rows if row.verdict == Verdict.INVALID}
    if series is not None:  # what is not what its label says has no latency
        order = {row.name: place for place, row in enumerate(rows)}
        valid = [one for one in series.variants if one.variant not in invalid]
        valid.sort(key=lambda one: order.get(one.variant, len(order)))
        series = replace(series, variants=tuple(valid))
    best = run.fastest(trial, exact=True) or run.fastest(trial, exact=False)
    row = best.row if best else next(iter(compared(rows)), rows[0])
    rivals = named_rivals(best) if best else ""
    return TrialPart(
        name,
        text.title(rows[0]),
        sentence(row, run.margin) + (f" It is {rivals}." if rivals else ""),
        rows,
        tuple(text.notes(rows)),
        environments_of(run, rows),
        charts.distributions(series, rows) if series else Chart(()),
        charts.over_time(series, dots) if series else Chart(()),
        tuple(starts(rows, series)),
        front(rows),
        heads(rows),
        series is not None,
    )


def _groups(runs: Sequence[RunView]) -> list[Group]:
    """A chart of intervals for each workload, all on one scale."""
    every = [(run, row) for run in runs for rows in run.trials.values() for row in rows]
    sides = [(run, text.against_base(row)) for run, row in every if not row.of_base and row.side != AGAIN]
    again = [(run, text.against_base(row)) for run, row in every if row.side == AGAIN]
    own = [(run, row) for run, row in every if row.of_base and row.variant != row.baseline]
    told = [(run, row) for run, row in (*sides, *again, *own) if row.speedup is not None]
    if not told:
        return []
    margin = max(run.margin for run in runs)
    scale = charts.interval_scale([row for _, row in told], margin)
    workloads = grouped(told, lambda one: f"{_compared_with(one[1])}{one[1].device}: {text.sizes(one[1])}")
    return [_group(title, found, runs, margin, scale) for title, found in workloads.items()]


def _group(title: str, found: Sequence[Placed], runs: Sequence[RunView], margin: float, scale: Scale) -> Group:
    """The intervals of one workload; those of many stations are put away behind the means of their classes."""
    rows = [row for _, row in found]
    names = dict.fromkeys(row.name for row in rows) if rows[0].side else text.ranked_variants(rows)
    lines = [line for name in names for line in _station_lines(name, found, len(runs) > 1)]
    places = {more for _, more, row in lines if isinstance(row, Row)}
    means = [line for name in names for line in _mean_lines(name, found, len(runs) > 1)]
    many = len(places) > MANY_STATIONS and bool(means)
    if len(places) == 1:
        lines = [(row.name, "" if row.exact else "approximate", row) for _, _, row in lines if isinstance(row, Row)]
    classes = [one for run in runs for one in run.classes if found[0][1].of_base and _same(one, found[0][1])]
    sentences = [said for one in classes for said in one.disagreeing]
    shown, each = (
        with_strip(charts.intervals(some, margin, scale), scale) for some in (means if many else lines, lines)
    )
    head = "Variant" if len(places) == 1 else "Variant and hardware" if many else "Variant and station"
    return Group(title, head, shown, tuple(dict.fromkeys(sentences)), each if many else Chart(()))


def _compared_with(row: Row) -> str:
    """What comes first in the title of intervals where sides were compared."""
    return "" if row.side is None else "Base over its baseline, " if row.of_base else "Sides over base, "


def _station_lines(variant: str, found: Sequence[Placed], several: bool) -> Iterator[Named]:
    """Each station, followed by the mean of each hardware class that has several."""
    mine = [(run, row) for run, row in found if row.name == variant]
    for number, (run, row) in enumerate(mine):
        place = row.station or row.device_name or row.device
        yield variant if number == 0 else "", f"{run.id}, {place}" if several else place, row
    for _, more, mean in _mean_lines(variant, found, several):
        yield "", more, mean


def _mean_lines(variant: str, found: Sequence[Placed], several: bool) -> Iterator[Named]:
    """The mean of each hardware class that has several stations."""
    mine = [(run, row) for run, row in found if row.name == variant]
    first = variant
    for view in {run.id: run for run, _ in mine}.values():
        for one in view.classes:
            if one.variant == variant and one.stations > 1 and one.speedup is not None and _same(one, mine[0][1]):
                yield first, f"{view.id}, " * several + f"mean of {one.stations} stations, {one.hardware}", one
                first = ""


def _same(one: HardwareClass, row: Row) -> bool:
    """Tells whether a row has that workload."""
    return all(getattr(one, name) == getattr(row, name) for name in ("device", *SIZES))


def spec_toml(spec: Mapping[str, Any]) -> str:
    """The spec as a file that ``--spec`` takes."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in spec.items() if value is not None]
    return "\n".join(lines)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of every leaf."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, "" if key == "packages" else f"{name} ")
        elif isinstance(inner, (list, tuple)):
            yield name, ", ".join(map(str, inner))
        else:
            yield name, "unknown" if inner is None else str(inner)


def _date(started: Any) -> str:
    if not isinstance(started, str):
        return "at an unknown time"
    when = datetime.fromisoformat(started).astimezone(UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return "unfinished"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
