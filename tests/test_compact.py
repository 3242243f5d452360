"""A compacted run: the same numbers, one file, and nothing that names a machine."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from launches import ALL, made_launch, made_trial
from runs import IDENTITY, finished_run, launches_in, tables_in, trial_at
from typer.testing import CliRunner

from chatbot.errors import UsageError
from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs.cli.app import app
from ray_jobs.driver.run import write_matrix
from ray_jobs.matrix.rows import rows_of
from ray_jobs.measure.result import Limits
from ray_jobs.measure.roofline import Limit
from ray_jobs.measure.trial import Place
from ray_jobs.report.compact import COMPACT_FILE, compact
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.sides import BASE, sides_of

HOST = "secret-box"
TRIALS = {f"cpu-b1@{HOST}": f"{HOST}:cpu", f"cpu-b1@{HOST}#2": f"{HOST}#2:cpu"}

LIMITS = {BASELINE: Limit(8.0, 8.0, 2.0, moved_mb=400.0, gflop=0.2, int8_share=0.25)}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A finished run with two stations on one host, two launches each."""
    directory = RunDirectory.named(str(tmp_path), "run")
    rows = []
    with directory.created():
        for trial, station in TRIALS.items():
            launches = [made_launch({BASELINE: 10.0 + i, CONTROL: 9.0}, i) for i in range(2)]
            for launch in launches:
                directory.add_launch(trial, to_table(trial, launch))
            made = made_trial(trial, workload=Workload(), variants=(BASELINE, CONTROL))
            said = f"the station was busy: process 7 of {HOST}, {HOST}:cpu" if "#" in trial else None
            place, status = Place(station, HOST, "CPU"), "failed" if said else "done"
            rows += rows_of(made, place, status, said, launches, limits=Limits(of=LIMITS))
        write_matrix(directory, rows, 0.02)
        trials = {
            trial: {"station": station, "limits": {BASELINE: asdict(LIMITS[BASELINE])}}
            for trial, station in TRIALS.items()
        }
        command = ["python", "-m", "ray_jobs", "matrix", "--model", "/home/me/my.pt"]
        directory.write_json("run.json", {"command": command, "trials": trials})
    return directory


def test_the_launches_are_the_same_from_one_file(run: RunDirectory, tmp_path: Path) -> None:
    small = RunDirectory.named(str(tmp_path), "small")
    compact(run, small)
    assert small.sample_files() == [Path(COMPACT_FILE).name]
    before, after = tables_in(run), tables_in(small)
    assert list(after) == [trial.replace(HOST, "host-1") for trial in before]
    for old, new in zip(before.values(), after.values(), strict=True):
        assert [table.drop_columns("trial").to_pylist() for table in old] == [
            table.drop_columns("trial").to_pylist() for table in new
        ]
        assert [table.schema.metadata for table in old] == [table.schema.metadata for table in new]


def test_nothing_names_a_machine_or_a_path(run: RunDirectory, tmp_path: Path) -> None:
    compact(run, RunDirectory.named(str(tmp_path), "small"))
    for path in (tmp_path / "small").rglob("*.*"):
        assert HOST.encode() not in path.read_bytes()
    content = json.loads((tmp_path / "small/run.json").read_text())
    assert content["command"][-2:] == ["--model", "my.pt"]
    stations = [row["station"] for row in json.loads((tmp_path / "small/matrix.json").read_text())]
    assert set(stations) == {"host-1:cpu", "host-1#2:cpu"}


