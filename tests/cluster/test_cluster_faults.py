"""Real Ray processes broken in real ways, through the command line: what is said, and that nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from breakage.bench import NOTHING, Bench, Fault
from breakage.table import FAULTS, inject
from testbed import Testbed, can_partition

QUICK = ("a worker is killed",)  # the others under make test-cluster: all take ten minutes
WITHOUT = can_partition()

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(WITHOUT is not None, reason=f"no hosts of its own: {WITHOUT}"),
]


def marked(fault: Fault) -> object:
    marks = () if fault.name in QUICK else (pytest.mark.slow,)
    return pytest.param(fault, id=fault.name, marks=marks)


@pytest.fixture(scope="module")
def bench(toy_checkpoint: Path, toy_tsv: Path) -> Iterator[Bench]:
    """Two stations that measure the toy model, and leave nothing behind."""
    toy = ("--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5", "--reply-tokens", "3")
    with Testbed(hosts=True) as bed:
        yield Bench(bed, tuple(map(str, toy)))
        assert bed.pids("head", "gcs_server")
    assert bed.pids() == []
    assert not bed.folder.exists()


@pytest.mark.parametrize("fault", [marked(fault) for fault in FAULTS])
def test_it_is_said_and_nothing_is_lost(fault: Fault, bench: Bench) -> None:
    seen = inject(bench, fault)
    assert seen.lost == NOTHING, seen
    assert seen.shows, seen
    assert seen.seconds is not None


def test_the_quick_ones_exist() -> None:
    assert set(QUICK) <= {fault.name for fault in FAULTS}
