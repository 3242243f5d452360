"""Stations, the jobs sent to them, and the events that come back."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_jobs.measure.cold import Cold
from ray_jobs.measure.result import Limits, Memory
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.process.profile.profiler import Traced
from ray_jobs.process.sides import Environments
from ray_jobs.process.trial import Committed, Failure, Waiting
from ray_jobs.process.untimed import Alive


@dataclass(frozen=True)
class Station:
    """A place that measures, held exclusively: a node's cores, or a GPU with its share of cores."""

    name: str  # host:device, with #2 and so on where one host has several nodes or GPUs
    host: str
    device: str
    device_name: str
    node_id: str
    cpus: float  # that a trial asks Ray for
    cores: tuple[int, ...] = ()  # that the node's processes may use
    alone: bool = True  # holds the whole node; else one of its GPUs and a share of its cores
    gpus: tuple[str, ...] = ()  # all of its node, as Ray names them, in the order of their shares of the cores
    address: tuple[str, int] | None = None  # of the node's raylet
    facts: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    fault: str | None = None  # why nothing can be measured here

    @property
    def hardware(self) -> str:
        """The station's hardware class: stations of one class should answer equally fast."""
        count = len(self.cores)
        model = f" [{self.facts['cpu_model']}]" if self.facts.get("cpu_model") else ""
        cpu = f"{self.device_name}{model}, {count} core{'s' * (count != 1)}"
        return self.device_name if self.device == "cuda" else cpu

    @property
    def place(self) -> Place:
        """The station as the rows of its trials name it."""
        return Place(self.name, self.host, self.device_name, self.hardware)


@dataclass(frozen=True)
class Job:
    """A trial for a station, and its launches so far."""

    station: Station
    trial: Trial
    committed: tuple[Committed, ...] = ()  # by earlier attempts; they are not run again
    traces: bool = False  # its variants are traced, each in a launch of its own, and nothing is timed


@dataclass(frozen=True)
class TrialStarted:
    """The trial was handed to Ray; again, where an earlier attempt's worker was lost."""


@dataclass(frozen=True)
class LaunchDone:
    """A launch was returned."""

    committed: Committed
    table: pa.Table


@dataclass(frozen=True)
class WorkerLost:
    """The process that holds the trial died; the trial goes on in another one on the same station."""

    attempt: int
    reason: str


@dataclass(frozen=True)
class TrialEnded:
    """The trial is over; ``reason`` says why it failed, None if it did not."""

    reason: str | None
    node_lost: bool = False  # with everything that was still to be measured there


# The first ``Alive`` says that the trial's worker runs.
Outcome = (
    TrialStarted
    | Waiting
    | Alive
    | Environments
    | LaunchDone
    | Failure
    | Memory
    | Limits
    | Cold
    | Traced
    | WorkerLost
    | TrialEnded
)


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial."""

    trial_id: str
    outcome: Outcome
