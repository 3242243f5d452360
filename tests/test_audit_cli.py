"""The audit through its command line, on a real local Ray."""

import json
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from commands import Done, ray_folder, run, start  # noqa: F401 (a fixture of this module)

from ray_jobs.audit.detection import FAULTS
from ray_jobs.statistics import speedup

pytestmark = pytest.mark.alone

QUICK = ("--budget", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def identical(home: Path) -> Done:
    """Two comparisons of identical programs, quiet and beside a load: too few to tell."""
    return run(home, "audit", "aa", "--comparisons", "2", "--load", "both", *QUICK, "--run-id", "aa", "--json")


def test_too_few_comparisons_are_an_exit_code_of_their_own(identical: Done) -> None:
    assert identical.code == 3, identical.err
    assert "too few comparisons to tell" in identical.out


def test_the_last_line_tells_of_the_rate(identical: Done) -> None:
    found = identical.json
    for part in (found, *found["parts"].values()):
        assert part["comparisons"] == 2
        assert 0 <= part["false_verdicts"] <= 2
        assert part["rate_low"] <= part["false_verdicts"] / 2 <= part["rate_high"]
        assert part["median_half_width"] > 0
        assert part["seconds"] > 0
        assert all(peer["comparisons"] == 2 for peer in part["peers"].values())
    assert list(found["parts"]) == ["aa", "aa-beside-load"]


def test_a_load_is_seen_by_the_counters(identical: Done) -> None:
    """The tiny model's rounds are a few ms: what disturbs them is what takes the core away."""
    found = identical.json["parts"]
    assert found["aa-beside-load"]["disturbed_share"] > found["aa"]["disturbed_share"]


def test_every_interval_can_be_made_again_from_the_launches(identical: Done, home: Path) -> None:
    folder = home / "results/aa"
    comparisons = pq.read_table(folder / "comparisons.parquet").to_pylist()
    launches = pq.read_table(folder / "launches.parquet").to_pylist()
    assert len(comparisons) == 4
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
    for line in page.splitlines():
        assert not line.startswith("| ") or line in identical.out
    assert [part["part"] for part in written["parts"]] == ["aa", "aa-beside-load"]
    assert "host" not in written["environment"]["station"]


def test_a_slowdown_is_found_and_its_figure_is_near(home: Path) -> None:
    done = run(home, "audit", "effect", "--percent", "5", "--comparisons", "2", *QUICK, "--json")
    assert done.code == 3, done.err  # too few, whatever they say
    found = done.json
    assert (found["comparisons"], found["percent"]) == (2, 5)
    assert 0 <= found["found"] <= 2
    assert abs(found["bias"]) < 0.05


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
    assert 0 < found["timed_share"] < 1
    assert 0 < found["inside_us"] < found["sample_us"]
    assert found["own_cores"] is not None
    assert found["ray_cores"] is not None
    assert done.code == int(bool(found["missed"]))


def test_the_page_is_made_again_from_the_tables(identical: Done, home: Path) -> None:
    folder = home / "results/aa"
    page, written = (folder / "summary.md").read_text(), json.loads((folder / "audit.json").read_text())
    (folder / "summary.md").unlink()
    done = run(home, "audit", "summary", "results/aa")
    assert done.code == 0, done.err
    assert (folder / "summary.md").read_text() == page
    assert json.loads((folder / "audit.json").read_text()) == written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("effect", "--percent", "3"), "percent is 3; choose from: 1, 2, 5"),
        (("aa", "--load", "much"), "unknown load 'much'; choose from: none, beside, both"),
        (("aa", "--model", "nowhere.pt"), "nowhere.pt"),
        (("aa", "--budget", "-1"), "budget is -1.0"),
        (("summary", "nowhere"), "no comparisons of an audit in nowhere"),
        (("--out", "elsewhere", "aa"), "give --out behind aa"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(tmp_path, "audit", *arguments)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_audit_keeps_what_it_found_and_leaves_no_process(home: Path) -> None:
    many = ("audit", "aa", "--comparisons", "99", "--load", "beside", "--no-peers", *QUICK, "--run-id", "stopped")
    process = start(home, *many)
    family: list[psutil.Process] = []
    try:
        assert process.stderr is not None
        while "1 of 99" not in process.stderr.readline():
            assert process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("ray_jobs.audit.load" in " ".join(child.cmdline()) for child in family if child.is_running())
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
    finally:
        everyone: list[subprocess.Popen[str] | psutil.Process] = [process, *family]
        for left in everyone:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                left.kill()
    assert alive == []
    assert process.returncode == 130
    assert pq.read_table(home / "results/stopped/comparisons.parquet").num_rows >= 1
