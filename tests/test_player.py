"""What is found out about a process by looking at it between turns; a stand-in does what is to be found."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_jobs.process.player import LostError, Player, Waits
from ray_jobs.process.server import LossKind, Request

CORES = tuple(sorted(os.sched_getaffinity(0))[:1])
STAND_IN = """
import json, os, sys, threading, time

def later():
    time.sleep(0.03)
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        pass

incoming, outgoing = open(sys.argv[1], "rb"), open(sys.argv[2], "wb")
while line := incoming.readline():
    asked, threads = json.loads(line)["content"], 1
    if asked["do"] == "move":
        os.sched_setaffinity(0, asked["cores"])
    elif asked["do"] == "add":
        threads = 2
    elif asked["do"] == "wake":
        threading.Thread(target=later).start()
    told = {"version": 1, "content": {"pid": os.getpid(), "weights": "", "threads": threads}, "arrays": []}
    outgoing.write(json.dumps(told).encode() + b"\\n")
    outgoing.flush()
"""

pytestmark = pytest.mark.process


class Server:
    """Starts the stand-in, as a launch server would the process of a launch."""

    def __init__(self) -> None:
        self._never, self._end = os.pipe()
        self.process: subprocess.Popen[bytes] | None = None

    def fileno(self) -> int:
        return self._never

    def begin(self, request: Request) -> None:
        self.process = subprocess.Popen([sys.executable, "-S", "-c", STAND_IN, *request.work()])
        os.sched_setaffinity(self.process.pid, request.cores)

    def outcome(self, timeout_s: float) -> None:
        assert self.process is not None
        self.process.wait(timeout_s)
        os.close(self._never)
        os.close(self._end)


@pytest.fixture
def player() -> Iterator[Player]:
    server: Any = Server()
    work: Callable[[Any], Any] = lambda ends: ends  # noqa: E731
    player = Player("side", server, work, lambda made: Request(made, CORES, 1, 30.0), Waits())
    yield player
    player.leave()


def lost(player: Player, do: str, **asked: Any) -> LostError:
    with pytest.raises(LostError) as caught:
        player.ask(do, variant="odd", **asked)
    return caught.value


def test_who_stays_and_sleeps_is_asked_on(player: Player) -> None:
    for _ in range(20):
        assert player.ask("turn", variant="odd") == {"pid": player.pid, "weights": ""}
        time.sleep(0.005)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is one core")
def test_who_leaves_its_cores_in_a_turn_is_named(player: Player) -> None:
    there = sorted(os.sched_getaffinity(0))[1:]
    found = lost(player, "move", cores=there)
    assert found.loss.kind == LossKind.MOVED
    assert found.loss.variant == "odd"
    assert str(found) == f"side: it ended on cores {there} with 1 threads, not as pinned, after a turn of odd"


def test_who_has_other_threads_after_a_turn_is_named(player: Player) -> None:
    found = lost(player, "add")
    assert (found.loss.kind, found.loss.variant) == (LossKind.MOVED, "odd")
    assert "with 2 threads, not as pinned" in str(found)


def test_who_sleeps_after_its_turn_and_computes_in_that_of_another_is_named(player: Player) -> None:
    player.ask("wake", variant="odd")
    time.sleep(0.2)
    found = lost(player, "turn")
    assert (found.loss.kind, found.loss.variant) == (LossKind.RESTLESS, None)
    assert "it went on computing in the turns of others: for" in str(found)
