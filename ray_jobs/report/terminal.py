"""What a person sees in the terminal: live progress on stderr, the matrix on stdout."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from chatbot.safe_text import printable
from ray_jobs.cluster import events
from ray_jobs.cluster.events import Event, Outcome
from ray_jobs.matrix.hardware import CLASS, HardwareClass
from ray_jobs.matrix.rows import Row, Status, compared_sides, grouped
from ray_jobs.process.trial import AGAINST, Committed, Failure, Waiting
from ray_jobs.process.untimed import Alive, Part
from ray_jobs.report import text, under_load
from ray_jobs.statistics import LEAST_LAUNCHES, Interval, Verdict, speedup

PLAIN_EVERY_S = 10.0  # between lines about one trial where stderr is no terminal
STAY = (Waiting, Failure, events.WorkerLost)  # shown above the live display too
SEVERAL = (Part.MEMORY, Part.COLD)  # processes, one soon after the other
STYLES: dict[str, str] = {
    Verdict.FASTER: "green",
    Verdict.SLOWER: "red",
    Verdict.INVALID: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
}
LEFT = ("variant", "verdict", "hardware class")
OF_LIMIT, SPREAD = "of limit", "spread between stations: p50, speedup"
STACKED = {  # heads on two lines
    text.REPLIES: "same\nreplies",
    OF_LIMIT: "of\nlimit",
    "ms per token": "ms per\ntoken",
    SPREAD: "spread between stations\np50, speedup",
    text.AGAINST_P90: "of their\np90 (95%)",
    under_load.COST: "cost per\nmillion",
    **{
        head: head.replace(" cache s", "\ncache s").replace(" MB", "\nMB").replace(", ", ",\n")
        for head in text.START_HEADS
    },
}
Cells = Mapping[str, str | Text]  # of a row, by the heads of their columns
Item = TypeVar("Item")
_workload = attrgetter(*(name for name in CLASS if name not in ("hardware", "variant")))


def literal(said: str | Text, style: str = "") -> Text:
    """A text that Rich shows as it is: no markup, emoji or escape in it is obeyed."""
    return said if isinstance(said, Text) else Text(printable(said), style=style)


class Reporter:
    """Shows each running trial's launches, current intervals and time left; lines where stderr is not a terminal."""

    def __init__(self, budget_s: float, precision: float) -> None:
        self._budget_s, self._precision = budget_s, precision
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._printed: dict[str, float] = {}
        self._lines: dict[str, str] = {}  # of the trials that run
        self._ended = 0
        self.trials = 0  # that there will be

    def say(self, line: str) -> None:
        """A line that stays."""
        print(printable(line), file=sys.stderr, flush=True)

    def __enter__(self) -> "Reporter":
        if self._console.is_terminal:
            # Once a second: on a local run the terminal is drawn while measuring.
            self._live = Live(console=self._console, refresh_per_second=1, transient=True, get_renderable=self._drawn)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, event: Event, committed: Sequence[Committed]) -> None:
        """Takes in an event and shows where its trial stands."""
        now, trial, outcome = time.monotonic(), event.trial_id, event.outcome
        if isinstance(outcome, events.LaunchDone) or (isinstance(outcome, Alive) and outcome.part in SEVERAL):
            if self._live is None and now - self._printed.get(trial, 0) < PLAIN_EVERY_S:
                return
            self._printed[trial] = now
        line = self._text(outcome, committed)
        if line is None:
            return
        self._lines[trial] = line
        if isinstance(outcome, events.TrialEnded):
            self._ended += 1
            for known in (self._lines, self._printed):
                known.pop(trial, None)
        if self._live is None or isinstance(outcome, STAY):
            self.say(f"{trial}: {line}")

    def _text(self, outcome: Outcome, committed: Sequence[Committed]) -> str | None:
        match outcome:
            case events.TrialStarted():
                return f"going on after {len(committed)} launches" if committed else "starting"
            case Waiting():
                return f"waiting for its station: {outcome.holder}"
            case Alive(part, variant) if part is not None:
                return f"{part}: {variant}" if variant else str(part)
            case Failure():
                return f"launch {outcome.launch.index} lost: {outcome.reason}"
            case events.WorkerLost():
                return f"worker {outcome.attempt} lost: {outcome.reason}"
            case events.TrialEnded():
                return f"{'failed: ' + outcome.reason if outcome.reason else 'done'} after {len(committed)} launches"
            case events.LaunchDone():
                return self._standing(committed, outcome.committed.elapsed_s)
        return None

    def _drawn(self) -> Text:
        """The running trials, as many as there is room for."""
        room = max(1, self._console.height - 3)
        shown = [f"{name}: {line}" for name, line in list(self._lines.items())[:room]]
        if len(self._lines) > room:
            shown.append(f"and {len(self._lines) - room} others")
        if self.trials > 1:
            shown.append(f"{self._ended} of {self.trials} trials are over")
        return Text("\n".join(map(printable, shown)), no_wrap=True, overflow="ellipsis")

    def _standing(self, committed: Sequence[Committed], elapsed: float) -> str:
        count = len(committed)
        every = list(committed[-1].log_speedups)
        names = [name for name in every if name.endswith(AGAINST)] or every
        logs = [one.log_speedups for one in committed]
        known = {name: speedup([log[name] for log in logs if name in log]) for name in names}
        shown = ", ".join(f"{name} {_speedup_text(i)}" for name, i in known.items() if i is not None)
        left = time_left(count, elapsed, [i for i in known.values() if i], self._precision, self._budget_s)
        return f"{count} launches in {elapsed:.0f} s, {shown or 'no interval yet'}; up to {left:.0f} s left"


