"""Trials under load as a person reads them: how many calls a second each variant answers, the same in every output."""

from collections.abc import Sequence
from dataclasses import replace

from chatbot.variants import BASELINE
from ray_jobs.matrix.rows import Row, Status
from ray_jobs.report import text
from ray_jobs.scenario import UNITS, Bound, ReplicaKind, Through
from ray_jobs.statistics import Verdict

CAPACITY, RATIO, COST = "calls/s (95%)", f"times {BASELINE} (95%)", "cost per million"
HEADS = (CAPACITY, RATIO, COST)  # of figures that no other table has
AT_NO_RATE = "at no rate"
VERDICTS = {**text.VERDICTS, Verdict.FASTER: "more", Verdict.SLOWER: "fewer"}


def as_ratio(row: Row) -> Row:
    """A row with its calls a second over the baseline's, and their verdict, in the place of the speedup's."""
    over = row.capacity_ratio, row.capacity_ratio_low, row.capacity_ratio_high
    verdict = row.verdict or row.capacity_verdict
    return replace(row, speedup=over[0], speedup_low=over[1], speedup_high=over[2], verdict=verdict)


def at_no_rate(row: Row) -> bool:
    """Whether no rate that was tried was slow enough for it to hold the bound."""
    return row.capacity_rps == 0 and row.verdict != Verdict.INVALID


def sound(row: Row) -> bool:
    """Whether its calls a second are known, and those of what its label says."""
    return bool(row.capacity_rps) and row.verdict != Verdict.INVALID


# Titles


def title(row: Row) -> str:
    """The title of a trial: how requests come, who answers, its place and its sizes."""
    return f"{way(row)} on {text.place(row)}: {sizes(row)}"


def way(row: Row) -> str:
    """How requests come, who answers them, and what they must hold."""
    return ", ".join(filter(None, (row.scenario, replicas(row), bound(row))))


def asked(row: Row) -> str:
    """What trials have in common that differ in who answers alone: all of ``title`` but that."""
    how = ", ".join(filter(None, (row.scenario, bound(row))))
    return f"{how} on {text.place(row)}: {sizes(row)}"


def replicas(row: Row) -> str:
    """Those who answer: ``2 replicas of 1 thread, a process each, up to 8 requests at once``."""
    count, together = row.replicas or 1, row.replica_kind == ReplicaKind.THREAD
    where = "" if count == 1 else ", in one process" if together else ", a process each"
    at_once = "" if (row.max_batch or 1) == 1 else f", up to {row.max_batch} requests at once"
    behind = ", behind Ray Serve" if row.through == Through.SERVE else ""
    return f"{text.counted(count, 'replica')} of {text.counted(row.threads, 'thread')}{where}{at_once}{behind}"


def bound(row: Row) -> str:
    """``p99 at most 50 ms``; empty where nothing must be held."""
    if row.slo is None:
        return ""
    most = Bound.of(row.slo)
    return f"{most.percentile} at most {duration(most.seconds)}"


def sizes(row: Row) -> str:
    """A workload's sizes without the threads, which ``replicas`` tells."""
    return text.sizes(row).removesuffix(f", {text.counted(row.threads, 'thread')}")


def duration(seconds: float) -> str:
    """A short time in the unit that suits it: ``85 us``, ``50 ms``, ``2 s``."""
    unit = "us" if seconds < UNITS["ms"] else "ms" if seconds < 1 else "s"
    return f"{seconds / UNITS[unit]:.3g} {unit}"


# Tables


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows of a trial, that of the most calls a second first: of the exact ones, then of the approximate.

    Those are no ranking together. What has no figures comes last.
    """
    return sorted(rows, key=_rank)


def _rank(row: Row) -> tuple[bool, bool, float]:
    told = sound(row) or at_no_rate(row)
    return not told, not row.exact, -(row.capacity_rps or 0.0) if told else 0.0


def table(rows: Sequence[Row], margin: float) -> list[dict[str, str]]:
    """The rows of a trial as every table shows them, by the heads of the columns; costs only where one is known."""
    priced = any(row.cost_per_million is not None for row in rows)
    return [{**cells(row, margin), **({COST: cost(row)} if priced else {})} for row in rows]


def cells(row: Row, margin: float) -> dict[str, str]:
    """A row without its costs, by the heads of the columns."""
    over = text.speedup_cell(as_ratio(row)) if sound(row) else text.DASH
    figures = {CAPACITY: capacity(row), RATIO: over, "verdict": verdict(row, margin), text.REPLIES: text.replies(row)}
    return {"variant": row.name, **figures}


def capacity(row: Row) -> str:
    """Calls a second with their interval; an invalid program has none."""
    if at_no_rate(row):
        return "none"
    if not sound(row):
        return text.DASH
    return text.estimated(row.capacity_rps, row.capacity_rps_low, row.capacity_rps_high, text.digits)


def verdict(row: Row, margin: float) -> str:
    """The verdict on its calls a second as a phrase; the status if there is none."""
    over = as_ratio(row)
    if over.verdict is not None:
        return VERDICTS.get(over.verdict) or text.verdict(over, margin)
    if row.status != Status.DONE:
        return row.status
    if row.variant == row.baseline:
        return VERDICTS[Verdict.BASELINE]
    return AT_NO_RATE if at_no_rate(row) else VERDICTS[Verdict.INCONCLUSIVE]


def cost(row: Row) -> str:
    """What a million replies cost, with its interval, which is that of the calls a second."""
    low, high = cost_limits(row)
    return text.estimated(row.cost_per_million if sound(row) else None, low, high, "{:.3g}".format)


def cost_limits(row: Row) -> tuple[float | None, float | None]:
    """The limits of the cost of a million replies; None where they are not known."""
    value, rate, limits = row.cost_per_million, row.capacity_rps, (row.capacity_rps_high, row.capacity_rps_low)
    if value is None or rate is None:
        return None, None
    low, high = (value * rate / limit if limit else None for limit in limits)
    return low, high


def notes(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason and warning of a trial, and one for its windows."""
    return [*reasons(rows), *windows(rows)]


def reasons(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason and warning of a trial."""
    return text.notes([replace(row, discarded_rounds=None) for row in rows])


def windows(rows: Sequence[Row]) -> list[str]:
    """A sentence about what of a trial is left out, and how late requests were sent; none if neither is known."""
    discarded = max((row.discarded_rounds or 0 for row in rows), default=0)
    late_us = [row.generator_late_p99_us for row in rows if row.generator_late_p99_us is not None]
    told = []
    if discarded:
        told.append(f"{text.counted(discarded, 'round')} discarded: something else was using the machine")
    if late_us:
        told.append(f"requests were sent up to {duration(max(late_us) * UNITS['us'])} late (p99)")
    return ["; ".join(told)] if told else []
