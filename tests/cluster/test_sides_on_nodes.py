"""Sides on a cluster of two hosts: built on each, measured on each."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from repositories import commit, wheel
from testbed import Testbed, can_partition

import chatbot
from chatbot.cache import CACHE
from chatbot.variants import BASELINE, CONTROL
from ray_jobs.results.run import FinishedRun
from ray_jobs.sides import AGAIN, BASE

NODES = {"node-1": 0, "node-2": 1}  # and the core that each is started on
WITHOUT = can_partition()
PATIENCE_S = 400.0  # a launch starts four interpreters on one core

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(WITHOUT is not None, reason=f"no hosts of its own: {WITHOUT}"),
]


@dataclass(frozen=True)
class Seen:
    """A run on both nodes, whose side of packages can be built on the first alone, and what was left of it."""

    code: int
    said: str
    run: FinishedRun
    pip: str
    left: list[int]  # processes of launches, afterwards
    kept: dict[str, list[str]]  # what each node's cache holds


@pytest.fixture(scope="module")
def seen(toy_checkpoint: Path, toy_tsv: Path) -> Iterator[Seen]:
    toy = ("--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5", "--reply-tokens", "3")
    with Testbed(hosts=True) as bed:
        caches = {name: bed.folder / f"cache-{name}" for name in NODES}
        _repository(bed.folder)
        bed.start_head()
        for name, core in NODES.items():
            index = {"PIP_NO_INDEX": "1", **({"PIP_CONSTRAINT": _against_wheel(bed.folder)} if core else {})}
            bed.start_node(name, core, environment={CACHE: str(caches[name]), **index})
        pip = str(wheel(bed.folder))
        asked = ("--against", "rev=HEAD~1", "--against", f"pip={pip}", "--variants", "eager", "--budget", "6")
        where = ("--address", bed.address, "--wandb", "off", "--run-id", "r")
        matrix = bed.command("matrix", *toy, *asked, *where, sources=bed.folder)
        code = matrix.wait(PATIENCE_S)
        left = bed.pids(words="ray_jobs.process.server")
        kept = {name: sorted(one.parts[-3] for one in place.glob("*/*/built.json")) for name, place in caches.items()}
        yield Seen(code, matrix.said, FinishedRun.of(str(bed.folder / "results" / "r")), pip, left, kept)
    assert bed.pids() == []


def _repository(folder: Path) -> None:
    """The project as it is, in two commits, the first with another comment; the command stands in it."""
    sources = Path(chatbot.__path__[0]).parent
    for package in ("chatbot", "ray_jobs"):
        shutil.copytree(sources / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    config = (folder / "chatbot" / "config.py").read_text()
    commit(folder, {"chatbot/config.py": f"{config}# a comment\n"})
    commit(folder, {"chatbot/config.py": config})


def _against_wheel(folder: Path) -> str:
    """A constraint of pip's that the wheel can't meet."""
    (folder / "constraint.txt").write_text("tinywheel==2.0\n")
    return str(folder / "constraint.txt")


def test_a_revision_is_built_and_measured_on_each_node(seen: Seen) -> None:
    built = seen.run.run["sides"]["rev HEAD~1"]["built_s"]
    assert len(built) == 2
    rows = [row for row in seen.run.rows if row.side in ("rev HEAD~1", AGAIN)]
    assert len({row.station for row in rows}) == 2
    assert {row.variant for row in rows} == {BASELINE, CONTROL}  # of each side, though its eager alone is compared
    assert len(rows) == 8
    for row in rows:
        assert row.reason is None
        assert (row.side_verdict is not None) == (row.variant == BASELINE)


def test_what_can_not_be_built_on_one_node_fails_there_alone(seen: Seen) -> None:
    mine = [row for row in seen.run.rows if row.variant == BASELINE]
    rows = {str(row.station): row for row in mine if row.side == f"pip {Path(seen.pip).name}"}
    faults = [row.reason for row in rows.values() if row.reason is not None]
    assert len(rows) == 2
    assert len(faults) == 1
    assert "tinywheel" in str(faults[0])
    assert {row.status for row in seen.run.rows if row.side == BASE} == {"done"}
    assert seen.code == 1, seen.said


def test_nothing_runs_on(seen: Seen) -> None:
    assert seen.left == []
    assert seen.kept == {"node-1": ["environments", "revisions"], "node-2": ["revisions"]}
