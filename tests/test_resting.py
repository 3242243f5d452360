"""What is read of a process from outside: the cores of its threads, and what it used while it had nothing to do."""

import os
import threading
import time

import pytest

from ray_jobs.process import resting
from ray_jobs.process.resting import Resting, strays


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_a_thread_beside_the_cores_of_its_process_is_a_stray() -> None:
    allowed = os.sched_getaffinity(0)
    here, there = ({core} for core in sorted(allowed)[:2])
    go, moved = threading.Event(), threading.Event()

    def moves() -> None:
        os.sched_setaffinity(0, there)
        moved.set()
        go.wait()

    os.sched_setaffinity(threading.get_native_id(), here)
    thread = threading.Thread(target=moves)
    thread.start()
    try:
        moved.wait()
        found = set(strays(os.getpid(), frozenset(here)))
    finally:
        go.set()
        thread.join()
        os.sched_setaffinity(threading.get_native_id(), allowed)
    assert frozenset(there) in found


def test_a_process_must_be_on_all_of_its_cores_and_one_that_has_ended_is_nowhere() -> None:
    own = frozenset(os.sched_getaffinity(os.getpid()))
    assert own not in strays(os.getpid(), own)
    assert own in strays(os.getpid(), own | {max(own) + 1})
    assert list(strays(2**22 + 1, own)) == []  # beyond the largest pid there is


@pytest.mark.parametrize(("used_ms", "too_much"), [(0, False), (20, False), (30, True)])
def test_a_little_time_is_not_too_much_and_adds_up(
    used_ms: int, too_much: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a second, 2% and 5 ms more; in ten rests."""
    now, used = [0.0], [0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resting, "cpu_ns_of", lambda pid: used[0])
    rests = Resting()
    for _ in range(10):
        rests.begin(1)
        now[0], used[0] = now[0] + 0.1, used[0] + used_ms * 100_000
        rests.end(1)
        used[0] += 10**9  # in a turn of its own
    assert rests.seconds == pytest.approx(1.0)
    assert rests.too_much == too_much


def test_a_process_that_has_ended_has_not_computed() -> None:
    rests = Resting()
    rests.begin(2**22 + 1)
    rests.end(2**22 + 1)
    assert (rests.seconds, rests.too_much) == (0.0, False)
