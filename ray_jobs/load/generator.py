"""Sends the requests of a window when they are due, whether earlier ones are answered or not, and takes the answers.

A request that is due while all replicas are busy waits in a queue, in the order of arrival, and its latency counts from
when it was due: a client that waited for answers would leave out what it did not send (coordinated omission; Tene 2013,
How not to measure latency). It looks at the clock all the time, on a core of its own, and says how late it saw what was
due.
"""

import gc
import os
import select
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ray_jobs.load import wire
from ray_jobs.load.crew import Crew, Line

LEAD_NS = 2_000_000  # from the start of a window until its first request may be due

clock = time.perf_counter_ns


@dataclass
class Flow:
    """The requests of a window by their numbers, times in ns of the clock; -1 where it has none."""

    count: int
    abandoned: bool = False
    broken: set[int] = field(default_factory=set)  # the replicas that could not answer one
    due: list[int] = field(default_factory=list)
    seen: list[int] = field(init=False)
    sent: list[int] = field(init=False)
    began: list[int] = field(init=False)
    ended: list[int] = field(init=False)
    done: list[int] = field(init=False)
    replica: list[int] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("seen", "sent", "began", "ended", "done", "replica"):
            setattr(self, name, [-1] * self.count)

    def answered(self) -> NDArray[np.int64]:
        """The numbers of the requests that have an answer."""
        return np.flatnonzero(np.array(self.done) >= 0)

    def array(self, name: str) -> NDArray[np.int64]:
        """(answered,): one of the lists."""
        return np.array(getattr(self, name), dtype=np.int64)[self.answered()]


@dataclass(frozen=True)
class Patience:
    """When a window is given up."""

    bound_ns: int
    spare: int  # requests that may take longer; more break the bound
    waited_ns: int  # by the oldest that has no answer, once more have


def open_loop(crew: Crew, due_ns: Sequence[int], patience: Patience) -> Flow:
    """Sends requests at these times after the start; replicas are ready, and are told at the end that it is over.

    Args:
        crew: the replicas.
        due_ns: when each is due, in order.
        patience: when the window is given up.

    Raises:
        ReplicaLostError: one ended.
    """
    flow = Flow(len(due_ns))
    gc.collect(0)
    gc.disable()
    try:
        _Sending(crew, flow, patience).run(due_ns)
    finally:
        gc.enable()
    end(crew, flow)
    return flow


def end(crew: Crew, flow: Flow) -> None:
    """Tells every replica that it is over: each by itself, as one that waits takes whatever is in the queue."""
    left = {line.ends[0]: line for line in crew.lines if line.number not in flow.broken}
    waiting = _poll(left)
    while left:
        crew.queue.put(wire.OVER)
        descriptor, _ = waiting.poll()[0]
        left.pop(descriptor).hear()
        waiting.unregister(descriptor)
    for line in crew.lines:
        if line.number in flow.broken:
            os.write(line.ends[1], wire.ASK.pack(wire.OVER))
            line.hear()


class Sending:
    """A window in progress, however its requests are sent: what was answered, and whether to give it up."""

    def __init__(self, flow: Flow, patience: Patience) -> None:
        self.flow, self.patience = flow, patience
        self.arrived = self.oldest = self.over = 0
        self.open = flow.count  # requests that are to be answered

    def begin(self, due_ns: Sequence[int]) -> None:
        """Sets the times from now on."""
        start = clock() + LEAD_NS
        self.flow.due = [start + offset for offset in due_ns]

    def see(self) -> None:
        """Takes note of what is due by now."""
        flow, now = self.flow, clock()
        while self.arrived < flow.count and flow.due[self.arrived] <= now:
            flow.seen[self.arrived] = now
            self.arrived += 1

    def answered(self, number: int, replica: int, began: int, ended: int, now: int) -> None:
        """Takes note of an answer that is in hand now."""
        flow = self.flow
        flow.began[number], flow.ended[number], flow.done[number] = began, ended, now
        flow.replica[number] = replica
        self.over += now - flow.due[number] > self.patience.bound_ns
        self.open -= 1

    def given_up(self) -> bool:
        """Whether it is to be given up: more have broken the bound than may, and the oldest has waited too long."""
        flow, waited_ns = self.flow, self.patience.waited_ns
        if self.over <= self.patience.spare:
            return False
        while self.oldest < flow.count and flow.done[self.oldest] >= 0:
            self.oldest += 1
        if waited_ns and (self.oldest == flow.count or clock() - flow.due[self.oldest] <= waited_ns):
            return False
        flow.abandoned = self.open > 0
        return True


class _Sending(Sending):
    """What is due is seen, what is seen is put in the queue, answers are taken; no more."""

    def __init__(self, crew: Crew, flow: Flow, patience: Patience) -> None:
        super().__init__(flow, patience)
        self.queue = crew.queue
        self.lines = {line.ends[0]: line for line in crew.lines}
        self.ready = _poll(self.lines).poll
        self.put = 0

    def run(self, due_ns: Sequence[int]) -> None:
        self.begin(due_ns)
        while self.open and not self.flow.broken:
            self.send()
            for descriptor, _ in self.ready(0):
                self.take(descriptor)
            if self.given_up():
                break
        self.drain()

    def send(self) -> None:
        """What is due by now."""
        self.see()
        while self.put < self.arrived:
            self.flow.sent[self.put] = clock()
            if not self.queue.put(self.put):
                break
            self.put += 1

    def take(self, descriptor: int) -> None:
        """Answers of one replica. Raises ReplicaLostError where it has gone."""
        line = self.lines[descriptor]
        message = os.read(descriptor, wire.MOST_ANSWERS * wire.ANSWER.size)
        now = clock()
        if not message:
            line.lost()
        for number, began, ended in wire.ANSWER.iter_unpack(message):
            if number == wire.OVER:
                self.flow.broken.add(line.number)
                self.open -= began
                continue
            self.answered(number, line.number, began, ended, now)

    def drain(self) -> None:
        """Takes back what waits, and the answers that are still to come."""
        self.open -= len(self.queue.take_back()) + self.flow.count - self.put
        while self.open:
            for descriptor, _ in self.ready():
                self.take(descriptor)


def _poll(descriptors: Iterable[int]) -> select.poll:
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return waiting


def all_busy(lines: Sequence[Line], count: int) -> Flow:
    """Lets every replica answer so many requests without a pause, each its own; numbers are ``replica * count + n``."""
    flow = Flow(count * len(lines))
    start = clock() + LEAD_NS
    for line in lines:
        os.write(line.ends[1], wire.ASK.pack(start))
    for place, line in enumerate(lines):
        told, arrays = line.hear()
        if told["broken"]:
            flow.broken.add(line.number)
        for number, (began, ended) in enumerate(arrays["times"].tolist()):
            if ended:
                n = place * count + number
                flow.began[n], flow.ended[n], flow.done[n], flow.replica[n] = began, ended, ended, line.number
    flow.seen = flow.sent = flow.due = flow.began
    return flow
