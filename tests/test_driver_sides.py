"""What becomes of the sides of a run on its nodes; the nodes are made up."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from chatbot.errors import UsageError
from ray_jobs.cluster.events import Station
from ray_jobs.driver import sides as driver_sides
from ray_jobs.driver.sides import built
from ray_jobs.process.ready import Ready
from ray_jobs.sides import BASE, Side, interpreter_fault, sides_of

SIDES = sides_of(["pip=x==1", "env=A=1", "pip=y==1"])
STATIONS = [Station(f"{host}:cpu", host, "cpu", "EPYC", f"node-{host}", 4.0) for host in "ab"]


class Nodes:
    """Build what they are asked to, but for those (host, name) with a fault."""

    def __init__(self, **faults: str) -> None:
        self.faults = faults
        self.held = False

    @contextmanager
    def holding(
        self, sides: Sequence[Side], nodes: Sequence[str], archives: Any, run_id: str, patience_s: float, tell: Any
    ) -> Iterator[dict[str, list[Ready]]]:
        self.held = True
        yield {node: [self._one(node, side, tell) for side in sides] for node in nodes}
        self.held = False

    def _one(self, node: str, side: Side, tell: Any) -> Ready:
        fault = self.faults.get(f"{side.packages[0][0]}_{node[-1]}")
        made = Ready(replace(side, fault=fault)) if fault else Ready(replace(side, python=f"/{node}/python"), 61.66)
        tell(node, made)
        return made


def sides_on(monkeypatch: pytest.MonkeyPatch, nodes: Nodes, said: list[str]) -> driver_sides.Built:
    monkeypatch.setattr(driver_sides, "holding", nodes.holding)
    with built(SIDES, STATIONS, "run", 1.0, said.append) as there:
        assert nodes.held
    assert not nodes.held
    return there


def test_each_station_gets_the_sides_of_its_node_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    there = sides_on(monkeypatch, Nodes(), said)
    for station in STATIONS:
        mine = there.at(station)
        assert [side.name for side in mine] == [side.name for side in SIDES]
        assert [side.python for side in mine][2:] == [f"/{station.node_id}/python", None, f"/{station.node_id}/python"]
    assert said[0] == "getting ready: pip x==1; pip y==1"
    assert said[1] == "built pip x==1 in 62 s on a"
    earlier = {"pip x==1": {"commit": None, "built_s": {"c:cpu": 1.5, "a:cpu": 2.5}}}
    assert there.record(STATIONS, earlier)["pip x==1"]["built_s"] == {"c:cpu": 1.5, "a:cpu": 61.7, "b:cpu": 61.7}


def test_what_one_node_can_not_build_fails_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    there = sides_on(monkeypatch, Nodes(x_a="no room"), said)
    faults = {
        station.host: [interpreter_fault(replace(side, python=None)) for side in there.at(station)]
        for station in STATIONS
    }
    assert faults == {"a": [None, None, "no room", None, None], "b": [None] * 5}
    assert "pip x==1 can't be built on a: no room" in said
    assert there.record(STATIONS, {})["pip x==1"]["built_s"] == {"b:cpu": 61.7}


def test_what_no_node_can_build_ends_the_run_before_any_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^--against 'pip y==1' can't be built: no such thing$"):
        sides_on(monkeypatch, Nodes(y_a="no such thing", y_b="no such thing", x_a="full"), [])


def test_without_anything_to_build_no_node_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_sides, "holding", None)
    for sides, stations in ((sides_of(["env=A=1"]), STATIONS), (SIDES, [])):
        with built(sides, stations, "run", 1.0, lambda line: pytest.fail(line)) as there:
            assert there.at(STATIONS[0]) == sides
            assert BASE not in there.record(stations, {})
