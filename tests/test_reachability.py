"""Whether nodes can be reached: real sockets on the loopback addresses, round by round."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from ray_jobs.cluster import reachability
from ray_jobs.cluster.reachability import MISSES, Address, Watchman

OWN = "192.0.2.1"  # nobody's


class Rounds(threading.Event):
    """Lets the watchman make one round at a time: stands where it waits to be closed."""

    def __init__(self) -> None:
        super().__init__()
        self._resting = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)
        self._begun = False

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout == reachability.EVERY_S
        self._resting.release()
        self._allowed.acquire()
        return self.is_set()

    def set(self) -> None:
        super().set()
        self._allowed.release()

    def make(self, count: int = 1) -> None:
        """So many rounds; their answers are known when this returns."""
        for _ in range(count + (not self._begun)):
            if self._begun:
                self._allowed.release()
            assert self._resting.acquire(timeout=30)
            self._begun = True


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    monkeypatch.setattr(reachability, "TIMEOUT_S", 0.5)
    return Rounds()


@pytest.fixture
def watchman(rounds: Rounds) -> Iterator[Watchman]:
    man = Watchman(OWN)
    man._closing = rounds
    yield man
    man.close()


Bind = Callable[..., socket.socket]


@pytest.fixture
def bind() -> Iterator[Bind]:
    """A port on a loopback address: refuses everybody unless it listens."""
    sockets: list[socket.socket] = []

    def make(host: str = "127.0.0.1", listen: int | None = None) -> socket.socket:
        sockets.append(socket.socket())
        sockets[-1].bind((host, 0))
        if listen is not None:
            sockets[-1].listen(listen)
        return sockets[-1]

    yield make
    for one in sockets:
        one.close()


def where(port: socket.socket) -> Address:
    host, number = port.getsockname()
    return host, number


def said(port: socket.socket) -> str:
    host, number = where(port)
    return f"its node can't be reached: {host}:{number} did not answer {MISSES} times in a row"


def test_a_node_that_listens_but_never_accepts_is_reached(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    busy = bind(listen=64)
    watchman.watch("handle", "node", where(busy))
    rounds.make(4 * MISSES)
    assert watchman.unreachable() == {}
    assert len(list(connections(busy))) == 4 * MISSES, "it was knocked at, once a round"


def connections(port: socket.socket) -> Iterator[bytes]:
    """What each of those who connected so far sent before it left."""
    port.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            other, _ = port.accept()
            with other:
                other.settimeout(30)
                yield other.recv(100)


def test_a_knock_says_nothing_and_is_over_at_once(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    port = bind(listen=64)
    watchman.watch("handle", "node", where(port))
    rounds.make(3)
    assert set(connections(port)) == {b""}


def test_a_closed_port_is_out_of_reach_after_its_misses_and_not_before(
    watchman: Watchman, rounds: Rounds, bind: Bind
) -> None:
    closed, listens = bind(), bind("127.0.0.2", listen=64)
    watchman.watch("one", "lost", where(closed))
    watchman.watch("two", "there", where(listens))
    assert watchman.unreachable() == {}
    for _ in range(MISSES - 1):
        rounds.make()
        assert watchman.unreachable() == {}
    rounds.make()
    assert watchman.unreachable() == {"lost": said(closed)}
    rounds.make(2)
    assert watchman.unreachable() == {"lost": said(closed)}


def test_a_node_that_says_nothing_at_all_misses_its_knock_in_time(
    watchman: Watchman, rounds: Rounds, bind: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "TIMEOUT_S", 0.05)
    full = bind(listen=0)
    others = [socket.socket() for _ in range(4)]
    for other in others:  # its queue is full after the first: the kernel drops what comes then
        other.setblocking(False)
        other.connect_ex(where(full))
    watchman.watch("handle", "node", where(full))
    rounds.make(MISSES)
    assert watchman.unreachable() == {"node": said(full)}
    for other in others:
        other.close()


def test_a_node_that_answers_again_is_reached_and_may_miss_as_often_as_ever(
    watchman: Watchman, rounds: Rounds, bind: Bind
) -> None:
    port = bind()
    watchman.watch("handle", "node", where(port))
    rounds.make(MISSES)
    assert watchman.unreachable() == {"node": said(port)}
    port.listen(64)
    rounds.make()
    assert watchman.unreachable() == {}
    port.close()
    rounds.make(MISSES - 1)
    assert watchman.unreachable() == {}
    rounds.make()
    assert set(watchman.unreachable()) == {"node"}


def test_the_drivers_own_node_is_never_knocked_at(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    own, other = bind(listen=64), bind("127.0.0.2", listen=64)
    watchman._own = "127.0.0.1"
    watchman.watch("own", "here", where(own))
    watchman.watch("other", "there", where(other))
    rounds.make(MISSES + 1)
    assert len(list(connections(other))) == MISSES + 1
    assert list(connections(own)) == []
    own.close()
    rounds.make(MISSES + 1)
    assert watchman.unreachable() == {}


def test_the_head_is_knocked_at_whoever_measures(rounds: Rounds, bind: Bind) -> None:
    head, own = bind("127.0.0.2"), bind()
    man = Watchman("127.0.0.1", where(head))
    man._closing = rounds
    man.watch("own", "here", where(own))
    for _ in range(MISSES - 1):
        rounds.make()
        assert man.headless() is None
    rounds.make()
    host, port = where(head)
    assert man.headless() == f"the cluster's head is gone: {host}:{port} did not answer {MISSES} times in a row"
    assert man.unreachable() == {}, "no node of a trial"
    head.listen(64)
    rounds.make()
    assert man.headless() is None
    man.close()


def test_a_head_that_nobody_named_is_never_missed(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    watchman.watch("handle", "node", where(bind()))
    rounds.make(MISSES)
    assert watchman.unreachable() != {}
    assert watchman.headless() is None


def test_a_head_that_measures_is_knocked_at_once_a_round(rounds: Rounds, bind: Bind) -> None:
    head = bind("127.0.0.2", listen=64)
    man = Watchman(OWN, where(head))
    man._closing = rounds
    man.watch("handle", "node", where(head))
    rounds.make(2)
    man.leave("handle")
    rounds.make(2)
    assert len(list(connections(head))) == 4
    man.close()


def test_who_has_left_is_neither_knocked_at_nor_told(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    closed, listens = bind(), bind("127.0.0.2", listen=64)
    watchman.watch("one", "lost", where(closed))
    watchman.watch("two", "there", where(listens))
    rounds.make(MISSES)
    assert set(watchman.unreachable()) == {"lost"}
    watchman.leave("one")
    assert watchman.unreachable() == {}
    closed.listen(64)
    rounds.make()
    assert list(connections(closed)) == []
    assert len(list(connections(listens))) == MISSES + 1
    watchman.leave("one")  # a second time, and one who was never watched
    watchman.leave("nobody")


def test_who_comes_back_has_all_its_misses_again(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    closed, listens = bind(), bind("127.0.0.2", listen=64)
    watchman.watch("stays", "there", where(listens))
    watchman.watch("one", "node", where(closed))
    rounds.make(MISSES)
    watchman.leave("one")
    rounds.make()
    watchman.watch("two", "node", where(closed))
    assert watchman.unreachable() == {}
    rounds.make(MISSES - 1)
    assert watchman.unreachable() == {}
    rounds.make()
    assert set(watchman.unreachable()) == {"node"}


def test_a_node_is_watched_until_the_last_of_its_trials_has_left(
    watchman: Watchman, rounds: Rounds, bind: Bind
) -> None:
    closed = bind()
    for handle in ("gpu 0", "gpu 1"):
        watchman.watch(handle, "node", where(closed))
    rounds.make(MISSES - 1)
    assert watchman.unreachable() == {}, "one knock for both"
    rounds.make()
    watchman.leave("gpu 0")
    assert watchman.unreachable() == {"node": said(closed)}
    watchman.leave("gpu 1")
    assert watchman.unreachable() == {}


def test_many_lost_nodes_are_told_each_with_its_address(watchman: Watchman, rounds: Rounds, bind: Bind) -> None:
    ports = [bind(f"127.0.0.{i}") for i in range(1, 6)]
    for i, port in enumerate(ports):
        watchman.watch(i, f"node-{i}", where(port))
    rounds.make(MISSES)
    assert watchman.unreachable() == {f"node-{i}": said(port) for i, port in enumerate(ports)}


def test_all_nodes_are_knocked_at_in_the_time_of_one(bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until all have been knocked at."""
    count = 8
    arrived = 0
    together = asyncio.Event()

    async def meet(address: Address) -> bool:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            together.set()
        await asyncio.wait_for(together.wait(), 30)
        return address[1] % 2 == 0

    monkeypatch.setattr(reachability, "_reach", meet)
    addresses = [("127.0.0.1", number) for number in range(1, count + 1)]
    answers = asyncio.run(reachability._reach_all(addresses))
    assert answers == {address: address[1] % 2 == 0 for address in addresses}


def watchmen() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watchman"]


def test_its_thread_begins_with_the_first_node_and_ends_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, bind: Bind
) -> None:
    monkeypatch.setattr(reachability, "EVERY_S", 0.001)  # rounds of their own pace
    man = Watchman(OWN)
    assert watchmen() == []
    for handle in range(3):
        man.watch(handle, "node", where(bind(listen=64)))
    (thread,) = watchmen()
    assert thread.daemon, "it does not keep the driver from ending"
    man.close()
    assert watchmen() == []


def test_one_that_never_watched_is_closed_too() -> None:
    Watchman(OWN).close()


def test_between_two_rounds_it_rests(monkeypatch: pytest.MonkeyPatch, bind: Bind) -> None:
    """Closing does not wait for the rest to be over."""
    monkeypatch.setattr(reachability, "EVERY_S", 3600.0)
    man = Watchman(OWN)
    port = bind(listen=64)
    man.watch("handle", "node", where(port))
    man.close()
    assert watchmen() == []
    assert list(connections(port)) == []
