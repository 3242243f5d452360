"""Charts of trials under load: latencies against the rate of requests, and what every number of replicas answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from chatbot.variants import CONTROL
from ray_jobs.load.points import Point
from ray_jobs.matrix.rows import Row, grouped
from ray_jobs.report import under_load
from ray_jobs.report.charts import Bar, Chart, Line, bar_mark, dots, drawing, path, upright
from ray_jobs.report.scales import WIDTH, Scale
from ray_jobs.report.strips import with_strip
from ray_jobs.report.text import counted
from ray_jobs.scenario import Bound
from ray_jobs.statistics import Floats, Verdict

TOP, BOTTOM, FLOOR = 10.0, 80.0, 93.0  # of a drawing: latencies lie between the first two, the capacity on the last
GIVEN_UP = 6.0  # how far a window that was given up hangs down from the top
MOST_LEVELS = 4  # latencies that are named


@dataclass(frozen=True)
class _Plane:
    """Latencies in ms, upwards, over calls offered a second."""

    rates: Scale
    ms: Scale

    def up(self, ms: Floats) -> Floats:
        """The heights of latencies in a drawing."""
        return np.asarray(BOTTOM - (BOTTOM - TOP) * self.ms.places(ms) / WIDTH)

    def level(self, ms: float) -> float:
        """The height of one."""
        return float(self.up(np.array([ms]))[0])


def latencies_over_load(rows: Sequence[Row], points: Sequence[Point]) -> Chart:
    """The windows of each variant, all on the same axes; empty where no rates were offered.

    Discarded ones are left out, and so is what is not what its label says.
    """
    valid = {row.name: row for row in under_load.ranked(rows) if row.verdict != Verdict.INVALID}
    shown = [one for one in points if one.kept and one.offered_rps is not None and one.variant in valid]
    slo = rows[0].slo
    if not shown or slo is None:
        return Chart(())
    bound_ms = 1e3 * Bound.of(slo).seconds
    mine = grouped(shown, lambda one: one.variant)
    plane = _plane([valid[name] for name in mine], shown, bound_ms)
    lines = tuple(_windows(row, mine[name], plane, bound_ms) for name, row in valid.items() if name in mine)
    return Chart(lines, tuple(plane.rates.ticks()))


def _plane(rows: Sequence[Row], points: Sequence[Point], bound_ms: float) -> _Plane:
    """The axes that hold all windows, the bound, and what each variant holds with its interval."""
    held = [one for one in points if not one.abandoned]
    ms = [bound_ms, *(one.p50_ms for one in held), *(one.bound_ms for one in held if one.bound_ms is not None)]
    known = [rate for row in rows for rate in (row.capacity_rps, row.capacity_rps_low, row.capacity_rps_high) if rate]
    rates = [*_rates(points), *known]
    return _Plane(Scale.over(min(rates), max(rates)), Scale.over(min(ms), max(ms), log=True))


def _rates(points: Sequence[Point]) -> Floats:
    return np.array([one.offered_rps or 0.0 for one in points])


def _windows(row: Row, points: Sequence[Point], plane: _Plane, bound_ms: float) -> Line:
    held, given_up = ([one for one in points if one.abandoned is kind] for kind in (False, True))
    far = [one for one in held if one.bound_ms is not None]
    parts = [*_frame(plane, bound_ms), *_most(row, plane, bound_ms)]
    p50, tail = ([one.p50_ms for one in held], [one.bound_ms or 0.0 for one in far])
    parts += [dots("far", plane.rates.places(_rates(far)), plane.up(np.array(tail)))]
    parts += [dots("near", plane.rates.places(_rates(held)), plane.up(np.array(p50)))]
    parts += [upright("gone", place, 0.0, GIVEN_UP) for place in plane.rates.places(_rates(given_up))]
    rate = under_load.capacity(row)
    lost = f", {len(given_up)} given up" if given_up else ""
    tip = f"{row.name}: {rate} calls/s, {counted(len(points), 'window')}{lost}"
    return Line(row.name, _with_levels(Markup().join(parts), plane), rate.partition(" ")[0], tip=tip)


def _frame(plane: _Plane, bound_ms: float) -> Iterator[Markup]:
    """Lines from side to side: at the named latencies, at the bound, and the floor."""
    for ms, _ in _levels(plane):
        yield path("level", f"M0 {ms:.1f}H{WIDTH:.0f}")
    yield path("bound", f"M0 {plane.level(bound_ms):.1f}H{WIDTH:.0f}")
    yield path("one", f"M0 {FLOOR:.0f}H{WIDTH:.0f}")


def _levels(plane: _Plane) -> list[tuple[float, str]]:
    """(height, ms) of a few round latencies."""
    ticks = plane.ms.ticks()
    step = -(-len(ticks) // MOST_LEVELS)
    return [(BOTTOM - (BOTTOM - TOP) * place / 100, ms) for place, ms in ticks[::step]]


def _most(row: Row, plane: _Plane, bound_ms: float) -> Iterator[Markup]:
    """The most calls a second that hold the bound, on the floor, and where that meets the bound."""
    rate, low, high = row.capacity_rps, row.capacity_rps_low, row.capacity_rps_high
    if not rate:
        return
    yield upright("most", plane.rates.at(rate), plane.level(bound_ms), FLOOR)
    if low is not None and high is not None:
        yield path("interval", f"M{plane.rates.at(low):.1f} {FLOOR:.0f}H{plane.rates.at(high):.1f}")
    yield dots("estimate", np.array([plane.rates.at(rate)]), np.array([FLOOR]))


def _with_levels(content: Markup, plane: _Plane) -> Markup:
    """A drawing with its latencies beside it: text in it would be stretched too."""
    names = Markup().join(Markup('<i style="top:{:.1f}%">{}</i>').format(place, ms) for place, ms in _levels(plane))
    plot = drawing(content, "plot")
    return Markup('<span class="plane"><span class="levels" aria-hidden="true">{}</span>{}</span>').format(names, plot)


# What every number of replicas answers


def front(trials: Sequence[Sequence[Row]]) -> Chart:
    """The calls a second of each variant with each number of replicas, by their cores; what is beaten is pale.

    Where prices are known, each line has its costs too.
    """
    told = [row for rows in trials for row in rows if under_load.sound(row) and row.variant != CONTROL]
    if not told:
        return Chart(())
    known = [rate for row in told for rate in (row.capacity_rps, row.capacity_rps_low, row.capacity_rps_high) if rate]
    scale = Scale.over(min(known), max(known))
    ways = grouped(sorted(told, key=_order), under_load.replicas)
    lines = [_way(row, way if n == 0 else "", told, scale) for way, rows in ways.items() for n, row in enumerate(rows)]
    return with_strip(Chart(tuple(lines), tuple(scale.ticks())), scale)


def _order(row: Row) -> tuple[int, int, str, int, str, bool, float]:
    who = (_cores(row), row.replicas or 0, row.replica_kind or "", row.max_batch or 1, row.through or "")
    return *who, not row.exact, -(row.capacity_rps or 0.0)


def _cores(row: Row) -> int:
    """Of the replicas alone."""
    return (row.replicas or 1) * row.threads


def _way(row: Row, way: str, every: Sequence[Row], scale: Scale) -> Line:
    beaten = any(beats(other, row) for other in every)
    more = ", ".join(filter(None, ("" if row.exact else "approximate", way)))
    bar = Bar("pale" if beaten else "ahead", row.capacity_rps or 0.0, row.capacity_rps_low, row.capacity_rps_high)
    figure = under_load.capacity(row)
    tip = f"{row.name}, {under_load.replicas(row)}: {figure} calls/s{', beaten' if beaten else ''}"
    priced = any(one.cost_per_million is not None for one in every)
    figures = (figure, under_load.cost(row)) if priced else ()
    return Line(row.name, drawing(bar_mark(bar, scale), "plot"), figure, more, tip, figures, bar)


def beats(one: Row, other: Row) -> bool:
    """Whether nobody would choose the other: as many calls a second with fewer cores, or more with no more of them.

    An approximate variant is no choice for who wants the baseline's replies, so it beats no exact one.
    """
    if _cores(one) > _cores(other) or (other.exact and not one.exact):
        return False
    mine, least = one.capacity_rps or 0.0, one.capacity_rps_low or one.capacity_rps or 0.0
    if _cores(one) < _cores(other) and mine >= (other.capacity_rps or 0.0):
        return True
    return least > (other.capacity_rps_high or other.capacity_rps or 0.0)
