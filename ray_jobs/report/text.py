"""Figures and verdicts as a person reads them: the same in the terminal, in the report and in what they export."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from chatbot.variants import Workload, is_own
from ray_jobs.matrix.hardware import HardwareClass
from ray_jobs.matrix.rows import Row, base_first, grouped
from ray_jobs.matrix.rows import compared_sides as compared_sides  # for templates
from ray_jobs.measure.cold import State
from ray_jobs.sides import AGAIN, BASE
from ray_jobs.statistics import Interval, Verdict

DASH = "-"
MOST_DECIMALS = 4
LEAST_KEPT = 0.1  # of the files that a start reads: below it nothing is said
P50, SPEEDUP, REPLIES = "p50 ms (95%)", "speedup (95%)", "same replies"
AGAINST, AGAINST_P90 = "base / side (95%)", "of their p90 (95%)"
AGAINST_TITLE = "Against base: the same variant, base over side; above 1 the side is faster"
ALONE_TITLE = "Each side by itself: its variants over its own baseline"
VERDICTS: dict[str, str] = {
    Verdict.BASELINE: "baseline",
    Verdict.FASTER: "faster",
    Verdict.SLOWER: "slower",
    Verdict.INCONCLUSIVE: "undecided",
}


def cells(row: Row, margin: float) -> dict[str, str]:
    """A row as every table shows it, by the heads of the columns."""
    figures = {P50: latency(row), SPEEDUP: speedup_cell(row), "verdict": verdict(row, margin), REPLIES: replies(row)}
    return {"variant": row.name, **figures}


def side_cells(row: Row, margin: float, slow: bool = False) -> dict[str, str]:
    """A row of a side as tables of the comparison show it, by the heads of the columns; with ``slow`` its p90 too."""
    over = against_base(row)
    ratios = {AGAINST: speedup(over), **({AGAINST_P90: tail(row, "side_p90")} if slow else {})}
    figures = {"verdict": verdict(over, margin), P50: latency(row), REPLIES: replies(row)}
    return {"variant": row.variant, **ratios, **figures}


START_TITLE = (
    "To the first reply, from exec: nothing compiled yet; compiled before; of a second model in a live process"
)
START_HEADS = ("empty cache s", "cached s", "warm s", "on disk MB", "pays after, empty", "pays after, cached")


def start_cells(row: Row) -> dict[str, str]:
    """What a start of a row's variant costs, by the heads of the columns: seconds to the first reply, in each state."""
    figures = [to_first_reply(row, state) for state in State]
    paying = [pays(row, state) for state in (State.EMPTY, State.CACHED)]
    disk = DASH if row.artifact_mb is None else f"{row.artifact_mb:,.1f}"
    return {"variant": row.variant, **dict(zip(START_HEADS, (*figures, disk, *paying), strict=True))}


def started(rows: Sequence[Row]) -> list[Row]:
    """The rows whose cold start is known, the quickest to answer from what is compiled first."""
    known = [row for row in rows if row.to_first_reply_s_cached is not None or row.to_first_reply_s_empty is not None]
    return sorted(known, key=lambda row: row.to_first_reply_s_cached or math.inf)


def start_notes(rows: Sequence[Row]) -> list[str]:
    """What the figures of starts do not hold."""
    kept = [row.kept_share for row in rows if row.kept_share is not None]
    if not kept or max(kept) < LEAST_KEPT:
        return []
    low, high = f"{min(kept):.0%}", f"{max(kept):.0%}"
    share = low if low == high else f"{low} to {high}"
    return [f"{share} of what a start reads stayed in memory with nothing compiled, as other processes use it too"]


def to_first_reply(row: Row, state: str) -> str:
    """Seconds to the first reply with their interval."""
    name = f"to_first_reply_s_{state}"
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return estimated(value, low, high, lambda seconds: f"{seconds:.2f}")


def start_steps(row: Row) -> str:
    """Seconds of each step of a start that finds everything compiled."""
    first = None if row.first_reply_ms_cached is None else row.first_reply_ms_cached / 1e3
    steps = (row.import_s_cached, row.load_s_cached, row.prepare_cold_s_cached, first)
    return ", ".join(DASH if step is None else f"{step:.2f}" for step in steps)


