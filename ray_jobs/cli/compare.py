"""``latency-matrix compare``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatbot.errors import UsageError, one_of
from ray_jobs.cli.options import require_run, share, write_file
from ray_jobs.compare import FORMATS

if TYPE_CHECKING:
    from ray_jobs.results.run import FinishedRun

INCOMPARABLE = {"model": "the model's weights", "prompts": "the prompts"}


def compare(
    base: Annotated[str, typer.Argument(help="Directory of the earlier run: a folder or any pyarrow.fs URI.")],
    new: Annotated[str, typer.Argument(help="Directory of the later run.")],
    gate: Annotated[str | None, typer.Option(help="Largest slowdown to accept: 3% or 0.03.", metavar="SHARE")] = None,
    form: Annotated[str, typer.Option("--format", help=f"Output format: {', '.join(FORMATS)}.")] = "text",
    out: Annotated[Path | None, typer.Option(help="File to write instead of the terminal.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare even where the models or the prompts differ.")
    ] = False,
) -> None:
    """Compare two runs by their speedups over the baseline.

    Exits 0, or 2 on unusable arguments. With --gate 0 when every variant is within it, 1 when one is certainly
    slower, invalid, failed or answers differently, 3 when it is undecided.
    """
    if form not in FORMATS:
        raise one_of("format", form, FORMATS)
    limit = None if gate is None else share(gate)
    for run in (base, new):
        require_run(run)
    from ray_jobs.compare.gate import compare_cells
    from ray_jobs.compare.match import cells_of, match
    from ray_jobs.compare.output import Page, notes_of
    from ray_jobs.measure.method import version_in
    from ray_jobs.results.run import FinishedRun

    before, after = FinishedRun.of(base), FinishedRun.of(new)
    if not anyway:
        refuse(before, after)
    margin = limit if limit is not None else after.margin
    cells = cells_of(after)
    one_method = version_in(before.run) == version_in(after.run)
    comparison = replace(compare_cells(match(cells_of(before), cells), cells, margin), one_method=one_method)
    notes = dict.fromkeys(notes_of(before, after, comparison))
    write(Page(before, after, comparison, limit, margin, tuple(notes)).render(form), out)
    raise typer.Exit(0 if limit is None else int(comparison.exit))


def refuse(base: "FinishedRun", new: "FinishedRun") -> None:
    """Raises UsageError if a speedup of one run says nothing about the other's.

    How much a variant gains depends on the sizes of the model, and on how long its replies are.
    """
    first, second = base.run.get("identity") or {}, new.run.get("identity") or {}
    changed = [text for part, text in INCOMPARABLE.items() if first.get(part) != second.get(part)]
    if not (first and second):  # a run from before that was kept says no more than the model's name
        names = [str(run.run.get("spec", {}).get("model")) for run in (base, new)]
        changed = [] if names[0] == names[1] else [f"the models ({names[0]}, {names[1]})"]
    if changed:
        raise UsageError(f"{new.id} can't be compared with {base.id}: {' and '.join(changed)} differ; or say --anyway")


def write(content: str, out: Path | None) -> None:
    """Writes a text to a file or the terminal. Raises UsageError."""
    if out is None:
        typer.echo(content)
    else:
        write_file("--out", out, content + "\n")
