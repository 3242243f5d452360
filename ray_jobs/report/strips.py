"""The strip beside an axis: it magnifies intervals that are too narrow to be seen there."""

import math
from collections.abc import Iterator
from dataclasses import replace

from markupsafe import Markup

from ray_jobs.report.charts import Bar, Chart, drawing, path, upright
from ray_jobs.report.scales import WIDTH, Scale, Ticks, percent_ticks

SEEN = 0.04 * WIDTH  # an interval that takes less of an axis hides behind the dot of its estimate
LEAST_REACH = 0.01  # percent, below which nothing is magnified further


def with_strip(chart: Chart, scale: Scale) -> Chart:
    """The chart, of this scale, with a strip beside its axis if the axis hides the interval of some line.

    A strip shows by how many percent the limits of an interval lie below and above its estimate; so all lines share
    its scale, wherever they lie on the axis. What the axis shows is not repeated.
    """
    hidden = [line.bar if line.bar is not None and is_hidden(line.bar, scale) else None for line in chart.lines]
    reach = max([_reach(bar) for bar in hidden if bar is not None], default=None)
    if reach is None:
        return chart
    strip = Scale.over(-max(reach, LEAST_REACH), max(reach, LEAST_REACH), log=False)
    lines = tuple(replace(line, strip=_drawing(bar, strip)) for line, bar in zip(chart.lines, hidden, strict=True))
    return replace(chart, lines=lines, strip_ticks=tuple(_ticks(strip)))


def is_hidden(bar: Bar, scale: Scale) -> bool:
    """Whether an interval is known, but too narrow to be seen on an axis."""
    return bar.low is not None and bar.high is not None and scale.at(bar.high) - scale.at(bar.low) < SEEN


def _deviations(bar: Bar) -> list[float]:
    """How far the limits lie from the estimate, in percent: the lower, then the upper one."""
    return [100 * (limit / bar.value - 1) for limit in (bar.low, bar.high) if limit is not None and bar.value]


def _reach(bar: Bar) -> float:
    return max(map(abs, _deviations(bar)), default=0.0)


def _ticks(strip: Scale) -> Ticks:
    """Of the estimate, and of one round deviation to either side: there is no room for more."""
    power = 10.0 ** math.floor(math.log10(strip.high))
    step = max(times * power for times in (1, 2, 5) if times * power <= strip.high)
    return percent_ticks(strip, (-step, 0.0, step))


def _drawing(bar: Bar | None, strip: Scale) -> Markup:
    return drawing(Markup() if bar is None else Markup().join(_parts(bar, strip)), "plot")


def _parts(bar: Bar, strip: Scale) -> Iterator[Markup]:
    """A line where every estimate lies, the bar between the limits, and a stroke at each."""
    places = [strip.at(deviation) for deviation in _deviations(bar)]
    yield upright("one", strip.at(0.0))
    yield path(f"interval {bar.kind}", f"M{places[0]:.1f} 50H{places[-1]:.1f}")
    for place in places:
        yield upright(f"limit {bar.kind}", place, 28, 72)
