"""Variants behind Ray Serve, on a real local Ray: rows, requests, what launches leave, and what can't be."""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import commands
import numpy as np
import psutil
import pytest
from launches import prompts

from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs.load import launch as load
from ray_jobs.load.behind import Behind
from ray_jobs.load.stage import Asked
from ray_jobs.measure.result import Launch, LaunchResult
from ray_jobs.measure.trial import Preset
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request
from ray_jobs.results.samples import to_result
from ray_jobs.results.store import RunDirectory
from ray_jobs.scenario import Load, Scenario, Through

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray Serve's own, as it is imported
]
pytest.importorskip("fastapi", reason="no Ray Serve here: pip install 'latency-matrix[serve]'")
if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("requests are sent from a core of their own", allow_module_level=True)

NAMES = (BASELINE, CONTROL)
WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
LOOSE = Load(Scenario.SERVER, slo="p90=5s", through=Through.SERVE)  # no window is given up


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both ways."""
    home = tmp_path_factory.mktemp("home")
    asked = ("--model", "ray_jobs.audit.artificial:half_a_millisecond", "--variants", "eager", "--budget", "1")
    ways = ("--scenario", "server", "--slo", "p90=500ms", "--through", "direct,serve", "--launch-timeout", "120")
    done = commands.run(home, "matrix", *asked, *ways, "--run-id", "r1", "--wandb", "off", "--json")
    assert done.code == 0, done.err
    return home / "results" / "r1"


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "matrix.json").read_text())
    return found


def test_both_ways_have_rows_of_the_same_columns(run: Path) -> None:
    found = rows(run)
    assert [(row["through"], row["variant"]) for row in found] == list(itertools.product(("direct", "serve"), NAMES))
    for row in found:
        assert (row["status"], row["identical_replies"]) == ("done", 1)
        assert row["verdict"] != "invalid"
        assert row["launches"] == 10


def test_no_launch_was_lost_and_the_page_names_the_way(run: Path) -> None:
    trials = json.loads((run / "run.json").read_text())["trials"]
    assert [trial["lost_launches"] for trial in trials.values()] == [[], []]
    assert "behind Ray Serve" in (run / "report.html").read_text()


def test_requests_went_one_at_a_time_through_a_process_that_was_new(run: Path) -> None:
    served = [
        one for _, one in RunDirectory.existing(str(run)).each_launch(to_result)
        if one.served is not None and one.served.load.through == Through.SERVE
    ]  # fmt: skip
    assert len(served) == 10
    for launch in served:
        assert launch.served is not None
        samples, requests = launch.samples, launch.served.requests
        times = [samples.start_ns, requests.seen_ns, requests.sent_ns, requests.began_ns, requests.ended_ns]
        times.append(samples.start_ns + samples.wall_ns)
        for before, after in itertools.pairwise(times):
            assert (after >= before).all()
        order = np.argsort(requests.began_ns)
        assert (requests.began_ns[order][1:] >= requests.ended_ns[order][:-1]).all()


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    """A Ray of this test's with Serve, as the driver of a run has them."""
    import ray

    from ray_jobs.cluster import serve
    from ray_jobs.cluster.connection import connected

    with connected("local"):
        serve.start()
        context = ray.get_runtime_context()
        node = context.get_node_id()
        yield Behind(context.gcs_address, "latency-matrix-r1-here", "here", node, {})


def run_one(behind: Behind, variant: str = CONTROL, timeout_s: float = 120.0, what: Load = LOOSE) -> Any:
    """A launch in a fresh process, as a trial does it."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    cores = (first, *[second] * what.replicas)
    launch = Launch(0, seed=1, seconds=1.0)
    asked = Asked(
        WORKLOAD, (BASELINE, variant), Preset("tiny"), prompts(2500), launch, what, cores, timeout_s=timeout_s
    )
    asked = replace(asked, behind=behind)
    with LaunchServer(asked.workload) as server:
        return server.run(Request(partial(load.measure, asked), cores, 1, timeout_s))


def applications() -> list[str]:
    from ray import serve

    return list(serve.status().applications)


def replicas() -> list[psutil.Process]:
    """Those of this test's Ray."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if one.is_running() and "ServeReplica" in " ".join(one.cmdline())]


def test_a_launch_leaves_nothing(behind: Behind) -> None:
    outcome = run_one(behind)
    assert isinstance(outcome, LaunchResult), outcome
    for facts in outcome.facts.values():
        assert facts.failed is None
        assert facts.invalid is None
        assert facts.identical == facts.replies > 0
    assert applications() == []
    assert replicas() == []


def test_what_a_killed_launch_leaves_is_gone_after_the_next(behind: Behind) -> None:
    late = run_one(behind, "quirks:HANGS_UNDER_LOAD", timeout_s=25.0)
    assert isinstance(late, Loss)
    assert (late.kind, late.variant) == (LossKind.LATE, "quirks:HANGS_UNDER_LOAD")
    assert applications() == [behind.app]
    (hanging,) = replicas()
    next_run = replace(behind, app="latency-matrix-r2-here")
    assert isinstance(run_one(next_run), LaunchResult)
    assert applications() == []
    assert not hanging.is_running()


def test_what_is_left_of_a_run_goes_with_it(behind: Behind) -> None:
    from ray_jobs.cluster import serve

    assert isinstance(run_one(behind, "quirks:HANGS_UNDER_LOAD", timeout_s=25.0), Loss)
    serve.end("r2")
    assert applications() == [behind.app]
    serve.end("r1")
    assert applications() == []


def test_a_replica_that_dies_costs_the_launch_and_is_named(behind: Behind) -> None:
    outcome = run_one(behind, "quirks:KILLED_UNDER_LOAD")
    assert isinstance(outcome, Loss)
    assert (outcome.kind, outcome.variant) == (LossKind.DIED, "quirks:KILLED_UNDER_LOAD")
    assert applications() == []


def test_a_variant_that_raises_costs_itself(behind: Behind) -> None:
    outcome = run_one(behind, "quirks:RAISES_UNDER_LOAD")
    assert isinstance(outcome, LaunchResult), outcome
    assert "could not answer: ValueError: no more" in (outcome.facts["quirks:RAISES_UNDER_LOAD"].failed or "")
    assert outcome.facts[BASELINE].failed is None


def test_several_replicas_share_the_requests(behind: Behind) -> None:
    """Both on one core, so that two suffice."""
    outcome = run_one(behind, what=replace(LOOSE, replicas=2))
    assert isinstance(outcome, LaunchResult), outcome
    assert outcome.served is not None
    assert set(outcome.served.requests.replica) == {0, 1}
