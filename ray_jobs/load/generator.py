"""Sends the requests of a window when they are due, whether earlier ones are answered or not, and takes the answers.

A request that is due while all replicas are busy waits here, in the order of arrival, and its latency counts from when
it was due: a client that waited for answers would leave out what it did not send (coordinated omission; Tene 2013, How
not to measure latency). It looks at the clock all the time, on a core of its own, and says how late it saw what was
due.
"""

import gc
import os
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ray_jobs.load import wire
from ray_jobs.load.crew import Line, lost_one

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
    waited_ns: int  # by the oldest in the queue, once more have


def open_loop(lines: Sequence[Line], due_ns: Sequence[int], patience: Patience) -> Flow:
    """Sends requests at these times after the start; replicas are ready, and are told at the end that it is over.

    Args:
        lines: the replicas.
        due_ns: when each is due, in order.
        patience: when the window is given up.

    Raises:
        ReplicaLostError: one ended.
    """
    flow = Flow(len(due_ns))
    gc.collect(0)
    gc.disable()
    try:
        _send(flow, lines, due_ns, patience)
        for line in lines:
            if line.number not in flow.broken:
                os.write(line.ends[1], wire.ASK.pack(wire.OVER))
    except BrokenPipeError:
        lost_one(lines)
    finally:
        gc.enable()
    for line in lines:
        line.hear()
    return flow


def _send(flow: Flow, lines: Sequence[Line], due_ns: Sequence[int], patience: Patience) -> None:
    """The loop: what is due is seen, what is seen goes to who is free, answers are taken; as little as can be."""
    incoming = {line.ends[0]: line.number for line in lines}
    outgoing = [line.ends[1] for line in lines]
    waiting = select.poll()
    for descriptor in incoming:
        waiting.register(descriptor, select.POLLIN)
    ready, write, read = waiting.poll, os.write, os.read
    seen, sent, began, ended, done, whom = flow.seen, flow.sent, flow.began, flow.ended, flow.done, flow.replica
    free, count = deque(range(len(lines))), flow.count
    arrived = head = over = taken = 0
    bound_ns, spare, waited_ns = patience.bound_ns, patience.spare, patience.waited_ns
    start = clock() + LEAD_NS
    flow.due = due = [start + offset for offset in due_ns]
    while taken < count:
        now = clock()
        while arrived < count and due[arrived] <= now:
            seen[arrived] = now
            arrived += 1
        while free and head < arrived:
            whom[head] = free.popleft()
            sent[head] = clock()
            write(outgoing[whom[head]], wire.ASK.pack(head))
            head += 1
        for descriptor, _ in ready(0):
            message = read(descriptor, wire.ANSWER.size)
            now = clock()
            if len(message) < wire.ANSWER.size:
                lines[incoming[descriptor]].lost()
            number, *times = wire.ANSWER.unpack(message)
            if number == wire.OVER:
                flow.broken.add(incoming[descriptor])
                _drain(flow, lines, free)
                return
            began[number], ended[number], done[number] = *times, now
            over += now - due[number] > bound_ns
            taken += 1
            free.append(incoming[descriptor])
        if over > spare and (not waited_ns or (head < arrived and now - due[head] > waited_ns)):
            flow.abandoned = taken < count
            _drain(flow, lines, free)
            return


def _drain(flow: Flow, lines: Sequence[Line], free: Sequence[int]) -> None:
    """Takes the answers that are still to come."""
    for line in lines:
        if line.number not in free and line.number not in flow.broken:
            number, began, ended = line.hear_answer()
            if number == wire.OVER:
                flow.broken.add(line.number)
            else:
                flow.began[number], flow.ended[number], flow.done[number] = began, ended, clock()


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
