"""What a run found out, in sentences: which is fastest, by how much, how sure, same replies or not, what went wrong."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row, Status
from ray_jobs.report import text as words
from ray_jobs.report.view import Fastest, RunView
from ray_jobs.statistics import Verdict

SIZES = ("model", "batch", "prompt_tokens", "reply_tokens", "threads")
MOST_SENTENCES = 6
MOST_REASONS = 3
IMPRECISE = "precision not reached"


@dataclass(frozen=True)
class Fact:
    """One of the first screen's questions with its answer."""

    question: str
    answer: str
    more: str = ""
    alarming: bool = False


@dataclass(frozen=True)
class Answers:
    """The first screen's words."""

    headline: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]


def state(row: Row) -> str:
    """What a cell says: its verdict, or why it has none."""
    return row.verdict or row.status


def sentence(row: Row, margin: float, where: str | None = None) -> str:
    """One cell of the matrix in words."""
    place = where or f"On {_hardware(row)}"
    name, base, kind = row.variant, row.baseline, state(row)
    tail = f"{_replies(row)}{_unfinished(row)}."
    if kind in (Verdict.FASTER, Verdict.SLOWER):
        return f"{place}, {name} answers {_times(row)} as fast as {base}{_range(row)}; {tail}"
    if kind == Verdict.SAME:
        return f"{place}, {name} is as fast as {base}, within {margin:.0%}: {_times(row)}{_range(row)}; {tail}"
    if kind == Verdict.INCONCLUSIVE:
        return f"{place}, {name} vs {base}: undecided, {_told(row)}; {tail}"
    if kind == Verdict.BASELINE:
        return f"{place}, {name} answers in {words.digits(row.p50_ms)} ms; it is the baseline{_unfinished(row)}."
    what = {"invalid": "is invalid and has no speedup", Status.FAILED: "failed", Status.SKIPPED: "was skipped"}.get(
        kind, kind
    )
    return f"{place}, {name} {what}: {row.reason or 'no reason is known'}."


def _hardware(row: Row) -> str:
    return f"{row.device} {row.device_name}" if row.device_name else row.device


def _times(row: Row) -> str:
    return words.UNKNOWN if row.speedup is None else f"{words.ratio(row.speedup)}x"


def _range(row: Row) -> str:
    if row.speedup_low is None or row.speedup_high is None:
        return ""
    return f" ({words.ratio(row.speedup_low)} to {words.ratio(row.speedup_high)})"


def _told(row: Row) -> str:
    return "there is no interval" if row.speedup is None else f"{_times(row)}{_range(row)}"


def _replies(row: Row) -> str:
    if row.identical_replies is None:
        return "replies were not compared"
    return "all replies the same" if row.identical_replies == 1 else f"{words.replies(row)} of the replies the same"


def _unfinished(row: Row) -> str:
    return "" if row.status == Status.DONE else f"; the trial {row.status}: {row.reason}"


def compared(rows: Sequence[Row]) -> list[Row]:
    """Those that the run is about: neither the baseline nor its control."""
    return [row for row in rows if row.variant not in (row.baseline, CONTROL)]


def answers(runs: Sequence[RunView]) -> Answers:
    """Of one run or of several."""
    told = [_told_of(run) for run in runs]
    facts = _facts(runs)
    if len(runs) == 1:
        return Answers(told[0][0], tuple(told[0][1:]), facts)
    lines = [f"{run.id}: {headline}" for run, (headline, *_) in zip(runs, told, strict=True)]
    return Answers(f"{len(runs)} runs beside each other", tuple(lines), facts)


def _told_of(run: RunView) -> list[str]:
    """The headline, then the others."""
    known = [(rows, any(row.verdict for row in compared(rows))) for rows in run.trials.values()]
    measured, others = ([rows for rows, told in known if told is kind] for kind in (True, False))
    if not measured:
        return _nothing(run)
    if len(measured) == 1:
        found = sorted(
            compared(measured[0]), key=lambda row: (row.verdict != Verdict.FASTER, not row.exact, -(row.speedup or 0.0))
        )
        told = [sentence(row, run.margin) for row in found]
    else:
        told = _summaries([row for rows in measured for row in compared(rows)])
    places = {_hardware(rows[0]) for rows in measured}
    return [*told[:MOST_SENTENCES], *_doubts(measured), *(_reason(rows, places) for rows in others[:MOST_REASONS])]


def _doubts(trials: Sequence[Sequence[Row]]) -> list[str]:
    """What should be known before a figure is believed: warnings, but for the precision, which the facts tell."""
    doubts = [[text for row in rows for text in row.warnings if not text.startswith(IMPRECISE)] for rows in trials]
    if len(trials) == 1:
        return [f"But {text}." for text in list(dict.fromkeys(doubts[0]))[:MOST_REASONS]]
    troubled = sum(map(bool, doubts))
    return (
        [f"But {words.counted(troubled, 'trial')} of {len(trials)} came with warnings, told with each."]
        if troubled
        else []
    )


