"""Scenarios as they are asked for: what they parse to, what is refused, and the cores that they need."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.errors import UsageError
from ray_jobs.scenario import Bound, Load, ReplicaKind, Scenario, Through, loads_of, price_for, price_of, window_of


@given(st.integers(50, 99), st.integers(1, 10**6), st.sampled_from([("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]))
def test_a_bound_is_what_it_says(percent: int, amount: int, unit: tuple[str, float]) -> None:
    bound = Bound.of(f"p{percent}={amount}{unit[0]}")
    assert bound.share == pytest.approx(percent / 100)
    assert bound.seconds == pytest.approx(amount * unit[1])
    assert bound.percentile == f"p{percent}"


def test_a_finer_percentile_keeps_its_digits() -> None:
    assert Bound.of("p99.9=1s") == Bound(0.999, 1.0)


@pytest.mark.parametrize(
    "asked", ["", "50ms", "p99", "p99=0ms", "p99=50", "p30=50ms", "p100=5ms", "p99=-1ms", "99=5ms"]
)
def test_what_is_no_bound_is_refused_with_one_that_is(asked: str) -> None:
    with pytest.raises(UsageError, match="as p99=50ms"):
        Bound.of(asked)


def test_every_combination_is_asked_and_a_single_replica_is_a_process() -> None:
    found = loads_of(["single-stream", "offline", "server"], [1, 2], ["process", "thread"], "p90=5ms")
    process, thread = ReplicaKind.PROCESS, ReplicaKind.THREAD
    offline = [Load(Scenario.OFFLINE, count, kind) for count, kind in [(1, process), (2, process), (2, thread)]]
    server = [Load(Scenario.SERVER, one.replicas, one.kind, "p90=5ms") for one in offline]
    assert found == (None, *offline, *server)


def test_a_server_needs_a_bound_and_a_bound_needs_a_server() -> None:
    with pytest.raises(UsageError, match="give --slo"):
        loads_of(["server"], [1], ["process"], None)
    with pytest.raises(UsageError, match="replicas are of scenarios server and offline"):
        loads_of(["single-stream"], [1, 2], ["process"], None)
    with pytest.raises(UsageError, match="leave --slo out"):
        loads_of(["offline"], [1], ["process"], "p90=5ms")


def test_batches_are_of_every_scenario_under_load_and_the_window_of_server_alone() -> None:
    found = loads_of(["offline", "server"], [1], ["process"], "p90=5ms", [1, 8], "2ms")
    assert found == (
        Load(Scenario.OFFLINE),
        Load(Scenario.OFFLINE, max_batch=8),
        Load(Scenario.SERVER, slo="p90=5ms"),
        Load(Scenario.SERVER, slo="p90=5ms", max_batch=8, batch_window="2ms"),
    )
    assert len({load.id for load in found if load}) == 4
    assert [load.batch_window_ns for load in found if load] == [0, 0, 0, 2_000_000]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"scenarios": ["single-stream"], "batches": [8]}, "max_batch is of scenarios server and offline"),
        ({"batches": [1000]}, "max_batch is 1000: give at most 128"),
        ({"window": "2ms"}, "give a --max-batch above 1 too"),
        ({"scenarios": ["offline"], "batches": [8], "window": "2ms"}, "what scenario server waits"),
    ],
)
def test_batches_that_mean_nothing_are_refused(asked: dict[str, Any], said: str) -> None:
    given = {"scenarios": ["server"], "replicas": [1], "kinds": ["process"], "slo": None, **asked}
    given["slo"] = "p90=5ms" if "server" in given["scenarios"] else None
    with pytest.raises(UsageError, match=said):
        loads_of(**given)


def test_every_way_is_asked_for() -> None:
    found = loads_of(["single-stream", "server"], [1, 2], ["process"], "p90=5ms", ways=["direct", "serve"])
    ways = [(load.replicas, load.through) for load in found if load]
    assert ways == [(1, Through.DIRECT), (1, Through.SERVE), (2, Through.DIRECT), (2, Through.SERVE)]
    assert [load.id for load in found if load] == ["server-x1", "server-x1-serve", "server-x2", "server-x2-serve"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"scenarios": ["offline"], "slo": None}, "through serve is of scenario server"),
        ({"scenarios": ["offline", "server"]}, "none through serve: leave one out"),
        ({"kinds": ["process", "thread"], "replicas": [2]}, "are processes: leave out replica kind thread"),
        ({"batches": [1, 8]}, "each request is answered alone"),
    ],
)
def test_what_no_deployment_can_be_is_refused(asked: dict[str, Any], said: str) -> None:
    given = {"scenarios": ["server"], "replicas": [1], "kinds": ["process"], "slo": "p90=5ms", **asked}
    with pytest.raises(UsageError, match=said):
        loads_of(**given, ways=["direct", "serve"])


def test_a_window_is_a_time() -> None:
    assert window_of("2ms") == pytest.approx(2e-3)
    assert window_of("0ms") == 0
    for asked in ("2", "ms", "-1ms", "2 minutes", ""):
        with pytest.raises(UsageError, match="give a time, as 2ms"):
            window_of(asked)


def test_who_sends_requests_has_a_core_of_its_own() -> None:
    assert Load(Scenario.SERVER, 2, slo="p90=5ms").cores(3) == 7
    assert Load(Scenario.OFFLINE, 2).cores(3) == 6


def test_a_price_is_what_follows_the_last_equals_sign() -> None:
    assert price_of("AMD EPYC=0.096") == ("AMD EPYC", 0.096)
    assert price_of("a=b=2") == ("a=b", 2.0)


@pytest.mark.parametrize("asked", ["EPYC", "EPYC=", "EPYC=free", "EPYC=0", "EPYC=-1", "EPYC=inf", "EPYC=nan", "=1"])
def test_what_is_no_price_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match=r"as EPYC=0\.096"):
        price_of(asked)


def test_the_longest_beginning_of_a_hardware_class_tells_its_price() -> None:
    prices = [("AMD", 1.0), ("AMD EPYC 9", 2.0), ("Intel", 3.0)]
    assert price_for(prices, "AMD EPYC 9654, 2 cores") == 2.0
    assert price_for(prices, "AMD Ryzen") == 1.0
    assert price_for(prices, "NVIDIA H200") is None
    assert price_for(prices, None) is None
