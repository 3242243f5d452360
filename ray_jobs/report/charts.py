"""Charts as rows of HTML with a small SVG in each, which stretches while its text does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ray_jobs.matrix.hardware import HardwareClass
from ray_jobs.matrix.rows import Row
from ray_jobs.report import text
from ray_jobs.report.scales import WIDTH, Scale
from ray_jobs.report.series import TrialSeries, VariantSeries
from ray_jobs.statistics import Floats

Named = tuple[str, str, Row | HardwareClass]  # a name, a second one, and whose speedup it is
BINS = 60
TALL = 100.0  # of a drawing
CALL_EDGES = (0.0, 0.99)  # quantiles between which calls are drawn


@dataclass(frozen=True)
class Bar:
    """An estimate between the limits of its interval, as it is drawn."""

    kind: str  # CSS classes
    value: float
    low: float | None  # unknown, as ``high`` then is
    high: float | None


@dataclass(frozen=True)
class Line:
    """A row of a chart: a name, a drawing and a figure."""

    name: str
    drawing: Markup
    figure: str
    more: str = ""  # a second name
    tip: str = ""
    figures: tuple[str, ...] = ()  # the parts of ``figure``, if each has a column of its own
    bar: Bar | None = None  # what of the drawing a strip may magnify
    strip: str = ""  # a drawing beside the first, if its chart has ``strip_ticks``


@dataclass(frozen=True)
class Chart:
    """Rows on one scale."""

    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...] = ()  # percent of the width, text
    note: str = ""
    strip_ticks: tuple[tuple[float, str], ...] = ()  # of the strips; empty if all intervals are seen on the axis


def drawing(content: Markup, kind: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {:.0f} {:.0f}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        "{}</svg>"
    ).format(kind, WIDTH, TALL, content)


def path(kind: str, d: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(kind, d)


def band(kind: str, left: float, right: float) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="{:.0f}"/>').format(
        kind, left, right - left, TALL
    )


def dots(kind: str, x: Floats, y: Floats) -> Markup:
    """Dots that stay round however the drawing is stretched: strokes of no length with round ends."""
    points = "".join(f"M{a:.0f} {b:.0f}h0" for a, b in zip(x, y, strict=True))
    return path(kind, points) if points else Markup()


def upright(kind: str, x: float, top: float = 0.0, bottom: float = TALL) -> Markup:
    return path(kind, f"M{x:.1f} {top:.0f}V{bottom:.0f}")


def bar_mark(bar: Bar, scale: Scale) -> Markup:
    """A dot, on its bar if the interval is known."""
    return estimate_mark(bar.kind, scale, bar.value, bar.low, bar.high)


def estimate_mark(kind: str, scale: Scale, value: float, low: float | None, high: float | None) -> Markup:
    """A dot, on the bar of its interval if that is known."""
    dot = dots(f"estimate {kind}", np.array([scale.at(value)]), np.array([50.0]))
    if low is None or high is None:
        return dot
    return path(f"interval {kind}", f"M{scale.at(low):.1f} 50H{scale.at(high):.1f}") + dot


def intervals(rows: Sequence[Named], margin: float, scale: Scale) -> Chart:
    """Speedups with their intervals, one beneath the other."""
    return Chart(tuple(_interval(*each, margin, scale) for each in rows), tuple(scale.ticks()))


def interval_scale(rows: Sequence[Row], margin: float) -> Scale:
    """One scale for all of these, with the margin about 1 in it."""
    known = [v for row in rows for v in (row.speedup, row.speedup_low, row.speedup_high) if v]
    return Scale.over(min([1 / (1 + 2 * margin), *known]), max([1 + 2 * margin, *known]), log=True)


def _interval(name: str, more: str, row: Row | HardwareClass, margin: float, scale: Scale) -> Line:
    parts = [band("margin", scale.at(1 / (1 + margin)), scale.at(1 + margin)), upright("one", scale.at(1))]
    bar = _speedup_bar(row)
    if bar is not None:
        parts.append(bar_mark(bar, scale))
    figure = text.speedup(row)
    return Line(name, drawing(Markup().join(parts), "plot"), figure, more, f"{name} {more}: {figure}", bar=bar)


def _speedup_bar(row: Row | HardwareClass) -> Bar | None:
    if row.speedup is None:
        return None
    kind = (row.verdict or "none") if isinstance(row, Row) else "mean"
    return Bar(kind, row.speedup, row.speedup_low, row.speedup_high)


def distributions(series: TrialSeries, rows: Sequence[Row]) -> Chart:
    """The distribution of each variant's latencies, on one scale."""
    shown = [one for one in series.variants if len(one.calls_ms)]
    if not shown:
        return Chart(())
    edges = [np.quantile(one.calls_ms, CALL_EDGES) for one in shown]
    scale = Scale.over(float(min(low for low, _ in edges)), float(max(high for _, high in edges)))
    by_name = {row.name: row for row in rows}
    lines = tuple(_distribution(one, by_name[one.variant], scale) for one in shown if one.variant in by_name)
    beyond = sum(int((one.calls_ms > scale.high).sum()) for one in shown)
    note = f"The slowest {text.counted(beyond, 'call')} beyond the right edge stand in the last bar." if beyond else ""
    return Chart(lines, tuple(scale.ticks()), note)


