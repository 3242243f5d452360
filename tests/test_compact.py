"""A compacted run: the same numbers, one file, and nothing that names a machine."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from launches import made_launch, made_trial
from runs import finished_run, trial_at

from chatbot.errors import UsageError
from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs.driver.run import write_matrix
from ray_jobs.matrix.rows import rows_of
from ray_jobs.measure.result import Limits
from ray_jobs.measure.roofline import Limit
from ray_jobs.measure.trial import Place
from ray_jobs.report.compact import COMPACT_FILE, compact
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory

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
    before, after = run.read_tables(), small.read_tables()
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
