"""``latency-matrix compact``."""

from typing import Annotated

import typer

from ray_jobs.cli.options import require_run


def compact(
    run: Annotated[str, typer.Argument(help="Directory of a finished run.")],
    run_id: Annotated[str, typer.Option(help="Name of the compact run's folder.")],
    out: Annotated[str, typer.Option(help="Results root to write it to.")] = "results",
) -> None:
    """Copy a run small and anonymous, fit to be committed: one sample file, no host, user, address, path or key."""
    require_run(run)
    from ray_jobs.report.compact import compact as make_compact
    from ray_jobs.results.store import RunDirectory

    target = RunDirectory.named(out, run_id)
    make_compact(RunDirectory.existing(run), target)
    typer.echo(target.shown)
