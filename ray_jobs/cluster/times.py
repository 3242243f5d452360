"""The times of a trial's events by the driver's single clock, so that stations can be compared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ray_jobs.cluster import events
from ray_jobs.cluster.events import Outcome
from ray_jobs.measure.result import Memory
from ray_jobs.process.profile.profiler import Traced
from ray_jobs.process.trial import Failure, Waiting
from ray_jobs.process.untimed import Alive


class Kind(StrEnum):
    """The kinds of events in a trial."""

    STARTED = "started"  # it was handed to Ray, once per attempt
    WAITING = "waiting"  # for its station
    BEGUN = "begun"  # its worker ran
    LAUNCH_BEGAN = "launch began"  # by the duration of the launch that was returned
    LAUNCH = "launch"  # it was returned
    LOST = "launch lost"
    MEMORY = "memory"
    TRACE = "trace"
    WORKER_LOST = "worker lost"
    ENDED = "ended"


MARKS = {Kind.WAITING: ": ", Kind.TRACE: " "}  # between such a kind and its detail, in run.json


@dataclass(frozen=True)
class Moment:
    """An event's kind and, for some kinds, a detail: the holder of the station, or the traced variant."""

    kind: Kind
    detail: str = ""

    @property
    def text(self) -> str:
        """The key in run.json."""
        return f"{self.kind}{MARKS.get(self.kind, '')}{self.detail}"

    @classmethod
    def of(cls, text: str) -> "Moment | None":
        """Reads a key of run.json; None for a kind that this version does not know."""
        for kind, mark in MARKS.items():
            if text.startswith(kind + mark):
                return cls(kind, text.removeprefix(kind + mark))
        return cls(Kind(text)) if text in set(Kind) else None


@dataclass
class Moments:
    """``at``: seconds after ``started_unix_s`` at which such events arrived, each list in order."""

    started_unix_s: float | None = None
    at: dict[Moment, list[float]] = field(default_factory=dict)
    clock: Callable[[], float] = time.time

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> "Moments":
        """Reads the result of ``record()``; None, from older runs, gives no times."""
        if not record:
            return cls()
        read = {Moment.of(text): list(times) for text, times in record["at_s"].items()}
        return cls(record["started_unix_s"], {moment: times for moment, times in read.items() if moment is not None})

    def record(self) -> dict[str, Any] | None:
        """Plain values; None before the trial was started."""
        if self.started_unix_s is None:
            return None
        return {
            "started_unix_s": self.started_unix_s,
            "at_s": {moment.text: times for moment, times in self.at.items()},
        }

    def of_kind(self, kind: Kind) -> list[float]:
        """The times of the events of that kind that have no detail."""
        return self.at.get(Moment(kind), [])

    def take(self, outcome: Outcome, launch_s: float = 0.0) -> None:
        """Notes the time of an event; ``launch_s`` is the duration of the launch that it carries."""
        moment = _moment(outcome)
        begun = len(self.of_kind(Kind.BEGUN)) >= len(self.of_kind(Kind.STARTED))
        if moment is None or (moment.kind is Kind.BEGUN and begun):
            return  # a worker that begins is heard of again whenever it shows that it lives
        now = self.clock()
        if self.started_unix_s is None:
            self.started_unix_s = round(now, 3)
        after = max(0.0, now - self.started_unix_s)
        if moment.kind is Kind.LAUNCH:
            before = (self.of_kind(Kind.LAUNCH) or [0.0])[-1]  # news may arrive late, but in order
            self._add(Moment(Kind.LAUNCH_BEGAN), max(before, after - launch_s))
        self._add(moment, after)

    def _add(self, moment: Moment, after_s: float) -> None:
        self.at.setdefault(moment, []).append(round(after_s, 3))


KINDS: dict[type, Kind] = {
    events.TrialStarted: Kind.STARTED,
    Alive: Kind.BEGUN,
    events.LaunchDone: Kind.LAUNCH,
    Failure: Kind.LOST,
    Memory: Kind.MEMORY,
    events.WorkerLost: Kind.WORKER_LOST,
    events.TrialEnded: Kind.ENDED,
}


def _moment(outcome: Outcome) -> Moment | None:
    if isinstance(outcome, Waiting):
        return Moment(Kind.WAITING, outcome.holder)
    if isinstance(outcome, Traced):
        return Moment(Kind.TRACE, outcome.variant)
    kind = KINDS.get(type(outcome))
    return None if kind is None else Moment(kind)
