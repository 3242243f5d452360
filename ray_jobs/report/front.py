"""Which variants of a trial are worth choosing: by latency, memory and, where it was measured, the time to start."""

from collections.abc import Iterator, Sequence

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row
from ray_jobs.measure.cold import State
from ray_jobs.report import text
from ray_jobs.report.charts import Bar, Chart, Line, bar_mark, drawing
from ray_jobs.report.scales import Scale
from ray_jobs.report.strips import with_strip
from ray_jobs.report.thrift import MEMORY_MARGIN
from ray_jobs.statistics import Interval, Verdict

LEAST = 3  # variants, below which there is nothing to choose from


def front(rows: Sequence[Row]) -> Chart:
    """Each variant's latency, its memory and its start in words; what another one beats is pale."""
    told = [row for row in rows if row.of_base and row.variant != CONTROL and _is_known(row)]
    if len(told) < LEAST:
        return Chart(())
    ordered = sorted(told, key=lambda row: (not row.exact, row.p50_ms or 0.0))
    known = [ms for row in told for ms in (row.p50_ms, row.p50_low_ms, row.p50_high_ms) if ms]
    scale = Scale.over(min(known), max(known), log=True)
    lines = tuple(_line(row, ordered, scale) for row in ordered)
    return with_strip(Chart(lines, tuple(scale.ticks())), scale)


def heads(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the figures of the lines are."""
    started = any(row.to_first_reply_s_cached is not None for row in rows)
    return ("p50", "Peak memory", *(["Start, cached"] if started else []))


def _is_known(row: Row) -> bool:
    return bool(row.p50_ms) and row.peak_memory_mb is not None and row.verdict != Verdict.INVALID


def _line(row: Row, every: Sequence[Row], scale: Scale) -> Line:
    winner = next((other for other in every if beats(other, row)), None)
    bar = Bar("ahead" if winner is None else "pale", row.p50_ms or 0.0, row.p50_low_ms, row.p50_high_ms)
    figures = _figures(row)
    figure = ", ".join(figures)
    said = ("" if row.exact else "approximate", "" if winner is None else f"beaten by {winner.variant}")
    more, tip = ", ".join(filter(None, said)), f"{row.variant}: {figure}"
    return Line(row.variant, drawing(bar_mark(bar, scale), "plot"), figure, more, tip, figures, bar)


def _figures(row: Row) -> tuple[str, ...]:
    start = text.to_first_reply(row, State.CACHED) if row.to_first_reply_s_cached is not None else None
    return (f"{text.digits(row.p50_ms)} ms", f"{row.peak_memory_mb:,.0f} MB", *([f"{start} s"] if start else []))


def beats(one: Row, other: Row) -> bool:
    """Whether nobody would choose the other: it is better in nothing that was measured of both, and worse in something.

    An approximate variant is no choice for who wants the baseline's replies, so it beats no exact one.
    """
    if other.exact and not one.exact:
        return False
    told = [better for better in _better(one, other) if better is not None]
    return any(told) and not any(better for better in _better(other, one) if better is not None)


def _better(one: Row, other: Row) -> Iterator[bool | None]:
    """Whether the first is better beyond doubt, in latency, memory and start; None where that is not known."""
    fast, slow = _speedup(one), _speedup(other)
    yield None if fast is None or slow is None else fast.low > slow.high
    yield (one.peak_memory_mb or 0.0) * (1 + MEMORY_MARGIN) < (other.peak_memory_mb or 0.0)
    soon, late = one.to_first_reply_s_cached_high, other.to_first_reply_s_cached_low
    yield None if soon is None or late is None else soon < late


def _speedup(row: Row) -> Interval | None:
    return Interval(1.0, 1.0, 1.0) if row.variant == row.baseline else row.interval
