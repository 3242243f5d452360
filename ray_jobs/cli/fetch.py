"""``latency-matrix fetch``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from chatbot.errors import UsageError


def fetch(
    job: Annotated[str, typer.Argument(help="Its id, as ray job submit printed it.")],
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS]"),
    ] = None,
    out: Annotated[str, typer.Option(help="The local folder that the run directory goes to.")] = "results",
) -> None:
    """Copy the run directory of a submitted job home, through the dashboard's port alone."""
    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not place or not place.startswith("http"):
        raise UsageError("give the dashboard's address: --address http://HEAD:8265")
    from ray_jobs.cluster.fetch import bring_home

    typer.echo(bring_home(job, place, Path(out)))
