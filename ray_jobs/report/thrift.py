"""What else decides where one trial was measured: which variant starts soonest, and which needs the least memory."""

from collections.abc import Callable, Sequence

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row
from ray_jobs.measure.cold import State
from ray_jobs.report import text
from ray_jobs.report.fact import Fact
from ray_jobs.statistics import Verdict

Naming = Callable[[str, Sequence[str]], str]  # a variant with those that it is not told apart from
MEMORY_MARGIN = 0.02  # of peaks that were measured once each


def thrift_facts(trials: Sequence[Sequence[Row]], named: Naming) -> list[Fact]:
    """Of a single trial; of several each has its own, in its tables."""
    measured = [rows for rows in trials if any(row.verdict for row in rows)]
    if len(measured) != 1:
        return []
    rows = [row for row in measured[0] if row.of_base and row.variant != CONTROL and row.verdict != Verdict.INVALID]
    return [fact for fact in (_soonest(rows, named), _smallest(rows, named)) if fact is not None]


def _soonest(rows: Sequence[Row], named: Naming) -> Fact | None:
    """By starts that find everything compiled; not told apart where the intervals overlap, or where there are none."""
    every = [row for row in text.started(rows) if row.to_first_reply_s_cached is not None]
    known = {row.variant: row for row in every if row.to_first_reply_s_cached_high is not None}
    if len(known) < 2:
        return _unsure_of_starts(every)
    first = next(iter(known.values()))
    most = first.to_first_reply_s_cached_high or 0.0
    rivals = [n for n, row in known.items() if row is not first and (row.to_first_reply_s_cached_low or 0.0) <= most]
    more = f"{text.to_first_reply(first, State.CACHED)} s to the first reply"
    if first.to_first_reply_s_empty is not None:
        more += f"; {text.to_first_reply(first, State.EMPTY)} s with nothing compiled"
    return Fact("Quickest to start", named(first.variant, rivals), more)


def _unsure_of_starts(started: Sequence[Row]) -> Fact | None:
    """Of variants that were started too seldom to know how sure their times are."""
    if len(started) < 2:
        return None
    first, *_, last = (f"{row.variant} {text.to_first_reply(row, State.CACHED)} s" for row in started)
    more = f"too few starts to tell how sure the times to the first reply are; they reach from {first} to {last}"
    return Fact("Quickest to start", "not told apart", more)


def _smallest(rows: Sequence[Row], named: Naming) -> Fact | None:
    known = {row.variant: row.peak_memory_mb for row in rows if row.peak_memory_mb is not None}
    if len(known) < 2:
        return None
    first = min(known, key=known.__getitem__)
    rivals = [name for name, mb in known.items() if name != first and mb <= known[first] * (1 + MEMORY_MARGIN)]
    base = next((known[row.variant] for row in rows if row.variant == row.baseline and row.variant in known), None)
    than = f", {rows[0].baseline} {base:,.0f} MB" if base is not None and first != rows[0].baseline else ""
    whole = ", Python included" if rows[0].device == "cpu" else ""
    return Fact("Smallest in memory", named(first, rivals), f"{known[first]:,.0f} MB at its peak{whole}{than}")
