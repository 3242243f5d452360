"""Trials as remote tasks: all CPUs of a node (and one GPU on CUDA), hard affinity, launches streamed back one by one.

``max_retries=0``: a measurement is never silently run again, least of all elsewhere.
"""

import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.cluster import serve
from ray_jobs.cluster.events import Event, Job, LaunchDone, Outcome, TrialEnded, WorkerLost
from ray_jobs.cluster.reachability import Watchman
from ray_jobs.cluster.schedule import ClusterLostError, Schedule
from ray_jobs.cluster.worker_path import search_as_driver
from ray_jobs.measure.gpu import lock_names
from ray_jobs.measure.result import LaunchResult, one_line
from ray_jobs.measure.trial import CheckpointBytes, Inputs, ModelSource, Trial
from ray_jobs.process import lease
from ray_jobs.process import trial as launch
from ray_jobs.process.cores import topology
from ray_jobs.process.profile.launches import run_traces
from ray_jobs.process.server import TrialError
from ray_jobs.process.untimed import Alive
from ray_jobs.results import samples
from ray_jobs.scenario import Through

FETCH_TIMEOUT_S = 30.0  # for what a ready task yielded: its node may be out of reach by then
NAMESPACE = b"latency-matrix"


class RayBackend:
    """Runs trials as Ray tasks. One for each run; ``close()`` ends its thread.

    The model and the prompts go to the cluster once, not with each trial.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._model = ray.put(inputs.model)
        self._prompts = {length: ray.put(pool) for length, pool in inputs.prompts.items()}
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._watchman = Watchman(ray.util.get_node_ip_address(), (host, int(port)))
        self._behind_serve: str | None = None  # the run, once a trial of it goes through Ray Serve

    def close(self) -> None:
        """Ends the thread that runs next to the trials, and what is left of them in Ray Serve."""
        self._watchman.close()
        if self._behind_serve is not None and not isinstance(sys.exception(), ClusterLostError):
            serve.end(self._behind_serve)

    def submit(self, job: Job) -> Any:
        """Hands the trial to Ray."""
        station, trial = job.station, job.trial
        if trial.load is not None and trial.load.through == Through.SERVE and self._behind_serve is None:
            self._behind_serve = trial.run_id
            serve.start()
        task = _measure_on_cuda if station.device == "cuda" else _measure_on_cpu
        placed = task.options(
            num_cpus=station.cpus,
            num_returns="streaming",
            scheduling_strategy=NodeAffinitySchedulingStrategy(station.node_id, soft=False),
            name=trial.id,
        )
        pool = self._prompts[trial.workload.prompt_tokens]
        handle = placed.remote(trial, self._model, pool, station.gpus, job.committed, job.traces)
        if station.address is not None:
            self._watchman.watch(handle, station.node_id, station.address)
        return handle

    def ready(self, handles: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """The tasks with news."""
        first, _ = ray.wait(list(handles), timeout=timeout_s, fetch_local=False)
        if not first:
            return []
        found: list[Any] = ray.wait(list(handles), num_returns=len(handles), timeout=0, fetch_local=False)[0]
        return found

    def next(self, handle: Any, job: Job, attempt: int) -> Event:
        """The next event of a ready task."""
        try:
            outcome: Outcome = ray.get(next(handle), timeout=FETCH_TIMEOUT_S)
        except (StopIteration, ray.exceptions.RayError) as error:
            self._watchman.leave(handle)
            outcome = _end(error, attempt)
        return Event(job.trial.id, outcome)

    def cancel(self, handle: Any) -> None:
        """Kills the task's process."""
        self._watchman.leave(handle)
        with suppress(ray.exceptions.RayError):
            ray.cancel(handle, force=True)

    def holder(self, job: Job) -> str:
        """The last trial of ours on this node, as it described itself, else Ray's own answer."""
        said = internal_kv._internal_kv_get(job.station.node_id, namespace=NAMESPACE)
        if said:
            return f"this Ray cluster gave it to {said.decode()}"
        return "its worker has not started; other tasks of this Ray cluster may hold its CPUs (ray list tasks)"

    def unreachable(self) -> Mapping[str, str]:
        """Nodes that did not answer for a while. Raises ClusterLostError where the head is one."""
        if (reason := self._watchman.headless()) is not None:
            raise ClusterLostError(reason)
        return self._watchman.unreachable()


