"""The part of a page about a run's trials under load."""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.matrix.rows import Row, grouped
from ray_jobs.report import text, under_load
from ray_jobs.report.charts import Chart
from ray_jobs.report.load_charts import front, latencies_over_load
from ray_jobs.report.load_facts import best_of, front_key
from ray_jobs.report.view import RunView


@dataclass(frozen=True)
class LoadTrial:
    """A trial's own section."""

    anchor: str
    title: str
    short: str  # without what all have in common
    best: str  # of the exact variants, in short
    rows: tuple[Row, ...]
    cells: tuple[dict[str, str], ...]  # of each row, by the heads of the columns
    notes: tuple[str, ...]
    windows: tuple[str, ...]  # what is to be known of them
    percentile: str  # of the bound, if there is one
    chart: Chart


@dataclass(frozen=True)
class Front:
    """What each number of replicas answers of one workload."""

    title: str
    chart: Chart
    heads: str | tuple[str, ...]  # of its figures


@dataclass(frozen=True)
class LoadPart:
    """All trials under load of a run."""

    trials: tuple[LoadTrial, ...]
    fronts: tuple[Front, ...]
    left_out: int  # trials


def load_part(number: int, run: RunView, most: int) -> LoadPart:
    """The part of the run of this number, with its first trials, as many as a page can hold."""
    shown = dict(list(run.load_trials.items())[:most])
    alike = len({(text.place(rows[0]), under_load.sizes(rows[0])) for rows in shown.values()}) == 1
    trials = tuple(_trial(f"load-{number}-{place}", run, name, alike) for place, name in enumerate(shown))
    return LoadPart(trials, tuple(_fronts(list(shown.values()))), len(run.load_trials) - len(shown))


def _trial(anchor: str, run: RunView, name: str, alike: bool) -> LoadTrial:
    rows = run.load_trials[name]
    return LoadTrial(
        anchor,
        under_load.title(rows[0]),
        (under_load.way if alike else under_load.title)(rows[0]),
        _best(rows),
        rows,
        tuple(under_load.table(rows, run.margin)),
        tuple(under_load.reasons(rows)),
        tuple(under_load.windows(rows)),
        under_load.bound(rows[0]).partition(" ")[0],
        latencies_over_load(rows, run.points.get(name, ())),
    )


def _best(rows: Sequence[Row]) -> str:
    best = best_of(rows, exact=True)
    return f"{best.variant}, {under_load.capacity(best)} calls/s" if best else "no exact variant beyond doubt"


def _fronts(trials: Sequence[Sequence[Row]]) -> list[Front]:
    """One for each workload that was measured with several numbers of replicas."""
    several = [found for found in grouped(trials, lambda rows: front_key(rows[0])).values() if len(found) > 1]
    drawn = [(found, front(found)) for found in several]
    return [Front(under_load.asked(found[0][0]), chart, _heads(chart)) for found, chart in drawn if chart.lines]


def _heads(chart: Chart) -> str | tuple[str, ...]:
    calls = "Calls/s (95%)"
    return (calls, "Cost per million") if chart.lines[0].figures else calls
