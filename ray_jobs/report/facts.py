"""The questions of a report's first screen, each with a short answer."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row, Status, asked_sides
from ray_jobs.report import text
from ray_jobs.report.fact import Fact
from ray_jobs.report.load_facts import load_facts
from ray_jobs.report.sentences import compared, same_replies
from ray_jobs.report.thrift import thrift_facts
from ray_jobs.report.under_load import as_ratio
from ray_jobs.report.view import Fastest, RunView
from ray_jobs.sides import AGAIN, BASE
from ray_jobs.statistics import CONFIDENCE, Verdict, most_by_chance

MOST_REASONS = 3


def facts_of(runs: Sequence[RunView]) -> tuple[Fact, ...]:
    """The facts of one run or of several."""
    rows = [row for run in runs for row in run.rows]
    trials = [found for run in runs for found in run.trials.values()]
    loads = [found for run in runs for found in run.load_trials.values()]
    ratios = [as_ratio(row) for found in loads for row in found]
    known = [*_fastest_facts(runs), *thrift_facts(trials, _named)] if rows or not loads else []
    known += load_facts(loads, _named)
    sure = _sure_fact(rows, runs) if rows or not loads else _sure_fact(ratios, runs, "ratio")
    every = [*rows, *ratios]
    return (*_side_facts(rows), *known, sure, _control_fact(every), _trouble_fact(every, [*trials, *loads]))


def _fastest_facts(runs: Sequence[RunView]) -> list[Fact]:
    approximate = _first_of("Fastest approximate one", runs, exact=False)
    return [_fastest_fact(runs), *([approximate] if approximate else [])]


def _side_facts(rows: Sequence[Row]) -> list[Fact]:
    """How the sides compare with ``base``, and how its control does; empty where no side was compared."""
    asked = [text.against_base(row) for row in asked_sides(rows)]
    if not asked:
        return []
    told = [row for row in asked if row.speedup is not None]
    counts = Counter(text.VERDICTS.get(row.verdict or "", "the same") for row in told)
    answer = ", ".join(f"{count:,} {word}" for word, count in counts.items()) or "nothing to compare"
    more = f"of {text.counted(len(told), 'comparison')} of a side with base"
    if len(told) == 1:
        answer, more = text.speedup(told[0]), f"{told[0].variant} with {told[0].side}: {', '.join(counts)}"
    # One of a trial, as what sets two processes apart does so for all of their variants.
    again = [text.against_base(row) for row in rows if row.side == AGAIN and row.variant == row.baseline]
    return [Fact("Against base", answer, more), _same_fact("Base in another process", again, "base against itself")]


def _fastest_fact(runs: Sequence[RunView]) -> Fact:
    question = "Fastest with the same replies"
    found = _first_of(question, runs, exact=True)
    if found is not None:
        return found
    alone = any(row.exact and row.verdict == Verdict.FASTER for run in runs for row in compared(run.rows))
    picked = ", once it is picked as the best of several" if alone else ""
    return Fact(question, "no variant beyond doubt", f"none is faster than its baseline with confidence{picked}")


def _first_of(question: str, runs: Sequence[RunView], exact: bool) -> Fact | None:
    """The fastest variant of one trial; of several trials, the one that is most often among the fastest."""
    found = [best for run in runs for trial in run.trials if (best := run.fastest(trial, exact)) is not None]
    if not found:
        return None
    measured = [rows for run in runs for rows in run.trials.values() if any(row.verdict for row in compared(rows))]
    if len(measured) > 1:
        return _most_often(question, found, len(measured))
    best, base = found[0], next(row for row in measured[0] if row.variant == row.baseline)
    told = [f"{text.digits(best.row.p50_ms)} ms, {base.variant} {text.digits(base.p50_ms)} ms"]
    if best.row.identical_replies != 1:
        ties = ", the rest differ in ties only" if exact and best.row.identical_replies else ""
        told.append(same_replies(best.row) + ties)
    if best.rivals is None:
        told.append("not compared with the others")
    return Fact(question, _named(best.row.variant, best.rivals or ()), "; ".join(told))


def _most_often(question: str, found: Sequence[Fastest], measured: int) -> Fact:
    leading = Counter(name for best in found for name in (best.row.variant, *(best.rivals or ())))
    firsts = Counter(best.row.variant for best in found)
    winner = max(firsts, key=lambda name: (leading[name], firsts[name]))
    mine = [best for best in found if winner in (best.row.variant, *(best.rivals or ()))]
    shared, unknown = sum(bool(best.rivals) for best in mine), sum(best.rivals is None for best in mine)
    told = f"in {len(mine)} of {measured} measured trials"
    told += f", indistinguishable from others in {shared}" if shared else ""
    told += f", not compared with the others in {unknown}" if unknown else ""
    rows = [best.row for best in mine if best.row.variant == winner]
    replies = "" if all(row.identical_replies == 1 for row in rows) else f"; {worst_replies(rows)}"
    return Fact(question, _short(winner, 40), told + replies)


def _named(variant: str, rivals: Sequence[str]) -> str:
    """A variant with those that it is not told apart from."""
    return _short(variant, 40) + (f" ({_indistinguishable(rivals)})" if rivals else "")


def named_rivals(best: Fastest) -> str:
    """A phrase that names the other variants that may be as fast; empty if there are none."""
    return _indistinguishable(best.rivals or ())


def _indistinguishable(rivals: Sequence[str]) -> str:
    return f"indistinguishable from {listed(rivals)}" if rivals else ""


def listed(variants: Sequence[str]) -> str:
    """The first of these names, and how many others there are."""
    names = [_short(name, 40) for name in variants[:MOST_REASONS]]
    if more := len(variants) - len(names):
        names.append(text.counted(more, "other"))
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _sure_fact(rows: Sequence[Row], runs: Sequence[RunView], thing: str = "speedup") -> Fact:
    sides = [text.against_base(row) for row in asked_sides(rows)]
    told = [row for row in sides or compared(rows) if row.interval is not None]
    if not told:
        return Fact("How sure", "nothing to be sure of", f"no {thing} has an interval")
    widths = [row.interval.half_width for row in told if row.interval is not None]
    undecided = sum(row.verdict == Verdict.INCONCLUSIVE for row in told)
    asked = ", ".join(dict.fromkeys(f"{run.spec['precision']:.1%}" for run in runs if "precision" in run.spec))
    wanted = f"; ±{asked} requested" if asked else ""
    if len(told) == 1:
        launches = text.counted(told[0].launches or 0, "fresh launch", "fresh launches")
        return Fact("How sure", f"±{widths[0]:.1%} at 95%", f"{launches}{wanted}", bool(undecided))
    more = f"at 95%, the median of {len(told)} {thing}s{wanted}; {undecided} undecided"
    return Fact("How sure", f"±{median(widths):.1%}", more, bool(undecided))


def _control_fact(rows: Sequence[Row]) -> Fact:
    controls = [row for row in rows if row.name == CONTROL]
    return _same_fact("The tool's own error", controls, "the baseline against itself")


def _same_fact(question: str, rows: Sequence[Row], what: str) -> Fact:
    """Red if more controls differ than chance explains: among many trials some do, and no trial is to blame."""
    told = [row for row in rows if row.speedup is not None]
    if not told:
        return Fact(question, "unknown", "the control was not measured", True)
    wrong = sum(row.verdict in (Verdict.FASTER, Verdict.SLOWER) for row in told)
    most = most_by_chance(len(told), 1 - CONFIDENCE)
    if len(told) == 1:
        call = "distrust this trial" if wrong else text.VERDICTS.get(told[0].verdict or "", "the same")
        return Fact(question, text.speedup(told[0]), f"{what}: {call}", wrong > most)
    worst = math.expm1(max(abs(math.log(row.speedup or 1.0)) for row in told))
    more = f"{what}, {len(told)} times; chance explains up to {most}; at most {worst:.1%} off"
    return Fact(question, f"{wrong} of {len(told)} called different", more, wrong > most)


def _trouble_fact(rows: Sequence[Row], trials: Sequence[Sequence[Row]]) -> Fact:
    question = "Failed, skipped, invalid"
    skipped = [sum(row.status == Status.SKIPPED for row in found) for found in trials]
    whole = sum(count == len(found) for count, found in zip(skipped, trials, strict=True))
    absent = sum(count for count, found in zip(skipped, trials, strict=True) if count < len(found))
    failed = [{row.side for row in found if row.status == Status.FAILED} for found in trials]
    sides = sum(len(found) for found in failed if not found & {None, BASE})
    counts = {
        "failed": sum(bool(found & {None, BASE}) for found in failed),
        f"side{'s' * (sides != 1)} failed": sides,
        "skipped": whole,
        f"variant{'s' * (absent != 1)} skipped": absent,
        "invalid": sum(row.verdict == Verdict.INVALID for row in rows),
    }
    if not any(counts.values()):
        return Fact(question, "nothing", f"all {len(trials)} trials are done" if trials[1:] else "the trial is done")
    bad = [row for row in rows if row.status != Status.DONE or row.verdict == Verdict.INVALID]
    reasons = list(dict.fromkeys(row.reason or "" for row in sorted(bad, key=lambda row: row.status == Status.SKIPPED)))
    more = f" and {text.counted(len(reasons) - 1, 'other reason')}" if len(reasons) > 1 else ""
    told = f"of {text.counted(len(trials), 'trial')}: {_short(reasons[0])}{more}"
    return Fact(question, ", ".join(f"{count:,} {what}" for what, count in counts.items() if count), told, True)


def _short(said: str, most: int = 90) -> str:
    return said if len(said) <= most else said[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def worst_replies(rows: Sequence[Row]) -> str:
    """The lowest share of replies equal to the baseline's among many rows."""
    known = [row for row in rows if row.identical_replies is not None and row.verdict != Verdict.INVALID]
    if not known:
        return "replies were not compared"
    worst = min(known, key=lambda row: row.identical_replies or 0.0)
    if worst.identical_replies == 1:
        return "all replies the same" + (" where it is valid" if len(known) < len(rows) else "")
    return f"{text.replies(worst)} of the replies the same where they differ most"
