"""W&B offline, read back byte by byte; online, against a server; and what becomes of a run where that fails."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launches import ALL, made_launch, made_trial, stolen
from pyarrow import fs
from runs import finished_run, trial_at
from wandb_server import Server, StoredArtifact, serving

from chatbot.errors import UsageError
from ray_jobs.cli.app import app
from ray_jobs.matrix.rows import COLUMNS, Row, rows_of
from ray_jobs.measure.trial import Place
from ray_jobs.report.compact import compact
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.wandb_sink import content
from ray_jobs.wandb_sink.content import Head, distributions_of, files_of, speedups_of, summary_of
from ray_jobs.wandb_sink.mode import resolve_mode
from ray_jobs.wandb_sink.sink import PATIENCE_S, WandbSink

pytestmark = pytest.mark.process

RUN = "20261123-120000-abcd"
HOST = "host.example"  # W&B's client takes a dot in some names for a nesting
PLACED = trial_at(RUN, ALL, host=HOST)
TRIAL = PLACED[0].id
KEY = "0123456789" * 4
CLOSED_PORT = "http://127.0.0.1:9"  # nothing listens there
BLOCK = 32 * 1024  # of LevelDB's log format
LAUNCHES = [
    made_launch({"eager": 10.0 + i / 10, "eager-again": 10.0, "torchscript": 8.0}, index=i, rounds=4) for i in range(10)
]
SLACK_S = 4.0  # a busy machine's, beside the 10 s that are promised


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


# What is told


def skipped() -> list[Row]:
    trial = made_trial("cuda-b1-p4-r5-t1@none", run_id=RUN)
    return rows_of(trial, Place(), "skipped", "no station of kind cuda")


def a_run(folder: Path, name: str = RUN) -> RunDirectory:
    """The directory of a finished run: one trial that is done, one that was skipped, a report and a trace."""
    run_dir = RunDirectory.named(str(folder), name)
    finished_run(run_dir, [(PLACED, LAUNCHES)], more=skipped())
    run_dir.write("report.html", b"<!doctype html>")
    (folder / name / "traces").mkdir()
    run_dir.write("traces/eager.json.gz", b"trace")
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Read only."""
    return a_run(tmp_path_factory.mktemp("run"))


def rows_in(directory: RunDirectory) -> Sequence[Row]:
    return FinishedRun.of(directory.shown).rows


def test_summary_has_the_known_figures_of_each_cell_under_a_stable_name(run_dir: RunDirectory) -> None:
    rows = rows_in(run_dir)
    torchscript = next(row for row in rows if row.variant == "torchscript")
    figures = {key: value for key, value in summary_of(rows).items() if "/torchscript/" in key}
    assert figures == {
        f"{TRIAL}/torchscript/p50_ms": 8.0,
        f"{TRIAL}/torchscript/speedup": torchscript.speedup,
        f"{TRIAL}/torchscript/speedup_low": torchscript.speedup_low,
        f"{TRIAL}/torchscript/speedup_high": torchscript.speedup_high,
        f"{TRIAL}/torchscript/verdict": "faster",
    }


def test_the_chart_shows_the_variants_with_a_speedup_the_fastest_first(run_dir: RunDirectory) -> None:
    cells = speedups_of(rows_in(run_dir))
    assert [cell for cell, _ in cells] == [f"torchscript {TRIAL}", f"eager-again {TRIAL}"]
    assert cells[0][1] == pytest.approx(1.305, abs=0.001)


def test_a_distribution_holds_the_kept_calls_and_leaves_out_the_slowest(tmp_path: Path) -> None:
    walls = np.full((100, 1), 5.0) + np.arange(100)[:, None] / 100
    walls[7], walls[99] = 900.0, 700.0  # a round that is discarded, and the slowest that is kept
    launch = made_launch({"eager": walls}, rounds=100, calls=1, interference=stolen(100, [7]))
    finished_run(RunDirectory.named(str(tmp_path), RUN), [(trial_at(RUN, ("eager",)), [launch])])
    ((name, found),) = distributions_of(FinishedRun.of(str(tmp_path / RUN))).items()
    assert name == "cpu-b1-p4-r5-t1@host/eager"
    assert found.counts.sum() == 98
    assert (found.edges_ms[0], found.edges_ms[-1]) == (5.0, pytest.approx(5.98, abs=0.05))


