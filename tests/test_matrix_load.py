"""Load through the command line: measured on a real local Ray, refused, planned, resumed."""

import json
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Arguments

from ray_jobs.load.points import capacities
from ray_jobs.results.samples import to_result
from ray_jobs.results.store import RunDirectory

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three scenarios; what does not fit on this machine is skipped."""
    home = tmp_path_factory.mktemp("home")
    asked = ("--model", "ray_jobs.audit.artificial:half_a_millisecond", "--variants", "eager", "--budget", "1")
    under_load = ("--scenario", "single-stream,offline,server", "--slo", "p90=50ms", "--replicas", "1,64")
    done = commands.run(home, "matrix", *asked, *under_load, "--run-id", "r1", "--wandb", "off", "--json")
    assert done.code == 0, done.err
    return home / "results" / "r1"


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "matrix.json").read_text())
    return found


def test_one_run_holds_every_scenario(run: Path) -> None:
    done = [row for row in rows(run) if row["status"] == "done"]
    assert {row["scenario"] for row in done} == {"single-stream", "offline", "server"}
    for row in done:
        if row["scenario"] == "single-stream":
            assert row["capacity_rps"] is None
        else:
            # Beside other work no rate may hold the bound: then it is 0 or missing, never without the reason.
            why = ("found a capacity of it", "holds the bound at no rate", "was not found")
            assert row["capacity_rps"] or any(one in warning for warning in row["warnings"] for one in why)
        assert (row["p50_ms"] is None) == (row["scenario"] != "single-stream")
        assert row["verdict"] != "invalid"
        assert row["identical_replies"] == 1
    assert next(row for row in done if row["scenario"] == "offline")["capacity_rps"]


def test_replicas_that_do_not_fit_are_skipped_with_the_numbers(run: Path) -> None:
    skipped = {row["scenario"]: row["reason"] for row in rows(run) if row["status"] == "skipped"}
    assert set(skipped) == {"offline", "server"}
    assert "server needs 65 cores (64 replicas of 1 thread, and one that sends requests), but the" in skipped["server"]
    assert "offline needs 64 cores (64 replicas of 1 thread), but the station has" in skipped["offline"]


def test_rows_follow_from_the_requests_that_were_kept(run: Path) -> None:
    server = {row["variant"]: row for row in rows(run) if row["scenario"] == "server" and row["status"] == "done"}
    directory = RunDirectory.existing(str(run))
    trial = server["eager"]["trial_id"]
    launches = [one for name, one in directory.each_launch(to_result) if name == trial]
    assert len(launches) == server["eager"]["launches"]
    found = [one["eager"] for one in map(capacities, launches) if "eager" in one]
    if server["eager"]["capacity_rps"]:  # not on a machine so busy that launches found none
        assert min(found) <= server["eager"]["capacity_rps"] <= max(found)


def test_the_page_and_the_table_name_what_was_held(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "Under load" in page


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--scenario", "server"), "scenario server needs a bound for its latencies: give --slo, as p99=50ms"),
        (("--slo", "p99=5ms"), "slo is the bound of scenario server"),
        (("--scenario", "server", "--slo", "p99=0ms"), "slo is 'p99=0ms': give a percentile"),
        (("--scenario", "sever"), "unknown scenario 'sever'"),
        (("--scenario", "offline", "--replicas", "0"), "replicas"),
        (("--scenario", "offline", "--replica-kind", "fork"), "unknown replica kind 'fork'"),
        (("--scenario", "offline", "--max-batch", "2", "--batch", "2"), "max_batch joins requests of one prompt"),
        (("--max-batch", "2"), "max_batch is of scenarios server and offline"),
        (("--scenario", "server", "--slo", "p90=5ms", "--max-batch", "2", "--batch-window", "2"), "as 2ms"),
        (("--through", "serve"), "through serve is of scenario server"),
        (("--scenario", "server", "--slo", "p90=5ms", "--through", "http"), "unknown way 'http'"),
        (("--scenario", "server", "--slo", "p90=5ms", "--through", "serve", "--device", "cuda"), "measured on CPUs"),
        (("--price", "EPYC"), "price is 'EPYC'"),
        (("--scenario", "offline", "--against", "env=A=1"), "sides are compared call by call"),
    ],
)
def test_bad_input_is_one_line(flags: Arguments, said: str, tmp_path: Path) -> None:
    done = commands.run_here(tmp_path, "matrix", *flags)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_serve_is_refused_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.cli.matrix.OF_SERVE", ("starlette_of_nobody",))
    through = ("--scenario", "server", "--slo", "p90=5ms", "--through", "direct,serve")
    done = commands.run_here(tmp_path, "matrix", *through)
    assert done.code == 2
    assert done.err.strip().endswith("run: pip install 'latency-matrix[serve]'")
    assert len(done.err.strip().splitlines()) == 1
    planned = commands.run_here(tmp_path, "matrix", *through, "--plan")
    assert planned.code == 0
    assert "server with 1 process behind Ray Serve within p90=5ms" in planned.out
