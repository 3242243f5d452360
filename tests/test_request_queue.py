"""Requests that wait, between who puts them in and who takes them."""

import threading
import time

import pytest
import torch

from ray_jobs.load import wire
from ray_jobs.load.joining import joined
from ray_jobs.load.request_queue import Queue, Taker, taken

WINDOW_NS = 50_000_000


def with_requests(count: int) -> Queue:
    queue = Queue.new()
    assert all(queue.put(number) for number in range(count))
    return queue


def test_requests_are_taken_in_the_order_in_which_they_were_put() -> None:
    queue = with_requests(5)
    taker = Taker(queue.takes, 2, 0)
    assert [taker.take(), taker.take(), taker.take()] == [[0, 1], [2, 3], [4]]


def test_what_nobody_has_taken_is_taken_back_and_nothing_is_waited_for() -> None:
    queue = with_requests(3000)
    assert Taker(queue.takes, 1, 0).take() == [0]
    assert queue.take_back() == list(range(1, 3000))
    assert queue.take_back() == []


def test_a_full_queue_says_so_and_loses_nothing() -> None:
    queue = Queue.new()
    count = 0
    while queue.put(count):
        count += 1
    assert count >= 100_000
    assert queue.take_back() == list(range(count))


def test_a_pipe_that_may_not_hold_more_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose user has many pipes already."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("fcntl.fcntl", refuse)
    queue = with_requests(1000)
    assert queue.take_back() == list(range(1000))


def test_it_is_over_where_that_is_said() -> None:
    queue = Queue.new()
    queue.put(wire.OVER)
    assert Taker(queue.takes, 8, WINDOW_NS).take() == []


def test_others_are_waited_for_until_the_window_ends() -> None:
    queue = with_requests(1)
    began = time.perf_counter_ns()
    assert Taker(queue.takes, 4, WINDOW_NS).take() == [0]
    assert time.perf_counter_ns() - began >= WINDOW_NS


def test_a_full_call_waits_for_nothing_more() -> None:
    queue = with_requests(1)
    later = threading.Timer(0.05, lambda: [queue.put(number) for number in (1, 2, 3)])
    later.start()
    try:
        began = time.perf_counter_ns()
        assert Taker(queue.takes, 3, 60 * 10**9).take() == [0, 1, 2]
        assert time.perf_counter_ns() - began < 30 * 10**9
    finally:
        later.join()


def test_reads_of_one_end_that_do_not_wait_leave_the_others_as_they_are() -> None:
    """The flag is of an open file, which a process that is forked shares."""
    queue = with_requests(1)
    Taker(queue.takes, 2, 0)
    assert taken(queue.takes, 1) == [0]
    later = threading.Timer(0.05, lambda: queue.put(7))
    later.start()
    try:
        assert taken(queue.takes, 1) == [7]  # it waited
    finally:
        later.join()


def test_inputs_are_joined_and_filled_up_with_the_last() -> None:
    one, two = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    assert joined([one, two], 3).tolist() == [[1, 2], [3, 4], [3, 4]]
    numbers, words = joined([(one, two), (two, one)], 2)
    assert numbers.tolist() == [[1, 2], [3, 4]]
    assert words.tolist() == [[3, 4], [1, 2]]


def test_what_is_no_input_of_batch_one_is_not_joined() -> None:
    with pytest.raises(ValueError, match=r"an input of batch 1 has the shape \(2, 3\)"):
        joined([torch.zeros(2, 3)], 2)