def _nothing(run: RunView) -> list[str]:
    """Of a run without a comparison."""
    baselines = [row for row in run.rows if row.verdict == Verdict.BASELINE]
    if baselines:
        return [sentence(row, run.margin) for row in baselines[:MOST_SENTENCES]]
    reasons = dict.fromkeys(f"{_hardware(row)}: {row.status}, {row.reason}" for row in run.rows)
    return ["Nothing was measured.", *list(reasons)[:MOST_REASONS]]


def _reason(rows: Sequence[Row], measured: Collection[str]) -> str:
    row = rows[-1]
    if state(row) in (Status.SKIPPED, Status.FAILED):
        place = f"{_hardware(row)}, {words.sizes(row)}" if _hardware(row) in measured else _hardware(row)
        return f"On {place}, nothing was measured: {state(row)}, {row.reason}."
    return f"{words.title(row)}: {state(row)}."


def _summaries(rows: Sequence[Row]) -> list[str]:
    """A sentence for each variant over many trials, the fastest first."""
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        by_variant.setdefault(row.variant, []).append(row)
    return [_summary(name, found) for name, found in sorted(by_variant.items(), key=lambda pair: -_middle(pair[1]))]


def _middle(rows: Sequence[Row]) -> float:
    return median([row.speedup for row in rows if row.speedup] or [0.0])


def _summary(name: str, rows: Sequence[Row]) -> str:
    counts = {kind: [row for row in rows if state(row) == kind] for kind in dict.fromkeys(map(state, rows))}
    texts: dict[str, str] = {
        Verdict.FASTER: "faster than {0} in",
        Verdict.SAME: "the same in",
        Verdict.SLOWER: "slower in",
        Verdict.INCONCLUSIVE: "undecided in",
    }
    order = [kind for kind in (*texts, *counts) if kind in counts]
    parts = []
    for number, kind in enumerate(dict.fromkeys(order)):
        text = texts.get(kind, f"{kind} in").format(rows[0].baseline)
        if kind in (Verdict.SAME, Verdict.SLOWER) and number == 0:
            text = {"same": "the same as {0} in", "slower": "slower than {0} in"}[kind].format(rows[0].baseline)
        total = f" of {words.counted(len(rows), 'trial')}" if number == 0 else ""
        parts.append(f"{text} {len(counts[kind]):,}{total}{_spread(counts[kind])}")
    return f"{name} is {', '.join(parts)}; {_replies_of(rows)}."


def _spread(rows: Sequence[Row]) -> str:
    values = [row.speedup for row in rows if row.speedup is not None]
    if not values or state(rows[0]) not in (Verdict.FASTER, Verdict.SLOWER):
        return ""
    low, high = (f"{words.ratio(value)}x" for value in (min(values), max(values)))
    return f" ({low})" if low == high else f" ({low} to {high})"


def _replies_of(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.identical_replies is not None and row.verdict != Verdict.INVALID]
    if not known:
        return "replies were not compared"
    worst = min(known, key=lambda row: row.identical_replies or 0.0)
    if worst.identical_replies == 1:
        return "all replies the same" + (" where it is valid" if len(known) < len(rows) else "")
    return f"{words.replies(worst)} of the replies the same where they differ most"


def _facts(runs: Sequence[RunView]) -> tuple[Fact, ...]:
    rows = [row for run in runs for row in run.rows]
    trials = [found for run in runs for found in run.trials.values()]
    known = (_fastest_fact(runs), *_approximate_fact(runs))
    return (*known, _sure_fact(rows, runs), _control_fact(rows), _trouble_fact(rows, trials))


def _fastest_fact(runs: Sequence[RunView]) -> Fact:
    question = "Fastest with the same replies"
    found = _first_of(question, runs, exact=True)
    if found is not None:
        return found
    alone = any(row.exact and row.verdict == Verdict.FASTER for run in runs for row in compared(run.rows))
    picked = ", once it is picked as the best of several" if alone else ""
    return Fact(question, "no variant beyond doubt", f"none is faster than its baseline with confidence{picked}")


def _approximate_fact(runs: Sequence[RunView]) -> list[Fact]:
    fact = _first_of("Fastest approximate one", runs, exact=False)
    return [] if fact is None else [fact]


def _first_of(question: str, runs: Sequence[RunView], exact: bool) -> Fact | None:
    """Of one trial its fastest variant, of several the one that is most often among the fastest."""
    found = [best for run in runs for trial in run.trials if (best := run.fastest(trial, exact)) is not None]
    if not found:
        return None
    measured = [rows for run in runs for rows in run.trials.values() if any(row.verdict for row in compared(rows))]
    if len(measured) > 1:
        return _most_often(question, found, len(measured))
    best, base = found[0], next(row for row in measured[0] if row.variant == row.baseline)
    told = [f"{words.digits(best.row.p50_ms)} ms, {base.variant} {words.digits(base.p50_ms)} ms"]
    if best.row.identical_replies != 1:
        told.append(_replies(best.row) + (", the others tied" if exact and best.row.identical_replies else ""))
    if best.rivals is None:
        told.append("not compared with the others")
    others = not_told_apart(best)
    return Fact(question, _short(best.row.variant, 40) + (f" ({others})" if others else ""), "; ".join(told))