def _distribution(series: VariantSeries, row: Row, scale: Scale) -> Line:
    counts, _ = np.histogram(scale.places(series.calls_ms), bins=BINS, range=(0.0, WIDTH))
    tops = TALL - 92.0 * counts / max(1, counts.max())
    steps = "".join(f"V{top:.0f}h{WIDTH / BINS:.2f}" for top in tops)
    parts = [path("bars", f"M0 {TALL:.0f}{steps}V{TALL:.0f}Z")]
    if row.p95_ms is not None:
        parts.append(upright("p95", scale.at(row.p95_ms), 40.0))
    if row.p50_ms is not None:
        parts.append(upright("p50", scale.at(row.p50_ms)))
    p95 = f", p95 {text.digits(row.p95_ms)}" if row.p95_ms is not None else ""
    tip = f"{row.name}: p50 {text.latency(row)} ms{p95} ms, {text.counted(len(series.calls_ms), 'call')}"
    return Line(row.name, drawing(Markup().join(parts), "plot"), text.digits(row.p50_ms), tip=tip)


def over_time(series: TrialSeries, most_dots: int) -> Chart:
    """Each variant's turns over the trial, in a strip whose range is the given share of its median."""
    shown = [one for one in series.variants if len(one.turn_ms)]
    if not shown or not series.launches:
        return Chart(())
    scale = Scale(0.0, max(span.end_s for span in series.launches) or 1.0)
    reach = _reach(shown)
    bands = Markup().join(band("launch", scale.at(s.start_s), scale.at(s.end_s)) for s in series.launches[::2])
    lines = tuple(_strip(one, scale, reach, bands, most_dots) for one in shown)
    left_out = sum(max(0, int((~one.discarded).sum()) - most_dots) for one in shown)
    notes = [
        f"Each strip runs from {reach[0]:.2f} to {reach[1]:.2f} times the variant's own median; "
        "turns beyond that stand at its edge."
    ]
    if left_out:
        notes.append(f"{left_out:,} turns, evenly chosen, are left out; no discarded one is.")
    if not series.on_one_clock:
        notes.append("This run did not note the time between launches: they stand one after the other.")
    return Chart(lines, tuple(scale.ticks()), " ".join(notes))


def _reach(shown: Sequence[VariantSeries]) -> tuple[float, float]:
    """The range that holds all but a few turns of every variant, as shares of its median."""
    shares = [one.turn_ms / np.median(one.turn_ms) for one in shown]
    low = min(float(np.quantile(share, 0.005)) for share in shares)
    high = max(float(np.quantile(share, 0.98)) for share in shares)
    return min(low, 0.95) - 0.01, max(high, 1.05) + 0.02


def _strip(series: VariantSeries, scale: Scale, reach: tuple[float, float], bands: Markup, most_dots: int) -> Line:
    middle = float(np.median(series.turn_ms))
    x = scale.places(series.turn_s)
    y = TALL - 4 - (TALL - 8) * np.clip((series.turn_ms / middle - reach[0]) / (reach[1] - reach[0]), 0, 1)
    kept = np.flatnonzero(~series.discarded)
    if len(kept) > most_dots:
        kept = kept[np.linspace(0, len(kept) - 1, most_dots).astype(int)]
    gone = np.flatnonzero(series.discarded)
    level = TALL - 4 - (TALL - 8) * (1 - reach[0]) / (reach[1] - reach[0])
    parts = [bands, path("one", f"M0 {level:.0f}H{WIDTH:.0f}"), dots("turns", x[kept], y[kept])]
    parts += [dots("discarded", x[gone], y[gone]), dots("hole", x[gone], y[gone])]
    thrown = f", {text.counted(len(gone), 'turn')} discarded" if len(gone) else ""
    tip = f"{series.variant}: median turn {text.digits(middle)} ms{thrown}"
    return Line(series.variant, drawing(Markup().join(parts), "plot"), text.digits(middle), tip=tip)
