"""One training for a W&B sweep: ``wandb agent`` runs ``python -m ray_jobs sweep-trial --learning_rate=0.001 ...``.

The agent chooses the settings and names the run in the environment; training and evaluation are the same as in a trial
of ``sweep``, without Ray.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from chatbot import training
from chatbot.errors import UsageError
from ray_jobs.sweep.sink import LOSSES, PATIENT
from ray_jobs.sweep.space import Value, parse_value
from ray_jobs.sweep.spec import SweepSpec
from ray_jobs.sweep.table import TrialStatus
from ray_jobs.wandb_sink.client import start_wandb_run
from ray_jobs.wandb_sink.mode import destination


def parse(arguments: Sequence[str]) -> dict[str, Value]:
    """``--name=value`` and ``--name value`` of hyperparameters. Raises UsageError."""
    found: dict[str, Value] = {}
    waiting = list(arguments)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if not name.startswith("--"):
            raise UsageError(f"{name!r} is no option; give --learning_rate=0.001 and the like")
        if not equals and not waiting:
            raise UsageError(f"{name} has no value")
        key = name.removeprefix("--").replace("-", "_")
        found[key] = parse_value(key, value if equals else waiting.pop(0))
    return found


def run_agent(settings: Mapping[str, Value], spec: SweepSpec, out: str, device: str, mode: str) -> int:
    """Trains, reports to W&B and returns the exit code."""
    training.require_device(device)
    pairs, words = spec.load_data()
    trial = spec.trial(0, settings, spec.seed, len(words))
    name = os.environ.get("WANDB_RUN_ID") or f"trial-{secrets.token_hex(4)}"
    Path(out).mkdir(parents=True, exist_ok=True)
    path = Path(out) / f"{name}.pt"
    config = {**settings, "seed": spec.seed}
    if mode == "online":
        typer.echo(destination(), err=True)
    curves = None if mode == "off" else start_wandb_run(PATIENT, id=name, config=config, mode=mode)

    def report(progress: training.Progress) -> None:
        typer.echo(f"iteration {progress.iteration}: validation loss {progress.validation_loss:.4f}", err=True)
        if curves is not None:
            curves.log({loss: getattr(progress, loss) for loss in LOSSES}, step=progress.iteration)

    failure = None
    try:
        trained = training.fit(
            trial.config,
            pairs,
            words,
            trial.options,
            path,
            device=device,
            notes={"corpus": spec.corpus, "min_count": spec.min_count, "wandb_run": name},
            free_running=True,
            on_validation=report,
        )
        typer.echo(f"{path}: validation loss {trained.notes['validation_loss']:.4f}")
    except training.DivergedError as error:
        failure = str(error)
        typer.echo(f"ray_jobs: {failure}", err=True)
    if curves is not None:
        status = TrialStatus.FAILED if failure else TrialStatus.DONE
        curves.summary.update({"status": status.value, **({"reason": failure} if failure else {})})
        curves.finish(exit_code=int(failure is not None))
    return int(failure is not None)