def _most_often(question: str, found: Sequence[Fastest], measured: int) -> Fact:
    leading = Counter(name for best in found for name in (best.row.variant, *(best.rivals or ())))
    firsts = Counter(best.row.variant for best in found)
    winner = max(firsts, key=lambda name: (leading[name], firsts[name]))
    mine = [best for best in found if winner in (best.row.variant, *(best.rivals or ()))]
    shared, unknown = sum(bool(best.rivals) for best in mine), sum(best.rivals is None for best in mine)
    told = f"in {len(mine)} of {measured} measured trials"
    told += f", not told apart from others in {shared}" if shared else ""
    told += f", not compared with the others in {unknown}" if unknown else ""
    rows = [best.row for best in mine if best.row.variant == winner]
    replies = "" if all(row.identical_replies == 1 for row in rows) else f"; {_replies_of(rows)}"
    return Fact(question, _short(winner, 40), told + replies)


def not_told_apart(best: Fastest) -> str:
    """Which others may be as fast, in words; empty where there is none."""
    if not best.rivals:
        return ""
    names = [_short(name, 40) for name in best.rivals[:MOST_REASONS]]
    if more := len(best.rivals) - len(names):
        names.append(words.counted(more, "other"))
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} {'is' if len(names) == 1 else 'are'} not told apart"


def _sure_fact(rows: Sequence[Row], runs: Sequence[RunView]) -> Fact:
    told = [row for row in compared(rows) if row.speedup and row.speedup_low and row.speedup_high]
    if not told:
        return Fact("How sure", "nothing to be sure of", "no speedup has an interval")
    widths = [(row.speedup_high - row.speedup_low) / 2 / row.speedup for row in told]  # type: ignore[operator]
    undecided = sum(row.verdict == Verdict.INCONCLUSIVE for row in told)
    asked = ", ".join(dict.fromkeys(f"{run.spec['precision']:.1%}" for run in runs if "precision" in run.spec))
    wanted = f"; ±{asked} was asked" if asked else ""
    if len(told) == 1:
        launches = words.counted(told[0].launches or 0, "fresh launch", "fresh launches")
        return Fact("How sure", f"±{widths[0]:.1%} at 95%", f"{launches}{wanted}", bool(undecided))
    more = f"at 95%, the median of {len(told)} speedups{wanted}; {undecided} undecided"
    return Fact("How sure", f"±{median(widths):.1%}", more, bool(undecided))


def _control_fact(rows: Sequence[Row]) -> Fact:
    told = [row for row in rows if row.variant == CONTROL and row.speedup is not None]
    question = "The tool's own error"
    if not told:
        return Fact(question, "unknown", "the control was not measured", True)
    wrong = [row for row in told if row.verdict in (Verdict.FASTER, Verdict.SLOWER)]
    if len(told) == 1:
        call = "distrust this trial" if wrong else "the same" if told[0].verdict == Verdict.SAME else "undecided"
        return Fact(question, words.speedup(told[0]), f"the baseline against itself: {call}", bool(wrong))
    worst = max(abs(math.log(row.speedup or 1.0)) for row in told)
    more = f"the baseline against itself, {len(told)} times; at most {math.expm1(worst):.1%} off"
    return Fact(question, f"{len(wrong)} of {len(told)} called different", more, bool(wrong))


def _trouble_fact(rows: Sequence[Row], trials: Sequence[Sequence[Row]]) -> Fact:
    question = "Failed, skipped, invalid"
    whole = [all(row.status == Status.SKIPPED for row in found) for found in trials]
    counted = {
        Status.FAILED: sum(any(row.status == Status.FAILED for row in found) for found in trials),
        Status.SKIPPED: sum(whole),
    }
    counts = [f"{count} {status}" for status, count in counted.items() if count]
    lacking = [row for found, skipped in zip(trials, whole, strict=True) if not skipped for row in found]
    if absent := sum(row.status == Status.SKIPPED for row in lacking):
        counts += [f"{words.counted(absent, 'variant')} skipped"]
    invalid = sum(row.verdict == Verdict.INVALID for row in rows)
    counts += [f"{invalid} invalid"] if invalid else []
    if not counts:
        return Fact(
            question, "nothing", f"all {len(trials)} trials are done" if len(trials) > 1 else "the trial is done"
        )
    bad = [row for row in rows if row.status != Status.DONE or row.verdict == Verdict.INVALID]
    reasons = list(dict.fromkeys(row.reason or "" for row in sorted(bad, key=lambda row: row.status == Status.SKIPPED)))
    more = f" and {words.counted(len(reasons) - 1, 'other reason')}" if len(reasons) > 1 else ""
    return Fact(
        question, ", ".join(counts), f"of {words.counted(len(trials), 'trial')}: {_short(reasons[0])}{more}", True
    )


def _short(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
