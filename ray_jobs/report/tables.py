"""The only writer of Markdown; and the matrix as Markdown, CSV and JSON."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict

from pydantic_core import to_json

from ray_jobs.matrix.rows import COLUMNS, Row, Status, compared_sides
from ray_jobs.report import text, under_load
from ray_jobs.report.summary import summarize
from ray_jobs.report.view import RunView

RIGHT = (text.P50, text.SPEEDUP, text.AGAINST, text.AGAINST_P90, text.REPLIES, *text.START_HEADS, *under_load.HEADS)
SPECIAL = re.compile(r"[\\`*\[\]<>|#~&]|(?<![^\W_])_|_(?![^\W_])")  # within a word GitHub takes _ for itself
FORMULA = ("=", "+", "-", "@")  # what a formula begins with in a spreadsheet
MENTION = re.compile(r"(?<!\w)@(?=\w)")  # a backslash does not keep GitHub from telling a team; an empty space does


def plain(said: str) -> str:
    """Text that Markdown shows literally, in one line: no emphasis, link, image, HTML, end of cell or mention."""
    return MENTION.sub("@&#8203;", SPECIAL.sub(r"\\\g<0>", " ".join(said.split())))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """The lines of a table of plain texts; columns with the given heads are right-aligned."""
    lines = [" | ".join(map(plain, row)) for row in (head, *rows)]
    rule = "|".join("---:" if name in right else "---" for name in head)
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def markdown(runs: Sequence[RunView]) -> str:
    """The findings, then a table for each trial with its reasons and warnings."""
    told = summarize(runs)
    lines = [f"**{plain(told.headline)}**", "", *(f"- {plain(sentence)}" for sentence in told.sentences), ""]
    lines += [f"- {plain(f'{fact.question}: {fact.answer}; {fact.more}')}" for fact in told.facts]
    for run in runs:
        name = f"{run.id}: " if len(runs) > 1 else ""
        for rows in run.trials.values():
            lines += ["", f"### {plain(name + text.title(rows[0]))}", "", *_matrix(rows, run.margin)]
        for rows in run.load_trials.values():
            lines += ["", f"### {plain(name + under_load.title(rows[0]))}", "", *_load(rows, run.margin)]
    return "\n".join(lines) + "\n"


def _matrix(rows: Sequence[Row], margin: float) -> Iterator[str]:
    if all(row.status == Status.SKIPPED for row in rows):
        yield f"skipped: {plain(rows[0].reason or '')}"
        return
    if sides := compared_sides(rows):
        slow = any(row.side_p90_speedup is not None for row in sides)
        yield from (plain(text.AGAINST_TITLE), "")
        yield from _table([{"side": text.side_title(row.side), **text.side_cells(row, margin, slow)} for row in sides])
        yield from ("", plain(text.ALONE_TITLE), "")
    yield from _table([text.cells(row, margin) for row in rows])
    yield ""
    yield from (f"- {plain(note)}" for note in text.notes(rows))
    if known := text.started(rows):
        yield from ("", plain(text.START_TITLE), "")
        yield from _table([text.start_cells(row) for row in known])
        yield ""
        yield from (f"- {plain(note)}" for note in text.start_notes(known))


def _load(rows: Sequence[Row], margin: float) -> Iterator[str]:
    if all(row.status == Status.SKIPPED for row in rows):
        yield f"skipped: {plain(rows[0].reason or '')}"
        return
    yield from _table(under_load.table(rows, margin))
    yield ""
    yield from (f"- {plain(note)}" for note in under_load.notes(rows))


def _table(cells: Sequence[Mapping[str, str]]) -> list[str]:
    return table(list(cells[0]), [list(row.values()) for row in cells], RIGHT)


def as_csv(runs: Sequence[RunView]) -> str:
    """One line per row of the matrix, those under load last; unknown values are empty."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in (row for run in runs for row in run.every_row):
        values = (getattr(row, name) for name in COLUMNS)
        writer.writerow([_cell("; ".join(value) if isinstance(value, tuple) else value) for value in values])
    return lines.getvalue()


def _cell(value: object) -> object:
    """A value that a spreadsheet takes for no formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def as_json(runs: Sequence[RunView]) -> str:
    """A list of the rows of all runs, as in ``matrix.json``; of each run those under load last."""
    return to_json([asdict(row) for run in runs for row in run.every_row], indent=1).decode() + "\n"
