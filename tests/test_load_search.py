"""The search for a capacity, and what it claims, on queues that are simulated: no time is measured here."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs import statistics
from ray_jobs.load import sizes
from ray_jobs.load.points import ABANDONED
from ray_jobs.load.queueing import arrivals, capacity_of, latencies, quantile
from ray_jobs.load.search import LEAST, Search, crossing, isotonic, met_at

SHARE, BOUND, CALLS = 0.9, 5.0, 100
LAUNCHES = statistics.LEAST_LAUNCHES
NOMINAL, RATES = 0.94, st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=12)


def launch_of(services: Sequence[float], rng: np.random.Generator, scatter: float) -> list[float | None]:
    """The capacities that one launch finds of programs that take so long, with noise of launch, window and call."""
    gaps = arrivals(CALLS, rng)
    offsets = rng.uniform(-0.5, 0.5, sizes.ROUNDS)
    means = [service * math.exp(rng.normal(0, scatter)) for service in services]
    searches = []
    for mean in means:
        first = capacity_of(gaps, mean * math.exp(rng.normal(0, scatter)), 1, SHARE, BOUND, LEAST)
        searches.append(Search(BOUND, first, 1 / mean))
    for offset in offsets:
        for search, mean in zip(searches, means, strict=True):
            rate = search.next(float(offset))
            service = mean * np.exp(rng.normal(0, scatter) + rng.normal(0, 3 * scatter, CALLS))
            latency = quantile(latencies(gaps / rate, service), SHARE)
            search.seen.append((rate, min(latency, ABANDONED * BOUND)))
    return [found(search) for search in searches]


def found(search: Search) -> float | None:
    """As ``points`` reads a capacity off."""
    holds = {latency <= BOUND for _, latency in search.seen}
    return min(search.most, met_at(search.seen, BOUND)) if len(holds) == 2 else None


def ratios(ratio: float, trials: int, seed: int, scatter: float) -> list[statistics.Interval | None]:
    """The interval of each of so many trials: of a program that takes ``ratio`` times as long as the baseline."""
    rng = np.random.default_rng(seed)
    intervals = []
    for _ in range(trials):
        launches = [launch_of((1.0, ratio), rng, scatter) for _ in range(LAUNCHES)]
        logs = [math.log(b / a) for a, b in launches if a is not None and b is not None]
        intervals.append(statistics.speedup(logs))
    return intervals


def true_ratio(ratio: float) -> float:
    """Of the capacities, over many sequences of arrivals: the bound stays, so it is less than that of the services."""
    rng = np.random.default_rng(99)
    logs = []
    for _ in range(400):
        gaps = arrivals(CALLS, rng)
        held = [capacity_of(gaps, service, 1, SHARE, BOUND) for service in (1.0, ratio)]
        logs.append(math.log(held[1] / held[0]))
    return math.exp(float(np.mean(logs)))


@pytest.mark.parametrize("ratio", [1.0, 1.01])
@pytest.mark.parametrize("scatter", [0.005, 0.02])
def test_intervals_hold_what_they_claim(ratio: float, scatter: float) -> None:
    trials, truth = 120, true_ratio(ratio)
    held = sum(i is not None and i.low <= truth <= i.high for i in ratios(ratio, trials, 5, scatter))
    assert held >= trials - statistics.most_by_chance(trials, 1 - NOMINAL)


def test_identical_programs_have_an_interval_of_some_width() -> None:
    """On one ladder of rates both would pass the same one, launch after launch."""
    widths = [one.half_width for one in ratios(1.0, 10, 6, 0.005) if one is not None]
    assert len(widths) == 10
    assert min(widths) > 1e-4


def test_a_slowdown_of_5_percent_is_found() -> None:
    intervals = ratios(1.05, 20, 7, 0.005)
    assert sum(one is not None and one.high < 1 for one in intervals) >= 18


def test_a_guess_that_is_far_off_is_left() -> None:
    gaps = arrivals(CALLS, np.random.default_rng(3))
    truth = capacity_of(gaps, 1.0, 1, SHARE, BOUND)
    for wrong in (0.5, 2.0):
        search = Search(BOUND, truth * wrong, 1.0)
        for _ in range(sizes.ROUNDS):
            rate = search.next(0.0)
            search.seen.append((rate, float(np.quantile(latencies(gaps / rate, np.ones(CALLS)), SHARE))))
        assert crossing(search.seen, BOUND) == pytest.approx(truth, rel=0.05)


def test_a_bound_below_the_service_is_given_up_soon() -> None:
    """At a fifth of what can be answered: at ever lower rates a launch would last for minutes."""
    search, tried = Search(0.9, 0.2, 1.0), 0
    while not search.hopeless:
        rate = search.next(0.5)
        assert rate >= LEAST
        search.seen.append((rate, 1.0))
        tried += 1
    assert tried == 1


def test_no_rate_far_beyond_what_can_be_answered_is_tried() -> None:
    search = Search(BOUND, 0.5, 1.0)
    for _ in range(8):
        rate = search.next(0.5)
        search.seen.append((rate, BOUND / 2))  # whatever is offered
        assert rate <= 1.05 + 1e-9


@given(RATES)
def test_the_fit_never_falls_and_stays_within_what_was_seen(seen: list[tuple[float, float]]) -> None:
    ordered = sorted(seen)
    places, values = (np.array(column) for column in zip(*ordered, strict=True))
    fitted_at, fitted = isotonic(places, values)
    assert (np.diff(fitted) > -1e-9).all()
    assert (np.diff(fitted_at) >= -1e-9).all()
    nearest = np.interp(places, fitted_at, fitted)
    assert nearest.min() >= values.min() - 1e-9
    assert nearest.max() <= values.max() + 1e-9
    if (np.diff(values) > 0).all():
        assert fitted == pytest.approx(values)


def test_windows_that_contradict_each_other_are_taken_together() -> None:
    places, values = isotonic(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 4.0, 2.0, 5.0]))
    assert places == pytest.approx([0.0, 1.5, 3.0])
    assert values == pytest.approx([0.0, 3.0, 5.0])


def test_where_the_bound_is_met_lies_between_two_windows_on_a_line_of_logarithms() -> None:
    assert crossing([(1.0, 1.0), (4.0, 16.0)], 4.0) == pytest.approx(2.0)
    assert crossing([(4.0, 16.0), (1.0, 1.0)], 4.0) == pytest.approx(2.0)
    assert crossing([(1.0, 1.0), (4.0, 3.0)], 4.0) is None
    assert crossing([(1.0, 5.0), (4.0, 16.0)], 4.0) is None
    assert crossing([], 4.0) is None
