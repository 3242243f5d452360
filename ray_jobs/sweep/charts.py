"""A sweep's charts, on the report's scales and drawn like its charts: SVG that stretches, and text that does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ray_jobs.report.charts import TALL, Chart, Line, drawing, estimate_mark, path, upright
from ray_jobs.report.scales import WIDTH, Scale
from ray_jobs.sweep.importance import Importances, ranks
from ray_jobs.sweep.space import Value
from ray_jobs.sweep.table import TrialRow, TrialStatus, Validation, best_trial

FEW = 8  # values of a hyperparameter that stand evenly apart, each with its name
INSET = 4.0  # percent of an axis above and below its values
WIDE = 20.0  # a range of so many times is drawn on a logarithmic scale
TRIAL = Markup('<g class="trial {}" data-trial="{}" data-tip="{}" style="--place:{:.0f}%">{}</g>')


@dataclass(frozen=True)
class Label:
    """A text at a place of a drawing."""

    x: float  # percent of its width
    y: float  # percent of its height, from the top
    text: str
    kind: str  # what it belongs to: "x", "y", "name" or "value"


@dataclass(frozen=True)
class Plot:
    """One drawing of all trials, with its labels."""

    title: str
    drawing: Markup
    labels: tuple[Label, ...]


def shown(value: Value) -> str:
    """A hyperparameter's value as people write it."""
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"


def whole_percent(share: float) -> str:
    """A share in whole percents."""
    return f"{share:z.0%}"


def settings_of(settings: Mapping[str, Value], names: Sequence[str] | None = None) -> str:
    """A trial's settings in one line, or some of them."""
    return ", ".join(f"{name} {shown(settings[name])}" for name in (settings if names is None else names))


def goodness(rows: Sequence[TrialRow]) -> dict[int, float]:
    """The rank of each judged trial by loss: 0 for the best, 1 for the worst."""
    order = sorted((row for row in rows if row.judged), key=lambda row: (row.best_loss, row.trial))
    return {row.trial: place / max(1, len(order) - 1) for place, row in enumerate(order)}


def curves(rows: Sequence[TrialRow], validations: Sequence[Validation], free: bool = False) -> Plot | None:
    """Validation loss over iterations, a line for each trial; None before the first validation."""
    if not validations:
        return None
    courses: dict[int, list[tuple[int, float]]] = {}
    for one in validations:
        loss = one.free_running_loss if free else one.validation_loss
        courses.setdefault(one.trial, []).append((one.iteration, loss))
    losses = [loss for course in courses.values() for _, loss in course]
    best = best_trial(rows)
    whole = [loss for _, loss in courses.get(best.trial, [])] if best else []
    y = Scale.over(min(losses), max(_upper(losses), *whole), log=False)
    x = Scale(0.0, float(max(one.iteration for one in validations)))
    drawn = {trial: _curve([(x.at(i), _height(y, loss)) for i, loss in course]) for trial, course in courses.items()}
    grid = Markup().join(path("grid", f"M0 {100 - place:.1f}H{WIDTH:.0f}") for place, _ in y.ticks())
    labels = [Label(0, 100 - place, text, "y") for place, text in y.ticks()]
    labels += [Label(place, 100, f"{float(text):,.0f}", "x") for place, text in x.ticks()]
    labels.append(Label(50, 100, "iteration", "x below"))
    title = f"{'Free-running' if free else 'Teacher-forced'} validation loss of each trial over its iterations"
    return _plot(title, grid + _trials(rows, drawn), labels)


def parallel(rows: Sequence[TrialRow]) -> Plot | None:
    """An axis for each hyperparameter and one for the loss, a line for each trial; None where nothing varied."""
    names = [name for name in (rows[0].settings if rows else ()) if len({row.settings[name] for row in rows}) > 1]
    if not names:
        return None
    x = np.linspace(0, WIDTH, len(names) + 1)
    heights = np.empty((len(rows), len(names)))
    labels = [Label(100, 0, "validation loss", "name raised" if len(names) % 2 else "name")]
    for i, name in enumerate(names):
        heights[:, i], values = _axis([row.settings[name] for row in rows])
        labels.append(Label(x[i] / WIDTH * 100, 0, name, "name raised" if i % 2 else "name"))
        labels += [Label(x[i] / WIDTH * 100, place, text, "value") for place, text in values]
    losses = [row.best_loss for row in rows if row.judged and row.best_loss is not None] or [0.0, 1.0]
    y = Scale.over(min(losses), _upper(losses), log=False)
    labels += [Label(100, 100 - place, text, "value") for place, text in y.ticks()]
    drawn = {}
    for row, points in zip(rows, heights, strict=True):
        end = [_height(y, row.best_loss)] if row.judged and row.best_loss is not None else []
        drawn[row.trial] = path("course", _smooth(list(zip(x, [*points, *end], strict=False))))
    axes = Markup().join(upright("one", place) for place in x)
    return _plot("The settings and the loss of each trial", axes + _trials(rows, drawn), labels)


