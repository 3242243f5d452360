"""W&B offline, read back byte by byte; a server that does not answer; and who decides between them."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from launches import ALL, WORKLOAD, made_launch
from pyarrow import fs

from chatbot.errors import UsageError
from ray_jobs import wandb_sink
from ray_jobs.directory import RunDirectory
from ray_jobs.rows import COLUMNS, Row, TrialInfo, rows_of
from ray_jobs.samples import rows_table, to_table
from ray_jobs.spec import read_spec
from ray_jobs.wandb_sink import WandbSink, resolve_mode, summary_of

RUN = "20261123-120000-abcd"
TRIAL = "cpu-b1-p4-r5-t1@host"
CLOSED_PORT = "http://127.0.0.1:9"  # nothing listens there
KEY = "0123456789" * 4
SPEC = read_spec(None, {})
BLOCK = 32 * 1024  # of LevelDB's log format


# The mode


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which nothing is said of W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return monkeypatch


@pytest.mark.parametrize("asked", ["online", "offline", "off"])
@pytest.mark.parametrize("said", [None, "offline", "disabled"])
def test_a_mode_that_is_asked_for_is_taken(asked: str, said: str | None, bare: pytest.MonkeyPatch) -> None:
    if said is not None:
        bare.setenv("WANDB_MODE", said)
    assert resolve_mode(asked) == asked


@pytest.mark.parametrize(
    ("said", "mode"),
    [("online", "online"), ("offline", "offline"), ("dryrun", "offline"), ("disabled", "off"), ("nonsense", "off")],
)
@pytest.mark.parametrize("key", ["", KEY])
def test_auto_follows_the_environments_mode_with_and_without_a_key(
    said: str, mode: str, key: str, bare: pytest.MonkeyPatch
) -> None:
    bare.setenv("WANDB_MODE", said)
    bare.setenv("WANDB_API_KEY", key)
    assert resolve_mode("auto") == mode


def test_auto_is_offline_without_a_key(bare: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto") == "offline"


def test_auto_is_online_with_a_key_in_the_environment(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WANDB_API_KEY", KEY)
    assert resolve_mode("auto") == "online"


def login(folder: Path, host: str, name: str = ".netrc") -> Path:
    path = folder / name
    path.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("server", "host", "mode"),
    [
        (None, "api.wandb.ai", "online"),
        (None, "wandb.example.com", "offline"),
        ("https://wandb.example.com:8080/", "wandb.example.com", "online"),
        ("https://wandb.example.com", "api.wandb.ai", "offline"),
    ],
)
@pytest.mark.parametrize("named", [True, False], ids=["NETRC", "~/.netrc"])
def test_auto_is_online_with_a_login_for_the_server(
    server: str | None, host: str, mode: str, named: bool, bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if server is not None:
        bare.setenv("WANDB_BASE_URL", server)
    path = login(tmp_path, host, "elsewhere" if named else ".netrc")
    if named:
        bare.setenv("NETRC", str(path))
    assert resolve_mode("auto") == mode


@pytest.mark.parametrize("content", [None, "machine", "\n"])
def test_auto_is_offline_with_a_missing_or_broken_login_file(
    content: str | None, bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "netrc").write_text(content)
    bare.setenv("NETRC", str(tmp_path / "netrc"))
    assert resolve_mode("auto") == "offline"


def test_an_unknown_mode_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"^unknown wandb mode 'on'; choose from: auto, online, offline, off$"):
        resolve_mode("on")


# The summary


def cells() -> list[Row]:
    """The rows of a trial that is done, and of one that was skipped."""
    times = [{"eager": 10.0 + i / 10, "eager-again": 10.0, "torchscript": 8.0} for i in range(10)]
    made = [made_launch(walls, index=i) for i, walls in enumerate(times)]
    done = TrialInfo(RUN, TRIAL, WORKLOAD, ALL, precision=0.0001, margin=0.02)
    skipped = TrialInfo(RUN, "cuda-b1-p4-r5-t1@none", WORKLOAD, ALL, 0.01, 0.02)
    return [*rows_of(done, "done", None, made), *rows_of(skipped, "skipped", "no station of kind cuda")]


def test_summary_has_the_known_figures_of_each_cell_under_a_stable_name() -> None:
    torchscript = next(row for row in cells() if row.variant == "torchscript")
    figures = {key: value for key, value in summary_of(cells()).items() if "/torchscript/" in key}
    assert figures == {
        f"{TRIAL}/torchscript/p50_ms": 8.0,
        f"{TRIAL}/torchscript/speedup": torchscript.speedup,
        f"{TRIAL}/torchscript/speedup_low": torchscript.speedup_low,
        f"{TRIAL}/torchscript/speedup_high": torchscript.speedup_high,
        f"{TRIAL}/torchscript/verdict": "faster",
    }


# A process that publishes


def publish(mode: str, root: Path) -> None:
    """The driver's part, in a process of its own (this file as a program): starts, goes on, finishes."""
    wandb_sink.PATIENCE_S = 3
    run_dir = RunDirectory.named(str(root), RUN)
    with run_dir.created():
        run_dir.add_launch(TRIAL, to_table(TRIAL, made_launch({"eager": 1.0})))
        run_dir.write_table("matrix.parquet", rows_table([asdict(row) for row in cells()]))
        started = time.monotonic()
        sink = WandbSink(mode, run_dir)
        sink.start(RUN, SPEC, {"driver": {"python": "3"}})
        sink.progress(cells())
        sink.finish(cells(), run_dir)
    print(json.dumps({"seconds": time.monotonic() - started, "sync": sink.sync_command}))


