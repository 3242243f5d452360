"""A run's findings in sentences: the fastest variant, by how much, how sure, and what went wrong."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from ray_jobs.matrix.row_warnings import imprecision
from ray_jobs.matrix.rows import Row, Status, grouped
from ray_jobs.report import text
from ray_jobs.report.facts import MOST_REASONS, Fact, facts_of, worst_replies
from ray_jobs.report.sentences import compared, hardware, sentence, side_sentence, state
from ray_jobs.report.view import RunView
from ray_jobs.sides import AGAIN
from ray_jobs.statistics import Verdict

MOST_SENTENCES = 6


@dataclass(frozen=True)
class Summary:
    """The first screen's text."""

    headline: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]


def summarize(runs: Sequence[RunView]) -> Summary:
    """The summary of one run or of several."""
    told = [_told_of(run) for run in runs]
    facts = facts_of(runs)
    if len(runs) == 1:
        return Summary(told[0][0], tuple(told[0][1:]), facts)
    lines = [f"{run.id}: {headline}" for run, (headline, *_) in zip(runs, told, strict=True)]
    return Summary(f"{len(runs)} runs side by side", tuple(lines), facts)


def _told_of(run: RunView) -> list[str]:
    """The headline sentence, then the other sentences."""
    known = [(rows, any(row.verdict for row in compared(rows))) for rows in run.trials.values()]
    measured, others = ([rows for rows, told in known if told is kind] for kind in (True, False))
    sides = [side_sentence(row, run.margin) for rows in run.trials.values() for row in _asked(rows)]
    if not measured:
        return [*sides[:MOST_SENTENCES], *_nothing(run)]
    if len(measured) == 1:
        found = compared(measured[0])
        found.sort(key=lambda row: (row.verdict != Verdict.FASTER, not row.exact, -(row.speedup or 0.0)))
        told = [sentence(row, run.margin) for row in found]
    else:
        told = _summaries([row for rows in measured for row in compared(rows)])
    places = {hardware(rows[0]) for rows in measured}
    return [
        *sides[:MOST_SENTENCES],
        *told[:MOST_SENTENCES],
        *_doubts(run, measured),
        *(_reason(rows, places) for rows in others[:MOST_REASONS]),
    ]


def _asked(rows: Sequence[Row]) -> list[Row]:
    """The rows of the sides that were asked for, without the control's."""
    return [row for row in text.compared_sides(rows) if row.side != AGAIN]


def _doubts(run: RunView, trials: Sequence[Sequence[Row]]) -> list[str]:
    """Reasons to doubt the figures: warnings, except for the precision, which the facts report."""
    figures = [[row for row in rows if row.status != Status.SKIPPED] for rows in trials]
    doubts = [[one for row in rows for one in row.warnings if one != _imprecision(row, run)] for rows in figures]
    if len(trials) == 1:
        return [f"But {one}." for one in list(dict.fromkeys(doubts[0]))[:MOST_REASONS]]
    troubled = sum(map(bool, doubts))
    if not troubled:
        return []
    return [f"But {text.counted(troubled, 'trial')} of {len(trials)} came with warnings, listed with each."]


def _imprecision(row: Row, run: RunView) -> str | None:
    return imprecision(row.interval, run.spec["precision"]) if row.interval and "precision" in run.spec else None


def _nothing(run: RunView) -> list[str]:
    baselines = [row for row in run.rows if row.verdict == Verdict.BASELINE]
    if baselines:
        return [sentence(row, run.margin) for row in baselines[:MOST_SENTENCES]]
    reasons = dict.fromkeys(f"{hardware(row)}: {row.status}, {row.reason}" for row in run.rows)
    return ["Nothing was measured.", *list(reasons)[:MOST_REASONS]]


def _reason(rows: Sequence[Row], measured: Collection[str]) -> str:
    row = rows[-1]
    if state(row) in (Status.SKIPPED, Status.FAILED):
        place = f"{hardware(row)}, {text.sizes(row)}" if hardware(row) in measured else hardware(row)
        return f"On {place}, nothing was measured: {state(row)}, {row.reason}."
    return f"{text.title(row)}: {state(row)}."


def _summaries(rows: Sequence[Row]) -> list[str]:
    """A sentence for each variant over many trials, the fastest first."""
    by_variant = grouped(rows, lambda row: row.variant)
    middles = {name: median([row.speedup for row in of if row.speedup] or [0.0]) for name, of in by_variant.items()}
    return [_summary(name, by_variant[name]) for name in sorted(middles, key=lambda name: -middles[name])]


def _summary(name: str, rows: Sequence[Row]) -> str:
    base = rows[0].baseline
    first: dict[str, str] = {Verdict.FASTER: f"faster than {base} in", Verdict.SAME: f"the same as {base} in"}
    first |= {Verdict.SLOWER: f"slower than {base} in", Verdict.INCONCLUSIVE: "undecided in"}
    others: dict[str, str] = {Verdict.SAME: "the same in", Verdict.SLOWER: "slower in"}
    found = list(dict.fromkeys(map(state, rows)))
    parts: list[str] = []
    for kind in dict.fromkeys(kind for kind in (*first, *found) if kind in found):
        mine, texts = [row for row in rows if state(row) == kind], first | others if parts else first
        total = "" if parts else f" of {text.counted(len(rows), 'trial')}"
        parts.append(f"{texts.get(kind, f'{kind} in')} {len(mine):,}{total}{_spread(mine)}")
    return f"{name} is {', '.join(parts)}; {worst_replies(rows)}."


def _spread(rows: Sequence[Row]) -> str:
    values = [row.speedup for row in rows if row.speedup is not None]
    if not values or state(rows[0]) not in (Verdict.FASTER, Verdict.SLOWER):
        return ""
    low, high = (f"{text.ratio(value)}x" for value in (min(values), max(values)))
    return f" ({low})" if low == high else f" ({low} to {high})"
