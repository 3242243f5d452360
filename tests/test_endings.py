"""How a command ends: one line and a code of its own, whatever happened and whatever the terminal can show."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from pyarrow import fs
from typer.testing import CliRunner

import chatbot.__main__ as chatbot_entry
import ray_jobs.__main__ as entry
from chatbot import cli as chatbot_commands
from chatbot import console
from chatbot.errors import UsageError
from ray_jobs.cli import app as commands
from ray_jobs.cli.matrix import _measure, _safe
from ray_jobs.cluster.job import IN_A_JOB, check_uploaded
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.cluster.signals import Terminated
from ray_jobs.driver.run import Where
from ray_jobs.provenance import typed
from ray_jobs.results.filesystem import StoreError
from ray_jobs.results.schema import VERSION
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import Spec
from ray_jobs.wandb_sink.sink import WandbSink

ROOT = Path(__file__).resolve().parent.parent


class Named(console.Commands):
    program = "program"


def ended_by(error: BaseException, *arguments: str) -> Any:
    alone = typer.Typer(cls=Named, rich_markup_mode=None)

    @alone.command()
    def work() -> None:
        raise error

    @alone.command()
    def other() -> None: ...

    return CliRunner().invoke(alone, ["work", *arguments])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no"), 2, "program: no\n"),
        (KeyboardInterrupt(), 130, "program: interrupted\n"),
        (Terminated(signal.SIGTERM), 143, "program: terminated\n"),
        (Terminated(signal.SIGHUP), 129, "program: terminated\n"),
        (StoreError("run.json can't be written: disk full"), 70, "program: unexpected StoreError: run.json can't be"),
        (KeyError("x"), 70, "program: unexpected KeyError: 'x'; --debug shows the traceback\n"),
        (ValueError("a\nb"), 70, "program: unexpected ValueError: a; --debug"),
        (FileNotFoundError(2, "No such file"), 70, "program: unexpected FileNotFoundError: [Errno 2] No such file"),
        (MemoryError(), 70, "program: unexpected MemoryError"),
    ],
)
def test_an_end_is_one_line_and_its_own_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(console.DEBUG, raising=False)
    done = ended_by(error)
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
    assert done.stderr.startswith(said)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(console.DEBUG, "1")
    done = ended_by(KeyError("x"))
    assert done.exit_code == 70
    assert "Traceback" in done.stderr


def test_a_note_is_in_the_line() -> None:
    error = RuntimeError("x")
    error.add_note("Ray's logs are in /tmp/lm-1")
    assert "; Ray's logs are in /tmp/lm-1;" in ended_by(error).stderr


def test_a_wrong_flag_is_clicks_own_refusal() -> None:
    done = ended_by(KeyError("x"), "--nosuch")
    assert done.exit_code == 2
    assert "No such option" in done.stderr


@pytest.mark.parametrize("arguments", [["--debug", "report"], ["report", "--debug"]])
def test_debug_may_stand_before_or_after_the_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latency-matrix", *arguments])
    monkeypatch.setenv(console.DEBUG, "")
    console.prepare()
    assert sys.argv == ["latency-matrix", "report"]
    assert os.environ[console.DEBUG] == "1"


def test_main_is_told_a_signal_outside_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(commands, "app", app)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 143
    assert capsys.readouterr().err == "ray_jobs: terminated\n"


def test_what_measures_needs_linux_and_what_reads_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    done = CliRunner().invoke(commands.app, ["matrix"])
    assert (done.exit_code, done.stderr) == (
        2,
        "ray_jobs: Linux is needed, and this is darwin: run matrix on a Linux machine\n",
    )
    assert "no run at nowhere" in CliRunner().invoke(commands.app, ["report", "nowhere"]).stderr


def test_a_python_that_can_not_pin_is_refused_before_anything_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each use would be an AttributeError of its own."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    done = CliRunner().invoke(commands.app, ["matrix"])
    assert done.exit_code == 2
    assert done.stderr.startswith("ray_jobs: Linux is needed, and this is a Python that can't pin a process")
    assert done.stderr.count("\n") == 1


@pytest.mark.process
def test_a_lost_head_leaves_no_scratch_folder_of_w_and_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends by ``os._exit`` then, which cleans up nothing."""

    def run(spec: Any, run_id: str, directory: RunDirectory, where: Any, sink: WandbSink, *rest: Any) -> None:
        sink.start()
        assert list(scratch.iterdir()), "W&B's client has a folder"
        raise ClusterLostError("the head is gone")

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("ray_jobs.driver.run.run", run)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # in place of W&B's client
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        _measure(Spec(), None, str(tmp_path), None, Where("local"), "online", as_json=False)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "name"), [("/opt/bin/latency-matrix", "latency-matrix"), ("/x/__main__.py", "python -m ray_jobs")]
)
def test_hints_name_what_was_typed(first: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [first])
    assert typed() == name


PRINTING = "from chatbot import console; console.prepare(); print('1.4x \\u00b13% \\u2192 \\u4e2d')"


@pytest.mark.process
def test_a_terminal_without_a_character_gets_another(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PRINTING], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1.4x +-3% -> ?\n")


