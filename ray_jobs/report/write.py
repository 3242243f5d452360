"""Writes a run's page and its other forms."""

import sys

from ray_jobs.measure.result import one_line
from ray_jobs.provenance import typed
from ray_jobs.report import FORMATS
from ray_jobs.report.page import page
from ray_jobs.report.tables import as_csv, as_json, markdown
from ray_jobs.report.view import load
from ray_jobs.results import REPORT
from ray_jobs.results.store import RunDirectory

WRITERS = dict(zip(FORMATS, (page, markdown, as_csv, as_json), strict=True))


def draw(directory: RunDirectory) -> None:
    """Writes the page into a finished run. Raises UsageError and StoreError."""
    directory.write(REPORT, page([load(directory)]).encode())


def draw_or_say(directory: RunDirectory) -> None:
    """Draws the page, or reports why not: a run is never lost because of its page."""
    try:
        draw(directory)
    except Exception as error:
        again = f"{typed()} report {directory.shown}"
        print(f"report: {one_line(error)}; the run is complete without it, try again with: {again}", file=sys.stderr)
