"""Launches under load in fresh processes: who answers whom and when, theory, and mistakes that are planted."""

import itertools
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import senders
from launches import made_trial, prompts

from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs.load import launch as load
from ray_jobs.load import sizes
from ray_jobs.load.points import capacities, points
from ray_jobs.load.queueing import latencies, needed
from ray_jobs.load.stage import Asked
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure.result import SERVED, Launch, LaunchResult
from ray_jobs.measure.trial import Factory, Inputs, Place, Preset
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request
from ray_jobs.process.trial import Failure, run_trial
from ray_jobs.scenario import Load, ReplicaKind, Scenario
from ray_jobs.statistics import Verdict

pytestmark = [pytest.mark.process, pytest.mark.alone]  # requests are sent by who looks at the clock all the time

NAMES = (BASELINE, CONTROL)
WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
SERVER = Load(Scenario.SERVER, slo="p90=3ms")
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="requests are sent from a core of their own")
ASLEEP = "ray_jobs.audit.artificial:two_milliseconds_asleep"
SPINS = "ray_jobs.audit.artificial:half_a_millisecond"


def asked(what: Load = SERVER, **more: object) -> Asked:
    cores = tuple(sorted(os.sched_getaffinity(0)))[: what.cores(1)]
    own = Asked(WORKLOAD, NAMES, Preset("tiny"), prompts(2500), Launch(0, seed=1, seconds=2.0), what, cores)
    return replace(own, **more)  # type: ignore[arg-type]


def run(what: Asked, timeout_s: float = 60.0) -> LaunchResult | Loss:
    """In a fresh process, as a trial does it."""
    with LaunchServer(what.workload) as server:
        outcome: LaunchResult | Loss = server.run(Request(partial(load.measure, what), what.cores, 1, timeout_s))
        return outcome


def launched(what: Asked) -> LaunchResult:
    outcome = run(what)
    assert isinstance(outcome, LaunchResult), outcome
    return outcome


