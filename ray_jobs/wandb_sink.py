"""Summaries to W&B, from the driver alone. Nothing that W&B does may cost a measurement.

Online the run is opened before the first trial, so that others see it grow; offline it is written after the last,
so that no service of W&B runs beside a local measurement.
"""

import netrc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlparse

from chatbot.errors import one_of
from ray_jobs.directory import RunDirectory
from ray_jobs.records import one_line
from ray_jobs.rows import COLUMNS, Row
from ray_jobs.spec import Spec

MODES = ("auto", "online", "offline", "off")
PROJECT = "latency-matrix"
PATIENCE_S = 10
SUMMARY = ("p50_ms", "speedup", "speedup_low", "speedup_high", "verdict")


def resolve_mode(asked: str) -> str:
    """``online``, ``offline`` or ``off``; ``auto`` follows WANDB_MODE, else is online where there is a key.

    Raises:
        UsageError: an unknown mode.
    """
    if asked not in MODES:
        raise one_of("wandb mode", asked, MODES)
    if asked != "auto":
        return asked
    mode = os.environ.get("WANDB_MODE", "")
    if mode:
        return {"online": "online", "offline": "offline", "dryrun": "offline"}.get(mode, "off")
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbSink:
    """One W&B run for one matrix. Every method returns, whatever W&B does; the first trouble is said in one line."""

    def __init__(self, mode: str, run_dir: RunDirectory) -> None:
        self._mode = mode
        self._dir = run_dir.local_path
        self._run: Any = None
        self._arguments: dict[str, Any] = {}

    def start(self, run_id: str, spec: Spec, environment: dict[str, Any]) -> None:
        """Notes what the run is; opens it where it is online."""
        self._arguments = {
            "id": run_id,
            "name": run_id,
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "config": {"spec": spec.model_dump(), "environment": environment},
            "tags": [spec.model, *spec.device],
        }
        if self._mode == "online":
            try:
                self._open()
            except Exception as error:
                self._fall_back(error)

    def progress(self, rows: Sequence[Row]) -> None:
        """Publishes the rows of a trial that has ended, where the run is online."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary_of(rows)))

    def finish(self, rows: Sequence[Row], run_dir: RunDirectory) -> None:
        """Writes the summary, the table of cells and the samples, and closes the run."""
        if self._mode == "off":
            return
        if self._run is None:
            self._guard(self._open)
        if self._run is not None:
            self._guard(lambda: self._publish(rows, run_dir))
        if self._run is not None:
            self._guard(lambda: self._run.finish())

    @property
    def sync_command(self) -> str | None:
        """The line that uploads an offline run; None where there is none."""
        if self._mode != "offline" or self._run is None:
            return None
        return f"wandb sync {Path(self._run.dir).parent}"

    def _open(self) -> None:
        import wandb

        settings = wandb.Settings(
            init_timeout=PATIENCE_S, finish_timeout=PATIENCE_S, silent=True, disable_git=True, x_disable_stats=True
        )
        mode: Any = self._mode
        self._dir = self._dir or mkdtemp(prefix="latency-matrix-wandb-")
        self._run = wandb.init(dir=self._dir, mode=mode, settings=settings, **self._arguments)

    def _fall_back(self, error: Exception) -> None:
        """Offline, in a new service of the client: the old one holds on to the run's id."""
        import wandb

        wandb.teardown()
        self._mode = "offline"
        print(f"wandb: {one_line(error)}; the run is written offline", file=sys.stderr)

    def _publish(self, rows: Sequence[Row], run_dir: RunDirectory) -> None:
        import wandb

        self._run.summary.update(summary_of(rows))
        data = [["; ".join(v) if isinstance(v, tuple) else v for v in asdict(row).values()] for row in rows]
        self._run.log({"matrix": wandb.Table(columns=list(COLUMNS), data=data)})
        if run_dir.local_path is not None:
            artifact = wandb.Artifact(f"samples-{self._arguments['id']}", type="samples")
            artifact.add_dir(str(Path(run_dir.local_path) / "samples"))
            artifact.add_file(str(Path(run_dir.local_path) / "matrix.parquet"))
            self._run.log_artifact(artifact)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            print(f"wandb: {one_line(error)}; the measurement goes on", file=sys.stderr)
            if self._mode == "offline":
                self._mode = "off"


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Each cell's figures under a stable name: ``trial/variant/column``."""
    values = [(f"{row.trial_id}/{row.variant}/{name}", getattr(row, name)) for row in rows for name in SUMMARY]
    return {key: value for key, value in values if value is not None}
