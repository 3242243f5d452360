"""The main job: spec -> plan -> stations -> launches -> samples -> statistics -> matrix -> terminal, HTML, W&B.

Workers measure and return values; only this process writes in the run directory or speaks to W&B.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ray_jobs import provenance
from ray_jobs.cluster.connection import connected, wait_for_resources
from ray_jobs.cluster.events import Event, LaunchDone, TrialEnded
from ray_jobs.cluster.gauges import Gauges
from ray_jobs.cluster.stations import find_stations
from ray_jobs.cluster.tasks import measure
from ray_jobs.driver.inputs import identity_of, inputs_of, parts_of, with_cases
from ray_jobs.driver.resume import Earlier
from ray_jobs.driver.sides import asked_sides, built, commits_of
from ray_jobs.driver.trials import TrialState, place_trials
from ray_jobs.matrix.hardware import HardwareClass, classes_of
from ray_jobs.matrix.rows import Row
from ray_jobs.measure import method
from ray_jobs.measure.result import LaunchResult
from ray_jobs.process.trial import Committed
from ray_jobs.report.terminal import Reporter
from ray_jobs.report.write import draw_or_say
from ray_jobs.results.filesystem import StoreError
from ray_jobs.results.samples import ROW_SCHEMA, schema_of, to_result
from ray_jobs.results.schema import VERSION
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import Spec
from ray_jobs.wandb_sink.sink import WandbSink

WRITING_SHARE = 0.05  # of the driver's time, that run.json may take
LAUNCH_BYTES = 60_000  # of a launch's file, about
BATCH = 500  # rows
LEAST_ROOM = 10_000_000


@dataclass(frozen=True)
class Where:
    """The cluster, and the resources to wait for before measuring."""

    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    wait_s: float = 600.0  # for those, and for a station that somebody else holds


@dataclass
class Run:
    """One run of the matrix: its spec, its inputs and its directory. It is also a ``trials.Store``."""

    id: str
    spec: Spec
    directory: RunDirectory
    sink: WandbSink
    identity: Mapping[str, str]
    started: str
    trials: dict[str, TrialState] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    parts: tuple[str, ...] = ()  # of an own model, that variants convert
    sides: dict[str, Any] = field(default_factory=dict)  # those that were built
    write_after: float = 0.0  # on the clock of time.monotonic()

    @property
    def fingerprint(self) -> str:
        """A hash of everything that a launch depends on; recorded in each launch's file."""
        return hashlib.sha256(json.dumps(dict(self.identity), sort_keys=True).encode()).hexdigest()[:16]

    def add(self, trial_id: str, table: pa.Table) -> None:
        """Commits a launch."""
        self.directory.add_launch(trial_id, table, self.fingerprint)

    def launches(self, trial_id: str, indices: Sequence[int]) -> list[LaunchResult]:
        """Committed launches of a trial."""
        return [to_result(self.directory.launch(trial_id, index)) for index in sorted(indices)]


def run(
    spec: Spec,
    run_id: str,
    directory: RunDirectory,
    where: Where,
    sink: WandbSink,
    reporter: Reporter,
    earlier: Earlier | None = None,
) -> list[Row]:
    """Measures what the spec asks on the stations of a cluster and returns the rows of the matrix.

    Args:
        spec: what to measure.
        run_id: the run's name.
        directory: where its results go.
        where: the cluster.
        sink: W&B.
        reporter: the terminal.
        earlier: the run that this one goes on with.

    Raises:
        UsageError: the model, the corpus, a side, the cluster or the directory can't be used; nothing was written.
        StoreError: a launch could not be kept; the run can be resumed.
    """
    sides = asked_sides(spec)
    inputs = inputs_of(spec)
    spec = with_cases(spec, inputs)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    identity = {**identity_of(inputs, spec), **commits_of(sides)}
    this = Run(run_id, spec, directory, sink, identity, now, parts=parts_of(inputs))
    if earlier is not None:
        earlier.check(this.identity)
        this.started = earlier.run["started"]
        this.resumed = [*earlier.run.get("resumed", []), now]
    room = LEAST_ROOM + len(spec.plan()) * len(spec.loads) * 60 * LAUNCH_BYTES
    with directory.created(room=room) if earlier is None else directory.reopened(room), connected(where.address):
        missed = wait_for_resources(where.resources, where.wait_s, reporter.say)
        stations = find_stations(spec.device, spec.isolation == "device", spec.cores_per_gpu)
        this.trials = place_trials(spec, run_id, stations, where.wait_s, missed)
        this.environment = environment(this.trials)
        if earlier is not None:
            this.environment["stations"] |= earlier.run["environment"]["stations"]  # what launches are held against
            this.trials = earlier.restore(this.trials, this, this.fingerprint)
        places = [trial.station for trial in this.trials.values() if trial.station is not None]
        with built(sides, places, run_id, where.wait_s, reporter.say) as there:
            this.sides = there.record(places, {} if earlier is None else earlier.run.get("sides", {}))
            for trial in this.trials.values():
                trial.give(there.at)
            write_run(this)
            sink.start()
            jobs = [trial.job for trial in this.trials.values() if trial.job is not None]
            reporter.trials = len(jobs)
            with reporter, closing(measure(iter(jobs), inputs)) as events:
                del jobs  # the schedule lets go of them one by one
                take_in(this, events, reporter, Gauges(run_id, len(this.trials)))
    rows = [row for trial in this.trials.values() for row in trial.rows]
    write_matrix(directory, rows, spec.margin)
    draw_or_say(directory)
    sink.finish()
    return rows