def test_of_too_many_cells_the_first_have_a_distribution(
    run_dir: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MOST_DISTRIBUTIONS", 2)
    found = distributions_of(FinishedRun.of(run_dir.shown))
    assert list(found) == [f"{TRIAL}/eager", f"{TRIAL}/eager-again"]


def test_the_id_tells_runs_apart_and_is_always_the_same() -> None:
    assert content.run_id("nightly", "2026-11-23") == content.run_id("nightly", "2026-11-23")
    assert content.run_id("nightly", "2026-11-23") != content.run_id("nightly", "2026-11-24")
    assert re.fullmatch(r"a-b-c-[0-9a-f]{6}", content.run_id("a b?c", "2026"))
    assert len(content.run_id("x" * 300, "2026")) < 128


def test_long_names_are_cut_to_what_wandb_takes() -> None:
    trial = {"station": "s", "hardware": "h" * 200, "workload": {"device": "cpu"}}
    spec = {"model": f"/models/{'m' * 200}.pt", "device": ["cpu"]}
    head = Head.of({"run_id": "r", "started": "2026", "spec": spec, "trials": {"t": trial}})
    assert max(map(len, head.tags)) == 64
    assert len(head.group) == 128


def test_a_compacted_run_tells_the_same(run_dir: RunDirectory, tmp_path: Path) -> None:
    compact(run_dir, RunDirectory.named(str(tmp_path), "small"))
    whole, small = FinishedRun.of(run_dir.shown), FinishedRun.of(str(tmp_path / "small"))
    renamed = {key.replace(HOST, "host-1"): value for key, value in summary_of(whole.rows).items()}
    assert summary_of(small.rows) == renamed
    before, after = distributions_of(whole), distributions_of(small)
    assert [one.counts.tolist() for one in after.values()] == [one.counts.tolist() for one in before.values()]
    assert {"samples/launches.parquet", "run.json"} <= set(files_of(small.directory, tmp_path)["samples"])


def test_files_of_an_object_store_are_copied_first(run_dir: RunDirectory, tmp_path: Path) -> None:
    assert run_dir.local_path is not None
    store = fs.SubTreeFileSystem(str(Path(run_dir.local_path).parent), fs.LocalFileSystem())
    distant = RunDirectory(store, RUN, f"s3://bucket/{RUN}")
    assert distant.local_path is None
    near, far = files_of(run_dir, tmp_path), files_of(distant, tmp_path)
    assert {kind: set(files) for kind, files in far.items()} == {kind: set(files) for kind, files in near.items()}
    for kind, files in far.items():
        for name, path in files.items():
            assert path.is_relative_to(tmp_path)
            assert path.read_bytes() == near[kind][name].read_bytes()


# A driver


@dataclass
class Told:
    """What became of a run that was published."""

    folder: Path
    waited: float = 0.0  # seconds
    result: str | None = None
    failed: bool = False
    errors: str = ""


def environment(folder: Path, url: str) -> dict[str, str]:
    """Nothing of the user's own W&B, and a folder by which the processes are known."""
    kept = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR", "HOME")
    silent = {"WANDB_ERROR_REPORTING": "false", "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    path = os.pathsep.join([str(Path(__file__).parent.parent), inherited.get("PYTHONPATH", "")])
    return {**inherited, **silent, **dict.fromkeys(kept, str(folder / "home")), "PYTHONPATH": path}


@contextmanager
def surroundings(folder: Path, url: str = CLOSED_PORT, **more: str) -> Iterator[None]:
    """This process's own environment, for the client's process to inherit."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({**environment(folder, url), **more})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def drive(sink: WandbSink, told: Told, rows: Sequence[Row], trials: int = 1) -> None:
    """What a driver does: starts, goes on for so many trials, finishes."""
    for step in (sink.start, *[lambda: sink.progress(rows)] * trials, sink.finish):
        began = time.monotonic()
        step()
        told.waited += time.monotonic() - began
    told.result, told.failed = sink.result, sink.failed


def driven(folder: Path, mode: str, directory: RunDirectory, patience_s: float = 120.0) -> Told:
    told, said = Told(folder), StringIO()
    with redirect_stderr(said):
        drive(WandbSink(mode, directory, patience_s), told, rows_in(directory))
    told.errors = said.getvalue()
    return told


def leaves_nothing_behind(told: Told) -> None:
    """No process."""
    deadline = time.monotonic() + 30
    while alive := processes_of(told.folder):
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def processes_of(folder: Path) -> Mapping[str, str]:
    """The live processes whose environment names the folder, by number."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if str(folder).encode() in (process / "environ").read_bytes():
                    found[process.name] = (process / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue  # it has ended, or is not ours
    return found


# Offline


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("offline")
    with surroundings(folder):
        return driven(folder, "offline", a_run(folder))


def log_of(told: Told) -> Path:
    (path,) = told.folder.glob(f"{RUN}/wandb/offline-run-*/*.wandb")
    return path


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


def of_kind(told: Told, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(log_of(told)) if record.WhichOneof("record_type") == kind]


def test_an_offline_run_holds_the_spec_and_the_environment(offline: Told) -> None:
    (run,) = of_kind(offline, "run")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    written = json.loads((offline.folder / RUN / "run.json").read_text())
    assert (run.display_name, run.project) == (RUN, "latency-matrix")
    assert run.run_id == content.run_id(RUN, written["started"])
    assert (run.run_group, set(run.tags)) == ("small on cpu Intel", {"small", "cpu", "cpu Intel"})
    for part in ("spec", "environment", "identity", "started"):
        assert config[part] == written[part]


def test_an_offline_run_tells_nothing_of_the_driver_but_what_the_run_directory_holds(offline: Told) -> None:
    (run,) = of_kind(offline, "run")
    assert run.host == "hidden"
    assert of_kind(offline, "environment") == []
    log = log_of(offline).read_bytes()
    assert sys.executable.encode() not in log
    assert b"wandb_sink.client" not in log
    assert not list(offline.folder.glob(f"{RUN}/wandb/offline-run-*/files/requirements.txt"))


def test_an_offline_run_holds_each_cells_figures_in_its_summary(offline: Told) -> None:
    written: dict[str, Any] = {}
    for summary in of_kind(offline, "summary"):
        written |= {
            update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in summary.update
        }
    for name, value in summary_of(rows_in(RunDirectory.existing(str(offline.folder / RUN)))).items():
        assert written[name] == (value if isinstance(value, str) else pytest.approx(value))


def history_of(told: Told) -> dict[str, Any]:
    """The one step of history."""
    (row,) = of_kind(told, "history")
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}


def test_an_offline_run_holds_the_matrix_as_a_table(offline: Told) -> None:
    stored = next(value for key, value in history_of(offline).items() if key in ("matrix/path", "matrix"))
    stored = stored if isinstance(stored, str) else stored["path"]
    table = json.loads((log_of(offline).parent / "files" / stored).read_text())
    assert table["columns"] == list(COLUMNS)
    rows = rows_in(RunDirectory.existing(str(offline.folder / RUN)))
    expected = [{**asdict(row), "warnings": "; ".join(row.warnings)} for row in rows]
    found = [dict(zip(COLUMNS, values, strict=True)) for values in table["data"]]
    assert found == expected
    assert any(row["warnings"] for row in found)


def test_an_offline_run_holds_the_distribution_of_each_cell(offline: Told) -> None:
    keys = " ".join(history_of(offline))
    for variant in ALL:
        assert f"latency_ms/{TRIAL}/{variant}" in keys


def test_an_offline_run_holds_the_run_the_report_and_the_traces_as_artifacts(offline: Told) -> None:
    identity = of_kind(offline, "run")[0].run_id
    folder = offline.folder / RUN
    names = {a.name: {e.path: e.size for e in a.manifest.contents} for a in of_kind(offline, "artifact")}
    samples = [f"samples/{TRIAL}.{i:04d}.parquet" for i in range(10)]
    results = ["run.json", "matrix.json", "matrix.parquet", "classes.json", "classes.parquet"]
    for kind, files in {
        "samples": [*results, *samples],
        "report": ["report.html"],
        "traces": ["traces/eager.json.gz"],
    }.items():
        assert names[f"{kind}-{identity}"] == {name: (folder / name).stat().st_size for name in files}


def test_an_offline_run_says_how_to_upload_it_and_has_nothing_to_complain_of(offline: Told) -> None:
    assert offline.result == f"W&B: written offline; to upload: wandb sync {log_of(offline).parent}"
    assert offline.errors == ""
    leaves_nothing_behind(offline)


# Online


@dataclass
class Known:
    """What a server knew of the one run after it was published."""

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    artifacts: list[StoredArtifact]
    config: dict[str, Any]

    @classmethod
    def of(cls, server: Server) -> "Known":
        (run,) = server.runs.values()
        own = {key: value for key, value in run.summary.items() if not key.startswith("_")}
        return cls(own, run.history, [replace(artifact) for artifact in server.artifacts], run.config)


@dataclass
class Published:
    """A run that was published three times: to a server that took no files, then twice to one that takes all."""

    server: Server
    refused: Told
    code: int  # of the command, which is the second
    out: str
    first: Known
    again: Told
    second: Known

    @property
    def rows(self) -> Sequence[Row]:
        return rows_in(RunDirectory.existing(str(self.refused.folder / RUN)))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    directory = a_run(folder)
    with serving("refuse", "PUT") as server, surroundings(folder, server.url):
        refused = driven(folder, "online", directory)
        server.way = "answer"
        command = [sys.executable, "-m", "ray_jobs", "publish", directory.shown, "--wandb", "online"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
        assert re.fullmatch(r"W&B: online, .* at 127\.0\.0\.1; --wandb off keeps the run here\n", done.stderr)
        first = Known.of(server)
        again = driven(folder, "online", directory)
        yield Published(server, refused, done.returncode, done.stdout, first, again, Known.of(server))


def test_files_that_a_server_refuses_are_not_called_sent(published: Published) -> None:
    assert published.refused.failed
    assert published.refused.result is None
    assert "most remaining uploads" in published.refused.errors


def test_a_server_gets_all_of_the_run(published: Published) -> None:
    known = published.first
    identity = content.run_id(RUN, known.config["started"])
    assert published.code == 0
    assert published.out == f"W&B: {published.server.url}/team/latency-matrix/runs/{identity}\n"
    for name, value in summary_of(published.rows).items():
        assert known.summary[name] == (value if isinstance(value, str) else pytest.approx(value))
    assert known.config["spec"]["variants"] == list(ALL)
    (row,) = known.history
    assert {"matrix", "speedup_table", *(f"latency_ms/{TRIAL}/{variant}" for variant in ALL)} <= set(row)
    kinds = {artifact.kind: artifact.state for artifact in known.artifacts}
    assert kinds == dict.fromkeys(("samples", "report", "traces", "run_table"), "COMMITTED")
    samples = (published.refused.folder / RUN / f"samples/{TRIAL}.0003.parquet").read_bytes()
    assert samples in published.server.uploads.values()


def test_what_is_published_again_is_there_once(published: Published) -> None:
    assert published.again.result == published.out.strip()
    first, second = published.first, published.second
    assert len(published.server.runs) == 1
    assert len(first.history) == 1
    assert second.history == first.history
    figures = {name: value for name, value in first.summary.items() if not isinstance(value, dict)}
    assert {name: second.summary[name] for name in figures} == figures
    assert set(second.summary) == set(first.summary)
    assert second.artifacts == first.artifacts
    (run,) = published.server.runs.values()
    assert (run.complete, run.exit_code) == (True, 0)
    leaves_nothing_behind(published.again)


# A server in trouble

HALF_WAY = "CreateArtifact.*|file_stream|PUT"
MANY = 2000  # trials: more than what lies between the processes can hold
SILENCES = {"stalls": ("stall", ".*"), "stalls half-way": ("stall", HALF_WAY), "drops half-way": ("drop", HALF_WAY)}


@pytest.fixture(scope="module")
def unanswered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """A driver for each way to be silent, with the usual patience and all at once: most of them only wait."""
    folder, told, said = tmp_path_factory.mktemp("unanswered"), dict[str, Told](), StringIO()
    with redirect_stderr(said), ExitStack() as stack:
        for name, (way, when) in SILENCES.items():
            told[name] = Told(folder / name.replace(" ", "-"))
            directory = a_run(told[name].folder)
            url = stack.enter_context(serving(way, when)).url
            sink = WandbSink("online", directory)
            thread = threading.Thread(target=drive, args=(sink, told[name], rows_in(directory), MANY))
            stack.callback(thread.join)
            with surroundings(told[name].folder, url):
                thread.start()
                while sink._process is None:
                    time.sleep(0.01)
    for one in told.values():
        one.errors = "".join(line for line in said.getvalue().splitlines(True) if str(one.folder / RUN) in line)
    return told


@pytest.mark.parametrize("silence", SILENCES)
def test_a_silent_server_costs_ten_seconds_at_most_and_one_line(silence: str, unanswered: dict[str, Told]) -> None:
    told = unanswered[silence]
    assert told.waited < PATIENCE_S + SLACK_S
    assert (told.failed, told.result) == (True, None)
    again = f"python -m ray_jobs publish {told.folder / RUN}"
    assert told.errors == f"wandb: W&B did not answer in time; the run is unharmed, send it later: {again}\n"
    leaves_nothing_behind(told)


@pytest.mark.parametrize(("when", "why"), [(".*", "CommError: .*403"), ("file_stream", "NotWholeError: .*Fatal error")])
def test_a_server_that_refuses_is_quoted_in_one_line(when: str, why: str, tmp_path: Path) -> None:
    with serving("refuse", when) as server, surroundings(tmp_path, server.url):
        told = driven(tmp_path, "online", a_run(tmp_path))
    assert (told.failed, told.result) == (True, None)
    said, line = told.errors.splitlines()
    assert said.startswith("W&B: online, project latency-matrix of ")
    assert re.match(f"wandb: {why}", line)
    leaves_nothing_behind(told)


@pytest.mark.parametrize("silence", SILENCES)
def test_the_run_itself_is_as_it_was(silence: str, unanswered: dict[str, Told], run_dir: RunDirectory) -> None:
    directory = RunDirectory.existing(str(unanswered[silence].folder / RUN))
    assert rows_in(directory) == rows_in(run_dir)
    for name in run_dir.sample_files():
        assert directory.read(f"samples/{name}") == run_dir.read(f"samples/{name}")
    assert directory.names() == run_dir.names()


def test_a_driver_that_dies_takes_the_client_along(tmp_path: Path) -> None:
    program = (
        "import sys; from ray_jobs.results.store import RunDirectory; from ray_jobs.wandb_sink.sink import WandbSink; "
        "WandbSink('online', RunDirectory.existing(sys.argv[1]), 300).finish()"
    )
    with serving("stall") as server, tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as scratch:
        arguments = [sys.executable, "-c", program, a_run(tmp_path).shown]
        env = {**environment(tmp_path, server.url), "TMPDIR": scratch}  # a process that is killed leaves its files
        driver = subprocess.Popen(arguments, env=env, cwd=tmp_path)
        try:
            deadline = time.monotonic() + 120
            while len(processes_of(tmp_path)) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        leaves_nothing_behind(Told(tmp_path))


# Off, and what a user should hear of trouble


def test_off_writes_nothing_and_needs_no_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    local, remote = RunDirectory.named(str(tmp_path), RUN), RunDirectory(fs._MockFileSystem(), "r", "store://r")
    for directory in (local, remote):
        sink = WandbSink("off", directory)
        sink.start()
        sink.progress(skipped())
        sink.finish()
        assert (sink.result, sink.failed) == (None, False)
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_cant_be_imported_costs_one_line_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise ImportError('no such thing')")
    path = os.pathsep.join([str(tmp_path / "broken"), environment(tmp_path, "")["PYTHONPATH"]])
    with surroundings(tmp_path, PYTHONPATH=path):
        told = driven(tmp_path, "offline", a_run(tmp_path))
    assert told.failed
    assert told.errors.startswith("wandb: ImportError: no such thing; the run is unharmed, send it later: ")


def test_a_run_whose_samples_cant_be_read_is_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path)
    path = next((tmp_path / RUN / "samples").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.chdir(tmp_path)
    with surroundings(tmp_path):
        assert app(["publish", RUN, "--wandb", "offline"], standalone_mode=False) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"wandb: {RUN}: samples/{path.name} can't be read: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "options", "said"),
    [
        ("nowhere", [], "no run at nowhere: it has no run.json"),
        ("begun", [], "begun is not a finished run: it has no matrix.json; finish it with: "),
        ("broken", [], "broken can't be read: its run.json or matrix.json is broken"),
        (RUN, ["--wandb", "off"], "--wandb off publishes nothing"),
        (RUN, ["--wandb", "maybe"], "unknown wandb mode 'maybe'"),
    ],
)
def test_what_cant_be_published_is_one_line(
    place: str,
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a_run(tmp_path)
    for name, matrix in {"begun": None, "broken": "{"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        if matrix is not None:
            (tmp_path / name / "matrix.json").write_text(matrix)
    monkeypatch.chdir(tmp_path)
    assert app(["publish", place, *options], standalone_mode=False) == 2
    assert capsys.readouterr().err.startswith(f"ray_jobs: {said}")