def test_figures_are_kept(run: RunDirectory, tmp_path: Path) -> None:
    compact(run, RunDirectory.named(str(tmp_path), "small"))
    old, new = (json.loads((tmp_path / name / "matrix.json").read_text()) for name in ("run", "small"))
    for before, after in zip(old, new, strict=True):
        same = {k for k in before if before[k] == after[k]}
        assert set(before) - same - {"reason"} == {"run_id", "trial_id", "station", "host"}
        assert after["run_id"] == "small"
    assert "GB/s" in new[0]["bound_why"]
    trials = json.loads((tmp_path / "small/run.json").read_text())["trials"].values()
    assert all(trial["limits"] == {BASELINE: asdict(LIMITS[BASELINE])} for trial in trials)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run at"):
        RunDirectory.existing(str(tmp_path / "nowhere"))
    directory = RunDirectory.named(str(tmp_path), "half")
    with directory.created():
        directory.write_json("run.json", {})
    with pytest.raises(UsageError, match="not a finished run"):
        compact(directory, RunDirectory.named(str(tmp_path), "small"))
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("host", ["host", "model", "warnings"])
def test_a_host_that_is_called_like_a_column_takes_no_column_away(host: str, tmp_path: Path) -> None:
    run, small = RunDirectory.named(str(tmp_path), "run"), RunDirectory.named(str(tmp_path), "small")
    at = trial_at("run", (BASELINE, CONTROL), host=host)
    finished_run(run, [(at, [made_launch({BASELINE: 10.0 + i, CONTROL: 9.0}, i) for i in range(2)])])
    compact(run, small)
    assert {row.host for row in FinishedRun.within(small).rows} == {"host-1"}


SIDES = [f"python=/home/{who}/venv-2.14/bin/python" for who in ("me", "you")] + ["env=MALLOC_ARENA_MAX=1"]
SLOWER = "env MALLOC_ARENA_MAX=1"


def with_sides(directory: RunDirectory) -> None:
    """A finished run that compares environments; two of them are told apart by their folders alone."""
    trial, place = trial_at("run", ALL, host=HOST)
    trial = replace(trial, sides=sides_of(SIDES))
    told: dict[str, Any] = {
        side.name: {"interpreter": side.python, "torch": "2.14.1", "preloaded": []} for side in trial.sides
    }
    made = []
    for i in range(10):
        walls = {pair.label: 20.0 + i / 100 if pair.side == SLOWER else 10.0 for pair in trial.pairs}
        machine = {"environments": told, "waits": {"count": 5, "seconds": 0.1, "longest_s": 0.01}}
        made.append(replace(made_launch(walls, i, machine=machine), sides=tuple(pair.side for pair in trial.pairs)))
    finished_run(directory, [((trial, place), made)], dict.fromkeys(IDENTITY, "ab12"), asked={"against": SIDES})


def test_a_run_with_sides_keeps_whose_everything_is(tmp_path: Path) -> None:
    run, small, again = (RunDirectory.named(str(tmp_path), name) for name in ("run", "small", "again"))
    with_sides(run)
    compact(run, small)
    before, after = (FinishedRun.within(one) for one in (run, small))
    gone = {"run_id", "trial_id", "station", "host"}
    told, kept = (
        [{k: v for k, v in asdict(row).items() if k not in gone} for row in one.rows] for one in (before, after)
    )
    assert kept == told
    row = next(row for row in after.rows if row.side == SLOWER)
    assert row.side_verdict == "slower"
    assert row.side_speedup == pytest.approx(0.5, rel=0.01)
    ((_, launches),) = launches_in(small).items()
    ((_, former),) = launches_in(run).items()
    assert [one.log_side_speedups() for one in launches] == [one.log_side_speedups() for one in former]
    (trial,) = after.run["trials"].values()
    assert trial["environments"] == launches[0].machine["environments"]
    assert trial["environments"][BASE] == {"torch": "2.14.1", "preloaded": []}
    assert list(trial["environments"]) == [side.name for side in sides_of(SIDES)]
    assert launches[0].machine["waits"]["count"] == 5
    for path in (tmp_path / "small").rglob("*.*"):
        assert b"/home" not in path.read_bytes()
    compact(small, again)
    assert [row.name for row in FinishedRun.within(again).rows] == [row.name for row in before.rows]


def test_a_compacted_run_with_sides_is_shown_and_compared(tmp_path: Path) -> None:
    run, small = (RunDirectory.named(str(tmp_path), name) for name in ("run", "small"))
    with_sides(run)
    compact(run, small)
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "small"), "--format", "markdown"])
    assert f"eager with {SLOWER} is slower" in shown.output.replace("\\", "")
    compared = CliRunner().invoke(app, ["compare", str(tmp_path / "run"), str(tmp_path / "small"), "--gate", "3%"])
    assert compared.exit_code == 0, compared.output
    page = (tmp_path / "small/report.html").read_text()
    assert SLOWER in page