def _end(error: Exception, attempt: int) -> WorkerLost | TrialEnded:
    """The event that a task's last exception means; StopIteration is its normal end."""
    match error:
        case StopIteration():
            return TrialEnded(None)
        case ray.exceptions.RayTaskError():
            return TrialEnded(_of_task(error))
        case ray.exceptions.WorkerCrashedError():
            return WorkerLost(attempt, _first(error))
        case ray.exceptions.NodeDiedError() | ray.exceptions.TaskUnschedulableError():
            return TrialEnded(f"its node is gone: {_first(error)}", node_lost=True)
        case ray.exceptions.GetTimeoutError():
            return TrialEnded(f"a launch could not be fetched in {FETCH_TIMEOUT_S:.0f} s", node_lost=True)
    return TrialEnded(f"{type(error).__name__}: {_first(error)}")


def _of_task(error: "ray.exceptions.RayTaskError") -> str:
    cause = error.cause
    return str(cause) if isinstance(cause, TrialError) else one_line(cause)


def _first(error: BaseException) -> str:
    """The first sentence: Ray goes on to say where its logs are."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().split(". ")[0].rstrip(".") if lines else type(error).__name__


def _measure(
    trial: Trial,
    model: ModelSource,
    pool: NDArray[np.int64],
    node_gpus: Sequence[str],
    committed: Sequence[launch.Committed],
    traces: bool,
) -> Iterator[Outcome]:
    """The task: ``Alive`` as it begins, launches with what the stopping rule needs of them, all else as it is."""
    search_as_driver()
    yield Alive()
    with ExitStack() as stack:
        stack.enter_context(_told(lease.describe(trial.run_id, trial.id)))
        share = _share(node_gpus)
        share = replace(share, behind=stack.enter_context(serve.behind(trial, share.cores)))
        source = stack.enter_context(model.as_file()) if isinstance(model, CheckpointBytes) else model
        inputs = Inputs(source, {trial.workload.prompt_tokens: pool})
        for outcome in (
            run_traces(trial, inputs, share) if traces else launch.run_trial(trial, inputs, share, committed)
        ):
            if isinstance(outcome, LaunchResult):
                yield LaunchDone(launch.Committed.of(outcome), samples.to_table(trial.id, outcome))
            else:
                yield outcome


def _share(node_gpus: Sequence[str]) -> launch.Share:
    """The cores and GPUs of this task: all cores of the node or, where its GPUs are named, those of the one here."""
    context = ray.get_runtime_context()
    gpus = tuple(str(gpu).strip() for gpu in context.get_accelerator_ids().get("GPU", []))
    locks = lock_names(gpus)
    if not node_gpus:
        return launch.Share(gpus=locks)
    cores = topology().by_core(os.sched_getaffinity(0))
    asked = int(context.get_assigned_resources().get("CPU", 1))
    if len(gpus) != 1 or gpus[0] not in node_gpus:
        raise TrialError(f"Ray gave this trial the GPUs {', '.join(gpus) or 'none'} of {', '.join(node_gpus)}: not one")
    return launch.Share(share_of_cores(cores, asked, node_gpus.index(gpus[0])), locks)


def share_of_cores(cores: Sequence[int], count: int, place: int) -> tuple[int, ...]:
    """The ``count`` cores of the GPU in this place of its node. Raises TrialError where they do not suffice."""
    mine = tuple(cores[place * count : (place + 1) * count])
    if len(mine) < count:
        raise TrialError(f"GPU {place} has no {count} cores left of {len(cores)}; ask for fewer with --cores-per-gpu")
    return mine


@contextmanager
def _told(holder: str) -> Iterator[None]:
    """Lets other drivers of this Ray cluster read who holds the node, as long as it does."""
    node = ray.get_runtime_context().get_node_id()
    internal_kv._internal_kv_put(node, holder, overwrite=True, namespace=NAMESPACE)
    try:
        yield
    finally:
        internal_kv._internal_kv_del(node, namespace=NAMESPACE)


# Two tasks: Ray shows a GPU only where the decorator asks for it.
_measure_on_cpu = ray.remote(max_retries=0)(_measure)
_measure_on_cuda = ray.remote(max_retries=0, num_gpus=1)(_measure)


def measure(jobs: Iterable[Job], inputs: Inputs) -> Generator[Event]:
    """Runs every trial on the cluster that this process has joined; closing it ends what still runs."""
    with closing(RayBackend(inputs)) as backend:
        yield from Schedule(jobs, backend).events()