class Published:
    """What became of such a process."""

    def __init__(self, mode: str, folder: Path) -> None:
        kept = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR", "HOME")
        silent = {"WANDB_ERROR_REPORTING": "false", "WANDB_BASE_URL": CLOSED_PORT, "WANDB_API_KEY": KEY}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        done = subprocess.run(
            [sys.executable, __file__, mode, str(folder)],
            env={**inherited, **silent, **dict.fromkeys(kept, str(folder / "home")), "PYTHONPATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.folder, self.code, self.errors = folder, done.returncode, done.stderr
        self.said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if self.code == 0 else {}
        self.offline_files = list(folder.glob("*/wandb/offline-run-*/*.wandb"))

    @property
    def lines(self) -> list[str]:
        """What the sink said on stderr; the client's own notice that it found a key is not the sink's."""
        return [line for line in self.errors.splitlines() if "Loaded credentials" not in line]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published("offline", tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def unanswered(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published("online", tmp_path_factory.mktemp("unanswered"))


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: a header, then LevelDB's log of 32 KiB blocks."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert struct.unpack("<4sH", data[:6]) == (b":W&B", 0xBEE1)
    position, whole = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        checksum, size, kind = struct.unpack("<IHB", data[position : position + 7])
        part = data[position + 7 : position + 7 + size]
        assert zlib.crc32(bytes([kind]) + part) == checksum
        position, whole = position + 7 + size, whole + part
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def of_kind(run: Published, kind: str) -> list[Any]:
    (path,) = run.offline_files
    return [getattr(record, kind) for record in records(path) if record.WhichOneof("record_type") == kind]


def test_an_offline_run_holds_the_spec_and_the_environment(offline: Published) -> None:
    (run,) = of_kind(offline, "run")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert (run.run_id, run.display_name, run.project) == (RUN, RUN, "latency-matrix")
    assert config["spec"] == SPEC.model_dump(mode="json")
    assert config["environment"] == {"driver": {"python": "3"}}
    assert set(run.tags) == {"small", "cpu"}


def test_an_offline_run_holds_each_cells_figures_in_its_summary(offline: Published) -> None:
    written: dict[str, Any] = {}
    for summary in of_kind(offline, "summary"):
        written |= {
            update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in summary.update
        }
    for name, value in summary_of(cells()).items():
        assert written[name] == (value if isinstance(value, str) else pytest.approx(value))


def test_an_offline_run_holds_the_matrix_as_a_table(offline: Published) -> None:
    items = {"/".join(item.nested_key): item.value_json for row in of_kind(offline, "history") for item in row.item}
    stored = json.loads(items["matrix/path"])
    table = json.loads((offline.offline_files[0].parent / "files" / stored).read_text())
    assert table["columns"] == list(COLUMNS)
    expected = [{**asdict(row), "warnings": "; ".join(row.warnings)} for row in cells()]
    found = [dict(zip(COLUMNS, values, strict=True)) for values in table["data"]]
    assert found == expected
    assert any(row["warnings"] for row in found)


def test_an_offline_run_holds_the_samples_as_an_artifact(offline: Published) -> None:
    (artifact,) = [artifact for artifact in of_kind(offline, "artifact") if artifact.type == "samples"]
    assert artifact.name == f"samples-{RUN}"
    paths = {entry.path: entry.size for entry in artifact.manifest.contents}
    folder = offline.folder / RUN
    samples = f"{TRIAL}.0000.parquet"
    assert paths == {
        samples: (folder / "samples" / samples).stat().st_size,
        "matrix.parquet": (folder / "matrix.parquet").stat().st_size,
    }


def test_an_offline_run_says_how_to_upload_it(offline: Published) -> None:
    assert offline.said["sync"] == f"wandb sync {offline.offline_files[0].parent}"


def test_an_offline_run_has_nothing_to_complain_of(offline: Published) -> None:
    assert offline.code == 0
    assert "the measurement goes on" not in offline.errors


def test_a_server_that_refuses_does_not_cost_the_measurement(unanswered: Published) -> None:
    assert unanswered.code == 0, unanswered.errors
    assert unanswered.said["seconds"] < 60


def test_a_server_that_refuses_is_spoken_of_in_one_line(unanswered: Published) -> None:
    said = [line for line in unanswered.lines if "Adding directory to artifact" not in line]
    assert len(said) == 1, said


def test_without_a_server_the_run_is_written_offline_after_all(unanswered: Published, offline: Published) -> None:
    assert len(unanswered.offline_files) == 1
    assert unanswered.said["sync"] == f"wandb sync {unanswered.offline_files[0].parent}"
    kinds = ("run", "history", "artifact")
    assert [len(of_kind(unanswered, kind)) for kind in kinds] == [len(of_kind(offline, kind)) for kind in kinds]


@pytest.mark.parametrize("run", ["offline", "unanswered"])
def test_no_process_of_wandb_outlives_the_run(run: str, request: pytest.FixtureRequest) -> None:
    published: Published = request.getfixturevalue(run)
    deadline = time.monotonic() + 30
    while alive := processes_of(published.folder):
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def processes_of(folder: Path) -> Mapping[str, str]:
    """The live processes whose environment names the folder, by number."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if str(folder).encode() in (process / "environ").read_bytes():
                    found[process.name] = (process / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # it has ended, or is not ours
    return found


# Off, and what a user should hear of trouble


def test_off_writes_nothing_and_needs_no_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    local, remote = RunDirectory.named(str(tmp_path), RUN), RunDirectory(fs._MockFileSystem(), "r", "store://r")
    for run_dir in (local, remote):
        sink = WandbSink("off", run_dir)
        sink.start(RUN, SPEC, {})
        sink.progress(cells())
        sink.finish(cells(), run_dir)
        assert sink.sync_command is None
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_cant_be_imported_costs_one_line_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run_dir = RunDirectory.named(str(tmp_path), RUN)
    sink = WandbSink("offline", run_dir)
    sink.start(RUN, SPEC, {})
    sink.progress(cells())
    sink.finish(cells(), run_dir)
    assert sink.sync_command is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wandb: ")
    assert line.endswith("; the measurement goes on")


if __name__ == "__main__":
    publish(sys.argv[1], Path(sys.argv[2]))
