"""The order of trials: one at a time on each node, nodes in parallel; no wait is unlimited.

Knows nothing of Ray: a ``Backend`` runs the trials, and a clock gives the time.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ray_jobs.cluster.events import (
    Event,
    Job,
    LaunchDone,
    TrialEnded,
    TrialStarted,
    WorkerLost,
)
from ray_jobs.process.server import GRACE_S
from ray_jobs.process.trial import Committed, Waiting
from ray_jobs.process.untimed import Alive

ATTEMPTS = 3  # of a trial whose worker is lost, all on the same station
SILENCE_S = 60.0  # beyond a launch's own deadline, after which a trial that says nothing is ended
PENDING_S = 10.0  # between handing a trial to Ray and asking who holds its station
POLL_S = 1.0


class ClusterLostError(RuntimeError):
    """The cluster is gone, and every trial with it; one line says why."""


class Backend(Protocol):
    """The interface for running trials. A handle may be anything that can be a key."""

    def submit(self, job: Job) -> Any:
        """Starts a trial and returns its handle."""

    def ready(self, handles: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """The handles with news; waits for the first one for at most the given time."""

    def next(self, handle: Any, job: Job, attempt: int) -> Event:
        """The next event of a ready handle; ``TrialEnded`` or ``WorkerLost`` is its last."""

    def cancel(self, handle: Any) -> None:
        """Ends a trial's processes, without waiting for it."""

    def holder(self, job: Job) -> str:
        """The holder of the station of a trial that does not begin."""

    def unreachable(self) -> Mapping[str, str]:
        """The unreachable nodes by id, each with the reason. Never blocks.

        Raises:
            ClusterLostError: the whole cluster is gone.
        """


@dataclass
class _Running:
    job: Job
    since: float
    heard: float
    attempt: int = 1
    begun: bool = False
    told: str | None = None  # of who holds the station
    committed: list[Committed] = field(default_factory=list)

    @property
    def patience_s(self) -> float:
        return self.job.trial.launch_timeout_s + GRACE_S + SILENCE_S


class Schedule:
    """The trials of one run; ``events()`` runs them."""

    def __init__(self, jobs: Iterable[Job], backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend, self._clock = backend, clock
        self._waiting: dict[str, deque[Job]] = {}
        for job in sorted(jobs, key=lambda job: not job.station.alone):  # stable: those that need the whole node first
            self._waiting.setdefault(job.station.node_id, deque()).append(job)
        self._running: dict[Any, _Running] = {}
        self._on_node: dict[str, set[Any]] = {}

    def events(self) -> Generator[Event]:
        """Runs every trial and yields events as they happen; closing it ends what is still running."""
        looked = self._clock()
        free = deque(self._waiting)
        try:
            while True:
                while free:
                    yield from self._start(free.popleft())
                if self._clock() - looked >= POLL_S:  # now: between two of its trials nobody watches a node
                    looked = self._clock()
                    yield from self._look(free)
                    continue
                if not self._running:
                    return
                for handle in self._backend.ready(list(self._running), POLL_S):
                    if handle in self._running:
                        yield from self._hear(handle, free)
        finally:
            for handle in self._running:
                self._backend.cancel(handle)

    def _start(self, node: str) -> Iterator[Event]:
        """Starts the trials that may run on a node now."""
        queue = self._waiting[node]
        while (job := next(filter(self._may_start, queue), None)) is not None:
            queue.remove(job)
            yield Event(job.trial.id, TrialStarted())
            self._submit(job, 1)

    def _may_start(self, job: Job) -> bool:
        """Tells whether the node is empty or, for a GPU with a share of the cores, only its other GPUs are in use."""
        busy = [self._running[handle].job.station for handle in self._on_node.get(job.station.node_id, ())]
        if not busy:
            return True
        return not job.station.alone and all(not s.alone and s.name != job.station.name for s in busy)

    def _submit(self, job: Job, attempt: int) -> None:
        handle = self._backend.submit(job)
        now = self._clock()
        self._running[handle] = _Running(job, now, now, attempt)
        self._on_node.setdefault(job.station.node_id, set()).add(handle)

    def _hear(self, handle: Any, free: deque[str]) -> Iterator[Event]:
        running = self._running[handle]
        event = self._backend.next(handle, running.job, running.attempt)
        running.heard = self._clock()
        outcome = event.outcome
        if isinstance(outcome, Alive):
            running.begun = True
        elif isinstance(outcome, LaunchDone):
            running.committed.append(outcome.committed)
        elif isinstance(outcome, WorkerLost):
            yield from self._again(handle, outcome, free)
            return
        elif isinstance(outcome, TrialEnded):
            self._forget(handle, free)
        yield event
        if isinstance(outcome, TrialEnded) and outcome.node_lost and outcome.reason:
            yield from self._give_up(running.job.station.node_id, outcome.reason, free)

    def _again(self, handle: Any, lost: WorkerLost, free: deque[str]) -> Iterator[Event]:
        """Continues a trial whose worker died, after the launches that were returned."""
        running = self._running[handle]
        trial = running.job.trial
        last = running.attempt == ATTEMPTS
        self._forget(handle, free if last else None)
        if last:
            yield Event(trial.id, TrialEnded(f"its worker was lost {ATTEMPTS} times, last: {lost.reason}"))
            return
        yield Event(trial.id, lost)
        yield Event(trial.id, TrialStarted())
        job = replace(running.job, committed=(*running.job.committed, *running.committed))
        self._submit(job, running.attempt + 1)

    def _forget(self, handle: Any, free: deque[str] | None) -> None:
        node = self._running.pop(handle).job.station.node_id
        self._on_node[node].discard(handle)
        if free is not None:
            free.append(node)

    def _look(self, free: deque[str]) -> Iterator[Event]:
        """Ends trials that are unreachable, silent or kept waiting for too long."""
        for node, reason in self._backend.unreachable().items():
            yield from self._give_up(node, reason, free)
        now = self._clock()
        for handle, running in list(self._running.items()):
            trial = running.job.trial
            silent = now - running.heard > running.patience_s if running.begun else now - running.since > PENDING_S
            if not silent or self._backend.ready([handle], 0):  # the driver itself was held up: it is heard first
                continue
            if running.begun:
                yield from self._end(handle, f"nothing was heard of it for {running.patience_s:.0f} s", free)
                continue
            holder = self._backend.holder(running.job)
            if now - running.since > trial.wait_s:
                yield from self._end(handle, f"the station was busy for {trial.wait_s:.0f} s: {holder}", free)
            elif holder != running.told:
                running.told = holder
                yield Event(trial.id, Waiting(holder))

    def _end(self, handle: Any, reason: str, free: deque[str]) -> Iterator[Event]:
        trial = self._running[handle].job.trial
        self._backend.cancel(handle)
        self._forget(handle, free)
        yield Event(trial.id, TrialEnded(reason))

    def _give_up(self, node: str, reason: str, free: deque[str]) -> Iterator[Event]:
        """Gives up all trials of a node, running or pending."""
        for handle in list(self._on_node.get(node, ())):
            yield from self._end(handle, reason, free)
        queue = self._waiting.get(node, deque())
        while queue:
            yield Event(queue.popleft().trial.id, TrialEnded(reason))
