"""The replicas of a launch behind Ray Serve: deployed by what knows of Ray, and told what to do as any others.

They are processes of Ray's, so they connect to the launch, by a socket without a file: a launch that is killed leaves
nothing behind.
"""

import os
import pickle
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ray_jobs.load.crew import Line
from ray_jobs.load.served import Answer, Start, channel_of

CONNECT_S = 30.0  # for a replica that Serve says is there
PEER = struct.Struct("3i")  # SO_PEERCRED: process, user and group

Ask = Callable[[int, int], Awaitable[Answer]]  # the window's number, the request's
Helpers = Callable[[int], tuple[int, ...]]  # the processes of Ray and Serve on this machine, from that of a replica
Deploy = Callable[["Behind", str, int], AbstractContextManager[tuple[Ask, Helpers]]]


@dataclass(frozen=True)
class Behind:
    """How a launch reaches the Ray cluster that its trial runs on."""

    address: str
    app: str  # the name of what it deploys
    station: str  # how the names end of all that is deployed there: by one launch at a time
    node: str  # its id
    runtime_env: Mapping[str, Any]  # of the trial's task: its sources, on a cluster
    deploy: str = "ray_jobs.cluster.serve:deployed"  # a ``Deploy``, which is imported in a launch that asks for it


@dataclass(frozen=True)
class Deployed:
    """The replicas of a launch, and how they are asked."""

    lines: tuple[Line, ...]
    ask: Ask
    helpers: Helpers


@contextmanager
def deployed(behind: Behind, starts: Sequence[Start]) -> Iterator[Deployed]:
    """Deploys a replica for each of these, until the block ends.

    Raises:
        RuntimeError: Serve can't deploy them.
        OSError: one does not connect.
    """
    module, _, name = behind.deploy.partition(":")
    deploy: Deploy = getattr(import_module(module), name)
    place = f"latency-matrix-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(b"\0" + place.encode())
        listening.listen(len(starts))
        listening.settimeout(CONNECT_S)
        with deploy(behind, place, len(starts)) as (ask, helpers):
            lines = [_line(listening, start) for start in starts]
            try:
                yield Deployed(tuple(lines), ask, helpers)
            finally:
                for line in lines:
                    line.channel.close()


def _line(listening: socket.socket, start: Start) -> Line:
    """The next replica that connects, which becomes the one of this start."""
    connection, pid = _ours(listening)
    connection.setblocking(True)
    channel = channel_of(connection)
    pickle.dump(start, channel.outgoing)
    channel.outgoing.flush()
    return Line(start.number, pid, start.cores, channel)


def _ours(listening: socket.socket) -> tuple[socket.socket, int]:
    """The next connection of this user's, and its process."""
    while True:
        connection, _ = listening.accept()
        pid, user, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        if user == os.getuid():
            return connection, pid
        connection.close()
