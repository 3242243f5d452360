"""A run's findings in sentences: the fastest variant, by how much, how sure, and what went wrong."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ray_jobs.matrix.row_warnings import against_imprecision, imprecision
from ray_jobs.matrix.rows import Row, Status, asked_sides, grouped
from ray_jobs.report import text
from ray_jobs.report.fact import Fact
from ray_jobs.report.facts import MOST_REASONS, facts_of, listed, named_rivals, worst_replies
from ray_jobs.report.load_facts import load_sentence
from ray_jobs.report.sentences import comparable, compared, hardware, not_compared, sentence, side_sentence, state
from ray_jobs.report.under_load import as_ratio, at_no_rate
from ray_jobs.report.view import RunView
from ray_jobs.sides import BASE
from ray_jobs.statistics import Verdict

MOST_SENTENCES = 6
DECIDED = (Verdict.FASTER, Verdict.SLOWER, Verdict.SAME, Verdict.INCONCLUSIVE)


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
    sides, loads = _of_sides(run), _of_loads(run)
    ratios = [[as_ratio(row) for row in rows if not at_no_rate(row)] for rows in run.load_trials.values()]
    if not measured:
        nothing = _nothing(run) if run.rows or not loads else []
        return [*sides, *nothing, *loads, *_doubts(run, ratios)]
    if len(measured) == 1:
        found = compared(measured[0])
        found.sort(key=lambda row: (row.verdict != Verdict.FASTER, not row.exact, -(row.speedup or 0.0)))
        told = [sentence(row, run.margin) for row in found]
        told[:1] = [_with_rivals(one, found[0], run) for one in told[:1]]
    else:
        told = _summaries(grouped((row for rows in measured for row in compared(rows)), lambda row: row.variant))
    places = {hardware(rows[0]) for rows in measured}
    said = [*sides, *told[:MOST_SENTENCES], *loads]
    return [
        *_placed_once(said, {hardware(row) for row in run.every_row}),
        *_doubts(run, [*measured, *ratios]),
        *(_reason(rows, places) for rows in others[:MOST_REASONS]),
    ]


def _with_rivals(said: str, row: Row, run: RunView) -> str:
    """A sentence about the fastest variant of a trial, with those that it is not told apart from."""
    best = run.fastest(row.trial_id, row.exact)
    rivals = named_rivals(best) if best is not None and best.row is row else ""
    return f"{said.removesuffix('.')}; {rivals}." if rivals else said


def _placed_once(said: Sequence[str], places: Collection[str]) -> list[str]:
    """The sentences; where all are about one place, the first alone names it."""
    if len(places) != 1:
        return list(said)
    (place,) = places
    return [*said[:1], *(one.removeprefix(f"On {place}, ") for one in said[1:])]


def _of_loads(run: RunView) -> list[str]:
    """What the first trials under load say."""
    trials = list(run.load_trials.values())
    more = len(trials) - MOST_REASONS
    others = [f"{text.counted(more, 'other trial')} under load {'is' if more == 1 else 'are'} below."]
    return [*map(load_sentence, trials[:MOST_REASONS]), *(others if more > 0 else [])]


def _of_sides(run: RunView) -> list[str]:
    """What the sides do, and why some can't be compared; what is decided comes first."""
    every = [asked_sides(rows) for rows in run.trials.values()]
    told = [row for rows in every for row in rows if comparable(row)]
    reasons = [said for trial, rows in zip(run.trials, every, strict=True) for said in _lost(run.trials[trial], rows)]
    if len(told) <= MOST_SENTENCES:
        told.sort(key=lambda row: DECIDED.index(row.side_verdict or Verdict.INCONCLUSIVE))
        said = [side_sentence(row, run.margin) for row in told]
    else:
        named = grouped(map(text.against_base, told), lambda row: str(row.side))
        said = _summaries(named, BASE, "comparison")[:MOST_SENTENCES]
    return [*said, *list(dict.fromkeys(reasons))[:MOST_REASONS]]


