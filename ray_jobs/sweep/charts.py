"""A sweep's pictures as inline SVG: they take their colours from the page, and need no script."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from ray_jobs.sweep.importance import Importances
from ray_jobs.sweep.importance import ranks as ranks_of
from ray_jobs.sweep.space import Value
from ray_jobs.sweep.table import FAILED, TrialRow, Validation, best_of

WIDTH = 920
LABEL = 6  # px between an axis and what it is called


def shown(value: Value) -> str:
    """A hyperparameter's value as people write it."""
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"


def percent(share: float) -> str:
    """A share in whole percents."""
    return f"{share:.0%}".replace("-0%", "0%") if abs(share) < 0.005 else f"{share:.0%}"


def settings_of(settings: Mapping[str, Value], names: Sequence[str] | None = None) -> str:
    """A trial's settings in one line, or some of them."""
    return ", ".join(f"{name} {shown(settings[name])}" for name in (settings if names is None else names))


def goodness(rows: Sequence[TrialRow]) -> dict[int, float]:
    """Of each judged trial its place by loss: 0 for the best, 1 for the worst."""
    order = sorted((row for row in rows if row.judged), key=lambda row: (row.best_loss, row.trial))
    return {row.trial: place / max(1, len(order) - 1) for place, row in enumerate(order)}


def curves(rows: Sequence[TrialRow], validations: Sequence[Validation], free: bool = False) -> str:
    """Validation loss over iterations, a line a trial."""
    height, left, right, top, bottom = 360, 56, 16, 14, 40
    if not validations:
        return _empty("No trial came as far as a validation.")
    losses = [_loss(row, free) for row in validations]
    place, best = goodness(rows), best_of(rows)
    whole = [_loss(row, free) for row in validations if best is not None and row.trial == best.trial]
    low, high = min(losses), max([_upper(losses), *whole])
    last = max(row.iteration for row in validations)
    x = _scale(0, last, left, WIDTH - right)
    y = _scale(high, low, top, height - bottom)
    parts = [_grid_y(low, high, y, left, WIDTH - right), _ticks_x(last, x, height - bottom)]
    for row in sorted(rows, key=lambda row: -place.get(row.trial, 2)):  # the best is drawn last, above all others
        own = [one for one in validations if one.trial == row.trial]
        points = " ".join(f"{x(one.iteration):.1f},{y(min(_loss(one, free), high)):.1f}" for one in own)
        if not points:
            continue
        kind = _kind(row, best)
        end = own[-1]
        parts.append(
            f'<g class="trial {kind}" data-trial="{row.trial}" {_tint(place, row)}>{_title(row)}'
            f'<polyline points="{points}"/>'
            f'<circle cx="{x(end.iteration):.1f}" cy="{y(min(_loss(end, free), high)):.1f}" r="3"/></g>'
        )
    what = "free-running" if free else "teacher-forced"
    parts.append(f'<text class="axis" x="{left}" y="{height - 6}">iteration</text>')
    return _svg(height, f"Learning curves: {what} validation loss of each trial", parts)


def parallel(rows: Sequence[TrialRow]) -> str:
    """An axis a hyperparameter and one for the loss; a line a trial."""
    names = list(rows[0].settings) if rows else []
    names = [name for name in names if len({row.settings[name] for row in rows}) > 1]
    if not names:
        return _empty("No hyperparameter had more than one value.")
    height, top, bottom = 396, 60, 24
    columns = [*names, "loss"]
    x = [70 + i * (WIDTH - 150) / (len(columns) - 1) for i in range(len(columns))]
    heights, axes = _axes(rows, names, x[:-1], top, height - bottom)
    losses = [row.best_loss for row in rows if row.best_loss is not None]
    low, high = (min(losses), _upper(losses)) if losses else (0.0, 1.0)
    y = _scale(high, low, top, height - bottom)
    axes.append(_axis("validation loss", x[-1], top, height - bottom, raised=len(names) % 2 == 1))
    axes += [_value(x[-1], y(value), f"{value:.3g}") for value in _nice(low, high, 5)]
    place, best = goodness(rows), best_of(rows)
    lines = []
    for row in sorted(rows, key=lambda row: -place.get(row.trial, 2)):
        dots = [(x[i], heights[name][row.trial]) for i, name in enumerate(names)]
        if row.judged and row.best_loss is not None:
            dots.append((x[-1], y(min(row.best_loss, high))))
        path = _smooth(dots)
        lines.append(
            f'<g class="trial {_kind(row, best)}" data-trial="{row.trial}" {_tint(place, row)}>{_title(row)}'
            f'<path d="{path}"/></g>'
        )
    return _svg(height, "Parallel coordinates: the settings and the loss of each trial", [*lines, *axes])


