"""From a spec to trials: the model and the prompts that they need, and the stations that they go to."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chatbot import checkpoint, corpus
from chatbot.prompts import prompt_pool
from chatbot.variants import Workload, is_own
from ray_jobs import provenance
from ray_jobs.cluster.events import Job, LaunchDone, Outcome, Station, TrialEnded, TrialStarted, WorkerLost
from ray_jobs.cluster.stations import choose
from ray_jobs.cluster.times import Moments
from ray_jobs.matrix.rows import NO_LIMITS, NO_MEMORY, Row, Status, TrialInfo, rows_of
from ray_jobs.measure import custom_model
from ray_jobs.measure.orders import up_to_multiple
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.result import LaunchResult, Limits, Memory, Weights
from ray_jobs.measure.rounds import MOST_CALLS, MOST_WARMUP_CALLS, ROUNDS
from ray_jobs.process.trial import Committed, Failure, Trial, Waiting
from ray_jobs.results.samples import to_result
from ray_jobs.spec import Spec


@dataclass(frozen=True)
class Inputs:
    """The inputs of all trials: weights (as bytes if trained) and prompts of each length."""

    weights: Weights
    content: bytes | None
    prompts: dict[int, NDArray[np.int64]]  # by prompt tokens: (N, T)

    @classmethod
    def of(cls, spec: Spec) -> "Inputs":
        """Loads the model and draws the prompts, enough that no launch asks one twice. Raises UsageError."""
        if is_own(spec.model):
            return cls._of_own(spec)
        model = checkpoint.open_model(spec.model)
        source = corpus.load(spec.corpus)
        rounds = up_to_multiple(ROUNDS, len(spec.variants))
        count = max(max(spec.batch) * (MOST_WARMUP_CALLS + rounds * (1 + MOST_CALLS)), LEAST_COMPARED)
        lengths = spec.prompt_tokens
        prompts = {length: prompt_pool(source, model.vocabulary, length, count, spec.seed) for length in lengths}
        if not model.trained:
            return cls(Weights(preset=model.name), None, prompts)
        path = checkpoint.SHIPPED if model.name == "small" else Path(spec.model)
        return cls(Weights(path=str(path)), path.read_bytes(), prompts)

    @classmethod
    def _of_own(cls, spec: Spec) -> "Inputs":
        """Tries the factory and its inputs here, so that a mistake in them costs no launches. Raises UsageError."""
        model = custom_model.load(spec.model)
        for workload in spec.plan():
            custom_model.inputs_of(model, 0, replace(workload, device="cpu"))
        nothing = {length: np.zeros((0, length), dtype=np.int64) for length in spec.prompt_tokens}
        return cls(Weights(factory=spec.model), None, nothing)

    def identity(self, spec: Spec) -> dict[str, str]:
        """Hashes of what a launch depends on: samples with other hashes can't be combined with it."""
        prompts = b"".join(str(length).encode() + pool.tobytes() for length, pool in sorted(self.prompts.items()))
        if self.weights.factory is not None:
            model = custom_model.source_of(self.weights.factory)
        else:
            model = self.content if self.content is not None else str(self.weights.preset).encode()
        asked = spec.model_dump_json(exclude={"model", "corpus"}).encode()  # those are told by what is in them
        hashed = {"spec": asked, "model": model, "prompts": prompts}
        return {**{name: _hash(content) for name, content in hashed.items()}, "code": provenance.source_hash()}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Store(Protocol):
    """The interface of a store of launches."""

    def add(self, trial_id: str, table: pa.Table) -> None:
        """Stores a launch; it is safe when this returns."""

    def launches(self, trial_id: str, indices: Sequence[int]) -> list[LaunchResult]:
        """The launches of a trial."""


class Kept:
    """A store in memory."""

    def __init__(self) -> None:
        self._tables: dict[str, list[pa.Table]] = {}

    def add(self, trial_id: str, table: pa.Table) -> None:
        """Stores a launch."""
        self._tables.setdefault(trial_id, []).append(table)

    def launches(self, trial_id: str, indices: Sequence[int]) -> list[LaunchResult]:
        """The launches of a trial."""
        return [to_result(table) for table in self._tables.get(trial_id, [])]


