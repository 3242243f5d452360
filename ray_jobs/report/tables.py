"""The matrix as Markdown, CSV and JSON."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from pydantic_core import to_json

from ray_jobs.matrix.rows import COLUMNS, Row, Status
from ray_jobs.report import text as words
from ray_jobs.report.page import page
from ray_jobs.report.summary import answers
from ray_jobs.report.view import RunView

HEAD = ("variant", "p50 ms (95%)", "speedup (95%)", "verdict", "replies same")
SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|#"})


def markdown(runs: Sequence[RunView]) -> str:
    """What was found out, then a table for each trial with its reasons and warnings."""
    told = answers(runs)
    lines = [f"**{_plain(told.headline)}**", "", *(f"- {_plain(sentence)}" for sentence in told.sentences), ""]
    lines += [f"- {_plain(f'{fact.question}: {fact.answer}; {fact.more}')}" for fact in told.facts]
    for run in runs:
        for rows in run.trials.values():
            name = f"{run.id}: " if len(runs) > 1 else ""
            lines += ["", f"### {_plain(name + words.title(rows[0]))}", "", *_table(rows, run.margin)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], margin: float) -> Iterator[str]:
    if all(row.status == Status.SKIPPED for row in rows):
        yield f"skipped: {_plain(rows[0].reason or '')}"
        return
    yield f"| {' | '.join(HEAD)} |"
    yield "|---|---:|---:|---|---:|"
    for row in rows:
        cells = (
            row.variant,
            words.latency(row),
            words.speedup_cell(row),
            words.verdict(row, margin),
            words.replies(row),
        )
        yield f"| {' | '.join(map(_plain, cells))} |"
    yield ""
    yield from (f"- {_plain(note)}" for note in words.notes(rows))


def _plain(text: str) -> str:
    """Shown as it is, in one line."""
    return " ".join(text.translate(SPECIAL).split())


def as_csv(runs: Sequence[RunView]) -> str:
    """A line per row of the matrix; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in (row for run in runs for row in run.rows):
        values = (getattr(row, name) for name in COLUMNS)
        writer.writerow(["; ".join(value) if isinstance(value, tuple) else value for value in values])
    return text.getvalue()


def as_json(runs: Sequence[RunView]) -> str:
    """A list of the rows of all runs, as in ``matrix.json``."""
    return to_json([asdict(row) for run in runs for row in run.rows], indent=1).decode() + "\n"


FORMATS = {"html": page, "markdown": markdown, "csv": as_csv, "json": as_json}
