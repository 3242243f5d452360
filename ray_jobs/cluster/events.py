"""Stations, what is sent to them, and what comes back."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_jobs.matrix.rows import Row, TrialInfo
from ray_jobs.measure.result import Limits, Memory
from ray_jobs.process.profile.profiler import Traced
from ray_jobs.process.trial import Committed, Failure, Trial


@dataclass(frozen=True)
class Station:
    """A place that measures, held exclusively: a node's cores, or a GPU with cores beside it."""

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
        """Its class: stations of one class should answer equally fast."""
        count = len(self.cores)
        return self.device_name if self.device == "cuda" else f"{self.device_name}, {count} core{'s' * (count != 1)}"


@dataclass(frozen=True)
class Job:
    """A trial for a station; its weights, where they are not everywhere, as bytes."""

    station: Station
    trial: Trial
    info: TrialInfo
    weights: bytes | None = None
    traces: bool = False  # its variants are traced, each in a launch of its own, and nothing is timed


@dataclass(frozen=True)
class TrialStarted:
    """A trial was handed to Ray; again, where an earlier attempt's worker was lost."""

    trial_id: str


@dataclass(frozen=True)
class TrialWaiting:
    """Somebody else holds the trial's station."""

    trial_id: str
    holder: str


@dataclass(frozen=True)
class TrialBegun:
    """The trial's worker runs."""

    trial_id: str


@dataclass(frozen=True)
class LaunchDone:
    """A launch came home."""

    trial_id: str
    committed: Committed
    table: pa.Table


@dataclass(frozen=True)
class LaunchLost:
    """A launch died, and is run again."""

    trial_id: str
    failure: Failure


@dataclass(frozen=True)
class MemoryKnown:
    """The peak memory of a trial's variants, and how many replies of the approximate ones are the baseline's."""

    trial_id: str
    memory: Memory


@dataclass(frozen=True)
class LimitsKnown:
    """What a trial's station can do, and what its variants could reach."""

    trial_id: str
    limits: Limits


@dataclass(frozen=True)
class RowsKnown:
    """The rows of a trial that its worker measured whole: made where the launches are, so that the driver need not."""

    trial_id: str
    rows: list[Row]
    launches: int


@dataclass(frozen=True)
class TraceMade:
    """A variant of a trial was traced, or could not be."""

    trial_id: str
    traced: Traced


@dataclass(frozen=True)
class WorkerLost:
    """The process that holds a trial died; the trial goes on in another one on the same station."""

    trial_id: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over; ``reason`` says why it failed, None that it did not."""

    trial_id: str
    reason: str | None
    node_lost: bool = False  # with everything that was still to be measured there


Event = (
    TrialStarted
    | TrialWaiting
    | TrialBegun
    | LaunchDone
    | LaunchLost
    | MemoryKnown
    | LimitsKnown
    | RowsKnown
    | TraceMade
    | WorkerLost
    | TrialEnded
)
