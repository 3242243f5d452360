"""Finds out within fifteen seconds that a node can't be reached, whatever Ray's settings are.

With the health checks of the shipped cluster files Ray notices a silent network by itself; with its defaults, which a
cluster that somebody else started has, it takes seven minutes.

A connection to the port of a node's raylet is opened and closed again, which the kernel there answers: the node has
nothing to compute for it, and a busy one answers as well.
"""

import asyncio
import threading
from collections.abc import Hashable, Mapping
from contextlib import suppress

EVERY_S = 2.0
TIMEOUT_S = 3.0
MISSES = 3  # in a row: after 15 s of silence

Address = tuple[str, int]


class Watchman:
    """Pings the measuring nodes, in a thread of its own; never the driver's own node."""

    def __init__(self, own_address: str, head: Address | None = None) -> None:
        """``head`` is always pinged: the address of the cluster's own store."""
        self._own, self._head = own_address, head
        self._watched: dict[Hashable, tuple[str, Address]] = {}  # by handle: node id, where
        self._missed: dict[Address, int] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, handle: Hashable, node: str, address: Address) -> None:
        """Pings a node from now on, until it leaves."""
        if address[0] != self._own:
            with self._lock:
                self._watched[handle] = (node, address)
        if self._thread is None:
            self._thread = threading.Thread(target=self._rounds, name="watchman", daemon=True)
            self._thread.start()

    def leave(self, handle: Hashable) -> None:
        """Stops pinging a node, if it was watched."""
        with self._lock:
            self._watched.pop(handle, None)

    def unreachable(self) -> Mapping[str, str]:
        """The nodes that have missed enough pings, each id with the reason."""
        with self._lock:
            lost = [place for place in self._watched.values() if self._missed.get(place[1], 0) >= MISSES]
        return {
            node: f"its node can't be reached: {host}:{port} did not answer {MISSES} times in a row"
            for node, (host, port) in lost
        }

    def headless(self) -> str | None:
        """The reason to believe that the head is gone; None if it answers."""
        with self._lock:
            if self._head is None or self._missed.get(self._head, 0) < MISSES:
                return None
        host, port = self._head
        return f"the cluster's head is gone: {host}:{port} did not answer {MISSES} times in a row"

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT_S + 1)

    def _rounds(self) -> None:
        while not self._closing.wait(EVERY_S):
            with self._lock:
                addresses = {address for _, address in self._watched.values()}
                addresses |= {self._head} if self._head is not None else set()
            answers = asyncio.run(_reach_all(sorted(addresses)))
            with self._lock:
                self._missed = {
                    address: 0 if answered else self._missed.get(address, 0) + 1
                    for address, answered in answers.items()
                }


async def _reach_all(addresses: list[Address]) -> dict[Address, bool]:
    answers = await asyncio.gather(*map(_reach, addresses))
    return dict(zip(addresses, answers, strict=True))


async def _reach(address: Address) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(*address), TIMEOUT_S)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
