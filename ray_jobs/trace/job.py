"""The tracing job: spec -> stations -> tracing launches -> ``traces/`` in a new or existing run directory."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import typer

from chatbot.errors import UsageError
from ray_jobs.cluster.connection import connected, wait_for_resources
from ray_jobs.cluster.events import Event, Job, TrialEnded, WorkerLost
from ray_jobs.cluster.stations import find_stations
from ray_jobs.cluster.tasks import measure
from ray_jobs.driver import run as matrix
from ray_jobs.driver.inputs import identity_of, inputs_of, parts_of, with_cases
from ray_jobs.driver.resume import TRACES, Earlier
from ray_jobs.driver.run import Where
from ray_jobs.driver.trials import TrialState, place_trials
from ray_jobs.matrix.rows import Status
from ray_jobs.process.profile.launches import traced_variants
from ray_jobs.process.profile.profiler import Traced, zipped
from ray_jobs.process.trial import Waiting
from ray_jobs.report import text
from ray_jobs.results.run import read_index, read_record
from ray_jobs.results.samples import schema_of
from ray_jobs.results.store import RunDirectory
from ray_jobs.scenario import Scenario
from ray_jobs.spec import Spec
from ray_jobs.trace import page
from ray_jobs.trace.operators import KernelRow, OperatorRow, kernel_rows, operator_rows, variant_rows
from ray_jobs.trace.timeline import timeline
from ray_jobs.wandb_sink.sink import WandbSink

FOLDER = "traces"
TIMELINE, INDEX = "timeline.json.gz", "index.json"
ROOM = 20_000_000  # bytes a workload, for its traces


@dataclass
class Tracing:
    """The output of one ``trace`` command, and its destination."""

    spec: Spec
    run_id: str
    directory: RunDirectory
    earlier: Earlier | None = None  # the run that the traces are put into
    trials: dict[str, TrialState] = field(default_factory=dict)
    traces: dict[str, list[Traced]] = field(default_factory=dict)  # of each trial, without their content
    index: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, file: str, kind: str, title: str, trial_id: str | None = None, variant: str | None = None) -> None:
        """Adds an entry to ``traces/index.json``; ``file`` is in the same folder."""
        self.index.append({"file": file, "title": title, "trial_id": trial_id, "variant": variant, "kind": kind})

    @property
    def failed(self) -> bool:
        """True if a trial or one of its traces failed."""
        lost = any(traced.failed for traces in self.traces.values() for traced in traces)
        return lost or any(trial.status == Status.FAILED for trial in self.trials.values())


def trace_run(tracing: Tracing, where: Where) -> None:
    """Makes the traces and all other files in ``traces/``; prints each trial as it ends.

    Raises:
        UsageError: the model, the corpus, the cluster or the directory can't be used.
        StoreError: a trace could not be stored.
    """
    spec, directory = tracing.spec, tracing.directory
    inputs = inputs_of(spec)
    spec = with_cases(spec, inputs)
    spec = spec.model_copy(update={"scenario": (Scenario.SINGLE_STREAM,), "slo": None})  # nothing is timed
    identity = identity_of(inputs, spec)
    if tracing.earlier is not None:
        tracing.warnings += changes(tracing.earlier.run, identity)
    room = len(spec.plan()) * ROOM
    with ExitStack() as stack:
        stack.enter_context(
            directory.reopened(room) if tracing.earlier else directory.created(samples=False, room=room)
        )
        stack.enter_context(connected(where.address))
        missed = wait_for_resources(where.resources, where.wait_s, _say)
        stations = find_stations(spec.device, spec.isolation == "device", spec.cores_per_gpu)
        tracing.trials = place_trials(spec, tracing.run_id, stations, where.wait_s, missed)
        if tracing.earlier is not None:
            tracing.trials = _of_the_run(tracing.trials, tracing.earlier)
        directory.make_folder(FOLDER)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        sink, parts = WandbSink("off", directory), parts_of(inputs)
        this = matrix.Run(tracing.run_id, spec, directory, sink, identity, started, parts=parts)
        this.trials, this.environment = tracing.trials, matrix.environment(tracing.trials)
        jobs = [_tracing(trial.job) for trial in tracing.trials.values() if trial.job is not None]
        with closing(measure(jobs, inputs)) as heard:
            for event in heard:
                take(tracing, event)
        if tracing.earlier is None:
            directory.write_json("run.json", matrix.run_record(this) | {"purpose": TRACES})
        finish(tracing)


def rebuild_timeline(tracing: Tracing) -> None:
    """Rebuilds only the timeline of a run and its entry in the index."""
    with tracing.directory.reopened():
        tracing.directory.make_folder(FOLDER)
        index = read_index(tracing.directory)
        _write_timeline(tracing)
        tracing.index += [entry for entry in index if entry["file"] != TIMELINE]
        tracing.directory.write_json(f"{FOLDER}/{INDEX}", tracing.index)


def changes(run: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Notes on a run's traces for the reader. Raises UsageError if they would show another model."""
    before = run.get("identity") or {}
    for part, what in (("model", "the model's weights"), ("prompts", "the corpus or the vocabulary")):
        if before and before.get(part) != now[part]:
            raise UsageError(f"traces would not be of run {run['run_id']}: {what} changed since; start a new run")
    if before.get("code") != now["code"]:
        return ["the sources of this program are not those of the run: its traces show the program as it is now"]
    return []


