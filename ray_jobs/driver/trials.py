"""Makes trials from a spec, assigns them to stations and follows their state."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import pyarrow as pa

from chatbot.variants import Workload
from ray_jobs.cluster.events import Job, LaunchDone, Outcome, Station, TrialEnded, TrialStarted, WorkerLost
from ray_jobs.cluster.stations import choose_stations
from ray_jobs.cluster.times import Moments
from ray_jobs.matrix.rows import NO_COLD, NO_LIMITS, NO_MEMORY, Row, Status, rows_of
from ray_jobs.measure.cold import Cold
from ray_jobs.measure.result import LaunchResult, Limits, Memory
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.process.sides import Environments
from ray_jobs.process.trial import Committed, Failure, Waiting
from ray_jobs.report.text import counted
from ray_jobs.results.samples import to_result
from ray_jobs.scenario import Load
from ray_jobs.sides import Side, sides_of
from ray_jobs.spec import Spec


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

    trial: Trial
    place: Place
    station: Station | None = None  # while the trial can be measured on it
    status: str | None = None
    reason: str | None = None
    committed: list[Committed] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)  # launches that were run again
    attempts: list[dict[str, Any]] = field(default_factory=list)  # workers that were lost, earlier runs of the driver
    memory: Memory = NO_MEMORY
    limits: Limits = NO_LIMITS
    cold: Cold = NO_COLD
    started: float | None = None
    seconds: float | None = None
    rows: list[Row] = field(default_factory=list)  # when it has ended
    launches_kept: int = 0  # then
    environments: dict[str, Any] = field(default_factory=dict)  # of the sides
    moments: Moments = field(default_factory=Moments)  # of all attempts

    def __post_init__(self) -> None:
        if self.status == Status.SKIPPED or (self.status == Status.FAILED and self.station is None):
            self.rows = rows_of(self.trial, self.place, self.status, self.reason)

    @property
    def job(self) -> Job | None:
        """The job of measuring what is missing; None if the trial has ended or can't be measured."""
        return None if self.station is None else Job(self.station, self.trial, tuple(self.committed))

    def give(self, sides: Callable[[Station], tuple[Side, ...]]) -> None:
        """Takes the sides as they are on its station, if it is still to be measured."""
        if self.station is not None:
            self.trial = replace(self.trial, sides=sides(self.station))

    def take(self, outcome: Outcome, store: Store) -> None:
        """Handles an event; a launch is in the store before anything else sees it."""
        self.moments.take(outcome, self._launch_s(outcome))
        match outcome:
            case Waiting():
                self.started = time.monotonic()  # what was waited for its station is not counted
            case TrialStarted():
                self.started = self.started or time.monotonic()
            case Environments(of):
                self.environments = {side: dict(told) for side, told in of.items()}
            case LaunchDone(committed, table):
                store.add(self.trial.id, table)
                self.committed.append(committed)
            case Failure(launch, reason):
                self.lost.append({"launch": launch.index, "attempt": launch.attempt, "reason": reason})
            case WorkerLost():
                self.attempts.append({"reason": outcome.reason, "launches": len(self.committed)})
            case Memory():
                self.memory = outcome
            case Limits():
                self.limits = outcome
            case Cold():
                self.cold = outcome
            case TrialEnded(reason):
                seconds = None if self.started is None else round(time.monotonic() - self.started, 1)
                self.end(Status.FAILED if reason else Status.DONE, reason, store, seconds)

    def _launch_s(self, outcome: Outcome) -> float:
        """The seconds that the returned launch took, by the trial's own clock."""
        if not isinstance(outcome, LaunchDone):
            return 0.0
        return outcome.committed.elapsed_s - max((earlier.elapsed_s for earlier in self.committed), default=0.0)

    def end(self, status: str, reason: str | None, store: Store, seconds: float | None = None) -> None:
        """Closes the trial and makes its rows from the launches in the store."""
        self.status, self.reason, self.seconds = status, reason, seconds
        launches = store.launches(self.trial.id, [one.index for one in self.committed])
        self.rows = rows_of(self.trial, self.place, status, reason, launches, self.memory, self.limits, self.cold)
        of_a_launch = next((dict(one.machine.get("environments") or {}) for one in launches), {})
        self.environments = self.environments or of_a_launch
        # Of ten thousand trials these are most of what the driver would keep in memory.
        self.launches_kept, self.committed, self.station = len(self.committed), [], None

    def record(self) -> dict[str, Any]:
        """The trial's entry in run.json."""
        return {
            "status": self.status,
            "reason": self.reason,
            "workload": vars(self.trial.workload),
            **({"load": asdict(self.trial.load)} if self.trial.load else {}),
            "station": self.place.station,
            "launches": self.launches_kept or len(self.committed),
            "lost_launches": self.lost,
            "peak_memory_mb": self.memory.peak_mb,
            "prepare_memory_mb": self.memory.prepare_mb,
            "limits": {name: asdict(limit) for name, limit in self.limits.of.items()},
            "speeds": None if self.limits.speeds is None else asdict(self.limits.speeds),
            "compared": {name: asdict(found) for name, found in self.memory.compared.items()},
            "compiled": {name: asdict(found) for name, found in self.memory.compiled.items()},
            "not_known": {"memory": self.memory.lost, "limits": self.limits.lost},  # and why
            "seconds": self.seconds,
            "moments": self.moments.record(),
            "attempts": self.attempts,
            "host": self.place.host,
            "device_name": self.place.device_name,
            "hardware": self.place.hardware,
            **({"environments": self.environments} if self.environments else {}),
            **({"cold": asdict(self.cold)} if self.trial.cold else {}),
        }


