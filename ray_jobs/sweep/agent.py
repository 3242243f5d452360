"""One training for a W&B sweep: ``wandb agent`` runs ``python -m ray_jobs sweep-trial --learning_rate=0.001 ...``.

The agent chooses the settings and names the run in the environment; training and evaluation are the same as in a trial
of ``sweep``, without Ray.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer

from chatbot import training
from chatbot.errors import UsageError, one_of
from ray_jobs.sweep.space import Value, parse_value
from ray_jobs.sweep.spec import SweepSpec
from ray_jobs.sweep.table import TrialStatus
from ray_jobs.wandb_sink.client import open_run
from ray_jobs.wandb_sink.mode import destination
from ray_jobs.wandb_sink.sink import PATIENCE_S


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


def run(settings: Mapping[str, Value], spec: SweepSpec, out: str, device: str, mode: str) -> int:
    """Trains, reports to W&B and returns the exit code."""
    if device not in ("cpu", "cuda"):
        raise one_of("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: PyTorch sees no CUDA device here; give cpu")
    pairs, words = spec.load_data()
    trial = spec.trial(0, settings, spec.seed, len(words))
    name = os.environ.get("WANDB_RUN_ID") or f"trial-{secrets.token_hex(4)}"
    Path(out).mkdir(parents=True, exist_ok=True)
    path = Path(out) / f"{name}.pt"
    tell = _Teller(mode, name, {**settings, "seed": spec.seed})
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
            on_validation=tell.progress,
        )
    except training.DivergedError as error:
        tell.end(TrialStatus.FAILED, str(error))
        typer.echo(f"ray_jobs: {error}", err=True)
        return 1
    tell.end(TrialStatus.DONE, None)
    typer.echo(f"{path}: validation loss {trained.notes['validation_loss']:.4f}")
    return 0


class _Teller:
    """The run that the agent opened, if W&B is on."""

    def __init__(self, mode: str, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode == "off":
            return
        if mode == "online":
            typer.echo(destination(), err=True)
        limits = {"init_timeout": PATIENCE_S, "finish_timeout": PATIENCE_S, "silent": True}
        self._run = open_run(limits, id=name, config=config, mode=mode)

    def progress(self, progress: training.Progress) -> None:
        values = {
            "train_loss": progress.train_loss,
            "validation_loss": progress.validation_loss,
            "free_running_loss": progress.free_running_loss,
            "best_loss": progress.best_loss,
        }
        typer.echo(f"iteration {progress.iteration}: validation loss {progress.validation_loss:.4f}", err=True)
        if self._run is not None:
            self._run.log(values, step=progress.iteration)

    def end(self, status: TrialStatus, reason: str | None) -> None:
        if self._run is None:
            return
        self._run.summary.update({"status": status.value, **({"reason": reason} if reason else {})})
        self._run.finish(exit_code=int(status == TrialStatus.FAILED))
