"""The replicas of a launch: processes that are forked from it before it has done anything, or threads of one of them.

They are as fresh as the launch, which is a fork of a server that has imported PyTorch and nothing that starts threads.
"""

import ctypes
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from numpy.typing import NDArray

from ray_jobs.load import wire
from ray_jobs.load.request_queue import Queue
from ray_jobs.measure.channel import NO_ARRAYS, Channel
from ray_jobs.measure.result import one_line
from ray_jobs.scenario import ReplicaKind

SET_PDEATHSIG = 1  # of prctl(2)
Play = Callable[[Channel, int], None]  # serves until the other end hangs up; given where its requests wait
Ends = tuple[int, int, tuple[int, ...]]  # to read from, to write to, and its cores
Pipes = Sequence[tuple[tuple[int, int], tuple[int, int]]]


class ReplicaLostError(RuntimeError):
    """A replica ended before the launch did."""


class ReplicaEndedError(ReplicaLostError):
    """Its process has, and nobody knows how."""


@dataclass(frozen=True)
class Line:
    """One replica, as who sends it requests has it."""

    number: int
    pid: int  # of its process, which may be that of others too
    cores: tuple[int, ...]
    channel: Channel

    @property
    def ends(self) -> tuple[int, int]:
        """(descriptor to read from, descriptor to write to)."""
        return self.channel.incoming.fileno(), self.channel.outgoing.fileno()

    def tell(self, do: str, **asked: Any) -> None:
        """Lets it do something: a method of ``Replica``. Raises ReplicaLostError."""
        with self._alive():
            self.channel.send({"do": do, **asked})

    def hear(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What it told when it had done that. Raises ReplicaLostError."""
        with self._alive():
            content, arrays = self.channel.receive()
        content.pop("threads", None)
        if (error := content.get("raised")) is not None:
            raise ReplicaLostError(f"replica {self.number} failed: {error}")
        return content, arrays

    def ask(self, do: str, **asked: Any) -> dict[str, Any]:
        """Lets it do something and returns what it told. Raises ReplicaLostError."""
        self.tell(do, **asked)
        return self.hear()[0]

    def hear_ready(self) -> None:
        """Waits until it is ready for requests. Raises ReplicaLostError."""
        with self._alive():
            said = wire.read(self.ends[0], len(wire.READY))
            if said != wire.READY:  # the beginning of another word: that it failed
                content = json.loads(said + self.channel.incoming.readline())["content"]
                raise ReplicaLostError(f"replica {self.number} failed: {content.get('raised')}")

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            self.lost()

    def lost(self) -> NoReturn:
        """Raises ReplicaLostError; a process that a signal ended takes this one with it, so that its end is told."""
        with suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, 0)
            if os.WIFSIGNALED(status):
                with suppress(OSError):  # no handler can be set for SIGKILL
                    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
                os.kill(os.getpid(), os.WTERMSIG(status))
            raise ReplicaLostError(f"replica {self.number} ended with exit code {os.waitstatus_to_exitcode(status)}")
        raise ReplicaEndedError(f"replica {self.number} has ended")


@dataclass(frozen=True)
class Crew:
    """The replicas of a launch, and the requests that wait for them."""

    lines: tuple[Line, ...]
    queue: Queue


def start(play: Play, kind: ReplicaKind, cores: Sequence[tuple[int, ...]]) -> Crew:
    """Starts a replica for each of these shares of the cores.

    Raises:
        RuntimeError: this process has a thread beside its main one: a fork would copy its locks.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a thread runs before the replicas are forked")
    pipes = [(os.pipe(), os.pipe()) for _ in cores]  # there, and back
    queue = Queue.new()
    members = [[n] for n in range(len(cores))] if kind == ReplicaKind.PROCESS else [list(range(len(cores)))]
    pids: dict[int, int] = {}
    parent = os.getpid()
    for mine in members:
        if not (child := os.fork()):
            os.close(queue.puts)
            ends = {n: (pipes[n][0][0], pipes[n][1][1], cores[n]) for n in mine}
            _host(partial(_play, play, queue.takes), parent, ends, pipes)
        pids |= dict.fromkeys(mine, child)
    lines = []
    for number, ((theirs, outgoing), (incoming, theirs_too)) in enumerate(pipes):
        os.close(theirs)
        os.close(theirs_too)
        channel = Channel(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb"))
        lines.append(Line(number, pids[number], cores[number], channel))
    return Crew(tuple(lines), queue)


def _host(play: Callable[..., None], parent: int, mine: dict[int, Ends], pipes: Pipes) -> None:
    """The process of one replica, or of all that are threads; it never returns."""
    try:
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        kept = {end for incoming, outgoing, _ in mine.values() for end in (incoming, outgoing)}
        for end in {end for pair in pipes for pipe in pair for end in pipe} - kept:
            os.close(end)
        work = [threading.Thread(target=play, args=one) for one in list(mine.values())[1:]]
        for thread in work:
            thread.start()
        play(*next(iter(mine.values())))
        for thread in work:
            thread.join()
    finally:
        os._exit(0)


def _play(play: Play, takes: int, incoming: int, outgoing: int, cores: tuple[int, ...]) -> None:
    """One replica: of its thread, and of those that it starts, the cores are these."""
    channel = Channel(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb"))
    os.sched_setaffinity(0, cores)
    try:
        play(channel, takes)
    except BaseException as error:
        with suppress(OSError):
            channel.send({"raised": one_line(error)}, NO_ARRAYS)


def shares(cores: Sequence[int], replicas: int, threads: int) -> list[tuple[int, ...]]:
    """The cores of each replica, neighbours together."""
    return [tuple(cores[n * threads : (n + 1) * threads]) for n in range(replicas)]
