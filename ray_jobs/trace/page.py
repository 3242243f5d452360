"""The output of ``trace``: where each variant's time goes, and its operators next to the baseline's."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chatbot.variants import BASELINE
from ray_jobs.process.profile.profiler import Traced
from ray_jobs.process.profile.shares import INTERPRETER
from ray_jobs.report.terminal import literal
from ray_jobs.trace.operators import OperatorPair, VariantRow, disturbance_warning, side_by_side

MOST_LINES = 12  # of operators


def print_trial(title: str, traces: Sequence[Traced], rows: Sequence[VariantRow]) -> None:
    """One trial on stdout."""
    console = Console()
    console.print()
    console.print(literal(title, "bold"), soft_wrap=True)
    console.print(_shares_table(rows))
    for row in rows:
        text = f"failed: {row.reason}" if row.reason else row.sentence or ""
        console.print(literal(f"  {row.variant}: {text}" if row.reason else f"  {text}"), soft_wrap=True)
        if note := disturbance_warning(row):
            console.print(literal(f"  {note}", "yellow"), soft_wrap=True)
    sound = {traced.variant: traced for traced in traces if traced.operators}
    for name, traced in sound.items():
        if name != BASELINE and BASELINE in sound:
            console.print()
            console.print(_operators_table(sound[BASELINE], traced))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _shares_table(rows: Sequence[VariantRow]) -> Table:
    table = _table()
    table.add_column("variant", no_wrap=True)
    shares = ("kernel\n", "dis-\npatch", "inter-\npreter")
    for title in ("before\nms", "traced\nms", *shares, "encode\nms", "decode\nms", "operator\ncalls"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        parts = [_share(part, row.reply_ms) for part in (row.kernel_ms, row.dispatch_ms, row.interpreter_ms)]
        times = [_ms(row.untraced_ms), _ms(row.reply_ms), *parts, _ms(row.encode_ms), _ms(row.decode_ms)]
        table.add_row(literal(row.variant), *times, str(row.operators) if row.operators else "-")
    return table


def _operators_table(baseline: Traced, other: Traced) -> Table:
    """The operators that take most time in either variant, then all others in one line."""
    table = _table()
    head = f"{baseline.variant} > {other.variant}"
    table.add_column(Text("own time and memory\n") + literal(head), no_wrap=True, max_width=32)
    table.add_column("\nkind", no_wrap=True)
    for what in ("ms", "calls", "KB"):
        table.add_column(f"\n{what}", justify="right", no_wrap=True)
        table.add_column(f"\n> {what}", justify="right", no_wrap=True)
    pairs = side_by_side(baseline, other)
    for pair in pairs[:MOST_LINES]:
        kind = "" if pair.kind == INTERPRETER else pair.kind
        table.add_row(literal(pair.operator), kind, *_cells([pair]))
    if rest := pairs[MOST_LINES:]:
        table.add_row(f"{len(rest)} others", "", *_cells(rest))
    return table


def _cells(pairs: Sequence[OperatorPair]) -> list[str]:
    sides = [[pair.left for pair in pairs], [pair.right for pair in pairs]]
    columns = {"self_ms": ".2f", "calls": ".0f", "memory_kb": ".0f"}
    return [f"{sum(getattr(use, name) for use in side):{form}}" for name, form in columns.items() for side in sides]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(part: float | None, whole: float | None) -> str:
    return "-" if part is None or not whole else f"{part / whole:.0%}"