def time_left(count: int, elapsed: float, intervals: Sequence[Interval], precision: float, budget_s: float) -> float:
    """Seconds until the widest interval should be narrow enough, or the budget ends.

    Widths fall with the square root of the launches.
    """
    if not count:
        return budget_s
    widest = max((i.half_width for i in intervals), default=1.0)
    needed = max(LEAST_LAUNCHES, count * (widest / precision) ** 2)
    by_budget = max(budget_s, LEAST_LAUNCHES * elapsed / count)
    return max(0.0, min(needed * elapsed / count, by_budget) - elapsed)


def _speedup_text(interval: Interval) -> str:
    return f"{interval.value:.3f}x ±{interval.half_width:.1%}"


def print_matrix(rows: Sequence[Row], margin: float, console: Console | None = None) -> None:
    """The matrix on stdout, or a console: a table for each trial, and below it every reason and warning.

    Trials under load come last.
    """
    console = console or Console()
    alone, loads = ([row for row in rows if row.under_load is kind] for kind in (False, True))
    for trial in grouped(alone, lambda row: row.trial_id).values():
        mine = text.ranked(trial)
        console.print()
        console.print(literal(text.title(mine[0]), "bold"), soft_wrap=True)
        if all(row.status == Status.SKIPPED for row in mine):
            console.print(literal(f"  skipped: {mine[0].reason}"), soft_wrap=True)
            continue
        if compared_sides(mine):
            _print_sides(console, mine, margin)
        sections = text.by_side(mine)
        mine = [row for section in sections for row in section.rows]
        limited = any(row.of_limit is not None for row in mine)
        plain = [_cells(row, margin, any(row.stop_at_eos for row in mine)) for row in mine]
        full = [
            {**cells, OF_LIMIT: text.of_limit(row)} if limited else cells
            for cells, row in zip(plain, mine, strict=True)
        ]
        shown = _show(console, full, plain, under=_headings(sections))
        for note in (*text.limit_notes(mine, shares=shown is plain), *text.notes(mine)):
            console.print(literal(f"  {note}"), soft_wrap=True)
        if known := text.started(mine):
            console.print()
            console.print(literal(text.START_TITLE), soft_wrap=True)
            _show(console, [text.start_cells(row) for row in known])
            for note in text.start_notes(known):
                console.print(literal(f"  {note}"), soft_wrap=True)
    for trial in grouped(loads, lambda row: row.trial_id).values():
        _print_load(console, under_load.ranked(trial), margin)


def _print_load(console: Console, rows: Sequence[Row], margin: float) -> None:
    """A trial under load: its table, and below it every reason and warning."""
    console.print()
    console.print(literal(under_load.title(rows[0]), "bold"), soft_wrap=True)
    if all(row.status == Status.SKIPPED for row in rows):
        console.print(literal(f"  skipped: {rows[0].reason}"), soft_wrap=True)
        return
    _show(console, [_load_cells(*each) for each in zip(rows, under_load.table(rows, margin), strict=True)])
    for note in under_load.notes(rows):
        console.print(literal(f"  {note}"), soft_wrap=True)


def _load_cells(row: Row, cells: Mapping[str, str]) -> Cells:
    return {**cells, "verdict": Text(cells["verdict"], style=_style(row, under_load.as_ratio(row).verdict))}


