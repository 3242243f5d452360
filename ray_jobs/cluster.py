"""Stations and trials on a Ray cluster: the only Ray code of the matrix.

A trial is a remote task that asks for all CPUs of its node (and one GPU on CUDA) with hard affinity, so that it holds
its station alone, and that streams its launches back one by one. ``max_retries=0``: a measurement is never silently
run again elsewhere.
"""

import os
import platform
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chatbot.errors import UsageError
from ray_jobs import launch, provenance, samples
from ray_jobs.records import LaunchResult, Weights

CONNECT_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 60.0
SILENCE_S = 60.0  # beyond a launch's own deadline, after which a trial that says nothing is ended
POLL_S = 1.0


@dataclass(frozen=True)
class Station:
    """A place that measures, held exclusively: a node's cores, or a GPU with the node's cores beside it."""

    name: str  # host:device, with #2 and so on where one host has several nodes
    host: str
    device: str
    device_name: str
    node_id: str
    cpus: float  # all that Ray knows of the node
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A trial for a station; its weights, where they are not everywhere, as bytes."""

    station: Station
    trial: launch.Trial
    weights: bytes | None = None


@dataclass(frozen=True)
class LaunchDone:
    """A launch came home."""

    trial_id: str
    table: pa.Table


@dataclass(frozen=True)
class LaunchLost:
    """A launch died, and is run again."""

    trial_id: str
    failure: launch.Failure


@dataclass(frozen=True)
class MemoryKnown:
    """The peak memory of a trial's variants."""

    trial_id: str
    peak_mb: dict[str, float]


@dataclass(frozen=True)
class TrialStarted:
    """A trial was handed to Ray."""

    trial_id: str


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over; ``reason`` says why it failed, None that it did not."""

    trial_id: str
    reason: str | None


Event = TrialStarted | LaunchDone | LaunchLost | MemoryKnown | TrialEnded


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Joins the cluster at ``auto`` or ``HOST:PORT``; ``local`` starts one here, which ends with the block.

    Raises:
        UsageError: a ``ray://`` address, or no cluster there.
    """
    if address.startswith("ray://"):
        raise UsageError("ray:// keeps the driver off the cluster; use: ray job submit -- python -m ray_jobs matrix")
    if ":" in address:
        _reach(address)
    options: dict[str, Any] = {}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default a worker gives way to any other process
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises UsageError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}; give local, auto or HOST:PORT") from None


def find_stations(device: str) -> list[Station]:
    """The live stations of a device kind, in order of their names."""
    stations = []
    seen: Counter[str] = Counter()
    for node in sorted(ray.nodes(), key=lambda node: (node["NodeManagerHostname"], node["NodeID"])):
        resources = node.get("Resources", {})
        if not node["Alive"] or not resources.get("CPU") or (device == "cuda" and not resources.get("GPU")):
            continue
        facts = _node_facts(node["NodeID"])
        host = facts["host"]
        seen[host] += 1
        name = f"{host}:{device}" if seen[host] == 1 else f"{host}#{seen[host]}:{device}"
        kind = facts["cpu"] if device == "cpu" else _gpu_name(resources)
        stations.append(Station(name, host, device, kind, node["NodeID"], float(resources["CPU"]), facts))
    return stations


def measure(jobs: Sequence[Job], clock: Callable[[], float] = time.monotonic) -> Generator[Event]:
    """Runs every trial, one at a time on each node, nodes at the same time; yields what happens as it happens."""
    waiting: dict[str, deque[Job]] = {}
    for job in jobs:
        waiting.setdefault(job.station.node_id, deque()).append(job)
    running: dict[Any, _Running] = {}
    try:
        while waiting or running:
            for node in [node for node in waiting if node not in {r.job.station.node_id for r in running.values()}]:
                job = waiting[node].popleft()
                if not waiting[node]:
                    del waiting[node]
                stream = _submit(job)
                running[stream] = _Running(job, clock())
                yield TrialStarted(job.trial.id)
            ready, _ = ray.wait(list(running), timeout=POLL_S, fetch_local=False)
            for stream in ready:
                running[stream].heard = clock()
                event = _next_event(stream, running[stream].job.trial.id)
                yield event
                if isinstance(event, TrialEnded):
                    del running[stream]
            for stream in [s for s, r in running.items() if clock() - r.heard > _patience(r.job)]:
                silent = running.pop(stream)
                ray.cancel(stream, force=True)
                yield TrialEnded(silent.job.trial.id, f"nothing was heard of it for {_patience(silent.job):.0f} s")
    finally:
        for stream in running:
            ray.cancel(stream, force=True)


@dataclass
class _Running:
    job: Job
    heard: float


def _patience(job: Job) -> float:
    return job.trial.launch_timeout_s + launch.GRACE_S + SILENCE_S


def _submit(job: Job) -> Any:
    task = _measure_on_cuda if job.station.device == "cuda" else _measure_on_cpu
    placed = task.options(
        num_cpus=job.station.cpus,
        num_returns="streaming",
        scheduling_strategy=NodeAffinitySchedulingStrategy(job.station.node_id, soft=False),
        name=job.trial.id,
    )
    return placed.remote(job.trial, job.weights)


def _next_event(stream: Any, trial_id: str) -> Event:
    """What a ready stream says next."""
    try:
        value = ray.get(next(stream))
    except StopIteration:
        return TrialEnded(trial_id, None)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        known = isinstance(cause, launch.TrialError)
        return TrialEnded(trial_id, str(cause) if known else f"{type(cause).__name__}: {cause}".splitlines()[0])
    except ray.exceptions.RayError as error:
        return TrialEnded(trial_id, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    if isinstance(value, launch.Failure):
        return LaunchLost(trial_id, value)
    if isinstance(value, launch.Memory):
        return MemoryKnown(trial_id, value.peak_mb)
    return LaunchDone(trial_id, value)


def _measure(trial: launch.Trial, weights: bytes | None) -> Iterator[Any]:
    """The task: launches as Arrow tables, everything else as it is."""
    with ExitStack() as stack:
        if weights is not None:
            trial = replace(trial, weights=Weights(path=stack.enter_context(_memory_file(weights))))
        for outcome in launch.run_trial(trial):
            yield samples.to_table(trial.id, outcome) if isinstance(outcome, LaunchResult) else outcome


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """A path that launches can open while this process lives; a killed task leaves no file behind."""
    descriptor = os.memfd_create("weights")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


# Two tasks: Ray shows a GPU only where the decorator asks for it.
_measure_on_cpu = ray.remote(max_retries=0)(_measure)
_measure_on_cuda = ray.remote(max_retries=0, num_gpus=1)(_measure)


def _probe() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": provenance.package_versions(),
    }


def _node_facts(node_id: str) -> dict[str, Any]:
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe).options(scheduling_strategy=affinity)
    facts: dict[str, Any] = ray.get(probe.remote(), timeout=PROBE_TIMEOUT_S)
    return facts


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _gpu_name(resources: dict[str, float]) -> str:
    kinds = [key.split(":", 1)[1] for key in resources if key.startswith("accelerator_type:")]
    return kinds[0] if kinds else "GPU"
