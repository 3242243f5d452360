"""``latency-matrix sweep-trial``: one training run of a W&B sweep's agent."""

from typing import Annotated, Any

import typer

from ray_jobs.cli.options import Wandb, flags_of
from ray_jobs.sweep.spec import SweepSpec, make_spec
from ray_jobs.wandb_sink.mode import resolve_mode

KEYS = ("size", "corpus", "min_count", "iterations", "validate_every", "patience", "seed")


@flags_of(SweepSpec, KEYS)
def sweep_trial(
    flags: dict[str, Any],
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder for the checkpoints.")] = "checkpoints",
    device: Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")] = "cpu",
    wandb: Wandb = "auto",
) -> None:
    """Train once with --HYPERPARAMETER=VALUE arguments, as `wandb agent` passes them, and report to W&B.

    Evaluated like a trial of `sweep`: the same loss on the same held-out pairs. Exits 1 if it diverged.
    """
    spec, mode = make_spec(flags), resolve_mode(wandb)
    from ray_jobs.sweep import agent

    raise typer.Exit(agent.run_agent(agent.parse(context.args), spec, out, device, mode))
