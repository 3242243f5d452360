"""``latency-matrix report``."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from chatbot.errors import UsageError, one_of
from ray_jobs.cli.options import require_run
from ray_jobs.report import FORMATS
from ray_jobs.results import REPORT

if TYPE_CHECKING:
    from ray_jobs.report.view import RunView
    from ray_jobs.results.store import RunDirectory


def report(
    runs: Annotated[list[str], typer.Argument(help="Directories of finished runs.", metavar="RUN [RUN...]")],
    kind: Annotated[str, typer.Option("--format", help=f"Output format: {', '.join(FORMATS)}.")] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"Output file. [default: RUN/{REPORT}, or {REPORT} here for several runs; stdout for other formats]"
        ),
    ] = None,
) -> None:
    """Show finished runs, side by side where there are several."""
    if kind not in FORMATS:
        raise one_of("format", kind, FORMATS)
    for run in runs:
        require_run(run)
    from ray_jobs.report.view import load
    from ray_jobs.report.write import WRITERS, draw
    from ray_jobs.results.store import RunDirectory

    directories = [RunDirectory.existing(run) for run in runs]
    views = [load(directory) for directory in directories]
    if kind == "html" and out is None and len(runs) == 1:
        draw(directories[0])
        typer.echo(f"{directories[0].shown}: {REPORT}")
        return
    place = out or (Path(REPORT) if kind == "html" else None)
    if place is None:
        typer.echo(WRITERS[kind](views), nl=False)
        return
    text = WRITERS[kind]([_seen_from(place, *each) for each in zip(directories, views, strict=True)])
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{place} can't be written: {error.strerror}") from None
    typer.echo(place)


def _seen_from(place: Path, directory: "RunDirectory", view: "RunView") -> "RunView":
    """Makes links lead from ``place`` to the run; removes them if the run is not on this machine."""
    if directory.local_path is None:
        return replace(view, traces=())
    way = quote(os.path.relpath(directory.local_path, place.parent))  # a folder may be called "javascript:"
    return replace(view, traces=tuple(replace(trace, href=f"{way}/{trace.href}") for trace in view.traces))
