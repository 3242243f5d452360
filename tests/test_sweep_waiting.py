"""A sweep waits for nothing without end: a lost head, and nodes that left."""

import ast
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatbot.vocabulary import Vocabulary
from ray_jobs.cli.sweep import Cluster, _run
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.results.store import RunDirectory
from ray_jobs.sweep import tuning
from ray_jobs.sweep.folder import Record
from ray_jobs.sweep.rungs import EarlyStopping
from ray_jobs.sweep.spec import make_spec
from ray_jobs.sweep.table import SweepStatus
from ray_jobs.sweep.tuning import QUIET, Patience, Watchdog, _Driver, _quiet, no_room

SOURCES = Path(__file__).resolve().parent.parent / "ray_jobs"
SPEC = make_spec({"cpus": 2, "gpus": 0.5})
ROOM = [{"CPU": 4.0, "GPU": 1.0}]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(nodes: list[dict[str, float]], clock: Clock, headless: str | None = None) -> Watchdog:
    return Watchdog(SPEC, 600.0, lambda: headless, lambda: nodes, clock)


def test_a_lost_head_ends_the_sweep() -> None:
    with pytest.raises(ClusterLostError, match="the head is gone"):
        watch(ROOM, Clock(), "the head is gone").look(busy=True)


def test_nodes_that_left_end_the_sweep_after_its_patience() -> None:
    clock, nodes = Clock(), [{"CPU": 4.0}]
    watching = watch(nodes, clock)
    for clock.now in (0.0, 500.0, 600.0):
        watching.look(busy=False)
    clock.now = 601.0
    with pytest.raises(ClusterLostError, match=r"no node can hold a trial of 2 CPU and 0.5 GPU.*4 CPU, 0 GPU.*600 s"):
        watching.look(busy=False)


def test_a_trial_that_runs_or_could_is_waited_for() -> None:
    clock = Clock()
    gone, there = watch([], clock), watch(ROOM, clock)
    for clock.now in (0.0, 500.0, 1000.0, 1500.0):
        gone.look(busy=clock.now == 500.0 or clock.now == 1000.0)
        there.look(busy=False)


def test_no_live_node_is_told_too() -> None:
    assert no_room(SPEC, ROOM) is None
    assert no_room(SPEC, []) == "no node can hold a trial of 2 CPU and 0.5 GPU; the most there is: 0 CPU, 0 GPU"


def test_a_sweep_looks_after_its_cluster_at_every_step() -> None:
    record: Any = None
    driver = _Driver(record, EarlyStopping(SPEC), [], [], watch(ROOM, Clock(), "the head is gone"))
    with pytest.raises(ClusterLostError) as lost:
        driver.on_step_begin(1, [SimpleNamespace(status="RUNNING")])
    assert driver.trouble is lost.value, "Tune would tell its text alone"


@pytest.mark.process
def test_a_lost_head_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself would end the process a minute later."""
    given: list[Patience] = []

    def lost(*arguments: Any) -> None:
        given.append(arguments[-1])
        raise ClusterLostError("the head is gone")

    monkeypatch.setattr("ray_jobs.cluster.connection.connected", lambda _: nullcontext())
    monkeypatch.setattr("ray_jobs.cluster.connection.wait_for_resources", lambda *_: "0 of 1 GPU")
    monkeypatch.setattr(tuning, "run_trials", lost)
    monkeypatch.setattr(os, "_exit", sys.exit)
    directory = RunDirectory.named(str(tmp_path), "s")
    with directory.created(samples=False), pytest.raises(SystemExit):
        _run(Record(directory, SPEC, "data"), [], [], Vocabulary(()), Cluster("local", {}, 5.0), "off", as_json=False)
    assert given == [Patience(5.0, "0 of 1 GPU")]
    assert json.loads(directory.read("sweep.json"))["status"] == SweepStatus.INTERRUPTED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ray_jobs: the head is gone; what was kept is safe, continue with: ")


def test_no_answer_of_rays_is_waited_for_without_end() -> None:
    nodes = [node for path in SOURCES.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.get", "ray.wait")]
    assert calls
    assert [ast.unparse(one) for one in calls if "timeout" not in {given.arg for given in one.keywords}] == []


def test_tunes_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = QUIET
    monkeypatch.setenv(first, "mine")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    with _quiet():
        assert {name: os.environ[name] for name in QUIET} == QUIET
    assert [os.environ.get(name) for name in QUIET] == ["mine"] + [None] * len(others)
