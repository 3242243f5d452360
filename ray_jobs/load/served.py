"""What is deployed behind Ray Serve: a replica that answers a request as a call of it. Nothing here knows of Ray.

All else it is told over a socket, in the same words as any replica. One thread computes, that of Serve's loop for the
user's code: for requests as for what it is told, so it does one thing at a time.
"""

import asyncio
import gc
import os
import pickle
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from chatbot import compiler
from chatbot.variants import Workload
from ray_jobs.load import wire
from ray_jobs.load.replica import Asked, Replica, fault_of
from ray_jobs.measure.channel import NO_ARRAYS, Channel
from ray_jobs.measure.result import Launch, one_line
from ray_jobs.measure.session import Told
from ray_jobs.measure.trial import ModelSource, mode_of
from ray_jobs.scenario import Load

UNABLE, GONE = -1, -2  # instead of when a request began: the variant could not answer it; its window is over
Answer = tuple[int, int, int]  # the replica's number, and when it began and ended the request
Home = Callable[[Callable[[], "T"]], "T"]  # lets the thread that computes do something, and waits for it
T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """What a replica is told first."""

    number: int
    cores: tuple[int, ...]
    workload: Workload
    variants: tuple[str, ...]
    model: ModelSource
    pool: NDArray[np.int64]  # (N, T) distinct prompts
    launch: Launch
    share: tuple[int, ...] | None
    load: Load
    end: float  # of the launch, on the clock of time.monotonic(): the same in every process of a machine


@dataclass(frozen=True)
class _Window:
    """Requests that are answered as they come."""

    number: int
    variant: str
    first: int  # of the inputs
    asked: list[Asked]


class CalledReplica(Replica):
    """A replica whose requests come as calls; each public method of it is run at home."""

    def serve_calls(self, start: Start, channel: Channel, home: Callable[[Callable[[], Any]], Any]) -> None:
        """Does what it is told until the other end hangs up."""
        self._number, self._home = start.number, home
        self._window: _Window | None = None
        self._windows = 0
        self._fault: Mapping[str, str] = {}
        self.hold(start.load, channel)
        self.serve(channel)

    def serve(self, channel: Channel) -> None:
        """As any session, but from a thread that does not compute."""
        with suppress(EOFError):
            while True:
                asked, _ = channel.receive()
                work = partial(getattr(self, asked.pop("do")), **asked)
                channel.send(*(work() if work.func == self.answer else self._home(work)))

    def hello(self) -> Told:
        """As any session, and the thread that computes."""
        told, arrays = super().hello()
        return {**told, "thread": threading.get_native_id()}, arrays

    def answer(self, variant: str, first: int, count: int) -> Told:
        """Lets the calls of a window be answered, until it is told that it is over."""
        self._home(partial(self._open, variant, first, count))
        incoming, outgoing = self._ends
        os.write(outgoing, wire.READY)
        wire.read(incoming, wire.ASK.size)
        told: dict[str, Any] = self._home(self._close)
        return told, NO_ARRAYS

    def call(self, window: int, number: int) -> Answer:
        """Answers a request; one of an earlier window came too late."""
        now = self._window
        if now is None or now.number != window:
            return self._number, GONE, 0
        try:
            reply = self._replies[now.variant]
            return self._number, *self._one(now.variant, reply, [now.asked[number]], [now.first + number])
        except Exception as error:
            self._fault = fault_of(error)
            return self._number, UNABLE, 0

    def _open(self, variant: str, first: int, count: int) -> None:
        self._windows, self._fault = self._windows + 1, {}
        self._window = _Window(self._windows, variant, first, self._ready(variant, first, count))
        gc.disable()

    def _close(self) -> dict[str, Any]:
        window, self._window = self._window, None
        gc.enable()
        assert window is not None
        return self._over(window.variant, self._fault)


class Served:
    """One of these is made in the process of each replica; what is in it is deployed, called and deleted by Serve."""

    def __init__(self, place: str) -> None:
        """In the loop that requests come in: connects to the launch by its socket's name. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._replica: CalledReplica | None = None
        threading.Thread(target=self._work, args=(connected_to(place),), daemon=True).start()

    async def __call__(self, window: int, number: int) -> Answer:
        """A request, by its number in this window."""
        assert self._replica is not None
        return self._replica.call(window, number)

    def _home(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _work(self, channel: Channel) -> None:
        try:
            start: Start = pickle.load(channel.incoming)
            self._replica = self._home(partial(self._made, start))
            self._replica.serve_calls(start, channel, self._home)
        except BaseException as error:
            with suppress(OSError):
                channel.send({"raised": one_line(error)}, NO_ARRAYS)

    def _made(self, start: Start) -> CalledReplica:
        """Settles on its cores, Ray's threads of this process too: they are part of what a replica needs."""
        settle(start.cores)
        torch.set_num_threads(start.workload.threads)
        with suppress(RuntimeError):  # it has been set already
            torch.set_num_interop_threads(1)
        compiler.must_end_by(start.end)
        self._mode = mode_of(start.model)  # of this thread, for as long as it lives
        self._mode.__enter__()
        return CalledReplica(start.workload, start.variants, start.model, start.pool, start.launch, start.share)


def settle(cores: tuple[int, ...]) -> None:
    """Pins every thread of this process, and lets none give way to others, as in a launch."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(thread, cores)
            os.setpriority(os.PRIO_PROCESS, thread, 0)


def connected_to(place: str) -> Channel:
    """A channel to who listens under an abstract name. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(b"\0" + place.encode())
    return channel_of(connection)


def channel_of(connection: socket.socket) -> Channel:
    """Both directions of a socket, which is the channel's from now on."""
    ends = connection.detach()
    return Channel(os.fdopen(ends, "rb"), os.fdopen(os.dup(ends), "wb"))