def take(tracing: Tracing, event: Event) -> None:
    """Handles an event; a trace is stored before it is reported."""
    name, outcome = event.trial_id, event.outcome
    trial = tracing.trials[name]
    trial.moments.take(outcome)
    if isinstance(outcome, Traced):
        _keep(tracing, trial, outcome)
    elif isinstance(outcome, Waiting):
        _say(f"{name}: waiting: {outcome.holder}")
    elif isinstance(outcome, WorkerLost):
        _say(f"{name}: its worker was lost ({outcome.reason}); its traces are being repeated")
        _forget(tracing, name)
    elif isinstance(outcome, TrialEnded):
        trial.status, trial.reason = Status.FAILED if outcome.reason else Status.DONE, outcome.reason
        trial.station = None
        if outcome.reason:
            _say(f"{name}: failed: {outcome.reason}")
        traces = tracing.traces.get(name, [])
        page.print_trial(_title(trial), traces, variant_rows(name, traces))


def _keep(tracing: Tracing, state: TrialState, traced: Traced) -> None:
    name = state.trial.id
    if not traced.failed:
        file = trace_file(name, traced.variant)
        tracing.directory.write(f"{FOLDER}/{file}", traced.content)
        tracing.add(file, "trace", f"{traced.variant}: {_title(state)}", name, traced.variant)
    tracing.traces.setdefault(name, []).append(replace(traced, content=b""))
    _say(f"{name}: {traced.variant} {f'failed: {traced.failed}' if traced.failed else 'traced'}")


def _forget(tracing: Tracing, trial_id: str) -> None:
    """Forgets what a lost worker had sent: the next one sends it again."""
    tracing.traces.pop(trial_id, None)
    tracing.index = [entry for entry in tracing.index if entry["trial_id"] != trial_id]


def trace_file(trial_id: str, variant: str) -> str:
    """The trace's file name in ``traces/``; a user's variant is called ``package.module:NAME``."""
    return f"{trial_id}.{variant.replace('/', '-')}.json.gz"


def finish(tracing: Tracing) -> None:
    """Writes ``operators.parquet`` and ``.json``, of a GPU ``kernels.parquet`` too, the timeline and the index."""
    directory = tracing.directory
    operators = [row for name, traces in tracing.traces.items() for one in traces for row in operator_rows(name, one)]
    variants = [row for name, traces in tracing.traces.items() for row in variant_rows(name, traces)]
    plain = [asdict(row) for row in operators]
    directory.write_table(f"{FOLDER}/operators.parquet", pa.Table.from_pylist(plain, schema=schema_of(OperatorRow)))
    content = {"warnings": tracing.warnings, "variants": [asdict(row) for row in variants], "operators": plain}
    directory.write_json(f"{FOLDER}/operators.json", content)
    for file in ("operators.json", "operators.parquet"):
        tracing.add(file, "operators", "operators of every trace by self time and memory")
    kernels = [row for name, traces in tracing.traces.items() for one in traces for row in kernel_rows(name, one)]
    if kernels:
        table = pa.Table.from_pylist([asdict(row) for row in kernels], schema=schema_of(KernelRow))
        directory.write_table(f"{FOLDER}/kernels.parquet", table)
        tracing.add("kernels.parquet", "operators", "kernels of every trace on a GPU by time")
    _write_timeline(tracing)
    directory.write_json(f"{FOLDER}/{INDEX}", tracing.index)


def _write_timeline(tracing: Tracing) -> None:
    run = read_record(tracing.directory)
    try:
        content = timeline(run)
    except ValueError as error:
        tracing.warnings.append(f"no timeline: {error}")
        return
    tracing.directory.write(f"{FOLDER}/{TIMELINE}", zipped(content))
    tracing.add(TIMELINE, "timeline", "who measured where, when: a row for each station")


def _of_the_run(trials: Mapping[str, TrialState], earlier: Earlier) -> dict[str, TrialState]:
    """The trials that the run measured. Raises UsageError if none of their stations is here."""
    done = {name: one["station"] for name, one in earlier.run["trials"].items() if one["status"] == Status.DONE}
    found = {name: trial for name, trial in trials.items() if name in done}
    if not found:
        there = ", ".join(sorted({str(station) for station in done.values()})) or "none"
        here = ", ".join(sorted({str(t.place.station) for t in trials.values() if t.place.station})) or "none"
        raise UsageError(
            f"no trial of run {earlier.id} can be traced here: it was measured on {there}, in this cluster is {here}; "
            "start a new run of traces instead, without --run"
        )
    return found


def _tracing(job: Job) -> Job:
    traced = traced_variants(job.trial.variants, job.trial.workload.own_model)
    return replace(job, traces=True, trial=replace(job.trial, variants=traced))


def _title(state: TrialState) -> str:
    return f"{state.trial.workload.device} ({state.place.station}): {text.sizes(state.trial.workload)}"


def _say(line: str) -> None:
    typer.echo(line, err=True)