@pytest.mark.parametrize(
    ("found", "searched"),
    [
        (["bin", "site"], ["bin", "site", "HERE"]),  # the console script
        (["HERE", "site"], ["site", "HERE"]),  # python -m
        (["HERE", "HERE", "site"], ["HERE", "site", "HERE"]),  # the same, named by PYTHONPATH
        (["HERE", "lib"], ["lib", "site", "HERE"]),  # a development install, found by an import hook
    ],
)
def test_the_folder_one_stands_in_is_searched_last(
    found: list[str], searched: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "main", lambda: None)
    monkeypatch.setattr("ray_jobs.search_path.HOME", "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path) if place == "HERE" else place for place in found])
    entry.main()
    assert ["HERE" if place == str(tmp_path) else place for place in sys.path] == searched


def gone() -> str:
    raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.parametrize(("program", "command"), [(entry, commands), (chatbot_entry, chatbot_commands)])
def test_the_folder_one_stands_in_may_have_been_deleted(
    program: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(os, "getcwd", gone)
    monkeypatch.setattr(command, "main", lambda: ran.append(True))
    program.main()
    assert ran == [True]


@pytest.mark.parametrize("broken", [(entry, "ray_jobs.cli.app"), (chatbot_entry, "chatbot.cli")])
def test_a_package_that_can_not_be_imported_is_no_verdict(
    broken: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, module = broken
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 70
    assert f"import of {module} halted" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "program"), [(commands, "ray_jobs"), (chatbot_commands, "chatbot")])
@pytest.mark.parametrize("error", [RuntimeError("x"), BaseException("x")])
def test_what_comes_past_the_command_is_no_verdict_either(
    command: Any,
    program: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def app(**_: Any) -> None:
        raise error

    monkeypatch.setattr(command, "app", app)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 70
    assert capsys.readouterr().err.startswith(f"{program}: unexpected {type(error).__name__}: x")


DATA = ROOT / "tests" / "data" / f"version-{VERSION}"
SAMPLES = "samples/launches.parquet"
READING = {
    "report": ("report", "run", "--format", "markdown"),
    "compare": ("compare", "run", "run", "--gate", "3%"),
    "compact": ("compact", "run", "--run-id", "small", "--out", "."),
    "publish": ("publish", "run", "--wandb", "offline"),
    "resume": ("matrix", "--resume", "run"),
}
UNREADABLE = [
    *((name, SAMPLES, length) for name in ("report", "compare", "compact") for length in (0, 1000, None)),
    *((name, file, 100) for name in READING if name != "resume" for file in ("run.json", "matrix.json")),
    ("resume", "run.json", 100),
    ("report", "traces/index.json", 5),
]


@pytest.mark.parametrize(("name", "file", "length"), UNREADABLE)
def test_a_file_that_was_cut_short_or_says_nothing_is_named_and_is_no_verdict(
    name: str, file: str, length: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``length`` bytes are left of it; None: it is whole, and lacks what makes launches of it."""
    monkeypatch.chdir(tmp_path)
    path = Path(shutil.copytree(DATA, "run"), file)
    path.parent.mkdir(exist_ok=True)
    if length is None:
        pq.write_table(pa.table({"trial": ["x"]}), path)
    else:
        path.write_bytes((path.read_bytes() if path.exists() else b'[{"file": "x"}]')[:length])
    done = CliRunner().invoke(commands.app, list(READING[name]))
    assert done.exit_code == 2, done.stderr
    assert file in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("ray_jobs", name) for name in ("typer", "chatbot", "typing", "hashlib", "platform")),
        ("ray_jobs.cli.app", "json"),
        ("chatbot", "typer"),
    ],
)
def test_a_file_in_the_folder_one_stands_in_is_not_imported(tmp_path: Path, module: str, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("print('EXECUTED')\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "EXECUTED" in done.stdout + done.stderr) == (0, False), done.stderr


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    monkeypatch.setenv(IN_A_JOB, "{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".gitignore").write_text("checkpoints/\n")
    return check_uploaded


def test_a_path_that_was_not_uploaded_is_told_with_the_cause(
    in_a_job: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    in_a_job(None, "small", "there/", "/head/run", "s3://bucket/run", "package.module:factory")
    with pytest.raises(UsageError, match=r"checkpoints/small.pt is not in this job's working directory.*\.gitignore"):
        in_a_job("checkpoints/small.pt")
    monkeypatch.delenv(IN_A_JOB)
    in_a_job("checkpoints/small.pt")


@pytest.mark.parametrize(
    ("seconds", "files", "said"),
    [
        (None, [], "nothing was measured yet"),
        (None, ["run.json"], "continue with: python -m ray_jobs matrix --resume"),
        (9.5, ["run.json"], "continue with: python -m ray_jobs matrix --resume"),
        (9.5, ["run.json", "classes.json"], "the run is complete in"),
    ],
)
def test_what_is_safe_of_a_run_that_was_cut_short(
    tmp_path: Path, seconds: float | None, files: list[str], said: str
) -> None:
    (tmp_path / "r1").mkdir()
    directory = RunDirectory(fs.LocalFileSystem(), str(tmp_path / "r1"), "results/r1")
    for name in files:
        directory.write_json(name, {"schema_version": VERSION, "seconds": seconds, "trials": {}})
    told = _safe(directory, Spec())
    assert said in told
    assert ("--resume" in told) == ("continue with" in said)
    trusting = _safe(directory, Spec(variants=("own.variants:FAST",)))
    assert trusting == told + " --trust" * ("--resume" in told)