@dataclass
class TrialState:
    """What the driver knows of one trial; ``status`` is None until it ends. Samples are in the store, not here."""

    info: TrialInfo
    job: Job | None = None
    status: str | None = None
    reason: str | None = None
    committed: list[Committed] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)  # launches that were run again
    attempts: list[dict[str, Any]] = field(default_factory=list)  # workers that were lost, earlier runs of the driver
    memory: Memory = NO_MEMORY
    limits: Limits = NO_LIMITS
    started: float | None = None
    seconds: float | None = None
    rows: list[Row] = field(default_factory=list)  # when it has ended
    launches_kept: int = 0  # then
    moments: Moments = field(default_factory=Moments)  # of all attempts

    def __post_init__(self) -> None:
        if self.status == Status.SKIPPED or (self.status == Status.FAILED and self.job is None):
            self.rows = rows_of(self.info, self.status, self.reason)

    def take(self, outcome: Outcome, store: Store) -> None:
        """Takes in what happened; a launch is in the store before anything else sees it."""
        self.moments.take(outcome, self._launch_s(outcome))
        match outcome:
            case Waiting():
                self.started = time.monotonic()  # what was waited for its station is not counted
            case TrialStarted():
                self.started = self.started or time.monotonic()
            case LaunchDone(committed, table):
                store.add(self.info.trial_id, table)
                self.committed.append(committed)
            case Failure(launch, reason):
                self.lost.append({"launch": launch.index, "attempt": launch.attempt, "reason": reason})
            case WorkerLost():
                self.attempts.append({"reason": outcome.reason, "launches": len(self.committed)})
            case Memory():
                self.memory = outcome
            case Limits():
                self.limits = outcome
            case TrialEnded(reason):
                seconds = None if self.started is None else round(time.monotonic() - self.started, 1)
                self.end(Status.FAILED if reason else Status.DONE, reason, store, seconds)

    def _launch_s(self, outcome: Outcome) -> float:
        """How long the launch took that came home: what the trial's own clock went on by."""
        if not isinstance(outcome, LaunchDone):
            return 0.0
        return outcome.committed.elapsed_s - max((earlier.elapsed_s for earlier in self.committed), default=0.0)

    def end(self, status: str, reason: str | None, store: Store, seconds: float | None = None) -> None:
        """Closes the trial: its rows are made of what is in the store."""
        self.status, self.reason, self.seconds = status, reason, seconds
        launches = store.launches(self.info.trial_id, [one.index for one in self.committed])
        self.rows = rows_of(self.info, status, reason, launches, self.memory, self.limits)
        # Of ten thousand trials these are most of what the driver would keep in memory.
        self.launches_kept, self.committed, self.job = len(self.committed), [], None

    def record(self) -> dict[str, Any]:
        """The trial's entry in run.json."""
        return {
            "status": self.status,
            "reason": self.reason,
            "workload": vars(self.info.workload),
            "station": self.info.station,
            "launches": self.launches_kept or len(self.committed),
            "lost_launches": self.lost,
            "peak_memory_mb": self.memory.peak_mb,
            "limits": {name: asdict(limit) for name, limit in self.limits.of.items()},
            "speeds": None if self.limits.speeds is None else asdict(self.limits.speeds),
            "compared": {name: asdict(found) for name, found in self.memory.compared.items()},
            "not_known": {"memory": self.memory.lost, "limits": self.limits.lost},  # and why
            "seconds": self.seconds,
            "moments": self.moments.record(),
            "attempts": self.attempts,
            "host": self.info.host,
            "device_name": self.info.device_name,
            "hardware": self.info.hardware,
        }


def place(
    spec: Spec,
    run_id: str,
    inputs: Inputs,
    stations: Mapping[str, Sequence[Station]],
    wait_s: float,
    missed: str | None = None,
) -> dict[str, TrialState]:
    """Every workload on every station that is asked for, by trial id.

    What can't be measured is skipped, or failed where the station is at fault, with the reason. ``missed`` says what
    was waited for in vain.
    """
    chosen = {device: choose(found, spec.stations) for device, found in stations.items()}
    trials: dict[str, TrialState] = {}
    for workload in spec.plan():
        nowhere = TrialInfo(run_id, trial_id(workload, None), workload, spec.variants, spec.precision, spec.margin)
        if not chosen[workload.device]:
            reason = _nowhere(spec, workload, stations[workload.device], missed)
            trials[nowhere.trial_id] = TrialState(nowhere, status=Status.SKIPPED, reason=reason)
        for station in chosen[workload.device]:
            info = replace(
                nowhere,
                trial_id=trial_id(workload, station),
                station=station.name,
                host=station.host,
                device_name=station.device_name,
                hardware=station.hardware,
            )
            trials[info.trial_id] = _placed(spec, info, station, inputs, wait_s)
    return trials


def _nowhere(spec: Spec, workload: Workload, stations: Sequence[Station], missed: str | None) -> str:
    if missed is not None:
        missed = f"; {missed}"
    if not stations:
        return f"no station of kind {workload.device} in the cluster{missed or ''}"
    labels = sorted({f"{k}={v}" for s in stations for k, v in s.labels.items() if not k.startswith("ray.io/")})
    there = ", ".join(labels) or "none but Ray's own"
    return f"no station of kind {workload.device} has {spec.stations}; labels in the cluster: {there}{missed or ''}"


def _placed(spec: Spec, info: TrialInfo, station: Station, inputs: Inputs, wait_s: float) -> TrialState:
    workload, cores = info.workload, len(station.cores)
    if station.fault is not None:
        return TrialState(info, status=Status.FAILED, reason=station.fault)
    if workload.threads > cores:
        return TrialState(
            info, status=Status.SKIPPED, reason=f"{workload.threads} threads, but the station has {cores} cores"
        )
    trial = Trial(
        id=info.trial_id,
        workload=workload,
        variants=spec.variants,
        weights=inputs.weights,
        pool=inputs.prompts[workload.prompt_tokens],
        seed=_seed(spec.seed, info.trial_id),
        precision=spec.precision,
        budget_s=spec.budget,
        launch_timeout_s=spec.launch_timeout_s,
        run_id=info.run_id,
        wait_s=wait_s,
    )
    return TrialState(info, Job(station, trial, inputs.content))


def trial_id(workload: Workload, station: Station | None) -> str:
    """A trial's id, the same on every run as long as the station keeps its name."""
    tokens = "" if workload.own_model else f"-p{workload.prompt_tokens}-r{workload.reply_tokens}"
    sizes = f"b{workload.batch}{tokens}-t{workload.threads}"
    place, _, device = station.name.rpartition(":") if station else ("none", "", workload.device)
    until = "-eos" if workload.stop_at_eos else ""
    return f"{device}-{sizes}{until}@{place}"


def _seed(seed: int, trial_id: str) -> int:
    """A trial's own seed, the same on every run with the same spec."""
    digest = hashlib.sha256(f"{seed} {trial_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
