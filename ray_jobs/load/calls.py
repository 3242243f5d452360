"""Sends the requests of a window as calls of a Ray Serve handle, when they are due, and takes the answers.

As in ``generator`` latencies count from when a request was due, whatever is answered. The handle works in this process,
in threads of its own and in this one, on the one core that requests are sent from: so who sends them sleeps until one
is due, rather than to look at the clock all the time, and what the handle's work delays is part of what Serve costs.
"""

import asyncio
import gc
import os
import select
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from ray_jobs.load import wire
from ray_jobs.load.behind import Deployed
from ray_jobs.load.generator import Flow, Patience, Sending, clock
from ray_jobs.load.served import UNABLE
from ray_jobs.measure.result import one_line

LOOK_S = 0.005  # at most between two looks at whether the window is over
CANCEL_S = 10.0  # until what is left of a window has been taken back


def open_loop(there: Deployed, due_ns: Sequence[int], patience: Patience, window: int) -> Flow:
    """Sends requests at these times after the start; replicas are ready, and are told at the end that it is over.

    Args:
        there: the replicas.
        due_ns: when each is due, in order.
        patience: when the window is given up.
        window: its number, from 1.

    Raises:
        ReplicaLostError: one ended.
        RuntimeError: Serve could not pass a request on.
    """
    flow = Flow(len(due_ns))
    gc.collect(0)
    gc.disable()
    try:
        _run(_Calls(there, flow, patience, window).run(due_ns))
    finally:
        gc.enable()
    _end(there)
    return flow


def pace_ns(there: Deployed, count: int, window: int) -> int:
    """The time between two answers where every replica has two requests at once: what rates can be held, about.

    Of so many requests the first half is not counted: it is slower. Raises as ``open_loop``.
    """
    flow = Flow(count)
    _run(_Calls(there, flow, Patience(0, count, 0), window).keep(2 * len(there.lines)))
    _end(there)
    done = np.sort(flow.array("done"))[count // 2 :]
    return int(done[-1] - done[0]) // max(1, len(done) - 1) if len(done) else 0


def _run(work: Coroutine[Any, Any, None]) -> None:
    # Only select(2) of the waits that a loop can be made of takes less than a millisecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(work)


def _end(there: Deployed) -> None:
    """Tells every replica that a window is over."""
    for line in there.lines:
        os.write(line.ends[1], wire.ASK.pack(wire.OVER))
    for line in there.lines:
        line.hear()


class _Calls(Sending):
    """A window in progress."""

    def __init__(self, there: Deployed, flow: Flow, patience: Patience, window: int) -> None:
        super().__init__(flow, patience)
        self.there, self.window = there, window
        self.put = 0
        self.left: set[asyncio.Task[None]] = set()
        self.fault: str | None = None
        self.silent = select.poll()  # a replica says nothing while requests come; else it has ended
        self.lines = {line.ends[0]: line for line in there.lines}
        for end in self.lines:
            self.silent.register(end, select.POLLIN)

    async def run(self, due_ns: Sequence[int]) -> None:
        """Sends each when it is due."""
        self.begin(due_ns)
        while self.goes_on() and not self.given_up():
            self.see()
            while self.put < self.arrived:
                self.send()
            await asyncio.sleep(self.pause_s())
        await self.take_back()

    async def keep(self, most: int) -> None:
        """Keeps so many without an answer; each is due as it is sent."""
        self.flow.due = [0] * self.flow.count
        while self.goes_on():
            while len(self.left) < most and self.put < self.flow.count:
                self.send()
            await asyncio.wait(self.left, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        await self.take_back()

    def goes_on(self) -> bool:
        """Whether there is something to wait for. Raises ReplicaLostError."""
        for end, _ in self.silent.poll(0):
            self.lines[end].lost()
        return bool(self.open and not self.flow.broken and self.fault is None)

    def send(self) -> None:
        """The next one."""
        task = asyncio.create_task(self.one(self.put))
        self.left.add(task)
        task.add_done_callback(self.left.discard)
        self.put += 1

    def pause_s(self) -> float:
        """Until the next one is due, or it is time to look again."""
        if self.arrived == self.flow.count:
            return LOOK_S
        return min(LOOK_S, max(0.0, (self.flow.due[self.arrived] - clock()) / 1e9))

    async def one(self, number: int) -> None:
        """A request, until its answer is in hand."""
        self.flow.sent[number] = clock()
        try:
            replica, began, ended = await self.there.ask(self.window, number)
        except Exception as error:
            self.fault = one_line(error)
            return
        now = clock()
        if began == UNABLE:
            self.flow.broken.add(replica)
            self.open -= 1
        else:
            self.answered(number, replica, began, ended, now)

    async def take_back(self) -> None:
        """Calls off what has no answer yet. Raises RuntimeError where Serve itself could not pass a request on."""
        for task in (left := set(self.left)):
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CANCEL_S)
        if self.fault is not None:
            raise RuntimeError(f"Ray Serve could not pass a request on: {self.fault}")