def _lost(trial: Sequence[Row], sides: Sequence[Row]) -> Iterator[str]:
    """Why rows of sides can't be compared, but for what is skipped everywhere."""
    nowhere = {row.variant for row in trial if row.of_base and row.status == Status.SKIPPED}
    lost = [row for row in sides if not comparable(row) and row.variant not in nowhere]
    for (side, _), rows in grouped(lost, lambda row: (row.side, row.reason)).items():
        yield not_compared(rows, whole=len(rows) == sum(row.side == side for row in sides))


def _doubts(run: RunView, trials: Sequence[Sequence[Row]]) -> list[str]:
    """Reasons to doubt the figures: warnings, except for the precision, which the facts report."""
    figures = [[row for row in rows if row.status != Status.SKIPPED] for rows in trials]
    doubts = [_doubted(rows, run) for rows in figures]
    if len(trials) == 1:
        return [f"But {one}." for one in list(_named(doubts[0], figures[0]))[:MOST_REASONS]]
    troubled = sum(map(bool, doubts))
    if not troubled:
        return []
    return [f"But {text.counted(troubled, 'trial')} of {len(trials)} came with warnings, listed with each."]


def _named(doubts: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> Iterator[str]:
    """Each warning with the variants that it is about, unless it is about all: the baseline is compared with none.

    Windows under load are told as a whole.
    """
    for said, names in doubts.items():
        shared = len(names) >= len(rows) - 1 or rows[0].under_load
        yield said if shared else f"{listed(names)}: {said}"


def _doubted(rows: Sequence[Row], run: RunView) -> dict[str, list[str]]:
    """The names of the rows that each warning is about."""
    told = [(one, row.name) for row in rows for one in row.warnings if one not in _imprecision(row, run)]
    return {one: [name for _, name in pairs] for one, pairs in grouped(told, lambda pair: pair[0]).items()}


def _imprecision(row: Row, run: RunView) -> list[str]:
    """The warnings of a row that its intervals are wider than asked."""
    ways = ((row.interval, imprecision), (text.against_base(row).interval, against_imprecision))
    return [said(found, run.spec["precision"]) for found, said in ways if found and "precision" in run.spec]


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


def _summaries(named: Mapping[str, Sequence[Row]], base: str | None = None, thing: str = "trial") -> list[str]:
    """A sentence for the rows of each name over the baseline, or ``base``, the fastest first.

    Over the baseline approximate variants come after all exact ones: they are no ranking together.
    """
    middles = {name: median([row.speedup for row in of if row.speedup] or [0.0]) for name, of in named.items()}
    approximate = {name for name, of in named.items() if base is None and not any(row.exact for row in of)}
    ordered = sorted(middles, key=lambda name: (name in approximate, -middles[name]))
    return [_summary(name, named[name], base or named[name][0].baseline, thing) for name in ordered]


def _summary(name: str, rows: Sequence[Row], base: str, thing: str) -> str:
    first: dict[str, str] = {Verdict.FASTER: f"faster than {base} in", Verdict.SAME: f"the same as {base} in"}
    first |= {Verdict.SLOWER: f"slower than {base} in", Verdict.INCONCLUSIVE: "undecided in"}
    others: dict[str, str] = {Verdict.SAME: "the same in", Verdict.SLOWER: "slower in"}
    found = list(dict.fromkeys(map(state, rows)))
    parts: list[str] = []
    for kind in dict.fromkeys(kind for kind in (*first, *found) if kind in found):
        mine, texts = [row for row in rows if state(row) == kind], first | others if parts else first
        total = "" if parts else f" of {text.counted(len(rows), thing)}"
        parts.append(f"{texts.get(kind, f'{kind} in')} {len(mine):,}{total}{_spread(mine)}")
    return f"{name} is {', '.join(parts)}; {worst_replies(rows)}."


def _spread(rows: Sequence[Row]) -> str:
    told = sorted((row for row in rows if row.speedup is not None), key=lambda row: row.speedup or 0.0)
    if not told or state(rows[0]) not in (Verdict.FASTER, Verdict.SLOWER):
        return ""
    ends = [told[0], told[-1]]
    places = min(len(text.times(row).rstrip("x").partition(".")[2]) for row in ends)
    low, high = (f"{row.speedup:.{places}f}x" for row in ends)
    return f" ({low})" if low == high else f" ({low} to {high})"
