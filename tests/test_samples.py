"""Launches to Arrow and back, and a run directory that holds whole files or none."""

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk import WHOLE, steps_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from launches import ALL, made_launch, made_trial, stolen
from profiles import examples
from pyarrow import fs
from runs import launches_in

from chatbot.errors import UsageError
from chatbot.safe_text import printable
from ray_jobs.matrix.rows import rows_of
from ray_jobs.measure.interference import COUNTERS, Interference
from ray_jobs.measure.result import Launch, LaunchResult, Samples, VariantFacts
from ray_jobs.measure.trial import Place
from ray_jobs.report.compact import COMPACT_FILE, compact
from ray_jobs.results.filesystem import open_root
from ray_jobs.results.samples import SCHEMA, rows_table, to_result, to_table
from ray_jobs.results.store import RunDirectory

# As DESIGN.md lists them, in its order.
ROW_COLUMNS = (
    "run_id trial_id station host device device_name model batch prompt_tokens reply_tokens threads variant baseline "
    "exact samples launches discarded_rounds p50_ms p50_low_ms p50_high_ms p90_ms p95_ms p99_ms mean_ms speedup "
    "speedup_low speedup_high verdict identical_replies prepare_s peak_memory_mb limit_ms of_limit bound status reason "
    "warnings disturbed_rounds warmup_calls sentinel_ms sentinel_drift hardware p50_scatter bound_why moved_mb "
    "stop_at_eos tokens_per_reply per_token_ms compared_replies first_difference cores "
    "graphs graph_breaks recompiles outside_compiled first_token_ms prepare_memory_mb "
    "p90_speedup p90_speedup_low p90_speedup_high p99_speedup p99_speedup_low p99_speedup_high "
    "side side_speedup side_speedup_low side_speedup_high side_verdict "
    "side_p90_speedup side_p90_speedup_low side_p90_speedup_high "
    "side_p99_speedup side_p99_speedup_low side_p99_speedup_high "
    "import_s_empty load_s_empty prepare_cold_s_empty first_reply_ms_empty "
    "to_first_reply_s_empty to_first_reply_s_empty_low to_first_reply_s_empty_high "
    "import_s_cached load_s_cached prepare_cold_s_cached first_reply_ms_cached "
    "to_first_reply_s_cached to_first_reply_s_cached_low to_first_reply_s_cached_high "
    "import_s_warm load_s_warm prepare_cold_s_warm first_reply_ms_warm "
    "to_first_reply_s_warm to_first_reply_s_warm_low to_first_reply_s_warm_high "
    "artifact_mb weights_mb kept_share pays_after_empty pays_after_empty_low pays_after_empty_high "
    "pays_after_cached pays_after_cached_low pays_after_cached_high "
    "scenario slo replicas replica_kind max_batch offered_rps capacity_rps capacity_rps_low capacity_rps_high "
    "capacity_ratio capacity_ratio_low capacity_ratio_high capacity_verdict "
    "goodput_rps generator_late_p99_us cost_per_million through"
).split()
INTEGERS = {
    "compared_replies",
    *("batch", "prompt_tokens", "reply_tokens", "threads", "samples", "launches", "discarded_rounds"),
    "disturbed_rounds",
    *("graphs", "graph_breaks", "recompiles", "replicas", "max_batch"),
}
TEXTS = {
    *("run_id", "trial_id", "station", "host", "device", "device_name", "model", "variant", "baseline", "verdict"),
    *("bound", "bound_why", "status", "reason", "hardware", "cores", "side", "side_verdict"),
    *("scenario", "slo", "replica_kind", "through", "capacity_verdict"),
}

# What is read from a run is made printable, so names that are not do not come back.
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(printable)


def column(draw: st.DrawFn, kind: Any, count: int, low: int, high: int) -> Any:
    return draw(hnp.arrays(kind, count, elements=st.integers(low, high)))