def pays(row: Row, state: str) -> str:
    """After how many replies a start has paid for itself, with the limits."""
    if row.variant == row.baseline:
        return DASH
    value, low, high = (getattr(row, f"pays_after_{state}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "slower" if row.verdict == Verdict.SLOWER else DASH
    if high == 0:
        return "at once"
    return between(value, low, high, lambda replies: f"{math.ceil(replies):,}")


def against_base(row: Row) -> Row:
    """A row of a side, its speedup and verdict over ``base`` in the place of those over its own baseline."""
    if row.of_base:
        return row
    over = row.side_speedup, row.side_speedup_low, row.side_speedup_high
    return replace(row, speedup=over[0], speedup_low=over[1], speedup_high=over[2], verdict=row.side_verdict)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows of a trial, the fastest first: of those that promise the baseline's replies, then of the approximate.

    Those are no ranking together. What has no figures comes last; where sides are compared the order is as it was, so
    that each has the same.
    """
    if any(row.side for row in rows):
        return list(rows)
    return sorted(rows, key=_rank)


def ranked_variants(rows: Sequence[Row]) -> list[str]:
    """The variants of many trials in the order that ``ranked`` gives those of one, by the median of their speeds."""
    if any(row.side for row in rows):
        return list(dict.fromkeys(row.variant for row in rows))
    ranks = {name: [_rank(row) for row in found] for name, found in grouped(rows, lambda row: row.variant).items()}
    return sorted(ranks, key=lambda name: _middle(ranks[name]))


def _middle(ranks: Sequence[tuple[bool, bool, float]]) -> tuple[bool, bool, float]:
    """The median of those that have figures, if any has."""
    sound = [rank for rank in ranks if not rank[0]] or list(ranks)
    return (*sound[0][:2], median(speed for *_, speed in sound))


def _rank(row: Row) -> tuple[bool, bool, float]:
    sound = row.p50_ms is not None and row.verdict != Verdict.INVALID
    speed = 1.0 if row.variant == row.baseline else row.speedup or 0.0
    return not sound, not row.exact, -speed if sound else 0.0


@dataclass(frozen=True)
class Section:
    """The rows of one side."""

    side: str | None  # None where no side was compared
    rows: list[Row]

    @property
    def heading(self) -> str:
        """The name of the side, and what the control is; empty for none."""
        return side_title(self.side)


def sections(rows: Sequence[Row]) -> list[Section]:
    """The rows of each side under its heading."""
    return [Section(side, mine) for side, mine in grouped(rows, lambda row: row.side).items()]


def by_side(rows: Sequence[Row]) -> list[Section]:
    """All rows, those of ``base`` first."""
    return sections(base_first(rows))


def side_title(side: str | None) -> str:
    """The name of a side, and what the control is."""
    return f"{AGAIN}, the control: {BASE} in another process" if side == AGAIN else side or ""


def title(row: Row) -> str:
    """The title of a trial: its place and its sizes."""
    return f"{place(row)}: {sizes(row)}"


def place(row: Row) -> str:
    """The place where a trial was measured."""
    return f"{row.device} {row.device_name} ({row.station})" if row.station else row.device


def sizes(of: Row | HardwareClass | Workload) -> str:
    """A workload's sizes as a phrase."""
    if of.prompt_tokens is None or is_own(of.model):
        return f"model {of.model}, batch {of.batch}, {counted(of.threads, 'thread')}"
    until = f"reply until EOS, at most {of.reply_tokens}" if of.stop_at_eos else f"reply {of.reply_tokens}"
    tokens = f"prompt {of.prompt_tokens} tokens, {until} tokens"
    return f"model {of.model}, batch {of.batch}, {tokens}, {counted(of.threads, 'thread')}"


def short_sizes(of: Row) -> str:
    """A workload's sizes in short, without the model."""
    tokens = "" if of.prompt_tokens is None else f"prompt {of.prompt_tokens}, reply {of.reply_tokens}, "
    return f"batch {of.batch}, {tokens}threads {of.threads}"


def counted(count: int, thing: str, things: str | None = None) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"


def latency(row: Row) -> str:
    """The median with its interval; an invalid program has none."""
    return DASH if row.verdict == Verdict.INVALID else p50(row)


def p50(of: Row | HardwareClass) -> str:
    """The median in ms with its interval."""
    return estimated(of.p50_ms, of.p50_low_ms, of.p50_high_ms, digits)


def between(value: float | None, low: float | None, high: float | None, show: Callable[[float], str]) -> str:
    """A figure with the limits of its interval, if known."""
    if value is None:
        return DASH
    return show(value) if low is None or high is None else f"{show(value)} ({show(low)} to {show(high)})"


def estimated(
    value: float | None,
    low: float | None,
    high: float | None,
    alone: Callable[[float], str],
    apart: float | None = None,
) -> str:
    """A figure and its limits with as many digits as half of the half-width has: more would look surer than it is.

    Args:
        value: the figure.
        low: its limits, if known.
        high: as ``low``.
        alone: shows a figure without limits.
        apart: a number that no limit is rounded to which does not lie there, as a verdict hangs on its side of it.
    """
    if value is None or low is None or high is None or high - low < 1e-9 * abs(value):
        return between(value, low, high, alone)
    places = decimals((high - low) / 4)
    while places < MOST_DECIMALS and any(limit != apart and round(limit, places) == apart for limit in (low, high)):
        places += 1
    return between(value, low, high, f"{{:.{places}f}}".format)


def decimals(step: float) -> int:
    """The decimals that a figure needs to show differences of ``step``."""
    if step < 10**-MOST_DECIMALS:
        return MOST_DECIMALS
    return max(0, math.ceil(-math.log10(step)))


def digits(ms: float | None) -> str:
    """Three significant digits or so: intervals are seldom narrower than a part in a thousand."""
    if ms is None:
        return DASH
    return f"{ms:.{max(0, 2 - int(ms >= 10) - int(ms >= 100))}f}" if ms >= 1 else f"{ms:.3f}"


def speedup_cell(row: Row) -> str:
    """The speedup with its interval."""
    return DASH if row.variant == row.baseline else speedup(row)


def speedup(of: Row | HardwareClass) -> str:
    """The speedup with its interval, the baseline's own too."""
    return estimated(of.speedup, of.speedup_low, of.speedup_high, ratio, apart=1)


def times(of: Row | HardwareClass) -> str:
    """The speedup without its interval, with as many digits as that allows: ``1.23x``."""
    return f"{speedup(of).partition(' ')[0]}x" if of.speedup is not None else DASH


def ratio_of(interval: Interval) -> str:
    """A ratio with its interval."""
    return estimated(interval.value, interval.low, interval.high, ratio, apart=1)


def ratio(value: float) -> str:
    """A speedup whose interval is not known, to a part in a thousand."""
    return f"{value:.3f}"


def tail(row: Row, name: str) -> str:
    """The ratio that ``name`` (p90, p99, side_p90 or side_p99) names, with its interval."""
    value, low, high = (getattr(row, f"{name}_speedup{end}") for end in ("", "_low", "_high"))
    return estimated(value, low, high, ratio, apart=1)


def verdict(row: Row, margin: float) -> str:
    """The verdict as a phrase; the status if the row has no verdict."""
    if row.verdict == Verdict.SAME:
        return f"same ±{margin:.0%}"
    return VERDICTS.get(row.verdict or "", row.verdict or row.status)


def replies(row: Row) -> str:
    """The share of replies that equal the baseline's, never rounded up to all."""
    if row.identical_replies is None or row.verdict == Verdict.INVALID:
        return DASH
    if row.identical_replies == 1:
        return "100%"
    return f"{min(row.identical_replies, 0.9999):.2%}"


def per_token(row: Row) -> str:
    """The mean time of a token of a reply."""
    return DASH if row.per_token_ms is None or row.verdict == Verdict.INVALID else digits(row.per_token_ms)


def of_limit(row: Row) -> str:
    """The share of the hardware's limit that a variant reaches."""
    return DASH if row.of_limit is None else f"{row.of_limit:.0%}"


def limit_notes(rows: Sequence[Row], shares: bool = False) -> list[str]:
    """The reason for the baseline's latency; with ``shares``, also the shares of the limit, if no column has them."""
    told = [row for row in rows if row.of_limit is not None]
    reached = ", ".join(f"{row.name} {of_limit(row)}" for row in told)
    why = [f"{row.variant}{' is' if row.bound else ':'} {row.bound_why}" for row in told if row.variant == row.baseline]
    return [*([f"of the limit: {reached}"] if shares and told else []), *why]


def notes(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason and warning of a trial; those that several rows share appear once."""
    said: dict[str, list[str]] = {}
    for row in rows:
        texts = [f"{row.verdict if row.verdict == 'invalid' else row.status}: {row.reason}"] if row.reason else []
        if row.discarded_rounds:
            texts.append(f"{counted(row.discarded_rounds, 'round')} discarded: something else was using the machine")
        for text in (*texts, *row.warnings):
            said.setdefault(text, []).append(row.name)
    return [f"{_whose(names, rows)}: {text}" for text, names in said.items()]


def _whose(names: Sequence[str], rows: Sequence[Row]) -> str:
    """The rows of these names in short: all of them, all that were measured, or a whole side by its name."""
    if len(names) == len(rows):
        return "all"
    if len(names) > 1 and set(names) == {row.name for row in rows if row.samples}:
        return "all that were measured"
    left, parts = list(names), list[str]()
    for side, mine in grouped((row for row in rows if not row.of_base), lambda row: row.side).items():
        own = [row.name for row in mine]
        if len(own) > 1 and set(own) <= set(left):
            parts.append(str(side))
            left = [name for name in left if name not in own]
    return ", ".join([*left, *parts])


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return DASH if value is None else f"{value:.1%}"
