"""The main job: spec -> plan -> stations -> launches -> samples -> statistics -> matrix -> terminal, W&B.

Workers measure and return values; only this process writes in the run directory or speaks to W&B.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ray_jobs import cluster, provenance
from ray_jobs.rows import Row
from ray_jobs.samples import RunDirectory, rows_table
from ray_jobs.spec import Spec
from ray_jobs.terminal import Reporter
from ray_jobs.trials import Inputs, TrialState, place
from ray_jobs.wandb_sink import WandbSink

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """One run of the matrix: what, where from, and where to."""

    id: str
    spec: Spec
    directory: RunDirectory
    sink: WandbSink
    started: datetime


def run(
    spec: Spec, run_id: str, directory: RunDirectory, address: str, sink: WandbSink, reporter: Reporter
) -> list[Row]:
    """Measures what the spec asks on the stations of a cluster and returns the rows of the matrix.

    Raises:
        UsageError: the model, the corpus, the cluster or the directory can't be used; nothing was written then.
    """
    inputs = Inputs.of(spec)
    with directory.created(), cluster.connected(address):
        this = Run(run_id, spec, directory, sink, datetime.now(UTC))
        trials = place(spec, run_id, inputs)
        sink.start(run_id, spec, environment(trials))
        write_run(this, trials)
        _measure(this, trials, reporter)
    rows = [row for trial in trials.values() for row in trial.rows()]
    write_matrix(directory, rows)
    sink.finish(rows, directory)
    return rows


def _measure(this: Run, trials: Mapping[str, TrialState], reporter: Reporter) -> None:
    """Takes in what the cluster says until every trial has ended."""
    jobs = [trial.job for trial in trials.values() if trial.job is not None]
    with reporter, closing(cluster.measure(jobs)) as events:
        for event in events:
            trial = trials[event.trial_id]
            trial.take(event, this.directory)
            reporter.show(event, trial.launches)
            if isinstance(event, cluster.TrialEnded):
                write_run(this, trials)
                this.sink.progress(trial.rows())


def write_matrix(directory: RunDirectory, rows: Sequence[Row]) -> None:
    """``matrix.json`` and ``matrix.parquet``."""
    content = [asdict(row) for row in rows]
    directory.write_json("matrix.json", content)
    directory.write_table("matrix.parquet", rows_table(content))


def write_run(this: Run, trials: Mapping[str, TrialState]) -> None:
    """``run.json``, rewritten whenever a trial ends."""
    ended = all(trial.status for trial in trials.values())
    content = {
        "schema_version": SCHEMA_VERSION,
        "run_id": this.id,
        "started": this.started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - this.started).total_seconds(), 1) if ended else None,
        "command": ["python", "-m", "ray_jobs", *sys.argv[1:]],
        "spec": this.spec.model_dump(),
        "plan": [vars(workload) for workload in this.spec.plan()],
        "environment": environment(trials),
        "trials": {trial_id: trial.record() for trial_id, trial in trials.items()},
    }
    this.directory.write_json("run.json", content)


def environment(trials: Mapping[str, TrialState]) -> dict[str, Any]:
    """The driver's program and the stations' hardware and packages."""
    stations = {trial.job.station.name: trial.job.station.facts for trial in trials.values() if trial.job is not None}
    return {"driver": provenance.driver_facts(), "stations": stations}