@st.composite
def results(draw: st.DrawFn) -> LaunchResult:
    """Any launch at all."""
    variants = tuple(draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)))
    n = draw(st.integers(1, 30))
    samples = Samples(
        variant=column(draw, np.int16, n, 0, len(variants) - 1),
        phase=column(draw, np.int8, n, 0, 2),
        round=column(draw, np.int32, n, -1, 19),
        position=column(draw, np.int16, n, 0, 100),
        call=column(draw, np.int32, n, 0, 10),
        start_ns=column(draw, np.int64, n, 0, 2**62),
        wall_ns=column(draw, np.int64, n, 0, 2**62),
        device_ns=column(draw, np.int64, n, -1, 2**62),
        cpu_ns=column(draw, np.int64, n, 0, 2**62),
        involuntary_switches=column(draw, np.int32, n, 0, 2**31 - 1),
    )
    number = st.none() | st.floats(0, 1e6)
    text = st.none() | NAMES
    facts = st.builds(
        VariantFacts,
        prepare_s=number,
        program=text,
        kind=text,
        replies=st.integers(0, 99),
        identical=st.integers(0, 99),
        warmup_calls=st.none() | st.integers(0, 30),
        settled=st.booleans(),
        failed=text,
        invalid=text,
    )
    launch = st.builds(
        Launch, st.integers(0, 9999), st.integers(0, 2**32), st.none() | st.just(20), st.none() | st.just(3)
    )
    known = {name: draw(facts) for name in variants if draw(st.booleans())}
    machine = draw(st.dictionaries(NAMES, st.integers() | NAMES | st.lists(st.integers()), max_size=3))
    built = tuple(draw(st.permutations(variants)))
    sentinels = draw(st.just(()) | st.tuples(*[st.integers(1, 10**9)] * 2))
    return LaunchResult(draw(launch), variants, built, 20, 3, known, samples, machine, sentinel_ns=sentinels)


@st.composite
def watched_results(draw: st.DrawFn) -> LaunchResult:
    """A launch of a few rounds on a machine that tells its time, and of the rest whatever it likes."""
    rounds = draw(st.integers(1, 5))
    watched = {name: column(draw, np.int64, rounds, -1, 2**62) for name in COUNTERS}
    watched["round_ns"] = column(draw, np.int64, rounds, 0, 2**62)
    sentinels = draw(st.tuples(*[st.integers(1, 10**9)] * 2))
    return made_launch(
        {"eager": 2.0, "odd": 1.0}, rounds=rounds, interference=Interference(**watched), sentinel_ns=sentinels
    )


def assert_same(found: LaunchResult, expected: LaunchResult) -> None:
    for field in dataclasses.fields(LaunchResult):
        if field.name not in ("samples", "interference"):
            assert getattr(found, field.name) == getattr(expected, field.name)
    assert (found.interference is None) == (expected.interference is None)
    if found.interference is not None and expected.interference is not None:
        for name in COUNTERS:
            assert getattr(found.interference, name).tolist() == getattr(expected.interference, name).tolist()
    for field in dataclasses.fields(Samples):
        assert getattr(found.samples, field.name).tolist() == getattr(expected.samples, field.name).tolist()


def new_run(root: Path | str, run_id: str = "r1") -> RunDirectory:
    """A run's directory, made."""
    directory = RunDirectory.named(str(root), run_id)
    with directory.created():
        return directory


# Tables


@examples(15)
@given(results())
def test_a_launch_comes_back_from_its_table(result: LaunchResult) -> None:
    assert_same(to_result(to_table("trial", result)), result)


@examples(15)
@given(results())
def test_a_launch_comes_back_from_parquet(result: LaunchResult) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(to_table("trial", result), sink)
    assert_same(to_result(pq.read_table(pa.BufferReader(sink.getvalue()))), result)


@given(watched_results())
def test_what_the_machine_did_comes_back_from_parquet(result: LaunchResult) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(to_table("trial", result), sink)
    found = to_result(pq.read_table(pa.BufferReader(sink.getvalue())))
    assert_same(found, result)
    assert found.kept_rounds.tolist() == result.kept_rounds.tolist()