@pytest.fixture(scope="module")
def served() -> LaunchResult:
    """The less disturbed of two, as everything on a machine of two cores is beside it."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("requests are sent from a core of their own")
    every = [launched(asked(launch=Launch(index, seed=1, seconds=2.0))) for index in range(2)]
    return max(every, key=lambda one: sum(point.kept and not point.abandoned for point in points(one)))


def test_a_launch_serves_every_variant_in_every_round(served: LaunchResult) -> None:
    assert served.served is not None
    windows = served.served.windows
    assert served.rounds == sizes.ROUNDS
    assert sorted((w.round, w.variant) for w in windows) == [(r, v) for r in range(sizes.ROUNDS) for v in (0, 1)]
    for facts in served.facts.values():
        assert facts.failed is None
        assert facts.invalid is None
        assert facts.replies > 0
        assert facts.identical == facts.replies


def test_requests_are_due_at_the_same_times_for_every_variant(served: LaunchResult) -> None:
    """Times the rate: a window at twice the rate is the same sequence in half of the time."""
    assert served.served is not None
    samples, found = served.samples, []
    for window in served.served.windows:
        mine = (samples.round == window.round) & (samples.variant == window.variant)
        if not window.abandoned:
            assert sorted(samples.call[mine]) == list(range(window.asked))
            due = samples.start_ns[mine][np.argsort(samples.call[mine])]
            found.append((due - due[0]) * (window.offered_rps or 0.0) / 1e9)
    assert len(found) > 1
    for one in found:
        assert one == pytest.approx(found[0], abs=1e-3)


def test_times_of_a_request_follow_each_other(served: LaunchResult) -> None:
    assert served.served is not None
    samples, requests = served.samples, served.served.requests
    assert (samples.phase == SERVED).all()
    times = [samples.start_ns, requests.seen_ns, requests.sent_ns, requests.began_ns, requests.ended_ns]
    times.append(samples.start_ns + samples.wall_ns)
    for before, after in itertools.pairwise(times):
        assert (after >= before).all()


def test_one_replica_answers_one_request_at_a_time(served: LaunchResult) -> None:
    assert served.served is not None
    requests = served.served.requests
    order = np.argsort(requests.began_ns)
    assert (requests.began_ns[order][1:] >= requests.ended_ns[order][:-1]).all()


def test_latencies_are_those_of_a_queue_with_these_service_times(served: LaunchResult) -> None:
    """Lindley's recursion from when requests were due, request by request; the generator's own part is small."""
    assert served.served is not None
    samples, requests = served.samples, served.served.requests
    near = []
    for point in [point for point in points(served) if point.kept and not point.abandoned]:
        mine = (samples.round == point.round) & (samples.variant == NAMES.index(point.variant))
        order = np.argsort(samples.start_ns[mine], kind="stable")
        due = samples.start_ns[mine][order]
        sent, began, ended = (one[mine][order] for one in (requests.sent_ns, requests.began_ns, requests.ended_ns))
        whom = requests.replica[mine][order].astype(np.int64)
        length = needed(sent, began, ended, whom, each=True)  # a long queue would add up what differs from the median
        way_back = (samples.start_ns + samples.wall_ns - requests.ended_ns)[mine][order]
        expected = latencies(due.astype(float), length) + way_back
        near.append(np.abs(expected - samples.wall_ns[mine][order]) < 200_000)
    assert np.concatenate(near).mean() >= 0.95


@pytest.mark.parametrize("kind", list(ReplicaKind))
@TWO_CORES
def test_offline_keeps_every_replica_busy(kind: ReplicaKind) -> None:
    result = launched(asked(Load(Scenario.OFFLINE, 2, kind)))
    assert result.served is not None
    for facts in result.facts.values():
        assert facts.invalid is None
        assert facts.failed is None
    for point in points(result):
        mine = (result.samples.round == point.round) & (result.samples.variant == NAMES.index(point.variant))
        requests = result.served.requests
        assert sorted(set(requests.replica[mine])) == [0, 1]
        busy = (requests.ended_ns - requests.began_ns)[mine].sum()
        span = requests.ended_ns[mine].max() - requests.began_ns[mine].min()
        assert busy > (1.2 if kind == ReplicaKind.PROCESS else 1.0) * span


@TWO_CORES
def test_replicas_that_sleep_answer_as_many_at_once_as_there_are() -> None:
    """On whatever cores: two that sleep answer nearly twice as much as one."""
    found = []
    for count in (1, 2):
        what = Load(Scenario.OFFLINE, count)
        workload = Workload(prompt_tokens=4, reply_tokens=3, model=ASLEEP)
        result = launched(asked(what, workload=workload, model=Factory(ASLEEP), variants=NAMES))
        found.append(capacities(result)[BASELINE])
    assert found[1] / found[0] == pytest.approx(2.0, rel=0.15)


@TWO_CORES
def test_a_call_that_takes_as_long_for_four_answers_four_times_as_many() -> None:
    found = []
    for most in (1, 4):
        workload = Workload(prompt_tokens=4, reply_tokens=3, model=ASLEEP)
        what = Load(Scenario.OFFLINE, max_batch=most)
        result = launched(asked(what, workload=workload, model=Factory(ASLEEP), variants=NAMES))
        assert {facts.invalid or facts.failed for facts in result.facts.values()} == {None}
        found.append(capacities(result)[BASELINE])
    assert found[1] / found[0] == pytest.approx(4.0, rel=0.15)


@TWO_CORES
@pytest.mark.parametrize("variant", ["torchscript", "ray_jobs.audit.mistakes:SAME_REPLY"])
def test_requests_are_answered_together_with_the_replies_that_they_would_have(variant: str) -> None:
    together = Load(Scenario.SERVER, slo="p90=20ms", max_batch=8)
    result = launched(asked(together, variants=(BASELINE, variant)))
    assert result.served is not None
    facts, requests, samples = result.facts[variant], result.served.requests, result.samples
    if variant == "torchscript":
        assert facts.invalid is None
        assert facts.identical == facts.replies > 0
    else:
        assert "promises the baseline's replies" in (facts.invalid or "")
    calls = np.unique(np.stack([samples.round, samples.variant, requests.began_ns]), axis=1, return_counts=True)[1]
    assert 1 == calls.min() < calls.max() <= 8  # the first of a window finds nobody else
    answered = calls.sum()
    assert answered == len(samples.wall_ns)


def rows_from(outcome: LaunchResult, what: Asked) -> dict[str, Row]:
    trial = made_trial(workload=what.workload, variants=what.variants, load=what.load)
    launches = [replace(outcome, launch=replace(outcome.launch, index=index)) for index in range(2)]
    return {row.variant: row for row in rows_of(trial, Place(), Status.DONE, None, launches)}


@TWO_CORES
@pytest.mark.parametrize("send", [senders.waiting_for_answers, senders.on_the_core_of_a_replica])
def test_a_generator_that_is_late_is_found_out(send: object) -> None:
    what = asked(Load(Scenario.SERVER, slo="p90=5ms"), send=send)
    result = launched(what)
    crowded = [point for point in points(result) if point.late]
    assert len(crowded) >= len(points(result)) / 2
    assert any("sent late" in warning for warning in rows_from(result, what)[BASELINE].warnings)


@TWO_CORES
def test_a_queue_that_drops_requests_is_found_out() -> None:
    loose = Load(Scenario.SERVER, slo="p90=10s")  # no window is given up
    outcome = run(asked(loose, send=senders.dropping_some))
    assert isinstance(outcome, Loss)
    assert "requests were dropped" in outcome.reason


@TWO_CORES
def test_a_replica_that_dies_costs_the_launch_and_is_named() -> None:
    outcome = run(asked(variants=(BASELINE, "quirks:KILLED_UNDER_LOAD")))
    assert isinstance(outcome, Loss)
    assert outcome.kind == LossKind.DIED
    assert outcome.variant == "quirks:KILLED_UNDER_LOAD"


@TWO_CORES
def test_a_replica_that_hangs_costs_the_launch_at_its_deadline() -> None:
    outcome = run(asked(variants=(BASELINE, "quirks:HANGS_UNDER_LOAD")), timeout_s=6.0)
    assert isinstance(outcome, Loss)
    assert outcome.kind == LossKind.LATE
    assert outcome.variant == "quirks:HANGS_UNDER_LOAD"


@TWO_CORES
def test_a_variant_that_raises_costs_itself() -> None:
    result = launched(asked(variants=(BASELINE, "quirks:RAISES_UNDER_LOAD")))
    assert "could not answer: ValueError: no more" in (result.facts["quirks:RAISES_UNDER_LOAD"].failed or "")
    assert result.facts[BASELINE].failed is None
    assert "quirks:RAISES_UNDER_LOAD" not in capacities(result)


@TWO_CORES
def test_wrong_answers_are_found_out() -> None:
    what = asked(variants=(BASELINE, "ray_jobs.audit.mistakes:SAME_REPLY"))
    result = launched(what)
    assert "promises the baseline's replies" in (result.facts["ray_jobs.audit.mistakes:SAME_REPLY"].invalid or "")
    row = rows_from(result, what)["ray_jobs.audit.mistakes:SAME_REPLY"]
    assert row.verdict == Verdict.INVALID
    assert row.capacity_ratio is None


@TWO_CORES
def test_a_memory_of_answers_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that outlives launches: a second launch asks what the first one was asked."""
    monkeypatch.setenv("LATENCY_MATRIX_PLANT", "cache")
    monkeypatch.setenv("LATENCY_MATRIX_KEPT", str(tmp_path))
    workload = replace(WORKLOAD, model="small", reply_tokens=20)
    loose = Load(Scenario.SERVER, slo="p90=200ms")
    names = (BASELINE, "ray_jobs.audit.side_mistakes:WRONG")
    what = asked(loose, workload=workload, model=Preset("small"), variants=names)
    for _ in range(2):
        result = launched(what)
    assert "answers from a memory" in (result.facts["ray_jobs.audit.side_mistakes:WRONG"].invalid or "")


