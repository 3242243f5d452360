"""A sweep in W&B, live: a group with a run for each trial with its learning curves, and one for the sweep.

Only the driver speaks to W&B. W&B must never end a sweep: the first failure is reported in one line.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ray_jobs.measure.result import one_line
from ray_jobs.sweep.folder import BEST, Listener, Record
from ray_jobs.sweep.spec import SweepTrial
from ray_jobs.sweep.table import TrialRow, TrialStatus, Validation, best_trial, flat
from ray_jobs.wandb_sink.client import start_wandb_run
from ray_jobs.wandb_sink.mode import destination
from ray_jobs.wandb_sink.sink import PATIENCE_S, PREFIX

LOSSES = ("train_loss", "validation_loss", "free_running_loss", "best_loss")
PATIENT = {"init_timeout": PATIENCE_S, "finish_timeout": PATIENCE_S, "silent": True}  # settings of W&B's client


class SweepSink(Listener):
    """Listens to a sweep. Runs have deterministic names, so that repeated reports reach the same run."""

    def __init__(self, mode: str, record: Record) -> None:
        self._mode, self._record = mode, record
        if mode == "online":
            print(destination(), file=sys.stderr)
        self._dir = record.directory.local_path
        self._runs: dict[int, Any] = {}
        self._used = False

    def started(self, trial: SweepTrial) -> None:
        """Opens the trial's run and reports what was known before the driver died."""
        if self._mode == "off":
            return
        config = {**trial.settings, "seed": trial.options.seed, "trial": trial.number, "sweep": self._record.id}
        self._guard(lambda: self._runs.update({trial.number: self._open(f"{trial.number:04d}", "trial", config)}))
        for row in self._record.of_trial(trial.number):
            self.validated(row)

    def validated(self, row: Validation) -> None:
        """Reports a point of the learning curves."""
        if (run := self._runs.get(row.trial)) is not None:
            self._guard(lambda: run.log({name: getattr(row, name) for name in ("epoch", *LOSSES)}, step=row.iteration))

    def ended(self, row: TrialRow) -> None:
        """The trial's summary; closes its run."""
        run = self._runs.pop(row.trial, None)
        if run is None:
            return
        values = {key: value for key, value in flat(row).items() if key not in row.settings and value is not None}
        self._guard(lambda: run.summary.update(values))
        self._guard(lambda: run.finish(exit_code=int(row.status == TrialStatus.FAILED)))

    def finish(self) -> None:
        """The sweep's own run: the table of trials, the importances, the best checkpoint."""
        for run in self._runs.values():
            self._guard(run.finish)
        self._runs = {}
        if self._mode != "off" and self._record.rows:
            self._guard(self._sum_up)

    @property
    def sync_command(self) -> str | None:
        """The command that uploads offline runs; None if there are none."""
        if self._mode != "offline" or not self._used:
            return None
        return f"wandb sync {Path(self._dir or '') / 'wandb'}/offline-run-*"

    def _sum_up(self) -> None:
        import wandb

        record = self._record
        run = self._open("sweep", "sweep", record.spec.model_dump())
        rows = [flat(row) for row in sorted(record.rows, key=lambda row: row.trial)]
        run.log({"trials": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        if record.importances is not None:
            run.summary.update({f"importance/{one.name}": asdict(one) for one in record.importances.of})
        if (best := best_trial(record.rows)) is not None:
            run.summary.update({"best_trial": best.trial, "best_loss": best.best_loss})
            if record.directory.local_path is not None:
                artifact = wandb.Artifact(f"best-{record.id}", type="model")
                artifact.add_file(str(Path(record.directory.local_path) / BEST))
                run.log_artifact(artifact)
        run.finish()

    def _open(self, suffix: str, kind: str, config: dict[str, Any]) -> Any:
        try:
            return self._init(suffix, kind, config)
        except Exception as error:
            if self._mode != "online":
                raise
            self._fall_back(error)
            return self._init(suffix, kind, config)

    def _init(self, suffix: str, kind: str, config: dict[str, Any]) -> Any:
        self._dir = self._dir or mkdtemp(prefix=PREFIX)
        name = f"{self._record.id}-{suffix}"
        run = start_wandb_run(
            PATIENT,
            id=name,
            name=name,
            group=self._record.id,
            job_type=kind,
            config=config,
            dir=self._dir,
            mode=self._mode,
            reinit="create_new",
            resume="allow" if self._mode == "online" else None,
        )
        self._used = True
        return run

    def _fall_back(self, error: Exception) -> None:
        """Goes offline in a new service of the client; it loses open runs, which appear only in the tables."""
        import wandb

        wandb.teardown()
        self._mode = "offline"
        self._runs = {}
        print(f"wandb: {one_line(error)}; the sweep's runs are written offline", file=sys.stderr)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            print(f"wandb: {one_line(error)}; the sweep goes on", file=sys.stderr)
            if self._mode == "offline":
                self._mode = "off"
