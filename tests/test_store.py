"""A run directory under pressure: two who want it, a full disk, a store that does not answer or shows no half files."""

import json
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pytest
from launches import made_launch
from pyarrow import fs
from runs import launches_in

from chatbot.errors import UsageError
from ray_jobs.process import lease
from ray_jobs.process.lease import LeaseError
from ray_jobs.results import deadline
from ray_jobs.results import store as directory
from ray_jobs.results.deadline import in_time
from ray_jobs.results.filesystem import OBJECT_STORES, StoreError, open_root
from ray_jobs.results.ownership import LOCK
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory


@pytest.fixture(autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lease.FOLDER, str(tmp_path_factory.mktemp("locks")))


def launch(index: int = 0) -> pa.Table:
    return to_table("t", made_launch({"eager": 1.0 + index}, index=index, rounds=2, calls=1))


def new_run(root: Path | str, run_id: str = "r1") -> RunDirectory:
    made = RunDirectory.named(str(root), run_id)
    with made.created():
        return made


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusal(act: Callable[[], object]) -> str:
    """The one line that it is refused with."""
    with pytest.raises(UsageError) as refused:
        act()
    (line,) = str(refused.value).splitlines()
    return line


def make(run: RunDirectory, room: int = 0) -> None:
    with run.created(room=room):
        pass


def reopen(run: RunDirectory, room: int = 0) -> None:
    with run.reopened(room):
        pass


# Going on with a run


@pytest.mark.parametrize("kind", ["local", "mock", "subtree"])
def test_what_a_killed_writer_left_is_taken_away_and_nothing_else(kind: str, tmp_path: Path) -> None:
    if kind == "local":
        run = new_run(tmp_path)
    else:
        inner = fs._MockFileSystem() if kind == "mock" else fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        run = RunDirectory(inner, "results/r1", "store://results/r1")
        make(run)
    run.add_launch("t", launch(0))
    run.add_launch("t", launch(2))
    run.write_json("run.json", {"a": 1})
    for name in ("samples/t.0001.parquet.part", "samples/t.0002.parquet.part", "samples/.probe.part"):
        with run._fs.open_output_stream(f"{run._path}/{name}") as stream:
            stream.write(b"PAR1 half of a fi")
    with run.reopened():
        assert run.names("samples") == ["t.0000.parquet", "t.0002.parquet"]
        run.add_launch("t", launch(1))
    assert [one.launch.index for one in launches_in(run)["t"]] == [0, 1, 2]
    assert run.read("run.json") == b'{\n "a": 1\n}\n'
    assert "run.json" in run.names("")
    assert not [name for name in run.names("") if name.startswith(directory.PROBE)]