def place_trials(
    spec: Spec,
    run_id: str,
    stations: Mapping[str, Sequence[Station]],
    wait_s: float,
    missed: str | None = None,
) -> dict[str, TrialState]:
    """Every workload on every station that is asked for, by trial id.

    What can't be measured is skipped, or failed where the station is at fault, with the reason. ``missed`` says what
    was waited for in vain.
    """
    chosen = {device: choose_stations(found, spec.stations) for device, found in stations.items()}
    trials: dict[str, TrialState] = {}
    for workload, load in product(spec.plan(), spec.loads):
        if not chosen[workload.device]:
            trial = trial_of(spec, run_id, workload, trial_id(workload, None, load), wait_s, load)
            reason = _nowhere(spec, workload, stations[workload.device], missed)
            trials[trial.id] = TrialState(trial, Place(), status=Status.SKIPPED, reason=reason)
        for station in chosen[workload.device]:
            trial = trial_of(spec, run_id, workload, trial_id(workload, station, load), wait_s, load)
            trials[trial.id] = _placed(trial, station)
    return trials


def _nowhere(spec: Spec, workload: Workload, stations: Sequence[Station], missed: str | None) -> str:
    if missed is not None:
        missed = f"; {missed}"
    if not stations:
        return f"no station of kind {workload.device} in the cluster{missed or ''}"
    labels = sorted({f"{k}={v}" for s in stations for k, v in s.labels.items() if not k.startswith("ray.io/")})
    there = ", ".join(labels) or "none but Ray's own"
    return f"no station of kind {workload.device} has {spec.stations}; labels in the cluster: {there}{missed or ''}"


def _placed(trial: Trial, station: Station) -> TrialState:
    threads, cores = trial.cores, len(station.cores)
    if station.fault is not None:
        return TrialState(trial, station.place, status=Status.FAILED, reason=station.fault)
    if threads > cores:
        reason = f"{_needed(trial)}, but the station has {counted(cores, 'core')}"
        return TrialState(trial, station.place, status=Status.SKIPPED, reason=reason)
    quota = station.facts.get("quota_cpus")
    if quota is not None and trial.cores > quota:
        granted = f"the quota of its control group (cpu.max, docker's --cpus, a pod's limit) is {quota:g} CPUs"
        reason = f"{counted(threads, 'core' if trial.load else 'thread')} can't run all the time: {granted}"
        return TrialState(trial, station.place, status=Status.SKIPPED, reason=reason)
    return TrialState(trial, station.place, station)


def _needed(trial: Trial) -> str:
    """The cores that a trial needs, and for what."""
    threads, load = trial.workload.threads, trial.load
    if load is None:
        return f"{threads} threads"
    sending = ", and one that sends requests" if load.generators else ""
    replicas = f"{counted(load.replicas, 'replica')} of {counted(threads, 'thread')}"
    return f"{load.scenario} needs {trial.cores} cores ({replicas}{sending})"


def trial_of(
    spec: Spec, run_id: str, workload: Workload, name: str, wait_s: float = 0.0, load: Load | None = None
) -> Trial:
    """The trial of that name: what the spec asks of a workload."""
    return Trial(
        name,
        run_id,
        workload,
        spec.variants,
        seed=_seed(spec.seed, name),
        precision=spec.precision,
        margin=spec.margin,
        budget_s=spec.budget,
        launch_timeout_s=spec.launch_timeout_s,
        wait_s=wait_s,
        cold=spec.cold,
        sides=sides_of(spec.against),
        load=load,
        prices=spec.prices,
    )


def trial_id(workload: Workload, station: Station | None, load: Load | None = None) -> str:
    """A trial's id, the same on every run as long as the station keeps its name."""
    tokens = "" if workload.own_model else f"-p{workload.prompt_tokens}-r{workload.reply_tokens}"
    sizes = f"b{workload.batch}{tokens}-t{workload.threads}"
    place, _, device = station.name.rpartition(":") if station else ("none", "", workload.device)
    until = "-eos" if workload.stop_at_eos else ""
    case = f"-{name}" if (name := workload.model.partition("#")[2]) and workload.own_model else ""
    asked = f"-{load.id}" if load is not None else ""
    return f"{device}-{sizes}{until}{case}{asked}@{place}"


def _seed(seed: int, trial_id: str) -> int:
    """A trial's own seed, the same on every run with the same spec."""
    digest = hashlib.sha256(f"{seed} {trial_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
