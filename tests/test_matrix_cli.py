"""The matrix through its command line, on a real local Ray."""

import json
from pathlib import Path
from typing import Any

import commands
import pyarrow.parquet as pq
import pytest
from commands import Arguments, Done

from ray_jobs.matrix.rows import COLUMNS
from ray_jobs.results.schema import VERSION

pytestmark = pytest.mark.process

LEAST = 12  # launches: whole blocks of three variants, at least ten


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Among files of the names of modules that every process of a run imports, its Ray workers too."""
    here = tmp_path_factory.mktemp("matrix")
    for name in ("chatbot", "json", "torch"):
        (here / f"{name}.py").write_text("raise SystemExit('a file of the folder that one stands in was imported')")
    return here


@pytest.fixture(scope="module")
def done(home: Path, asking_toy: Arguments) -> Done:
    """One run that all tests below look at: a CPU row, a GPU row and a row with more threads than cores."""
    if_no_gpu = ("--device", "all", "--threads", "1,999")
    return commands.run(home, "matrix", *asking_toy, *if_no_gpu, "--run-id", "first", "--json")


@pytest.fixture(scope="module")
def folder(home: Path, done: Done) -> Path:
    assert done.code == 0, done.err
    return home / "results" / "first"


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((folder / "matrix.json").read_text())
    return content


def measured(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in rows if row["status"] == "done" and row["device"] == "cpu"}


def test_the_last_line_counts_the_trials(done: Done, folder: Path) -> None:
    assert done.json["run_dir"] == "results/first"
    assert done.json["done"] >= 1
    assert done.json["failed"] == done.json["invalid"] == 0
    assert done.json["skipped"] >= 1


def test_the_table_names_every_variant_with_its_verdict(done: Done, folder: Path) -> None:
    for words in ("eager", "eager-again", "torchscript", "baseline", "p50 ms", "100%", "precision not reached"):
        assert words in done.out
    assert "results/first: report.html, matrix.json" in done.out
    assert "999 threads, but the station has" in (folder / "report.html").read_text()


def test_matrix_holds_the_columns_in_order(rows: list[dict[str, Any]], folder: Path) -> None:
    assert all(tuple(row) == COLUMNS for row in rows)
    assert pq.read_table(folder / "matrix.parquet").to_pylist() == rows


def test_the_measured_rows_agree_with_the_samples(rows: list[dict[str, Any]], folder: Path) -> None:
    tables = [pq.read_table(path) for path in sorted((folder / "samples").glob("*.parquet"))]
    assert len(tables) == LEAST
    samples = [row for table in tables for row in table.to_pylist() if row["phase"] == "timed"]
    samples = [row for row in samples if not row["discarded"]]
    for name, row in measured(rows).items():
        mine = [sample["wall_ns"] / 1e6 for sample in samples if sample["variant"] == name]
        assert row["samples"] == len(mine)
        assert row["mean_ms"] == pytest.approx(sum(mine) / len(mine))
        assert min(mine) <= row["p50_low_ms"] <= row["p50_ms"] <= row["p50_high_ms"] <= max(mine)
        assert (row["p99_ms"] is None) == (len(mine) < 299)
        assert row["launches"] == LEAST
        assert row["identical_replies"] == 1
        assert row["prepare_s"] > 0
        assert row["peak_memory_mb"] > 50
        assert 0 < row["limit_ms"] <= row["p50_ms"], "tiny networks are far from what the hardware allows"
        assert row["of_limit"] == pytest.approx(row["limit_ms"] / row["p50_ms"])
        assert row["moved_mb"] > 0
        assert row["bound_why"]


def test_the_control_is_in_every_trial_and_the_baseline_is_one(rows: list[dict[str, Any]]) -> None:
    cells = measured(rows)
    assert list(cells) == ["eager", "eager-again", "torchscript"]
    assert (cells["eager"]["speedup"], cells["eager"]["verdict"]) == (1, "baseline")
    for name in ("eager-again", "torchscript"):
        assert cells[name]["speedup_low"] < cells[name]["speedup"] < cells[name]["speedup_high"]


def test_what_can_not_be_measured_is_skipped_with_the_reason(rows: list[dict[str, Any]]) -> None:
    many = [row for row in rows if row["device"] == "cpu" and row["threads"] == 999]
    assert {row["status"] for row in many} == {"skipped"}
    assert "999 threads, but the station has" in many[0]["reason"]
    for row in rows:
        if row["device"] == "cuda" and row["station"] is None:
            assert (row["status"], row["reason"]) == ("skipped", "no station of kind cuda in the cluster")


def test_run_json_tells_where_the_run_comes_from(folder: Path, rows: list[dict[str, Any]]) -> None:
    content = json.loads((folder / "run.json").read_text())
    assert content["schema_version"] == VERSION
    assert content["spec"]["variants"] == ["eager", "eager-again", "torchscript"]
    assert len(content["environment"]["driver"]["source_hash"]) == 16
    assert content["trials"][rows[0]["trial_id"]]["status"] == "done"
    station = content["environment"]["stations"][rows[0]["station"]]
    assert station["packages"]["torch"] == content["environment"]["driver"]["packages"]["torch"]


def test_an_offline_run_of_wandb_lies_in_the_run_directory(folder: Path, done: Done) -> None:
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert "wandb sync" in done.out


def test_an_existing_run_is_refused_and_left_alone(home: Path, folder: Path, asking_toy: Arguments) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = commands.run_here(home, "matrix", *asking_toy, "--run-id", "first")
    assert again.code == 2
    assert again.err.count("\n") == 1
    assert "'first' exists already" in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_plan_runs_nothing_and_follows_the_latest_run_like_it(
    home: Path, folder: Path, asking_toy: Arguments
) -> None:
    entries = sorted((home / "results").iterdir())
    planned = commands.run_here(home, "matrix", *asking_toy, "--plan")
    assert planned.code == 0
    assert "(run first)" in planned.out
    other = commands.run_here(home, "matrix", *asking_toy, "--plan", "--batch", "7")
    assert "(estimated from the bytes read)" in other.out
    assert sorted((home / "results").iterdir()) == entries
