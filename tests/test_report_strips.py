"""The strip that magnifies intervals which an axis hides: none of them is lost, and each has its own width."""

import re
from dataclasses import replace

import pytest
from decisions import decision
from hypothesis import given
from hypothesis import strategies as st
from reports import Case, made_view

from ray_jobs.matrix.rows import Row
from ray_jobs.report.charts import Bar, Chart, Line, bar_mark, drawing, interval_scale, intervals
from ray_jobs.report.page import page
from ray_jobs.report.scales import WIDTH, Scale
from ray_jobs.report.strips import SEEN, is_hidden, with_strip

BASE = Row("r", "t", "s", "h", "cpu", "EPYC", "small", 1, 8, 10, 1, "fast", "eager", True)
MARGIN = 0.02
DOT_PX, AXIS_PX, STRIP_PX = 8, 380, 130  # of a screen of 1280 px
EXTENT = re.compile(r'class="interval [^"]*" d="M([\d.]+) 50H([\d.]+)"')

errors = st.floats(1e-6, 0.3)
estimates = st.lists(st.tuples(st.floats(0.05, 50.0), errors, errors), min_size=1, max_size=8)


def row(speedup: float, below: float, above: float) -> Row:
    """A row whose limits lie so far below and above its speedup, as shares of it."""
    low, high = speedup * (1 - below), speedup * (1 + above)
    return replace(BASE, speedup=speedup, speedup_low=low, speedup_high=high, verdict="faster")


def charted(*rows: Row) -> Chart:
    scale = interval_scale(rows, MARGIN)
    return with_strip(intervals([(one.variant, "", one) for one in rows], MARGIN, scale), scale)


def extent(drawn: str) -> tuple[float, float] | None:
    """Where the bar of a drawing begins and ends; None if it has none."""
    found = EXTENT.search(drawn)
    return None if found is None else (float(found[1]), float(found[2]))


@given(estimates)
def test_every_interval_sticks_out_from_its_dot_or_is_in_the_strip(told: list[tuple[float, float, float]]) -> None:
    for line in charted(*(row(*one) for one in told)).lines:
        left, right = extent(line.drawing) or (0.0, 0.0)
        if (right - left) * AXIS_PX / WIDTH < DOT_PX + 4:
            assert extent(line.strip) is not None


@given(estimates)
def test_the_widest_of_the_hidden_intervals_fills_the_strip_and_the_others_their_share_of_it(
    told: list[tuple[float, float, float]],
) -> None:
    chart = charted(*(row(*one) for one in told))
    reaches, drawn = [], []
    for line, (_, below, above) in zip(chart.lines, told, strict=True):
        if (found := extent(line.strip)) is not None:
            reaches.append((below, above))
            drawn.append((WIDTH / 2 - found[0], found[1] - WIDTH / 2))
    if not drawn or max(map(max, reaches)) < 1e-4:
        return
    per_unit = max(map(max, drawn)) / max(map(max, reaches))
    assert max(map(max, drawn)) * STRIP_PX / WIDTH > 60, "px of the half of a strip"
    for (below, above), (left, right) in zip(reaches, drawn, strict=True):
        assert (left, right) == pytest.approx((below * per_unit, above * per_unit), abs=1.0)


@given(st.floats(1e-5, 40.0))
def test_the_scale_of_a_strip_is_three_round_percentages(reach: float) -> None:
    bars = [Bar("faster", value, value * (1 - reach / 100), value * (1 + reach / 100)) for value in (0.001, 1e4)]
    scale = Scale.over(1e-7, 1e7)
    lines = tuple(Line("", drawing(bar_mark(bar, scale), "plot"), "", bar=bar) for bar in bars)
    (left, below), (middle, none), (right, above) = with_strip(Chart(lines), scale).strip_ticks
    assert none == "0"
    assert middle == pytest.approx(50.0)
    assert middle - left == pytest.approx(right - middle)
    assert (below[0], above[0], below[1:]) == ("\N{MINUS SIGN}", "+", above[1:])
    percent = float(above[1:-1])
    assert f"{percent:e}"[0] in "125"
    assert 0.35 * max(reach, 0.01) < percent <= 1.1 * max(reach, 0.01)


def test_where_the_axis_shows_every_interval_there_is_no_strip() -> None:
    chart = charted(row(1.2, 0.02, 0.02), row(1.3, 0.01, 0.01))
    assert not chart.strip_ticks
    assert not any(line.strip for line in chart.lines)
    assert "The strip on the right" not in page([made_view([Case(noise=0.02)])])


def test_what_the_axis_shows_is_not_drawn_again() -> None:
    narrow, wide = charted(row(25.0, 0.003, 0.003), row(1.2, 0.4, 0.4)).lines
    assert extent(narrow.strip) is not None
    assert extent(wide.strip) is None


def test_an_estimate_without_limits_hides_nothing() -> None:
    assert not is_hidden(Bar("faster", 1.0, None, None), Scale(0.0, 100.0))
    assert not charted(replace(BASE, speedup=25.0)).strip_ticks


def test_a_page_of_many_variants_magnifies_the_intervals_of_every_chart_and_says_so() -> None:
    html = page([decision(variants=17, load=True)])
    assert html.count("The strip on the right magnifies") == 3, "speedups, what is worth choosing, calls a second"
    assert html.count('<span class="magnifier">') == 16 + 16 + 3 * 16
    assert SEEN < WIDTH / 20