def _print_sides(console: Console, rows: Sequence[Row], margin: float) -> None:
    """The comparison of the sides with ``base``, which the table of each side by itself follows."""
    sections = text.sections(compared_sides(rows))
    sides = [row for section in sections for row in section.rows]
    short, slow = ([_side_cells(row, margin, with_p90) for row in sides] for with_p90 in (False, True))
    known = any(row.side_p90_speedup is not None for row in sides)
    console.print(literal(text.AGAINST_TITLE), soft_wrap=True)
    _show(console, *([slow] if known else []), short, under=_headings(sections))
    console.print()
    console.print(literal(text.ALONE_TITLE), soft_wrap=True)


def _headings(sections: Sequence[text.Section]) -> list[str]:
    """(rows,): what each row stands under."""
    return [section.heading for section in sections for _ in section.rows]


def _cells(row: Row, margin: float, stopping: bool) -> dict[str, str | Text]:
    cells: dict[str, str | Text] = {
        **text.cells(row, margin),
        "variant": _indented(row),
        "verdict": Text(text.verdict(row, margin), style=_style(row, row.verdict)),
    }
    return {**cells, "ms per token": text.per_token(row)} if stopping else cells


def _style(row: Row, verdict: str | None) -> str:
    return "dim" if row.status == Status.SKIPPED else STYLES.get(verdict or Verdict.INVALID, "")


def _side_cells(row: Row, margin: float, with_p90: bool) -> dict[str, str | Text]:
    cells = text.side_cells(row, margin, with_p90)
    verdict = Text(cells["verdict"], style=STYLES.get(row.side_verdict or Verdict.INVALID, ""))
    return {**cells, "variant": _indented(row), "verdict": verdict}


def _indented(row: Row) -> str:
    """A variant as it stands under the name of its side, if there are sides."""
    return f"  {row.variant}" if row.side else row.variant


def print_classes(classes: Sequence[HardwareClass]) -> None:
    """Classes of at least two stations on stdout: a table for each workload, and below it who disagrees."""
    console = Console()
    several = [one for one in classes if one.stations > 1]
    for mine in grouped(several, _workload).values():
        console.print()
        console.print(literal(f"{mine[0].device} by hardware class: {text.sizes(mine[0])}", "bold"), soft_wrap=True)
        _show(console, [_class_cells(one) for one in mine])
        for sentence in dict.fromkeys(sentence for one in mine for sentence in one.disagreeing):
            console.print(literal(f"  {sentence}"), soft_wrap=True)


def _class_cells(one: HardwareClass) -> Cells:
    cells = {"hardware class": one.hardware, "stations": str(one.stations), "variant": one.variant}
    cells |= {text.P50: text.p50(one), text.SPEEDUP: text.speedup(one)}
    return {**cells, SPREAD: f"{text.percent(one.p50_spread)}, {text.percent(one.speedup_spread)}"}


def _show(console: Console, *choices: Sequence[Cells], under: Sequence[str] = ()) -> Sequence[Cells]:
    """The first of these tables that fits; else the first as lines, of which nothing is cut off either.

    Args:
        console: where it is shown.
        choices: the cells of each row, in one form or another.
        under: (rows,) the heading of each row, a line of its own however long it is; empty for none.
    """
    under = under or [""] * len(choices[0])
    for rows in choices:
        table = _table(rows)
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            lines = console.render_lines(table, pad=False)
            console.print(SegmentLines(lines[: -len(rows)], new_lines=True), end="")
            for line in _under(console, under, lines[-len(rows) :]):
                console.print(SegmentLines([line], new_lines=True), end="")
            return rows
    for row in _under(console, under, choices[0]):
        name, *cells = row.items()
        console.print(literal(name[1], "bold"))
        said = (Text.assemble(f"{head} ", literal(cell)) for head, cell in cells)
        console.print(Text("    " if any(under) else "  ") + Text(", ").join(said))
    return choices[0]


def _under(console: Console, under: Sequence[str], items: Sequence[Item]) -> Iterator[Item]:
    """The items; a heading is printed before the first that stands under it."""
    last = ""
    for heading, item in zip(under, items, strict=True):
        if heading != last:
            console.print(literal(heading, "bold"), soft_wrap=True)
        last = heading
        yield item


def _table(rows: Sequence[Cells]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in rows[0]:
        table.add_column(STACKED.get(head, head), justify="left" if head in LEFT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(literal, row.values()))
    return table
