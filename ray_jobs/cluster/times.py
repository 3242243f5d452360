"""The times of a trial's events by the driver's single clock, so that stations can be compared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.cluster import events
from ray_jobs.cluster.events import Outcome
from ray_jobs.measure.result import Memory
from ray_jobs.process.profile.profiler import Traced
from ray_jobs.process.trial import Failure, Waiting
from ray_jobs.process.untimed import Alive

STARTED, WAITING, BEGUN, LAUNCH_BEGAN, LAUNCH = "started", "waiting", "begun", "launch began", "launch"
LOST, MEMORY, TRACE, WORKER_LOST, ENDED = "launch lost", "memory", "trace", "worker lost", "ended"


@dataclass
class Moments:
    """``at[kind]``: seconds after ``started_unix_s`` at which such events arrived, each list in order.

    ``started``: the trial was handed to Ray (once per attempt); ``begun``: its worker ran; ``launch``: a launch was
    returned; ``launch began``: that launch began, by its own duration.
    """

    started_unix_s: float | None = None
    at: dict[str, list[float]] = field(default_factory=dict)
    clock: Callable[[], float] = time.time

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> "Moments":
        """Reads the result of ``record()``; None, from older runs, gives no times."""
        if not record:
            return cls()
        return cls(record["started_unix_s"], {kind: list(times) for kind, times in record["at_s"].items()})

    def record(self) -> dict[str, Any] | None:
        """Plain values; None before the trial was started."""
        return None if self.started_unix_s is None else {"started_unix_s": self.started_unix_s, "at_s": self.at}

    def take(self, outcome: Outcome, launch_s: float = 0.0) -> None:
        """Notes the time of an event; ``launch_s`` is the duration of the launch that it carries."""
        kind = _kind(outcome)
        if kind is None or (kind == BEGUN and len(self.at.get(BEGUN, ())) >= len(self.at.get(STARTED, ()))):
            return  # a worker that begins is heard of again whenever it shows that it lives
        now = self.clock()
        if self.started_unix_s is None:
            self.started_unix_s = round(now, 3)
        after = max(0.0, now - self.started_unix_s)
        if kind == LAUNCH:
            before = self.at.get(LAUNCH, [0.0])[-1]  # news may arrive late, but in order
            self._add(LAUNCH_BEGAN, max(before, after - launch_s))
        self._add(kind, after)

    def _add(self, kind: str, after_s: float) -> None:
        self.at.setdefault(kind, []).append(round(after_s, 3))


KINDS: dict[type, str] = {
    events.TrialStarted: STARTED,
    Alive: BEGUN,
    events.LaunchDone: LAUNCH,
    Failure: LOST,
    Memory: MEMORY,
    events.WorkerLost: WORKER_LOST,
    events.TrialEnded: ENDED,
}


def _kind(outcome: Outcome) -> str | None:
    if isinstance(outcome, Waiting):
        return f"{WAITING}: {outcome.holder}"
    if isinstance(outcome, Traced):
        return f"{TRACE} {outcome.variant}"
    return KINDS.get(type(outcome))