def take_in(this: Run, events: Iterable[Event], reporter: Reporter, gauges: Gauges | None = None) -> None:
    """Handles the cluster's events as they arrive, until every trial has ended."""
    try:
        if gauges is not None:
            gauges.count(trial.status for trial in this.trials.values())
        for event in events:
            trial = this.trials[event.trial_id]
            committed = trial.committed
            trial.take(event.outcome, this)
            reporter.show(event, committed)
            if gauges is not None:
                tell(gauges, event, this, committed)
            if isinstance(event.outcome, TrialEnded):
                write_run_now_and_then(this)
                this.sink.progress(trial.rows)
    except BaseException:
        with suppress(StoreError):  # a disk that is full for a launch is full for this too: the first error tells more
            write_run(this)
        raise
    write_run(this)


def tell(gauges: Gauges, event: Event, this: Run, committed: Sequence[Committed]) -> None:
    """Sets what an event changes of the gauges."""
    if isinstance(event.outcome, LaunchDone):
        gauges.stand(event.trial_id, committed)
    elif isinstance(event.outcome, TrialEnded):
        gauges.count(trial.status for trial in this.trials.values())


def write_matrix(directory: RunDirectory, rows: Sequence[Row], margin: float) -> None:
    """``matrix.json`` and ``matrix.parquet``, and the same of the hardware classes: ``classes``."""
    _write_rows(directory, "matrix", rows, ROW_SCHEMA)
    _write_rows(directory, "classes", classes_of(rows, margin), schema_of(HardwareClass))


def _write_rows(directory: RunDirectory, name: str, rows: Sequence[Any], schema: pa.Schema) -> None:
    """Writes JSON and Parquet in batches: the plain values of many rows take more memory than the rows."""
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    tables = (pa.Table.from_pylist([asdict(row) for row in batch], schema=schema) for batch in batches)
    directory.write_table(f"{name}.parquet", pa.concat_tables([schema.empty_table(), *tables]))
    directory.write_json_rows(f"{name}.json", ([asdict(row) for row in batch] for batch in batches))


def write_run_now_and_then(this: Run) -> None:
    """``run.json`` after a trial, unless there are so many trials that most of the time would go there."""
    before = time.monotonic()
    if before >= this.write_after:
        write_run(this)
        after = time.monotonic()
        this.write_after = after + (after - before) / WRITING_SHARE


def write_run(this: Run) -> None:
    """``run.json``."""
    this.directory.write_json("run.json", run_record(this))


def run_record(this: Run) -> dict[str, Any]:
    """The content of ``run.json``."""
    ended = all(trial.status for trial in this.trials.values())
    since = datetime.now(UTC) - datetime.fromisoformat(this.started)
    return {
        "schema_version": VERSION,
        "run_id": this.id,
        "started": this.started,
        "resumed": this.resumed,
        "seconds": round(since.total_seconds(), 1) if ended else None,
        "command": provenance.command_line(),
        "spec": this.spec.model_dump(),
        "identity": dict(this.identity),
        "method": method.recorded(),
        **({"parts": list(this.parts)} if this.parts else {}),
        **({"sides": this.sides} if this.sides else {}),
        "plan": [vars(workload) for workload in this.spec.plan()],
        "environment": this.environment,
        "trials": {trial_id: trial.record() for trial_id, trial in this.trials.items()},
    }


def environment(trials: Mapping[str, TrialState]) -> dict[str, Any]:
    """The driver's program and the stations' hardware and packages."""
    stations = {trial.station.name: trial.station.facts for trial in trials.values() if trial.station is not None}
    return {"driver": provenance.driver_facts(), "stations": stations}
