"""The audit through its command line, on a real local Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import Done, run, run_here
from scipy.stats import binomtest

from ray_jobs.audit.detection import FAULTS
from ray_jobs.statistics import speedup

pytestmark = pytest.mark.alone

QUICK = ("--budget", "1")
COMPARISONS = 1  # each is a trial of ten launches, and as long with each peer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


def test_the_same_environment_is_compared_with_itself(home: Path) -> None:
    done = run(home, "audit", "aa", "--sides", "--comparisons", "1", *QUICK, "--run-id", "sides", "--json")
    assert done.code == 3, done.err
    (row,) = pq.read_table(home / "results/sides/comparisons.parquet").to_pylist()
    launches = pq.read_table(home / "results/sides/launches.parquet").to_pylist()
    again = speedup([launch["log_speedup"] for launch in launches])
    assert again is not None
    assert [row["speedup"], row["speedup_low"], row["speedup_high"]] == pytest.approx(
        [again.value, again.low, again.high]
    )
    assert {launch["built_first"] for launch in launches} == {"eager", "base-again: eager"}
    assert (row["part"], row["truth"], row["torch_benchmark"]) == ("aa-sides", 1, None)
    page = (home / "results/sides/summary.md").read_text()
    assert "The same environment twice, quiet" in page
    assert "alternative" not in page


@pytest.fixture(scope="module")
def identical(home: Path) -> Done:
    """A comparison of identical programs, quiet and beside a load: too few to tell."""
    asked = ("--comparisons", str(COMPARISONS), "--load", "both", *QUICK, "--run-id", "aa")
    return run(home, "audit", "aa", *asked, "--json")


def test_too_few_comparisons_are_an_exit_code_of_their_own(identical: Done) -> None:
    assert identical.code == 3, identical.err
    assert "too few comparisons to tell" in identical.out


def test_the_last_line_tells_of_the_rate(identical: Done, home: Path) -> None:
    found = identical.json
    rows = pq.read_table(home / "results/aa/comparisons.parquet").to_pylist()
    said = {part: [row["verdict"] for row in rows if row["part"] == part] for part in found["parts"]}
    for name, part in (("aa", found), *found["parts"].items()):
        assert part["comparisons"] == len(said[name]) == COMPARISONS
        wrong = sum(verdict in ("faster", "slower", "invalid") for verdict in said[name])
        limits = binomtest(wrong, COMPARISONS).proportion_ci(0.95, method="exact")
        assert part["false_verdicts"] == wrong
        assert (part["rate_low"], part["rate_high"]) == pytest.approx((limits.low, limits.high))
        assert part["median_half_width"] > 0
        assert part["seconds"] > 0
        assert all(peer["comparisons"] == COMPARISONS for peer in part["peers"].values())
    assert list(found["parts"]) == ["aa", "aa-beside-load"]


def test_a_load_is_seen_by_the_counters(identical: Done) -> None:
    """The tiny model's rounds are a few ms: what disturbs them is what takes the core away."""
    found = identical.json["parts"]
    assert found["aa-beside-load"]["disturbed_share"] > found["aa"]["disturbed_share"]


def test_every_interval_can_be_made_again_from_the_launches(identical: Done, home: Path) -> None:
    folder = home / "results/aa"
    comparisons = pq.read_table(folder / "comparisons.parquet").to_pylist()
    launches = pq.read_table(folder / "launches.parquet").to_pylist()
    assert len(comparisons) == 2 * COMPARISONS
    for row in comparisons:
        mine = [r for r in launches if (r["part"], r["comparison"]) == (row["part"], row["number"])]
        assert len(mine) == row["launches"] >= 10
        again = speedup([r["log_speedup"] for r in mine])
        assert again is not None
        shown = [row["speedup"], row["speedup_low"], row["speedup_high"]]
        assert np.allclose([again.value, again.low, again.high], shown)


def test_the_page_is_what_the_terminal_showed(identical: Done, home: Path) -> None:
    page = (home / "results/aa/summary.md").read_text()
    written: dict[str, Any] = json.loads((home / "results/aa/audit.json").read_text())
    tables = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(tables) >= 2 * 4  # of each part a head, this tool's verdicts and intervals, and a peer
    assert [line for line in tables if line not in identical.out] == []
    assert [part["part"] for part in written["parts"]] == ["aa", "aa-beside-load"]
    assert "host" not in written["environment"]["station"]


@pytest.mark.slow  # minutes; the committed audits have ten or more comparisons of each slowdown
def test_a_slowdown_is_found_and_its_figure_is_near(home: Path) -> None:
    """A slowdown that was not planted would be a bias of 5%."""
    asked = ("--percent", "5", "--comparisons", "2", "--budget", "5", "--run-id", "effect")
    done = run(home, "audit", "effect", *asked, "--json")
    assert done.code == 3, done.err  # too few, whatever they say
    found = done.json
    rows = pq.read_table(home / "results/effect/comparisons.parquet").to_pylist()
    assert (found["comparisons"], found["percent"]) == (2, 5)
    assert found["found"] == sum(row["speedup_high"] < 1 for row in rows) == 2
    assert abs(found["bias"]) < 0.02


@pytest.mark.slow  # minutes; tests/test_audit.py plants each mistake in a launch of its own
def test_every_planted_mistake_is_caught_by_name(home: Path) -> None:
    done = run(home, "audit", "faults", "--json")
    caught = json.loads(done.out.splitlines()[-1])
    assert [fault["fault"] for fault in caught] == [fault.name for fault in FAULTS]
    assert [fault["fault"] for fault in caught if not fault["caught"]] == [], done.out
    assert all(fault["by"] for fault in caught)
    assert done.code == 0


def test_what_honesty_costs_is_told(home: Path) -> None:
    done = run(home, "audit", "cost", "--model", "small", "--budget", "5", "--json")
    found = done.json
    assert 0.1 < found["timed_share"] < 1
    assert 0 < found["inside_us"] < found["sample_us"] < 50, "ten times the target"
    assert 0 <= found["own_cores"] < 0.2, "ten times the target"
    assert found["ray_cores"] is not None
    assert found["timed_share"] + found["refresh_share"] <= found["called_share"] < 1
    missed = [found["called_share"] < 0.85, found["sample_us"] > 5, found["own_cores"] > 0.02]
    assert len(found["missed"]) == sum(missed)
    assert done.code == int(any(missed))


def test_the_page_is_made_again_from_the_tables(identical: Done, home: Path) -> None:
    folder = home / "results/aa"
    page, written = (folder / "summary.md").read_text(), json.loads((folder / "audit.json").read_text())
    (folder / "summary.md").unlink()
    done = run_here(home, "audit", "summary", "results/aa")
    assert done.code == 0, done.err
    assert (folder / "summary.md").read_text() == page
    assert json.loads((folder / "audit.json").read_text()) == written