def test_what_the_machine_did_stands_beside_each_call_of_its_round() -> None:
    table = to_table("trial", made_launch({"eager": 2.0}, rounds=3, calls=1, interference=stolen(3, [1])))
    stands = zip(*(table[name].to_pylist() for name in ("round", "phase", "steal_ns", "round_ns")), strict=True)
    told = {(r, phase): (steal, wall) for r, phase, steal, wall in stands}
    assert told.pop((None, "warmup")) == (None, None)
    quiet, disturbed = (0, 10**9), (10**9 // 4, 10**9)
    expected = {(r, phase): disturbed if r == 1 else quiet for r in range(3) for phase in ("refresh", "timed")}
    assert told == expected


def test_what_the_machine_did_survives_compaction(tmp_path: Path) -> None:
    run, small = new_run(tmp_path), RunDirectory.named(str(tmp_path), "small")
    made = [made_launch({"eager": 2.0}, i, interference=stolen(20, [i]), sentinel_ns=(5, 6 + i)) for i in range(3)]
    for launch in made:
        run.add_launch("t", to_table("t", launch))
    run.write_json("run.json", {})
    run.write_json("matrix.json", [])
    compact(run, small)
    (kept,) = launches_in(small).values()  # of a trial that has a new name
    for found, launch in zip(kept, made, strict=True):
        assert_same(found, launch)
        assert found.kept_rounds.tolist() == launch.kept_rounds.tolist()


# Runs from before rounds were watched, as they were committed

RESULTS = Path(__file__).resolve().parent.parent / "results"
OLD = ("seed",)


@pytest.mark.parametrize("run_id", OLD)
def test_a_run_from_before_rounds_were_watched_is_read_and_gives_its_own_figures(run_id: str) -> None:
    old = RunDirectory.existing(str(RESULTS / run_id))
    launches = launches_in(old)
    committed = [row for row in json.loads(old.read("matrix.json")) if row["status"] == "done"]
    assert committed
    for row in committed:
        mine = launches[row["trial_id"]]
        trial = made_trial(row["trial_id"], run_id=run_id, variants=(row["variant"],))
        (found,) = rows_of(trial, Place(), "done", None, mine)
        assert all(launch.interference is None and launch.kept_rounds.all() for launch in mine)
        assert (found.samples, found.launches) == (row["samples"], row["launches"])
        assert (found.p50_ms, found.speedup) == pytest.approx((row["p50_ms"], row["speedup"]))
        assert (found.disturbed_rounds, found.sentinel_ms, found.warmup_calls) == (None, None, None)


@pytest.mark.parametrize("run_id", OLD)
def test_a_run_from_before_rounds_were_watched_is_compacted(run_id: str, tmp_path: Path) -> None:
    compact(RunDirectory.existing(str(RESULTS / run_id)), RunDirectory.named(str(tmp_path), "small"))
    assert RunDirectory.existing(str(tmp_path / "small")).sample_files() == [Path(COMPACT_FILE).name]


def test_speedups_of_a_launch_survive_its_table() -> None:
    result = made_launch({"eager": 10.0, "torchscript": 5.0})
    assert to_result(to_table("trial", result)).log_speedups() == {"torchscript": pytest.approx(math.log(2))}


@given(results(), NAMES)
def test_a_table_has_exactly_the_schema(result: LaunchResult, trial: str) -> None:
    table = to_table(trial, result)
    table.validate(full=True)
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == len(result.samples.wall_ns)
    assert set(table["trial"].to_pylist()) == {trial}
    assert set(table["launch"].to_pylist()) == {result.launch.index}
    assert table["variant"].to_pylist() == [result.variants[i] for i in result.samples.variant]
    phases = ("warmup", "refresh", "timed")
    assert table["phase"].to_pylist() == [phases[i] for i in result.samples.phase]


def test_the_schema_is_the_one_that_readers_know() -> None:
    names = pa.dictionary(pa.int16(), pa.string())
    assert {field.name: (field.type, field.nullable) for field in SCHEMA} == {
        "trial": (names, False),
        "launch": (pa.int32(), False),
        "variant": (names, False),
        "phase": (names, False),
        "round": (pa.int32(), True),
        "position": (pa.int16(), False),
        "call": (pa.int32(), False),
        "start_ns": (pa.int64(), False),
        "wall_ns": (pa.int64(), False),
        "device_ns": (pa.int64(), True),
        "cpu_ns": (pa.int64(), False),
        "involuntary_switches": (pa.int32(), False),
        "round_ns": (pa.int64(), True),
        "run_delay_ns": (pa.int64(), True),
        "steal_ns": (pa.int64(), True),
        "throttled_ns": (pa.int64(), True),
        "pressure_ns": (pa.int64(), True),
        "foreign_cpu_ns": (pa.int64(), True),
        "gpu_clock_mhz": (pa.int64(), True),
        "gpu_throttle": (pa.int64(), True),
        "gpu_foreign": (pa.int64(), True),
        "discarded": (pa.bool_(), True),
    }


@given(results())
def test_what_is_unknown_is_null_and_nothing_else_is(result: LaunchResult) -> None:
    table = to_table("trial", result)
    for name in ("round", "device_ns"):
        expected = [None if value == -1 else value for value in getattr(result.samples, name).tolist()]
        assert table[name].to_pylist() == expected
    for field in SCHEMA:
        assert field.nullable or table[field.name].null_count == 0


# Rows


def test_rows_have_the_designs_columns_in_its_order_whatever_they_hold() -> None:
    skipped = rows_of(made_trial(), Place(), "skipped", "no GPU")
    made = [made_launch(dict.fromkeys(ALL, 5.0), index=i) for i in range(10)]
    done = rows_of(made_trial(), Place(), "done", None, made)
    for rows in ([], skipped, done):
        table = rows_table([dataclasses.asdict(row) for row in rows])
        assert table.column_names == ROW_COLUMNS
        for name in ROW_COLUMNS:
            assert table.schema.field(name).type == row_type(name)
        assert table.num_rows == len(rows)


def row_type(name: str) -> Any:
    if name in INTEGERS:
        return pa.int64()
    if name in TEXTS:
        return pa.string()
    kinds = {"exact": pa.bool_(), "stop_at_eos": pa.bool_(), "warnings": pa.list_(pa.string())}
    return kinds.get(name, pa.float64())


def test_a_rows_values_stand_in_its_table() -> None:
    launches = [made_launch({"eager": 4.0, "eager-again": 5.0, "torchscript": 2.0}, index=i) for i in range(10)]
    rows = [dataclasses.asdict(row) for row in rows_of(made_trial(), Place("here:cpu"), "done", None, launches)]
    assert rows_table(rows).to_pylist() == [{**row, "warnings": list(row["warnings"])} for row in rows]


# The run directory


def test_a_run_lives_below_a_local_path(tmp_path: Path) -> None:
    run = new_run(tmp_path / "not" / "there" / "yet")
    run.write_json("run.json", {"a": 1})
    assert run.local_path == str(tmp_path / "not/there/yet/r1")
    assert run.shown == str(tmp_path / "not/there/yet/r1")
    assert json.loads((tmp_path / "not/there/yet/r1/run.json").read_text()) == {"a": 1}
    assert (tmp_path / "not/there/yet/r1/samples").is_dir()


def test_a_run_lives_below_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = new_run("results/")
    assert run.shown == "results/r1"
    assert run.local_path == str(tmp_path / "results/r1")


def test_a_run_lives_below_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new_run("~/results").local_path == str(tmp_path / "results/r1")


def test_a_run_lives_at_a_file_uri(tmp_path: Path) -> None:
    run = new_run(f"{tmp_path.as_uri()}/results")
    run.add_launch("t", to_table("t", made_launch({"eager": 1.0})))
    assert run.local_path == str(tmp_path / "results/r1")
    assert run.shown == f"{tmp_path.as_uri()}/results/r1"
    assert os.listdir(tmp_path / "results/r1/samples") == ["t.0000.parquet"]


@pytest.fixture(params=["local", "mock", "subtree"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    """A run's directory on a local disk, in memory, or in a file system without a local path."""
    if request.param == "local":
        return new_run(tmp_path)
    remote = (
        fs._MockFileSystem() if request.param == "mock" else fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    )
    directory = RunDirectory(remote, "results/r1", "store://results/r1")
    with directory.created():
        return directory


def content(run: RunDirectory, name: str) -> bytes:
    with run._fs.open_input_file(f"{run._path}/{name}") as file:
        return bytes(file.read())


def names(run: RunDirectory) -> list[str]:
    return sorted(info.base_name for info in run._fs.get_file_info(fs.FileSelector(run._path)))


def test_a_file_replaces_its_older_self_and_leaves_nothing_behind(run: RunDirectory) -> None:
    run.write("run.json", b"old and longer")
    run.write("run.json", b"new")
    assert content(run, "run.json") == b"new"
    assert names(run) == ["run.json", "samples"]


def test_launches_are_read_in_order_by_trial(run: RunDirectory) -> None:
    expected = {"cpu-b1@host.example.com": [0, 1, 2, 10], "cpu-b1@host": [0, 3]}
    for trial, indices in expected.items():
        for index in reversed(indices):
            run.add_launch(trial, to_table(trial, made_launch({"eager": 1.0 + index}, index=index)))
    found = launches_in(run)
    assert {trial: [launch.launch.index for launch in launches] for trial, launches in found.items()} == expected
    assert_same(found["cpu-b1@host"][1], made_launch({"eager": 4.0}, index=3))
    assert len(run.sample_files()) == 6


def test_a_new_run_has_no_launches(run: RunDirectory) -> None:
    assert run.sample_files() == []
    assert launches_in(run) == {}


def test_a_table_is_a_parquet_file(run: RunDirectory) -> None:
    run.write_table("matrix.parquet", pa.table({"a": [1, 2]}))
    assert pq.read_table(pa.BufferReader(content(run, "matrix.parquet"))).to_pydict() == {"a": [1, 2]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_without_numbers_that_json_lacks(value: float, run: RunDirectory) -> None:
    run.write_json("run.json", {"p50_ms": None})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("run.json", {"rows": [{"p50_ms": value}]})
    assert json.loads(content(run, "run.json")) == {"p50_ms": None}


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_older_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    run.write("run.json", b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        run.write("run.json", b"new")
    assert content(run, "run.json") == b"old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_launch_counts_only_once_it_is_whole(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    run.add_launch("t", to_table("t", made_launch({"eager": 1.0})))
    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            run.add_launch("t", to_table("t", made_launch({"eager": 1.0}, index=1)))
    assert run.sample_files() == ["t.0000.parquet"]
    assert [launch.launch.index for launch in launches_in(run)["t"]] == [0]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    run = new_run(tmp_path)

    def noting(name: str, does: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments: Any) -> None:
            steps.append(name)
            does(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(os, "replace", noting("replace", os.replace))
    run.write("run.json", b"{}")
    assert steps[:2] == ["fsync", "replace"]


def test_a_launch_and_its_name_are_on_the_disk_when_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees a launch that a power cut could take away again, name and all."""
    run = new_run(tmp_path)
    steps = steps_of(monkeypatch)
    run.add_launch("t", to_table("t", made_launch({"eager": 1.0})))
    assert steps == WHOLE


def test_what_a_killed_writer_left_is_no_launch(run: RunDirectory) -> None:
    run.add_launch("t", to_table("t", made_launch({"eager": 1.0})))
    with run._fs.open_output_stream(f"{run._path}/samples/t.0001.parquet.part") as stream:
        stream.write(b"PAR1 half of a fi")
    assert run.sample_files() == ["t.0000.parquet"]
    assert len(launches_in(run)["t"]) == 1


# Names and places


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "C:a", "a\0"])
def test_a_run_id_that_is_no_plain_name_is_refused(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a plain name"):
        RunDirectory.named(str(tmp_path), run_id)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", [False, True])
def test_a_run_that_exists_is_not_written_over(uri: bool, tmp_path: Path) -> None:
    new_run(tmp_path).write("run.json", b"precious")
    root = tmp_path.as_uri() if uri else str(tmp_path)
    with pytest.raises(UsageError, match=r"^run 'r1' exists already in .*; give another --run-id"):
        RunDirectory.named(root, "r1")
    assert (tmp_path / "r1" / "run.json").read_bytes() == b"precious"


def test_a_run_is_not_made_by_being_named(tmp_path: Path) -> None:
    RunDirectory.named(str(tmp_path), "r1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", [False, True])
def test_a_root_that_cant_be_written_is_refused_in_one_line(uri: bool, tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.write_text("not a folder")
    root = (plain / "results").as_uri() if uri else str(plain / "results")
    with pytest.raises(UsageError, match=r"results can't be kept in .*results") as refusal:
        new_run(root)
    assert len(str(refusal.value).splitlines()) == 1
    assert plain.read_text() == "not a folder"


@pytest.mark.parametrize("root", ["bogus://bucket/results", "file://results", "://"])
def test_a_root_that_is_no_place_is_refused_in_one_line(root: str) -> None:
    with pytest.raises(UsageError, match=f"^results root {root!r} is not usable: ") as refusal:
        open_root(root)
    assert len(str(refusal.value).splitlines()) == 1


def end_with(error: BaseException, directory: RunDirectory) -> None:
    """Makes the directory, commits a launch, and meets an error."""
    with directory.created():
        directory.add_launch("t", to_table("t", made_launch({"eager": 1.0})))
        raise error


def refuse(directory: RunDirectory, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Makes the directory, and finds a mistake before anything is measured."""
    with directory.created():
        meanwhile()
        raise UsageError("no cluster")


def test_a_mistake_of_the_users_found_late_takes_the_new_directory_away_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cluster"):
        refuse(RunDirectory.named(str(tmp_path / "new"), "r1"))
    assert os.listdir(tmp_path) == []


def test_a_refused_run_leaves_another_one_in_the_same_new_root_alone(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(UsageError, match="no cluster"):
        refuse(RunDirectory.named(str(root), "r1"), meanwhile=(root / "other").mkdir)
    assert os.listdir(root) == ["other"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("gone"), UsageError("too late")])
def test_no_end_deletes_what_was_measured(error: BaseException, tmp_path: Path) -> None:
    directory = RunDirectory.named(str(tmp_path), "r1")
    with pytest.raises(type(error)):
        end_with(error, directory)
    assert directory.sample_files() == ["t.0000.parquet"]