def importance(found: Importances) -> Chart:
    """The share of each hyperparameter with its interval over resampled trials."""
    known = found.known
    if not known:
        return Chart(())
    ends = [100 * value for _, *values in known for value in values]
    scale = Scale.over(min(0.0, *ends), max(10.0, *ends), log=False)
    lines = []
    for name, *shares in known:
        value, low, high = (100 * share for share in shares)
        kind = "clear" if low > 0 else "inconclusive"
        content = upright("one", scale.at(0)) + estimate_mark(kind, scale, value, low, high)
        figure = f"{whole_percent(shares[0])} ({whole_percent(shares[1])} to {whole_percent(shares[2])})"
        lines.append(Line(name, drawing(content, "plot"), figure, tip=f"{name}: {figure} of the variance"))
    return Chart(tuple(lines), tuple(scale.ticks()))


def _plot(title: str, content: Markup, labels: Sequence[Label]) -> Plot:
    return Plot(title, drawing(content, "plot trials"), tuple(labels))


def _trials(rows: Sequence[TrialRow], drawn: Mapping[int, Markup]) -> Markup:
    """Each trial's line, the best above all others."""
    place, best = goodness(rows), best_trial(rows)
    order = sorted((row for row in rows if row.trial in drawn), key=lambda row: -place.get(row.trial, 2))
    return Markup("\n").join(
        TRIAL.format(
            "best" if row is best else row.status,
            row.trial,
            _tip(row),
            100 * place.get(row.trial, 1),
            drawn[row.trial],
        )
        for row in order
    )


def _tip(row: TrialRow) -> str:
    loss = "no loss" if row.best_loss is None else f"best loss {row.best_loss:.4f}"
    end = f": {row.reason}" if row.status == TrialStatus.FAILED else ""
    return f"trial {row.trial}, {row.status}{end}; {loss}; {settings_of(row.settings)}"


def _curve(points: Sequence[tuple[float, float]]) -> Markup:
    """A line with a dot at its end."""
    course = "L".join(f"{x:.1f} {y:.2f}" for x, y in points)
    x, y = points[-1]
    return path("course", f"M{course}") + path("end", f"M{x:.1f} {y:.2f}h0")


def _smooth(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.2f}"]
    for end_x, end_y in rest:
        middle = (x + end_x) / 2
        parts.append(f"C{middle:.1f} {y:.2f} {middle:.1f} {end_y:.2f} {end_x:.1f} {end_y:.2f}")
        x, y = end_x, end_y
    return "".join(parts)


def _axis(values: Sequence[Value]) -> tuple[list[float], list[tuple[float, str]]]:
    """The position of each value in percent from the top, and the labels: all of few values, or the ends of many."""
    places = ranks(values)
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if places.max() >= FEW and len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        shares = Scale(low, high, log=low > 0 and high / low >= WIDE).places(np.array(numbers)) / WIDTH
    else:
        shares = places / places.max()
    heights = [float(100 - INSET - (100 - 2 * INSET) * share) for share in shares]
    known = {rank: (height, value) for rank, height, value in zip(places, heights, values, strict=True)}
    told = [known[rank] for rank in sorted(known)]
    told = told if len(told) <= FEW else [told[0], told[-1]]
    return heights, [(height, f"{value:.3g}" if isinstance(value, float) else shown(value)) for height, value in told]


def _height(scale: Scale, value: float) -> float:
    """The distance from the top of a drawing; at its edge if the value is beyond it."""
    return TALL * (1 - scale.at(value) / WIDTH)


def _upper(losses: Sequence[float]) -> float:
    """The top of the axis: beyond three times the spread of the better half, losses are drawn at its edge."""
    order = sorted(losses)
    middle = order[len(order) // 2]
    return min(order[-1], middle + 3 * max(middle - order[0], 0.05)) if order[-1] > order[0] else order[0] + 0.1