def importance(found: Importances) -> str:
    """A bar a hyperparameter, with the interval over resampled trials."""
    known = [one for one in found.of if one.share is not None]
    if not known:
        return ""
    row, left, right = 34, 200, 70
    height = row * len(known) + 40
    edges = [edge for one in known for edge in (one.low or 0.0, one.high or 0.0, one.share or 0.0)]
    x = _scale(min(0.0, *edges), max(0.1, *edges), left, WIDTH - right)
    parts = [f'<line class="grid" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{height - 30}"/>']
    for value in _nice(min(0.0, *edges), max(0.1, *edges), 6):
        parts.append(f'<text class="tick" text-anchor="middle" x="{x(value):.1f}" y="{height - 12}">{value:.0%}</text>')
    for i, one in enumerate(known):
        share, low, high = one.share or 0.0, one.low or 0.0, one.high or 0.0
        middle = 4 + row * i + row / 2
        start, end = sorted((x(0), x(share)))
        parts.append(
            f'<g class="{"clear" if one.clear else "unclear"}">'
            f"<title>{escape(one.name)}: {percent(share)} of the variance ({percent(low)} to {percent(high)})</title>"
            f'<text class="name" text-anchor="end" x="{left - 10}" y="{middle + 4:.1f}">{escape(one.name)}</text>'
            f'<rect class="bar" x="{start:.1f}" y="{middle - 8:.1f}" width="{end - start:.1f}" height="16" rx="2"/>'
            f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
            f'<text class="figure" x="{x(max(high, share)) + 8:.1f}" y="{middle + 4:.1f}">{percent(share)}</text></g>'
        )
    return _svg(height, "Parameter importance with 90% intervals", parts)


def _axes(
    rows: Sequence[TrialRow], names: Sequence[str], x: Sequence[float], top: float, bottom: float
) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Where each trial crosses the axis of each hyperparameter, and the axes. Few values stand evenly apart."""
    heights: dict[str, dict[int, float]] = {}
    parts: list[str] = []
    for name, place in zip(names, x, strict=True):
        values = [row.settings[name] for row in rows]
        distinct = dict(zip(ranks_of(values), values, strict=True))
        parts.append(_axis(name, place, top, bottom, raised=list(x).index(place) % 2 == 1))
        if len(distinct) <= 8:
            y = _scale(0, max(1, len(distinct) - 1), bottom - 10, top + 10)
            heights[name] = {row.trial: y(rank) for row, rank in zip(rows, ranks_of(values), strict=True)}
            parts += [_value(place, y(rank), shown(value)) for rank, value in sorted(distinct.items())]
            continue
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
        log = min(numbers) > 0 and max(numbers) / min(numbers) >= 20
        turned = math.log10 if log else float
        y = _scale(turned(min(numbers)), turned(max(numbers)), bottom - 10, top + 10)
        heights[name] = {row.trial: y(turned(float(row.settings[name] or 0))) for row in rows}
        ends = (min(numbers), max(numbers))
        parts += [_value(place, y(turned(value)), shown(float(f"{value:.3g}"))) for value in ends]
    return heights, parts


def _axis(name: str, x: float, top: float, bottom: float, raised: bool = False) -> str:
    """Every other name is raised, so that long ones do not meet."""
    return (
        f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text class="name" text-anchor="middle" x="{x:.1f}" y="{top - (34 if raised else 16)}">{escape(name)}</text>'
    )


def _value(x: float, y: float, text: str) -> str:
    return f'<text class="tick halo" x="{x + LABEL:.1f}" y="{y + 4:.1f}">{escape(text)}</text>'


def _smooth(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = [f"M{x:.1f},{y:.1f}"]
    for end_x, end_y in rest:
        middle = (x + end_x) / 2
        path.append(f"C{middle:.1f},{y:.1f} {middle:.1f},{end_y:.1f} {end_x:.1f},{end_y:.1f}")
        x, y = end_x, end_y
    return " ".join(path)


def _loss(row: Validation, free: bool) -> float:
    return row.free_running_loss if free else row.validation_loss


def _kind(row: TrialRow, best: TrialRow | None) -> str:
    return "best" if best is not None and row.trial == best.trial else row.status


def _tint(place: Mapping[int, float], row: TrialRow) -> str:
    return f'style="--place:{place[row.trial]:.0%}"' if row.trial in place else ""


def _title(row: TrialRow) -> str:
    loss = "no loss" if row.best_loss is None else f"best loss {row.best_loss:.4f}"
    end = f": {row.reason}" if row.status == FAILED else ""
    return f"<title>{escape(f'trial {row.trial}, {row.status}{end}; {loss}; {settings_of(row.settings)}')}</title>"


def _upper(losses: Sequence[float]) -> float:
    """The top of the axis: beyond three times the spread of the better half, losses are drawn at its edge."""
    order = sorted(losses)
    middle = order[len(order) // 2]
    return min(order[-1], middle + 3 * max(middle - order[0], 0.05)) if order[-1] > order[0] else order[0] + 0.1


def _scale(low: float, high: float, start: float, end: float) -> "_Scale":
    return _Scale(low, high, start, end)


class _Scale:
    """A straight line from values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span, self._start, self._length = low, (high - low) or 1.0, start, end - start

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / self._span * self._length


def _nice(low: float, high: float, count: int) -> list[float]:
    """Round values within the ends."""
    raw = (high - low) / count or 1.0
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [round(step * i, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _grid_y(low: float, high: float, y: "_Scale", left: float, right: float) -> str:
    return "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{left - LABEL}" y="{y(value) + 4:.1f}">{value:g}</text>'
        for value in _nice(low, high, 6)
    )


def _ticks_x(last: int, x: "_Scale", bottom: float) -> str:
    return "".join(
        f'<text class="tick" text-anchor="middle" x="{x(value):.1f}" y="{bottom + 18}">{value:,.0f}</text>'
        for value in _nice(0, last, 8)
    )


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>'


def _empty(text: str) -> str:
    return f'<p class="none">{escape(text)}</p>'
