"""Trials under load on a report's first screen: the best variant of each, sentences, and the questions they answer."""

from collections import Counter
from collections.abc import Iterable, Sequence

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row, Status, grouped
from ray_jobs.report import text
from ray_jobs.report.fact import Fact
from ray_jobs.report.sentences import hardware, same_replies
from ray_jobs.report.thrift import Naming
from ray_jobs.report.under_load import (
    AT_NO_RATE,
    as_ratio,
    at_no_rate,
    capacity,
    cost,
    cost_limits,
    replicas,
    sound,
    way,
)
from ray_jobs.scenario import Scenario
from ray_jobs.statistics import Verdict

SIZES = ("model", "batch", "prompt_tokens", "reply_tokens", "stop_at_eos")
PLACE = ("run_id", "device", "device_name", "station")
QUESTIONS: dict[str, str] = {
    Scenario.SERVER: "Most calls within the bound",
    Scenario.OFFLINE: "Most calls a second",
}
Trial = Sequence[Row]


def best_of(rows: Trial, exact: bool) -> Row | None:
    """The variant of its kind with the most calls a second among those with more than the baseline beyond doubt.

    Where the baseline holds the bound at no rate, every variant that holds it at some has more. The control never
    competes, nor does an invalid variant.
    """
    lost = any(row.variant == row.baseline and at_no_rate(row) for row in rows)
    more = [row for row in _competing(rows, exact) if lost or row.capacity_verdict == Verdict.FASTER]
    return max(more, key=lambda row: row.capacity_rps or 0.0, default=None)


def rivals_of(best: Row, rows: Trial) -> list[str]:
    """Other variants of its trial and kind that it is not told apart from: their intervals overlap."""
    others = [row for row in _competing(rows, best.exact) if row.name != best.name]
    return [row.name for row in others if _limits(row)[1] >= _limits(best)[0]]


def _competing(rows: Trial, exact: bool) -> list[Row]:
    return [row for row in rows if sound(row) and row.exact == exact and row.variant not in (row.baseline, CONTROL)]


def _limits(row: Row) -> tuple[float, float]:
    """Of the ratio, which launches have in common; of the calls a second where the baseline has none."""
    if row.capacity_ratio is not None:
        return row.capacity_ratio_low or row.capacity_ratio, row.capacity_ratio_high or row.capacity_ratio
    return row.capacity_rps_low or row.capacity_rps or 0.0, row.capacity_rps_high or row.capacity_rps or 0.0


# Sentences


def load_sentence(rows: Trial) -> str:
    """A trial in text: its best exact variant, or why there is none."""
    first = rows[0]
    where = f"Under load on {hardware(first)} ({way(first)})"
    if not any(sound(row) or at_no_rate(row) for row in rows):
        return f"{where}, {_why_nothing(rows)}."
    base = next((row for row in rows if row.variant == row.baseline and (sound(row) or at_no_rate(row))), None)
    if (best := best_of(rows, exact=True)) is not None:
        return f"{where}, {_answers(best)}, {_more_than(best)}; {same_replies(best)}."
    told = f"; {_answers(base)}" if base is not None else ""
    return f"{where}, no exact variant answers more than {first.baseline} beyond doubt{told}."


def _why_nothing(rows: Trial) -> str:
    first = min(rows, key=lambda row: row.status == Status.DONE)
    if first.status == Status.DONE and first.verdict is None:
        return f"no variant's calls a second were found: {'; '.join(first.warnings) or 'no reason is known'}"
    return f"nothing was measured: {first.verdict or first.status}, {first.reason or 'no reason is known'}"


def _answers(row: Row) -> str:
    if at_no_rate(row):
        return f"{row.variant} holds the bound {AT_NO_RATE}"
    rate = capacity(row).partition(" ")[0]
    return f"{row.variant} answers {rate} calls a second{' within the bound' if row.slo else ''}"


def _more_than(best: Row) -> str:
    if best.capacity_ratio is None:
        return f"which {best.baseline} does {AT_NO_RATE}"
    times, _, limits = text.speedup(as_ratio(best)).partition(" ")
    return f"{times} times as many as {best.baseline} {limits}".rstrip()


