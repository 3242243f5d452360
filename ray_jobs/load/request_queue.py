"""The requests that wait: numbers in a pipe, which every replica takes from as soon as it is free.

Nobody hands them out, so a replica that has ended one request has the next one in a few microseconds, and who sends
requests has nothing to do but to see what is due.
"""

import fcntl
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass

from ray_jobs.load import wire

MOST_BYTES = 2**20  # that a pipe may hold without privileges: 131,072 requests

clock = time.perf_counter_ns


@dataclass(frozen=True)
class Queue:
    """Both ends, as who puts requests in has them."""

    takes: int
    puts: int

    @classmethod
    def new(cls) -> "Queue":
        """An empty one, which a process that is forked shares."""
        takes, puts = os.pipe()
        with suppress(PermissionError):  # this user's pipes hold too much already; a full one is waited for
            fcntl.fcntl(puts, fcntl.F_SETPIPE_SZ, MOST_BYTES)
        os.set_blocking(puts, False)
        return cls(takes, puts)

    def put(self, number: int) -> bool:
        """Whether there was room for it."""
        try:
            os.write(self.puts, wire.ASK.pack(number))
        except BlockingIOError:
            return False
        return True

    def take_back(self) -> list[int]:
        """All that no replica has taken."""
        end, found = at_once(self.takes), []
        try:
            while True:
                found += taken(end, wire.PIECE // wire.ASK.size)
        except BlockingIOError:
            return found
        finally:
            os.close(end)


class Taker:
    """A replica's end: it takes up to ``most`` requests together, and waits ``window_ns`` for more than one."""

    def __init__(self, takes: int, most: int, window_ns: int) -> None:
        self._takes, self._at_once = takes, at_once(takes)
        self._most, self._window_ns = most, window_ns

    def take(self) -> list[int]:
        """The next ones, once there is one; empty when it is over. Raises EOFError where nobody can put any more."""
        found = taken(self._takes, self._most)
        if found[0] == wire.OVER:
            return []
        if self._window_ns and len(found) < self._most:
            self._wait(found, clock() + self._window_ns)
        return found

    def _wait(self, found: list[int], end: int) -> None:
        """Adds what comes until then; another replica may be quicker."""
        while len(found) < self._most and (left := end - clock()) > 0:
            if select.select([self._at_once], [], [], left / 1e9)[0]:
                try:
                    found += taken(self._at_once, self._most - len(found))
                except BlockingIOError:
                    continue


def at_once(takes: int) -> int:
    """The same end, whose reads do not wait; that of others stays as it is."""
    return os.open(f"/proc/self/fd/{takes}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def taken(descriptor: int, most: int) -> list[int]:
    """Up to so many numbers. Raises EOFError where nobody can put any more, BlockingIOError where none is there."""
    if not (message := os.read(descriptor, most * wire.ASK.size)):
        raise EOFError
    return [number for (number,) in wire.ASK.iter_unpack(message)]
