"""From a spec to trials: the model and the prompts that they need, and the stations that they go to."""

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatbot import checkpoint, corpus
from chatbot.prompts import prompt_pool
from chatbot.variants import Workload
from ray_jobs import cluster, launch
from ray_jobs.orders import up_to_multiple
from ray_jobs.records import LaunchResult, Weights
from ray_jobs.rounds import MOST_CALLS, MOST_WARMUP_CALLS, ROUNDS
from ray_jobs.rows import DONE, FAILED, SKIPPED, Row, TrialInfo, rows_of
from ray_jobs.samples import RunDirectory, to_result
from ray_jobs.spec import Spec

LAUNCH_TIMEOUT_S = 60.0  # at least; a launch may take as long as a whole budget


@dataclass(frozen=True)
class Inputs:
    """What every trial reads: weights (as bytes where they are trained) and prompts of each length."""

    weights: Weights
    content: bytes | None
    prompts: dict[int, NDArray[np.int64]]  # by prompt tokens: (N, T)

    @classmethod
    def of(cls, spec: Spec) -> "Inputs":
        """Loads the model and draws the prompts, enough that no launch asks one twice. Raises UsageError."""
        model = checkpoint.open_model(spec.model)
        source = corpus.load(spec.corpus)
        rounds = up_to_multiple(ROUNDS, len(spec.variants))
        count = max(spec.batch) * (MOST_WARMUP_CALLS + rounds * (1 + MOST_CALLS))
        lengths = spec.prompt_tokens
        prompts = {length: prompt_pool(source, model.vocabulary, length, count, spec.seed) for length in lengths}
        if not model.trained:
            return cls(Weights(preset=model.name), None, prompts)
        path = checkpoint.SHIPPED if model.name == "small" else Path(spec.model)
        return cls(Weights(path=str(path)), path.read_bytes(), prompts)


@dataclass
class TrialState:
    """What the driver knows of one trial; ``status`` is None until it ends."""

    info: TrialInfo
    job: cluster.Job | None = None
    status: str | None = None
    reason: str | None = None
    launches: list[LaunchResult] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)  # launches that were run again
    peak_mb: dict[str, float] = field(default_factory=dict)
    started: float | None = None
    seconds: float | None = None

    def rows(self) -> list[Row]:
        """The trial's rows of the matrix."""
        return rows_of(self.info, self.status or FAILED, self.reason, self.launches, self.peak_mb)

    def take(self, event: cluster.Event, run_dir: RunDirectory | None) -> None:
        """Keeps what an event brings; a launch is on disk, where there is a directory, before anything else sees it."""
        if isinstance(event, cluster.TrialStarted):
            self.started = time.monotonic()
        elif isinstance(event, cluster.LaunchDone):
            if run_dir is not None:
                run_dir.add_launch(event.trial_id, event.table)
            self.launches.append(to_result(event.table))
        elif isinstance(event, cluster.LaunchLost):
            lost = event.failure
            self.lost.append({"launch": lost.launch.index, "attempt": lost.launch.attempt, "reason": lost.reason})
        elif isinstance(event, cluster.MemoryKnown):
            self.peak_mb = event.peak_mb
        else:
            self.status, self.reason = (FAILED if event.reason else DONE), event.reason
            self.seconds = None if self.started is None else round(time.monotonic() - self.started, 1)

    def record(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {
            "status": self.status,
            "reason": self.reason,
            "workload": vars(self.info.workload),
            "station": self.info.station,
            "launches": len(self.launches),
            "lost_launches": self.lost,
            "peak_memory_mb": self.peak_mb,
            "seconds": self.seconds,
        }


def place(spec: Spec, run_id: str, inputs: Inputs) -> dict[str, TrialState]:
    """Every workload on every station of its kind, by trial id; what can't be measured is skipped, with the reason."""
    stations = {device: cluster.find_stations(device) for device in spec.device}
    trials: dict[str, TrialState] = {}
    for workload in spec.plan():
        nowhere = TrialInfo(run_id, _trial_id(workload, None), workload, spec.variants, spec.precision, spec.margin)
        if not stations[workload.device]:
            reason = f"no station of kind {workload.device} in the cluster"
            trials[nowhere.trial_id] = TrialState(nowhere, status=SKIPPED, reason=reason)
        for station in stations[workload.device]:
            info = replace(
                nowhere,
                trial_id=_trial_id(workload, station),
                station=station.name,
                host=station.host,
                device_name=station.device_name,
            )
            trials[info.trial_id] = _placed(spec, info, station, inputs)
    return trials


def _placed(spec: Spec, info: TrialInfo, station: cluster.Station, inputs: Inputs) -> TrialState:
    workload, cores = info.workload, station.facts["cores"]
    if workload.threads > cores:
        return TrialState(info, status=SKIPPED, reason=f"{workload.threads} threads, but the station has {cores} cores")
    trial = launch.Trial(
        id=info.trial_id,
        workload=workload,
        variants=spec.variants,
        weights=inputs.weights,
        pool=inputs.prompts[workload.prompt_tokens],
        seed=_seed(spec.seed, info.trial_id),
        precision=spec.precision,
        budget_s=spec.budget,
        launch_timeout_s=max(LAUNCH_TIMEOUT_S, spec.budget),
    )
    return TrialState(info, cluster.Job(station, trial, inputs.content))


def _trial_id(workload: Workload, station: cluster.Station | None) -> str:
    sizes = f"b{workload.batch}-p{workload.prompt_tokens}-r{workload.reply_tokens}-t{workload.threads}"
    return f"{workload.device}-{sizes}@{station.name.rsplit(':', 1)[0] if station else 'none'}"


def _seed(seed: int, trial_id: str) -> int:
    """A trial's own seed, the same on every run with the same spec."""
    digest = hashlib.sha256(f"{seed} {trial_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
