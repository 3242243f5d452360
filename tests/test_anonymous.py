"""A compacted run tells nothing of whoever measured it, and the same numbers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from launches import ALL, made_launch
from runs import finished_run, trial_at

from chatbot.variants import Workload
from ray_jobs.driver.trials import trial_id
from ray_jobs.measure.contract import GRADIENTS
from ray_jobs.measure.result import VariantFacts
from ray_jobs.report.anonymous import Anonymous, Names, own_names, sentence
from ray_jobs.report.compact import compact
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.scenario import Load, ReplicaKind, Scenario, Through

ROOT = Path(__file__).resolve().parent.parent
USER, HOST, ADDRESS, SECRET = "alice", "lab-pc7", "10.9.8.7", "pl4nted"
PLANTED = f"/home/{USER}/my data/x.tsv on {HOST.upper()}.corp.example ({ADDRESS}, user {USER}) s3://K:{SECRET}@b"
OURS = {"device", "status", "variants", "variant", "baseline", "started", "verdict", "model", "trial_id", "program"}
READ = ("spec", "facts", "trials", "stations")  # mappings whose every key is read


def planted(value: Any, key: str = "") -> Any:
    """The value with the planted text behind every text in it, but for those by which a run is read at all."""
    if isinstance(value, dict):
        found = {name: planted(inner, name) for name, inner in value.items()}
        return found if key in READ else {**found, PLANTED: PLANTED, f"more {key}": [PLANTED]}
    if isinstance(value, list):
        return [planted(inner, key) for inner in value]
    return f"{value} {PLANTED}" if isinstance(value, str) and key not in OURS else value


@pytest.fixture
def told(tmp_path: Path) -> RunDirectory:
    """A run whose every text, in JSON and in Parquet, tells of its user, host, address and key."""
    directory = RunDirectory.named(str(tmp_path), "told")
    failed = VariantFacts(failed=f"could not be prepared: FileNotFoundError: {PLANTED}")
    launches = [made_launch(dict.fromkeys(ALL, 9.0), index) for index in range(2)]
    facts = {**launches[0].facts, ALL[-1]: failed}
    machine = {"pid": 7, "home": PLANTED, PLANTED: 1, "torch": PLANTED, "deterministic": PLANTED}
    made = [replace(one, machine=machine, facts=facts) for one in launches]
    placed = trial_at("told", ALL, host=HOST, device_name=f"Intel {ADDRESS} {USER}")
    finished_run(directory, [(placed, made)])
    for name in ("run.json", "matrix.json"):
        directory.write_json(name, planted(json.loads(directory.read(name))))
    rows = json.loads(directory.read("matrix.json"))
    directory.write_json("matrix.json", [{**row, "host": HOST, "station": f"{HOST}:cpu"} for row in rows])
    return directory


@pytest.mark.parametrize("kind", list(ReplicaKind))
@pytest.mark.parametrize("through", list(Through))
@pytest.mark.parametrize("most", [1, 8])
def test_how_requests_came_stays_in_a_trials_id(kind: ReplicaKind, through: Through, most: int) -> None:
    """Else a compacted run would not say which trial is which."""
    load = Load(Scenario.SERVER, 2, kind, "p90=5ms", most, through=through)
    asked = trial_id(Workload(), None, load).partition("@")[0]
    names = Names()
    names.add(HOST, f"{HOST}:cpu", f"{asked}@{HOST}")
    assert names.trials == {f"{asked}@{HOST}": f"{asked}@host-1"}


def texts(folder: Path) -> Iterator[str]:
    for path in (path for path in folder.rglob("*") if path.is_file()):
        table = pq.read_table(path) if path.suffix == ".parquet" else None
        yield f"{table.to_pylist()} {table.schema.metadata}" if table else path.read_text()


@pytest.mark.parametrize("word", [USER, HOST, "corp.example", ADDRESS, "home", "my data", SECRET, "pid"])
def test_no_user_host_address_path_or_key_survives(word: str, told: RunDirectory, tmp_path: Path) -> None:
    assert word in "\n".join(texts(tmp_path / "told"))
    compact(told, RunDirectory.named(str(tmp_path), "small"))
    found = "\n".join(texts(tmp_path / "small"))
    assert "could not be prepared" in found
    assert word not in found.lower()


def test_sides_keep_their_names_commits_and_times_and_no_package_of_the_users_own() -> None:
    against = [f"pip=numpy==2.4 /home/{USER}/x-1.0.whl", "rev=main"]
    record: dict[str, Any] = {
        "spec": {"against": against},
        "sides": {"rev main": {"commit": "a" * 40, "built_s": {f"{HOST}:cpu": 1.5}}},
        "environments": {"rev main": {"sources": "b" * 16, "sources_in": f"/home/{USER}", "installed": {USER: "1.0"}}},
    }
    names = Names()
    names.add(HOST, f"{HOST}:cpu", None)
    kept = Anonymous(names, own_names(record["spec"])).value(record)
    assert kept == {
        "spec": {"against": ["pip=numpy==2.4 x-1.0.whl", "rev=main"]},
        "sides": {"rev main": {"commit": "a" * 40, "built_s": {"host-1:cpu": 1.5}}},
        "environments": {"rev main": {"sources": "b" * 16}},
    }


@pytest.mark.parametrize("host", ["cpu", "torch", "host", "model", "eager", "station", "spec"])
def test_a_host_may_be_called_like_anything(host: str, tmp_path: Path) -> None:
    directory, small = (RunDirectory.named(str(tmp_path), name) for name in ("run", "small"))
    finished_run(directory, [(trial_at("run", ALL, host=host), [made_launch(dict.fromkeys(ALL, 9.0), 0)])])
    record = json.loads(directory.read("run.json"))
    record["environment"]["driver"]["packages"] = {"torch": "2.13.0"}
    directory.write_json("run.json", record)
    compact(directory, small)
    run = FinishedRun.within(small)
    assert (run.run["spec"], run.run["environment"]) == (record["spec"], record["environment"])
    assert {(row.host, row.station, row.device) for row in run.rows} == {("host-1", "host-1:cpu", "cpu")}


@pytest.mark.parametrize("name", ["seed", "make-matrix", "variants-tutorial"])
def test_a_committed_run_stays_what_it_is(name: str, tmp_path: Path) -> None:
    source, target = RunDirectory.existing(str(ROOT / "results" / name)), RunDirectory.named(str(tmp_path), name)
    compact(source, target)
    before, after = FinishedRun.within(source), FinishedRun.within(target)
    assert after.rows == before.rows
    assert [launch.log_speedups() for _, launch in after.launches()] == [
        launch.log_speedups() for _, launch in before.launches()
    ]
    for key in ("spec", "trials", "identity", "plan"):
        assert after.run.get(key) == before.run.get(key)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("launch 4 failed 3 times, last: RuntimeError: /home/x", "launch 4 failed 3 times, last"),
        ("the station was busy for 600 s: core-1 is held by run r (user x)", "the station was busy for 600 s"),
        ("no station of kind cuda in the cluster", "no station of kind cuda in the cluster"),
        ("CPU 1-3,5 shares a core with a measured one", "CPU 1-3,5 shares a core with a measured one"),
        ("10.0.0.7 did not answer", ""),
        (GRADIENTS, GRADIENTS),
        ("it ran out of memory: the kernel killed it in eager", "it ran out of memory: the kernel killed it in eager"),
    ],
)
def test_a_reason_is_cut_to_its_kind(said: str, kept: str) -> None:
    assert sentence(said) == kept


def test_a_command_keeps_its_flags_and_what_is_ours() -> None:
    words = ["python", "-m", "ray_jobs", "matrix", "--model", "/home/me/my.pt", "--batch=1,16", "--out", "s3://b/r"]
    words += ["--variants", "eager,pkg.mod:MINE", "--address", "10.0.0.7:6379", "--run-id", "mine", "--budget", "2.5"]
    kept = ["python", "-m", "ray_jobs", "matrix", "--model", "my.pt", "--batch=1,16", "--out", "***"]
    kept += ["--variants", "eager,pkg.mod:MINE", "--address", "***", "--run-id", "***", "--budget", "2.5"]
    assert Anonymous(own=frozenset(["pkg.mod:MINE"])).value(words, "command") == kept