# Facts


def load_facts(trials: Iterable[Trial], named: Naming) -> list[Fact]:
    """Which variant answers the most calls a second in each scenario, and which costs the least."""
    measured = [rows for rows in trials if any(sound(row) or at_no_rate(row) for row in rows)]
    found = grouped(measured, lambda rows: str(rows[0].scenario))
    most = [_most(QUESTIONS.get(scenario, QUESTIONS[Scenario.OFFLINE]), of, named) for scenario, of in found.items()]
    cheapest = _cheapest(found.get(Scenario.SERVER) or measured, named)
    return [*most, *([cheapest] if cheapest else [])]


def front_key(row: Row) -> tuple[object, ...]:
    """What trials have in common whose calls a second can be compared: all but replicas, threads and batches."""
    return tuple(getattr(row, name) for name in (*PLACE, *SIZES, "scenario", "slo"))


def _most(question: str, trials: Sequence[Trial], named: Naming) -> Fact:
    """Of one workload the best of its trials; of several the variant that is most often the best."""
    fronts = list(grouped(trials, lambda rows: front_key(rows[0])).values())
    if len(fronts) > 1:
        return _most_often(question, fronts, named)
    best, other = _best(trials, exact=True), _approximate(trials)
    if best is None:
        more = f"none answers more than {trials[0][0].baseline} with confidence"
        return Fact(question, "no variant beyond doubt", more + other)
    row, rows = best
    with_ = f", with {replicas(row)}" if len(trials) > 1 else ""
    over = "" if row.capacity_ratio is None else f", {text.times(as_ratio(row))} {row.baseline}'s"
    return Fact(question, named(row.variant, rivals_of(row, rows)), f"{capacity(row)} calls/s{over}{with_}{other}")


def _most_often(question: str, fronts: Sequence[Sequence[Trial]], named: Naming) -> Fact:
    best = [found[0].variant for trials in fronts if (found := _best(trials, exact=True)) is not None]
    if not best:
        return Fact(question, "no variant beyond doubt", f"in none of {len(fronts)} workloads under load")
    (winner, count), *_ = Counter(best).most_common(1)
    return Fact(question, named(winner, ()), f"in {count} of {len(fronts)} workloads under load")


def _best(trials: Sequence[Trial], exact: bool) -> tuple[Row, Trial] | None:
    """The best row of its kind of all trials, and the rows of its own trial."""
    found = [(row, rows) for rows in trials if (row := best_of(rows, exact)) is not None]
    return max(found, key=lambda one: one[0].capacity_rps or 0.0, default=None)


def _approximate(trials: Sequence[Trial]) -> str:
    """The best approximate one as a phrase, which is no rival of the exact ones; empty if there is none."""
    found = _best(trials, exact=False)
    return f"; {found[0].variant}, approximate, {capacity(found[0])}" if found else ""


def _cheapest(trials: Sequence[Trial], named: Naming) -> Fact | None:
    """By the prices of the stations' hours; of one workload alone, as others ask for more or less."""
    priced = [row for rows in trials for row in rows if sound(row) and row.cost_per_million is not None]
    known = [row for row in priced if row.exact and row.variant != CONTROL]
    if len({row.variant for row in known}) < 2 or len({_asked(row) for row in known}) > 1:
        return None
    first = min(known, key=_price)
    most = cost_limits(first)[1] or _price(first)
    rivals = dict.fromkeys(row.variant for row in known if (cost_limits(row)[0] or _price(row)) <= most)
    rivals.pop(first.variant)
    more = [f"{cost(first)} per million replies"]
    base = min((row for row in known if row.variant == row.baseline), key=_price, default=None)
    more += [f"{base.variant} {cost(base)}"] if base is not None and base is not first else []
    other = min((row for row in priced if not row.exact), key=_price, default=None)
    more += [f"{other.variant}, approximate, {cost(other)}"] if other is not None else []
    return Fact("Cheapest", named(first.variant, list(rivals)), "; ".join(more))


def _asked(row: Row) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in (*SIZES, "scenario", "slo"))


def _price(row: Row) -> float:
    return row.cost_per_million or 0.0
