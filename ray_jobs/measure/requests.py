"""The requests of a launch under load, beside its samples: of each call, who answered it and when."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_jobs.scenario import Load


@dataclass(frozen=True)
class Requests:
    """One array per column, one row per sample of the launch, times on the samples' clock; -1 in the warm-up."""

    replica: NDArray[np.int16]
    seen_ns: NDArray[np.int64]  # by who sends it; a sample's ``start_ns`` is when it was due
    sent_ns: NDArray[np.int64]
    began_ns: NDArray[np.int64]
    ended_ns: NDArray[np.int64]  # by its replica; a sample's ``wall_ns`` lasts until who had sent it has the answer


@dataclass(frozen=True)
class Window:
    """A stretch of requests to one variant."""

    round: int
    variant: int  # index into the launch's variants
    asked: int  # requests that were to come
    offered_rps: float | None = None  # None: as many as are answered
    abandoned: bool = False  # the queue grew: it could not be held


@dataclass(frozen=True)
class Served:
    """What a launch under load has beside its samples."""

    load: Load
    windows: tuple[Window, ...]
    requests: Requests