def test_a_run_without_launches_is_reopened_too(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (tmp_path / "r1" / "samples").rmdir()
    reopen(run)
    run = new_run(tmp_path, "r2")
    reopen(run)
    assert run.sample_files() == []


def test_an_error_meanwhile_takes_nothing_away(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_json("run.json", {})

    def fail() -> None:
        with run.reopened():
            raise UsageError("no cluster")

    assert refusal(fail) == "no cluster"
    assert files(tmp_path) == ["r1/run.json"]


# Two who want it


@pytest.mark.parametrize("again", [make, reopen])
def test_a_directory_that_is_being_written_is_refused_and_left_alone(
    again: Callable[[RunDirectory], None], tmp_path: Path
) -> None:
    first, second = RunDirectory.named(str(tmp_path), "r1"), RunDirectory.named(str(tmp_path), "r1")
    with first.created():
        first.write_json("run.json", {})
        (tmp_path / "r1" / "samples" / "t.0000.parquet.part").write_bytes(b"being written")
        said = refusal(lambda: again(second))
        assert said.startswith(f"{tmp_path}/r1 is being written: run-")
        assert said.endswith(f" is held by process {os.getpid()}; wait for it, or stop it first")
        assert files(tmp_path) == [f"r1/{LOCK}", "r1/run.json", "r1/samples/t.0000.parquet.part"]
        (tmp_path / "r1" / "samples" / "t.0000.parquet.part").unlink()
        first.add_launch("t", launch())
    reopen(second)
    assert files(tmp_path) == ["r1/run.json", "r1/samples/t.0000.parquet"]


def test_a_directory_that_is_gone_on_with_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with run.reopened():
        assert " is being written: " in refusal(lambda: reopen(run))
    reopen(run)


def test_another_name_of_the_same_directory_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path / "results")
    run.write_json("run.json", {})
    (tmp_path / "link").symlink_to(tmp_path / "results")
    monkeypatch.chdir(tmp_path / "results")
    with run.reopened():
        for name in (str(tmp_path / "link" / "r1"), "r1", "../results/r1/", (tmp_path / "results" / "r1").as_uri()):
            again = RunDirectory.existing(name)
            assert refusal(lambda again=again: reopen(again)).startswith(f"{name} is being written: ")  # type: ignore[misc]


def test_two_runs_in_one_root_are_written_at_the_same_time(tmp_path: Path) -> None:
    first, second = RunDirectory.named(str(tmp_path), "r1"), RunDirectory.named(str(tmp_path), "r2")
    with first.created(), second.created():
        first.add_launch("t", launch())
        second.add_launch("t", launch())
    assert files(tmp_path) == ["r1/samples/t.0000.parquet", "r2/samples/t.0000.parquet"]


@pytest.mark.parametrize("again", [make, reopen])
def test_another_host_that_sees_the_directory_is_refused_and_takes_nothing_away(
    again: Callable[[RunDirectory], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RunDirectory.named(str(tmp_path), "r1"), RunDirectory.named(str(tmp_path), "r1")
    with first.created():
        monkeypatch.setenv(lease.FOLDER, str(tmp_path / "locks of another host"))
        said = refusal(lambda: again(second))
        assert said.startswith(
            f"{tmp_path}/r1 is being written: another host or container sees it too, and it is held by"
        )
        assert f"process {os.getpid()} on {socket.gethostname()}" in said
        first.write_json("run.json", {})
        assert first.names() == ["run.json"], "the lock is not of the run"
    assert files(tmp_path / "r1") == ["run.json"]
    reopen(second)


def test_a_file_system_that_cant_lock_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lease.lock

    def unsupported(path: Path) -> tuple[int | None, str]:
        if path.name == LOCK:
            raise LeaseError("the lock can't be used: No locks available")
        return lock(path)

    monkeypatch.setattr(lease, "lock", unsupported)
    new_run(tmp_path).add_launch("t", launch())
    assert files(tmp_path) == ["r1/samples/t.0000.parquet"]


def driver_of(run: RunDirectory, name: str = "run.json") -> object:
    return json.loads(run.read(name))["driver"]


RECORD: dict[str, object] = {"schema_version": 2}


def test_of_two_drivers_without_locks_the_second_to_write_is_told() -> None:
    """Both resume a run in an object store; the one that wrote first goes on undisturbed."""
    store = cast("fs.FileSystem", Watched("s3"))
    before, first, second = (RunDirectory(store, "bucket/r1", "s3://bucket/r1") for _ in range(3))
    with before.created():
        before.write_json("run.json", RECORD)
        before.write_json("run.json", RECORD)
    with first.reopened(), second.reopened():
        first.write_json("run.json", RECORD)
        with pytest.raises(StoreError) as refused:
            second.write_json("run.json", {**RECORD, "of": "the second"})
        assert str(refused.value) == (
            "another driver is at s3://bucket/r1: its run.json was written by another process meanwhile"
        )
        first.write_json("run.json", {**RECORD, "of": "the first"})
    assert json.loads(first.read("run.json"))["of"] == "the first"


def test_two_new_runs_of_one_name_do_not_write_over_each_other() -> None:
    store = cast("fs.FileSystem", Watched("gcs"))
    first, second = (RunDirectory(store, "bucket/r1", "gs://bucket/r1") for _ in range(2))
    with first.created(), second.created():
        second.write_json("audit.json", RECORD)
        with pytest.raises(StoreError, match=r"^another driver is at gs://bucket/r1: its audit\.json "):
            first.write_json("audit.json", RECORD)
        second.write_json("audit.json", RECORD)


def test_a_record_of_before_drivers_had_names_is_gone_on_with(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (tmp_path / "r1" / "run.json").write_text('{"schema_version": 2}')
    with run.reopened():
        run.write_json("run.json", RECORD)
        named = driver_of(run)
        run.write_json("run.json", RECORD)
    assert driver_of(run) == named


def test_without_usable_locks_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(lease.FOLDER, str(tmp_path / "file"))
    said = refusal(lambda: make(RunDirectory.named(str(tmp_path / "results"), "r1")))
    assert "LATENCY_MATRIX_LOCKS" in said
    assert os.listdir(tmp_path) == ["file"]


# A disk without room


class Usage(NamedTuple):
    free: int


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with 25 MB left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(25_000_000))


@pytest.mark.usefixtures("disk")
def test_a_disk_with_too_little_room_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    root = tmp_path / "new" / "results"
    said = refusal(lambda: make(RunDirectory.named(str(root), "r1"), room=70_000_000))
    assert said == (
        f"results can't be kept in {root}/r1: its disk has 25 MB left, and the run may need 70 MB; free some, or give "
        "another --out"
    )
    assert files(tmp_path) == []
    assert not root.exists()


@pytest.mark.usefixtures("disk")
def test_a_run_that_is_there_keeps_what_it_has_when_there_is_too_little_room(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.add_launch("t", launch())
    assert "its disk has 25 MB left" in refusal(lambda: reopen(run, room=25_000_001))
    assert files(tmp_path) == ["r1/samples/t.0000.parquet"]
    reopen(run, room=25_000_000)


@pytest.mark.usefixtures("disk")
def test_a_store_elsewhere_is_not_asked_for_its_room() -> None:
    make(RunDirectory(fs._MockFileSystem(), "results/r1", "store://results/r1"), room=10**15)


def full(*_: object, **__: object) -> Any:
    raise OSError(28, "No space left\non device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_is_one_line_and_leaves_no_half_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.add_launch("t", launch())
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="can't be written") as failed:
        run.add_launch("t", launch(1))
    assert isinstance(failed.value, StoreError)
    said = f"samples/t.0001.parquet can't be written to {tmp_path}/r1: OSError: [Errno 28] No space left"
    assert str(failed.value) == said
    assert files(tmp_path) == ["r1/samples/t.0000.parquet"]


def test_a_folder_that_has_gone_is_a_write_that_fails(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    shutil.rmtree(tmp_path / "r1")
    with pytest.raises(StoreError, match=r"^run\.json can't be written to .*/r1: FileNotFoundError: "):
        run.write_json("run.json", {})


def test_a_directory_that_cant_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    said = refusal(lambda: make(RunDirectory.named(str(tmp_path / "results"), "r1")))
    assert said == f"results can't be kept in {tmp_path}/results/r1: OSError: [Errno 28] No space left"
    assert os.listdir(tmp_path) == []


def test_a_run_that_cant_be_kept_any_more_is_not_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.named(str(tmp_path), "r1")

    def measure() -> None:
        with run.created():
            run.write_json("run.json", {})
            monkeypatch.setattr(os, "replace", full)
            run.add_launch("t", launch())

    with pytest.raises(StoreError):
        measure()
    assert files(tmp_path) == ["r1/run.json"]


@pytest.mark.parametrize("kind", ["local", "s3", "hdfs"])
def test_rows_that_are_no_json_replace_nothing(kind: str, tmp_path: Path) -> None:
    """Found out only after the first of them were written."""
    if kind == "local":
        run = new_run(tmp_path)
    else:
        run = RunDirectory(cast("fs.FileSystem", Watched(kind)), "results/r1", f"{kind}://results/r1")
        make(run)
    run.write_json_rows("matrix.json", [[{"p50_ms": 1.0}], [{"p50_ms": 2.0}]])
    assert json.loads(run.read("matrix.json")) == [{"p50_ms": 1.0}, {"p50_ms": 2.0}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json_rows("matrix.json", [[{"p50_ms": 3.0}], [{"p50_ms": math.nan}]])
    assert json.loads(run.read("matrix.json")) == [{"p50_ms": 1.0}, {"p50_ms": 2.0}]
    if kind == "local":
        assert files(tmp_path) == ["r1/matrix.json"]


# Names


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_run_is_shown_so_that_it_is_found_again(slash: str, tmp_path: Path) -> None:
    """The options of a URI stand behind the run's name."""
    run = new_run(f"{tmp_path.as_uri()}/results{slash}?use_mmap=false")
    assert run.shown == f"{tmp_path.as_uri()}/results/r1?use_mmap=false"
    assert run.local_path == str(tmp_path / "results" / "r1")
    run.write_json("run.json", {"a": 1})
    again = RunDirectory.existing(run.shown)
    assert again.read("run.json") == run.read("run.json")
    assert again.shown == run.shown


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    root = tmp_path / "what is it?really" / "results"
    run = new_run(root)
    assert run.shown == run.local_path == f"{root}/r1"
    run.write_json("run.json", {})
    RunDirectory.existing(run.shown)


@pytest.mark.parametrize("place", ["", "r2", "samples"])
def test_where_there_is_no_run_it_says_so(place: str, tmp_path: Path) -> None:
    new_run(tmp_path).write_json("run.json", {})
    said = refusal(lambda: RunDirectory.existing(f"{tmp_path}/{place}"))
    assert said == f"no run at {tmp_path}/{place}: it has no run.json"


def test_a_launch_tells_which_run_it_is_of_and_comes_back_whole(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.add_launch("a.b@host#2", launch(3), "fingerprint")
    found = run.launch("a.b@host#2", 3)
    assert found.schema.metadata.pop(b"identity") == b"fingerprint"
    assert found.schema.metadata[b"launch"] == launch(3).schema.metadata[b"launch"]
    assert found.replace_schema_metadata(None).equals(launch(3).replace_schema_metadata(None))
    run.add_launch("t", launch(0))
    assert b"identity" not in run.launch("t", 0).schema.metadata  # as the older test of compaction has it


# A store that does not answer


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """What does not return before the test ends; nobody waits for it for long."""
    monkeypatch.setattr(deadline, "REACH_TIMEOUT_S", 0.05)
    over = threading.Event()
    yield lambda *_, **__: over.wait()
    over.set()


def test_what_answers_is_waited_for() -> None:
    assert in_time(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0)


def test_what_does_not_answer_is_given_up(hanging: Callable[..., Any]) -> None:
    before = set(threading.enumerate())
    with pytest.raises(TimeoutError, match=r"^it did not answer within 0 s$"):
        in_time(hanging)
    assert all(thread.daemon for thread in set(threading.enumerate()) - before), "they keep no program from ending"


class Half:
    """A store of which one operation hangs."""

    type_name = "mock"

    def __init__(self, name: str, hanging: Callable[..., Any]) -> None:
        self._inner, self._name, self._hanging = fs._MockFileSystem(), name, hanging

    def __getattr__(self, name: str) -> Any:
        return self._hanging if name == self._name else getattr(self._inner, name)


@pytest.mark.parametrize("operation", ["get_file_info", "create_dir", "open_output_stream", "move", "delete_file"])
def test_a_store_that_hangs_is_refused_in_one_line(operation: str, hanging: Callable[..., Any]) -> None:
    store = cast("fs.FileSystem", Half(operation, hanging))
    said = refusal(lambda: make(RunDirectory(store, "results/r1", "store://results/r1")))
    assert said == "results can't be kept in store://results/r1: TimeoutError: it did not answer within 0 s"


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("open_output_stream", lambda run: run.add_launch("t", launch())),
        ("move", lambda run: run.write_json("run.json", {})),
        ("open_input_file", lambda run: run.read("run.json")),
        ("get_file_info", lambda run: run.names("samples")),
        ("get_file_info", lambda run: run.holds("run.json")),
        ("delete_file", lambda run: run.delete("run.json")),
    ],
)
def test_a_store_that_hangs_later_is_given_up_once_and_for_all(
    operation: str, act: Callable[[RunDirectory], object], hanging: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Half("nothing yet", hanging)
    run = RunDirectory(cast("fs.FileSystem", store), "results/r1", "store://results/r1")
    make(run)
    store._name = operation
    with pytest.raises(StoreError, match=r"store://results/r1: (TimeoutError: )?it did not answer within 0 s$"):
        act(run)
    monkeypatch.setattr(deadline, "REACH_TIMEOUT_S", 1000.0)  # it is not asked again
    with pytest.raises(StoreError, match="does not answer any more"):
        act(run)


def test_what_moves_much_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "REACH_TIMEOUT_S", 0.02)
    moved = deadline.Moved()

    def slowly() -> bool:
        for _ in moved.counting([bytes(100_000)] * 3):
            time.sleep(0.03)
        return True

    assert in_time(slowly, moved)
    with pytest.raises(TimeoutError):
        in_time(lambda: time.sleep(0.3))


def test_a_write_that_was_given_up_does_not_replace_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    run.write("run.json", b"the old one")
    monkeypatch.setattr(deadline, "REACH_TIMEOUT_S", 0.05)
    disk, done, fsync, unlink = threading.Event(), threading.Event(), os.fsync, os.unlink

    def gone(path: str) -> None:
        unlink(path)
        done.set()

    monkeypatch.setattr(os, "fsync", lambda descriptor: (disk.wait(), fsync(descriptor)))
    monkeypatch.setattr(os, "unlink", gone)
    with pytest.raises(StoreError):
        run.write("run.json", b"too late")
    disk.set()
    assert done.wait(10), "what it made is taken away"
    assert (tmp_path / "r1" / "run.json").read_bytes() == b"the old one"


def test_a_root_whose_store_hangs_is_refused_in_one_line(
    hanging: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "fs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=hanging)))
    said = "results root 's3://bucket/results' is not usable: it did not answer within 0 s"
    assert refusal(lambda: open_root("s3://bucket/results")) == said
    assert refusal(lambda: RunDirectory.named("s3://bucket/results", "r1")) == said


@pytest.mark.parametrize(
    "find", [lambda: RunDirectory.named("s3://b/r", "r1"), lambda: RunDirectory.existing("s3://b/r")]
)
def test_a_run_in_a_store_that_hangs_is_refused_in_one_line(
    find: Callable[[], object], hanging: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "open_root", lambda root: (Half("get_file_info", hanging), "b/r"))
    assert refusal(find) == "results can't be kept in s3://b/r: TimeoutError: it did not answer within 0 s"


# A store that shows no half files


class Watched:
    """A store in memory that notes what is done to it."""

    def __init__(self, kind: str) -> None:
        self.type_name, self._inner = kind, fs._MockFileSystem()
        self.done: list[tuple[str, str]] = []

    def open_output_stream(self, path: str) -> Any:
        self.done.append(("write", path))
        return self._inner.open_output_stream(path)

    def move(self, source: str, target: str) -> None:
        self.done.append(("move", target))
        self._inner.move(source, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("kind", ["s3", "gcs", "abfs"])
def test_in_an_object_store_a_file_gets_its_name_at_once(kind: str) -> None:
    assert kind in OBJECT_STORES
    store = Watched(kind)
    run = RunDirectory(cast("fs.FileSystem", store), "bucket/r1", f"{kind}://bucket/r1")
    make(run)
    store.done.clear()
    run.add_launch("t", launch())
    run.write_json("run.json", {})
    assert store.done == [("write", "bucket/r1/samples/t.0000.parquet"), ("write", "bucket/r1/run.json")]
    assert len(launches_in(run)["t"]) == 1


def test_elsewhere_a_file_gets_its_name_when_it_is_whole() -> None:
    store = Watched("hdfs")
    run = RunDirectory(cast("fs.FileSystem", store), "results/r1", "hdfs://results/r1")
    make(run)
    store.done.clear()
    run.write_json("run.json", {})
    assert store.done == [("write", "results/r1/run.json.part"), ("move", "results/r1/run.json")]


def test_a_store_whose_writes_fail_is_one_line_and_shows_nothing_new() -> None:
    store = Watched("hdfs")
    run = RunDirectory(cast("fs.FileSystem", store), "results/r1", "hdfs://results/r1")
    make(run)
    run.write_json("run.json", {"a": 1})
    store.move = full  # type: ignore[method-assign]
    with pytest.raises(StoreError) as failed:
        run.write_json("run.json", {"a": 2})
    (line,) = str(failed.value).splitlines()
    assert line == "run.json can't be written to hdfs://results/r1: OSError: [Errno 28] No space left"
    assert run.read("run.json") == b'{\n "a": 1\n}\n'
    with suppress(StoreError):
        run.add_launch("t", launch())
    assert run.sample_files() == []
