"""Queues against what theory and a simulation of another kind say."""

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.load.queueing import arrivals, capacity_of, joined, latencies, needed, quantile, ratio_of
from ray_jobs.scenario import Load, Scenario

TIMES = st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), min_size=1, max_size=60)


def by_events(due: list[float], service: list[float], servers: int) -> list[float]:
    """The same by events: arrivals and departures in the order of time, and a queue of who waits."""
    events = [(at, 1, number) for number, at in enumerate(due)]
    heapq.heapify(events)
    waiting: list[int] = []
    free, found = servers, [0.0] * len(due)
    while events:
        now, arrived, number = heapq.heappop(events)
        if arrived:
            waiting.append(number)
        else:
            free += 1
            found[number] = now - due[number]
        while free and waiting:
            free -= 1
            first = waiting.pop(0)
            heapq.heappush(events, (now + service[first], 0, first))
    return found


@given(TIMES, st.integers(1, 3))
def test_the_recursion_is_what_events_say(requests: list[tuple[float, float]], servers: int) -> None:
    due = sorted(at for at, _ in requests)
    service = [length for _, length in requests]
    assert latencies(due, service, servers) == pytest.approx(by_events(due, service, servers))


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_the_mean_of_one_server_that_always_takes_as_long_is_that_of_theory(load: float) -> None:
    """M/D/1: the mean time in the queue is load / (2 (1 - load)) services (Pollaczek and Khinchine)."""
    rng = np.random.default_rng(1)
    found = latencies(arrivals(200_000, rng) / load, np.ones(200_000))
    assert found.mean() - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_arrivals_come_at_the_rate_that_they_name_and_at_random() -> None:
    found = arrivals(10_000, np.random.default_rng(2))
    gaps = np.diff(found)
    assert len(found) == 10_000
    assert found.max() <= 10_000
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as those of an exponential distribution


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.01, 3), st.integers(1, 3))
def test_one_at_a_time_is_the_same_queue(due: list[float], service: float, servers: int) -> None:
    expected = latencies(sorted(due), [service] * len(due), servers)
    assert joined(sorted(due), service, servers, most=1) == pytest.approx(expected)


def test_requests_that_wait_are_answered_together_and_a_window_is_waited_for_more() -> None:
    assert joined([0.0, 0.1, 0.2, 0.3], 1.0, 1, most=2) == pytest.approx([1.0, 1.9, 1.8, 2.7])
    assert joined([0.0, 0.1, 0.2, 0.3], 1.0, 1, most=4, window=0.25) == pytest.approx([1.25, 1.15, 1.05, 2.2])
    assert joined([0.0, 0.1, 0.2, 0.3], 1.0, 1, most=4, window=9.0) == pytest.approx([1.3, 1.2, 1.1, 1.0])  # full
    assert joined([0.0, 0.1], 1.0, 1, most=4, window=9.0) == pytest.approx([10.0, 9.9])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.01, 3), st.integers(1, 8))
def test_answering_together_keeps_nobody_waiting_longer(due: list[float], service: float, most: int) -> None:
    alone = joined(sorted(due), service, 1, most=1)
    assert (joined(sorted(due), service, 1, most) <= alone + 1e-9).all()


def test_what_is_slower_holds_less_by_more_than_its_share_where_the_bound_is_tight() -> None:
    loose, tight = (
        ratio_of((1e-3, 1.05e-3), Load(Scenario.SERVER, slo=slo), np.random.default_rng(0), 40)
        for slo in ("p90=500ms", "p90=2ms")
    )
    assert loose == pytest.approx(1 / 1.05, rel=1e-3)
    assert 0.7 < tight < 0.9


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_numpys(values: list[float], share: float) -> None:
    assert quantile(np.array(values), share) == pytest.approx(float(np.quantile(values, share)))


def test_what_a_request_needs_is_what_its_replica_is_kept_for() -> None:
    sent, began = np.array([0, 5, 40, 1]), np.array([0, 12, 41, 2])
    ended, replica = np.array([10, 30, 50, 60]), np.array([0, 0, 0, 1])
    assert needed(sent, began, ended, replica).tolist() == [10, 20, 10, 59]
    sent[2] = 29  # then 11 pass before it, and 2 before the other that waited
    assert needed(sent, began, ended, replica).tolist() == [10, 18 + 6.5, 9 + 6.5, 59]
    assert needed(sent, began, ended, replica, each=True).tolist() == [10, 18 + 2, 9 + 11, 59]


@given(st.integers(0, 1000), st.floats(0.5, 0.99), st.floats(1.1, 20.0), st.integers(1, 3))
def test_what_is_called_the_capacity_holds_the_bound_and_little_more_does_not(
    seed: int, share: float, bound: float, servers: int
) -> None:
    gaps = arrivals(200, np.random.default_rng(seed))
    found = capacity_of(gaps, 1.0, servers, share, bound)

    def at(rate: float) -> float:
        return float(np.quantile(latencies(gaps / rate, np.ones(200), servers), share))

    if found > servers / 20 * 1.01:
        assert at(found) <= bound
    assert found > servers * 0.99 or at(found * 1.01) > bound
