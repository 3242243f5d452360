"""Which variants are worth choosing: who beats whom, and what the page says of it."""

from dataclasses import replace
from typing import Any

import pytest

from ray_jobs.matrix.rows import Row
from ray_jobs.report.front import beats, front

BASE = Row("r", "t", "s", "h", "cpu", "EPYC", "small", 1, 8, 10, 1, "eager", "eager", True)


def row(variant: str, ms: float, speedup: float, memory: float, exact: bool = True, start: float | None = None) -> Row:
    told: dict[str, Any] = {"variant": variant, "exact": exact, "p50_ms": ms, "peak_memory_mb": memory}
    if variant != "eager":
        told |= {"speedup": speedup, "speedup_low": 0.99 * speedup, "speedup_high": 1.01 * speedup}
    if start is not None:
        told |= {f"to_first_reply_s_cached{end}": start for end in ("", "_low", "_high")}
    return replace(BASE, **told)


EAGER, FAST, LEAN = row("eager", 10, 1, 400), row("fast", 2, 5, 800), row("lean", 8, 1.25, 300)


@pytest.mark.parametrize(
    ("one", "other", "wins"),
    [
        (LEAN, EAGER, True),  # faster and smaller
        (EAGER, LEAN, False),
        (FAST, EAGER, False),  # faster, but larger
        (FAST, LEAN, False),
        (row("a", 2, 5, 800), row("b", 2.01, 4.98, 810), False),  # neither is told from the other
        (row("a", 2, 5, 700), row("b", 2.01, 4.98, 800), True),  # smaller, and no slower beyond doubt
        (row("a", 2, 5, 700, start=3.0), row("b", 2, 5, 800, start=1.0), False),  # which starts sooner
        (row("a", 2, 5, 700, start=1.0), row("b", 2, 5, 800), True),  # of which that is not known
        (row("near", 1, 10, 300, exact=False), EAGER, False),  # other replies
        (EAGER, row("near", 20, 0.5, 500, exact=False), True),
    ],
)
def test_one_beats_another_that_is_better_in_nothing_and_worse_in_something(one: Row, other: Row, wins: bool) -> None:
    assert beats(one, other) is wins


def test_the_fastest_comes_first_and_what_is_beaten_is_pale() -> None:
    near = row("near", 1, 10, 900, exact=False)
    chart = front([EAGER, replace(EAGER, variant="eager-again"), near, LEAN, FAST])
    assert [line.name for line in chart.lines] == ["fast", "lean", "eager", "near"]
    assert [line.more for line in chart.lines] == ["", "", "beaten by lean", "approximate"]
    assert ["pale" in line.drawing for line in chart.lines] == [False, False, True, False]
    assert chart.lines[0].figure == "2.00 ms, 800 MB"


def test_where_memory_is_unknown_or_there_is_no_choice_nothing_is_drawn() -> None:
    assert not front([EAGER, FAST]).lines
    assert not front([EAGER, replace(FAST, peak_memory_mb=None), LEAN]).lines
    assert not front([EAGER, replace(FAST, verdict="invalid"), LEAN]).lines
