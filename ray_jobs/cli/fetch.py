"""``latency-matrix fetch``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from chatbot.errors import UsageError


def fetch(
    job: Annotated[str, typer.Argument(help="Job id, as printed by ray job submit.")],
    address: Annotated[
        str | None,
        typer.Option(help="Address of the cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS]"),
    ] = None,
    out: Annotated[str, typer.Option(help="Local folder for the run directory.")] = "results",
) -> None:
    """Copy a submitted job's run directory to this machine, through the dashboard's port alone."""
    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not place or not place.startswith("http"):
        raise UsageError("give the dashboard's address: --address http://HEAD:8265")
    from ray_jobs.cluster.fetch import bring_home

    typer.echo(bring_home(job, place, Path(out), lambda line: typer.echo(line, err=True)))
