"""What windows say, from made-up launches under load: latencies, capacities, rows, and what lies on disk."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launches import made_launch, made_trial, stolen
from served import CALLS, made_served

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.load.points import capacities, log_ratios, logs_of, points
from ray_jobs.load.queueing import arrivals, capacity_of
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure.result import LaunchResult, VariantFacts
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.results.samples import to_result, to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.scenario import Load, ReplicaKind, Scenario, Through
from ray_jobs.statistics import Verdict

NAMES = (BASELINE, CONTROL, "torchscript")
SERVER = Load(Scenario.SERVER, slo="p90=5ms")
RATES = tuple(np.geomspace(300, 1100, 24))
EVEN = {BASELINE: 1.0, CONTROL: 1.0, "torchscript": 1.0}


def rows(launches: list[LaunchResult], load: Load = SERVER, trial: Trial | None = None) -> dict[str, Row]:
    trial = trial or made_trial(variants=NAMES, load=load)
    place = Place("here:cpu", "here", "AMD EPYC", "AMD EPYC [25.17], 2 cores")
    return {row.variant: row for row in rows_of(trial, place, Status.DONE, None, launches)}


def test_a_capacity_is_where_the_latency_meets_the_bound() -> None:
    launch = made_served(SERVER, EVEN, RATES)
    expected = capacity_of(arrivals(CALLS, np.random.default_rng(0)), 1e-3, 1, 0.9, 5e-3)
    found = capacities(launch)
    assert set(found) == set(NAMES)
    assert found[BASELINE] == pytest.approx(expected, rel=0.05)
    assert found[CONTROL] == found[BASELINE]


def test_twice_the_replicas_hold_twice_as_much_and_more() -> None:
    """More: two share the luck of arrivals."""
    one = capacities(made_served(SERVER, EVEN, RATES))[BASELINE]
    two = capacities(made_served(replace(SERVER, replicas=2), EVEN, [2 * rate for rate in RATES]))[BASELINE]
    assert 2 * one < two < 2.6 * one


def test_a_bound_so_loose_that_no_queue_reaches_it_is_held_up_to_what_can_be_answered() -> None:
    launch = made_served(Load(Scenario.SERVER, slo="p90=10s"), EVEN, (900.0, 1040.0))
    assert capacities(launch)[BASELINE] == pytest.approx(1000.0, rel=0.01)


def test_where_it_was_not_looked_for_far_enough_there_is_no_capacity() -> None:
    assert capacities(made_served(SERVER, EVEN, (100.0, 200.0))) == {}


def test_a_bound_below_the_service_is_held_at_no_rate() -> None:
    tight = Load(Scenario.SERVER, slo="p90=900us")
    launches = [made_served(tight, EVEN, RATES, index) for index in range(3)]
    assert capacities(launches[0]) == {}
    row = rows(launches, tight)[BASELINE]
    assert row.capacity_rps == 0
    assert "it holds the bound at no rate that was tried: p90 is" in " ".join(row.warnings)


@pytest.mark.parametrize("replicas", [1, 2])
def test_offline_counts_what_all_replicas_answer(replicas: int) -> None:
    launch = made_served(Load(Scenario.OFFLINE, replicas), {BASELINE: 2.0, CONTROL: 2.0, "torchscript": 1.0})
    found = capacities(launch)
    assert found[BASELINE] == pytest.approx(500.0 * replicas)
    assert found["torchscript"] == pytest.approx(1000.0 * replicas)
    assert log_ratios(launch)["torchscript"] == pytest.approx(math.log(2))


def test_a_window_ends_with_the_replica_that_is_first_to_have_nothing_left() -> None:
    """One that answers twice as fast would else be credited with a time in which it was idle."""
    launch = made_served(Load(Scenario.OFFLINE, 2), {BASELINE: 2.0})
    served = launch.served
    assert served is not None
    quick = served.requests.replica == 1
    times = {name: getattr(served.requests, name).copy() for name in ("began_ns", "ended_ns")}
    for column in times.values():
        column[quick] //= 2
    launch = replace(launch, served=replace(served, requests=replace(served.requests, **times)))
    assert capacities(launch)[BASELINE] == pytest.approx(500.0 + 1000.0, rel=0.01)


def test_rounds_that_were_disturbed_do_not_count() -> None:
    launch = made_served(SERVER, EVEN, RATES)
    watched = replace(launch, interference=stolen(len(RATES), [0, 3]))
    assert [point.round for point in points(watched) if not point.kept] == [0] * 3 + [3] * 3


def test_windows_in_which_requests_were_sent_late_do_not_count() -> None:
    launches = [made_served(SERVER, EVEN, RATES, index, late_ns=300_000) for index in range(3)]
    assert not any(point.kept for point in points(launches[0]))
    row = rows(launches)[BASELINE]
    assert row.capacity_rps is None
    assert row.generator_late_p99_us == pytest.approx(300.0)
    assert f"sent late in {3 * len(RATES)} of {3 * len(RATES)} windows" in " ".join(row.warnings)


def test_through_serve_lateness_is_the_handles_own_and_in_the_latency() -> None:
    late = 1_000_000
    served = made_served(replace(SERVER, through=Through.SERVE), EVEN, RATES, late_ns=late)
    assert not any(point.late for point in points(served))
    assert all(point.late for point in points(made_served(SERVER, EVEN, RATES, late_ns=late)))


def test_rows_tell_capacity_ratio_and_verdict() -> None:
    quick = {BASELINE: 1.0, CONTROL: 1.0, "torchscript": 0.5}
    launches = [made_served(SERVER, quick, np.geomspace(300, 2200, 16), index) for index in range(10)]
    trial = made_trial(variants=NAMES, load=SERVER, prices=(("AMD", 0.36),))
    found = rows(launches, trial=trial)
    base, fast = found[BASELINE], found["torchscript"]
    assert (base.scenario, base.slo, base.replicas, base.replica_kind, base.max_batch) == (
        *(Scenario.SERVER, "p90=5ms", 1, ReplicaKind.PROCESS, 1),
    )
    assert base.through == Through.DIRECT
    assert base.capacity_verdict == Verdict.BASELINE
    assert found[CONTROL].capacity_verdict == Verdict.SAME
    assert fast.capacity_verdict == Verdict.FASTER
    assert fast.capacity_ratio is not None
    assert fast.capacity_ratio_low is not None
    assert 2 < fast.capacity_ratio_low < fast.capacity_ratio
    assert fast.capacity_rps == pytest.approx(fast.capacity_ratio * (base.capacity_rps or 0), rel=0.02)
    assert fast.cost_per_million == pytest.approx(100 / (fast.capacity_rps or 1))
    assert fast.offered_rps == pytest.approx(fast.capacity_rps or 0, rel=0.1)
    assert (fast.goodput_rps or 0) < (fast.offered_rps or 0) * 1.05
    assert (fast.p50_ms, fast.speedup, fast.verdict) == (None, None, None)


def test_a_launch_that_found_no_capacity_is_said_to_be_missing() -> None:
    launches = [made_served(SERVER, EVEN, RATES, index) for index in range(5)]
    launches.append(made_served(SERVER, {**EVEN, "torchscript": 40.0}, RATES, 5))
    row = rows(launches)["torchscript"]
    assert row.capacity_ratio == pytest.approx(1.0)
    assert "1 of 6 launches found no capacity of it, and are not in its interval" in " ".join(row.warnings)


def test_a_few_launches_that_found_a_capacity_are_no_sample_of_all() -> None:
    launches = [made_served(SERVER, EVEN, RATES, index) for index in range(3)]
    launches += [made_served(SERVER, {**EVEN, "torchscript": 40.0}, RATES, index) for index in range(3, 6)]
    row = rows(launches)["torchscript"]
    assert (row.capacity_rps, row.capacity_ratio) == (None, None)
    assert "only 3 of 6 launches found a capacity of it" in " ".join(row.warnings)


def test_what_is_invalid_has_no_capacity() -> None:
    wrong = {"torchscript": VariantFacts(invalid="it answers otherwise")}
    launches = [made_served(SERVER, EVEN, RATES, index, facts=wrong) for index in range(3)]
    row = rows(launches)["torchscript"]
    assert (row.verdict, row.capacity_rps, row.reason) == (Verdict.INVALID, None, "it answers otherwise")
    assert "torchscript" not in capacities(launches[0])


def test_a_price_that_fits_no_hardware_tells_no_cost() -> None:
    trial = made_trial(variants=NAMES, load=SERVER, prices=(("Intel", 0.36),))
    launches = [made_served(SERVER, EVEN, RATES, index) for index in range(3)]
    assert rows(launches, trial=trial)[BASELINE].cost_per_million is None


def test_the_rule_for_stopping_looks_at_speedups_where_calls_follow_each_other() -> None:
    launch = made_launch({BASELINE: 2.0, "torchscript": 1.0})
    assert logs_of(launch) == launch.log_speedups()
    assert made_trial().cores == 1
    assert made_trial(load=SERVER).cores == 2


def test_a_launch_comes_back_from_its_table_as_it_was() -> None:
    launch = made_served(replace(SERVER, replicas=2, kind=ReplicaKind.THREAD), EVEN, RATES[:2])
    back = to_result(to_table("trial", launch))
    assert back.served is not None
    assert launch.served is not None
    assert back.served.load == launch.served.load
    assert back.served.windows == launch.served.windows
    for name in ("replica", "seen_ns", "sent_ns", "began_ns", "ended_ns"):
        assert getattr(back.served.requests, name).tolist() == getattr(launch.served.requests, name).tolist()
    assert capacities(back) == capacities(launch)


def test_launches_of_both_kinds_lie_in_one_file(tmp_path: Path) -> None:
    single, served = made_launch({BASELINE: 2.0, "torchscript": 1.0}), made_served(SERVER, EVEN, RATES[:2])
    directory = RunDirectory.named(str(tmp_path), "r1")
    with directory.created():
        tables = {"single": [to_table("single", single)], "served": [to_table("served", served)]}
        directory.add_launches(tables, "samples/launches.parquet")
    found = dict(directory.each_launch(to_result))
    assert found["single"].served is None
    assert found["single"].log_speedups() == single.log_speedups()
    assert capacities(found["served"]) == capacities(served)