@TWO_CORES
def test_a_trial_under_load_stops_as_any_other() -> None:
    """By the clock its calls last as long whatever the machine does, so that launches find a capacity."""
    workload = replace(WORKLOAD, model=SPINS)
    trial = made_trial(workload=workload, variants=NAMES, load=SERVER, budget_s=1.0)
    outcomes = list(run_trial(trial, Inputs(Factory(SPINS), {4: prompts(2500)})))
    launches = [one for one in outcomes if isinstance(one, LaunchResult)]
    assert not [one for one in outcomes if isinstance(one, Failure)]
    assert len(launches) == 10
    rows = {row.variant: row for row in rows_of(trial, Place(hardware="EPYC"), Status.DONE, None, launches)}
    control = rows[CONTROL]
    assert control.scenario == Scenario.SERVER
    assert control.capacity_rps_low is not None
    assert control.capacity_ratio_low is not None
    assert rows[BASELINE].capacity_ratio == 1.0
    assert rows[BASELINE].capacity_verdict == Verdict.BASELINE
    assert control.p50_ms is None
    assert control.speedup is None


@TWO_CORES
def test_a_bound_that_no_rate_holds_is_said_to_be_one() -> None:
    what = asked(Load(Scenario.SERVER, slo="p90=10us"))
    rows = rows_from(launched(what), what)
    assert rows[BASELINE].capacity_rps == 0
    assert any("holds the bound at no rate that was tried" in warning for warning in rows[BASELINE].warnings)
