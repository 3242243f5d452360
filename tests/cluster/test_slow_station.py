"""Two nodes of one hardware class, of which one answers more slowly: it is named wherever the run is told of."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from testbed import SOURCES, Testbed, can_partition

from ray_jobs.results.run import FinishedRun

NODES = {"node-1": 0, "node-2": 1}  # and the core that each is started on
WITHOUT = can_partition()
PATIENCE_S = 300.0
SLOWER = 1.25  # times as long on the second node
MODEL = """
import os

from torch import full

from ray_jobs import OwnModel
from ray_jobs.audit.artificial import Spinning


def factory():
    seconds = 2e-3 * (float(os.environ.get("SLOWER", "1")) if "node-2" in os.environ.get("WHERE", "") else 1)
    return OwnModel(Spinning(seconds), lambda number, workload: (full((workload.batch, 1), float(number)),))
"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(WITHOUT is not None, reason=f"no hosts of its own: {WITHOUT}"),
]


@dataclass(frozen=True)
class Seen:
    """A run on both nodes."""

    code: int
    said: str
    run: FinishedRun
    page: str


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with Testbed(hosts=True) as bed:
        (bed.folder / "spinning.py").write_text(MODEL)
        bed.start_head()
        for name, core in NODES.items():
            bed.start_node(name, core, environment={"WHERE": name, "SLOWER": str(SLOWER)})
        asked = ("--model", "spinning:factory", "--variants", "eager", "--budget", "5", "--run-id", "r")
        where = ("--address", bed.address, "--wandb", "off")
        matrix = bed.command("matrix", *asked, *where, sources=Path(f"{SOURCES}:{bed.folder}"))
        code = matrix.wait(PATIENCE_S)
        run = bed.folder / "results" / "r"
        yield Seen(code, matrix.said, FinishedRun.of(str(run)), (run / "report.html").read_text())
    assert bed.pids() == []


def test_both_stations_are_of_one_class(seen: Seen) -> None:
    assert seen.code == 0, seen.said
    assert len({row.station for row in seen.run.rows}) == 2
    assert len({row.hardware for row in seen.run.rows}) == 1


def test_the_slow_one_is_named_with_how_much(seen: Seen) -> None:
    medians = {str(row.host): row.p50_ms or 0.0 for row in seen.run.rows if row.variant == "eager"}
    assert medians["node-2"] / medians["node-1"] == pytest.approx(SLOWER, rel=0.1)
    said = re.compile(r"node-1:cpu and node-2:cpu disagree: node-2:cpu is (2\d|30)% slower")
    assert said.search(seen.said), seen.said
    assert said.search(seen.page)
