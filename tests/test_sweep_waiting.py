"""A sweep waits for nothing without end: a lost head, and nodes that left."""

import os

import pytest

from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.sweep.spec import make_spec
from ray_jobs.sweep.tuning import QUIET, Watchdog, _quiet, no_room

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


def test_tunes_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = QUIET
    monkeypatch.setenv(first, "mine")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    with _quiet():
        assert {name: os.environ[name] for name in QUIET} == QUIET
    assert [os.environ.get(name) for name in QUIET] == ["mine"] + [None] * len(others)
