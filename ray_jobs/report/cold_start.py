"""Cold start against steady state: the number of calls after which a slow start pays off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.matrix.rows import Row
from ray_jobs.report import text
from ray_jobs.report.series import TrialSeries
from ray_jobs.statistics import Verdict


@dataclass(frozen=True)
class Start:
    """The cost of a variant before it reaches its speed, and when that pays off."""

    variant: str
    prepare_ms: float
    slow_start_ms: float | None  # what its first calls took above its median; None where there are no samples
    p50_ms: float
    pays_after: str  # in words


def break_even(extra_ms: float, gain_ms: float) -> int | None:
    """The number of calls that win back ``extra_ms`` at the start; None if they never do."""
    if gain_ms <= 0:
        return None
    return max(0, math.ceil(extra_ms / gain_ms))


def starts(rows: Sequence[Row], series: TrialSeries | None) -> list[Start]:
    """One for each prepared and measured variant of ``base``; empty if the baseline is not among them."""
    rows = [row for row in rows if row.of_base]
    slow = {one.variant: one.slow_start_ms for one in series.variants} if series else {}
    known = {
        row.variant: row for row in rows if row.prepare_s is not None and row.p50_ms and row.verdict != Verdict.INVALID
    }
    base = known.get(rows[0].baseline)
    if base is None:
        return []
    cost = {name: 1000 * (row.prepare_s or 0.0) + (slow.get(name) or 0.0) for name, row in known.items()}
    found = []
    for name, row in known.items():
        pays = _pays(row, base, cost[name] - cost[base.variant])
        found.append(Start(name, 1000 * (row.prepare_s or 0.0), slow.get(name), row.p50_ms or 0.0, pays))
    return found


def _pays(row: Row, base: Row, extra_ms: float) -> str:
    """The number of calls as a person reads it, with the range from the speedup's interval."""
    if row.variant == base.variant:
        return "the baseline"
    interval = row.interval
    if row.verdict != Verdict.FASTER or interval is None or not base.p50_ms:
        return "never: slower" if row.verdict == Verdict.SLOWER else "not shown to be faster"
    if extra_ms <= 0:
        return "from the first call"
    gains = [base.p50_ms * (1 - 1 / speedup) for speedup in (interval.value, interval.high, interval.low)]
    middle, least, most = (break_even(extra_ms, gain) for gain in gains)
    if middle is None or least is None or most is None:
        return "not shown to be faster"
    return f"after {text.counted(middle, 'call')} ({least:,} to {most:,})"
