"""A secret in any input: nothing that a run leaves, prints or starts holds it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from launches import ALL, made_launch
from pyarrow import fs
from runs import finished_run, trial_at

from chatbot.errors import UsageError
from ray_jobs.cli.app import main
from ray_jobs.driver.resume import Earlier
from ray_jobs.measure.result import one_line
from ray_jobs.provenance import command_line
from ray_jobs.results import store
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.wandb_sink.content import files_of
from ray_jobs.wandb_sink.sink import WandbSink

SECRET = "pl4nted-Secret"
ROOT = f"s3://AKIA:{SECRET}@bucket/results"
RUN = f"{ROOT}/run?region=x&secret_key={SECRET}"
VARIABLE = "AWS_SECRET_ACCESS_KEY"

Invoke = Callable[..., tuple[object, str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Invoke:
    """(exit code, all that was printed) of a command in this process."""

    def run(*words: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["ray_jobs", *words])
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ray_jobs", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, "".join(capfd.readouterr())

    return run


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the bucket, whatever the keys."""
    inner = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())

    def opened(root: str) -> tuple[fs.FileSystem, str]:
        return inner, root.partition("?")[0].rpartition("@bucket/")[2]

    monkeypatch.setattr(store, "open_root", opened)
    return tmp_path


@pytest.fixture
def kept(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A finished run there, whose command and whose failures name the place."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ray_jobs", "matrix", "--out", ROOT, f"--model={RUN}"])
    directory = RunDirectory.named(f"{ROOT}?region=x&secret_key={SECRET}", "run")
    launches = [made_launch({"eager": 10.0 + i / 10, "eager-again": 10.0, "torchscript": 8.0}, i) for i in range(3)]
    finished_run(directory, [(trial_at("run", ALL), launches)])
    record = json.loads(directory.read("run.json")) | {"command": command_line()}
    (trial,) = record["trials"].values()
    trial["reason"] = one_line(OSError(f"{RUN} did not answer"))
    directory.write_json("run.json", record)
    return directory


def texts(folder: Path) -> Iterator[str]:
    """The content of every file, Parquet unpacked."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"{table.to_pylist()} {table.schema.metadata}"
        else:
            yield path.read_text(errors="replace")


@pytest.mark.parametrize(
    "words",
    [
        ("report", RUN),
        ("report", RUN, "--format", "markdown"),
        ("compare", RUN, RUN),
        ("compact", RUN, "--run-id", "small", "--out", ROOT),
        ("trace", "--run", RUN, "--timeline-only"),
        ("matrix", "--out", ROOT, "--run-id", "run", "--wandb", "off"),
    ],
    ids=lambda words: "-".join(words[:1] + words[2:3]),
)
def test_what_commands_print_and_keep_of_a_place_holds_no_key(
    words: tuple[str, ...], kept: RunDirectory, bucket: Path, invoke: Invoke
) -> None:
    assert kept.place == RUN
    _, said = invoke(*words)
    assert SECRET not in said
    assert said
    found = "\n".join(texts(bucket))
    assert "--out s3://***@bucket/results" in found or '"s3://***@bucket/results"' in found
    assert SECRET not in found


def test_the_process_that_speaks_to_wandb_gets_the_place_but_not_among_its_arguments(
    kept: RunDirectory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: dict[str, Any] = {}

    class Started:
        """A client that only listens."""

        pid = 0

        def __init__(self, command: list[str], pass_fds: list[int], **_: Any) -> None:
            heard["command"] = " ".join(command)
            self.line = socket.socket(fileno=os.dup(pass_fds[0]))

        def wait(self) -> None:
            with self.line:
                heard["place"] = self.line.recv(1000).decode()

    monkeypatch.setattr("subprocess.Popen", Started)
    monkeypatch.setattr("os.killpg", lambda *_: None)
    told = WandbSink("offline", kept, 0.01)
    told.finish()
    assert heard["place"] == RUN
    assert SECRET not in heard["command"] + "".join(capfd.readouterr())


def test_a_run_of_an_earlier_version_is_published_and_shown_without_the_keys_in_it(
    kept: RunDirectory, bucket: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (bucket / "results/run/report.html").write_text(f"<pre>--out {RUN}</pre>")
    record = json.loads(kept.read("run.json")) | {"command": ["matrix", "--out", RUN]}
    kept.write_json("run.json", record)
    assert SECRET in "\n".join(texts(bucket))
    assert SECRET not in str(FinishedRun.of(RUN).run)
    local = RunDirectory.existing(RUN)
    for kind in files_of(local, tmp_path_factory.mktemp("copies")).values():
        assert not [name for name, path in kind.items() if path.suffix != ".parquet" and SECRET in path.read_text()]


def test_what_hinders_a_resume_is_told_without_the_key(kept: RunDirectory) -> None:
    with pytest.raises(
        UsageError, match=r"^s3://\*\*\*@bucket/results/run\?region=x&secret_key=\*\*\* can't be resumed"
    ):
        Earlier.of(RUN, ROOT).check({"spec": "", "model": "", "prompts": "", "code": ""})


PASSWORD = f"user:{SECRET}@127.0.0.1:9"


@pytest.mark.parametrize(
    "words",
    [
        ("matrix", "--model", RUN),
        ("matrix", "--corpus", RUN),
        ("matrix", "--spec", RUN),
        ("matrix", "--variants", f"eager,{RUN}"),
        ("matrix", "--stations", f"password={SECRET},x"),
        ("matrix", "--resume", RUN.replace("s3:", "nosuch:")),
        ("matrix", "--out", ROOT.replace("s3:", "nosuch:")),
        ("sweep", "--corpus", RUN, "--plan"),
        ("sweep", "--resume", RUN.replace("s3:", "nosuch:")),
        ("report", RUN.replace("s3:", "nosuch:")),
        ("fetch", "job", "--address", f"http://{PASSWORD}"),
        ("fetch", "job", "--address", PASSWORD),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_refusal_repeats_no_key(words: tuple[str, ...], invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(f'model = "{RUN}"\n')
    code, said = invoke(*words)
    assert code == 2
    assert "ray_jobs: " in said
    assert SECRET not in said


def test_a_secret_of_the_environment_is_not_repeated(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    monkeypatch.setenv("RAY_ADDRESS", f"http://{PASSWORD}")
    for words in (("fetch", "job"), ("matrix", "--model", f"/nowhere/{SECRET}"), ("report", SECRET)):
        code, said = invoke(*words)
        assert code == 2
        assert SECRET not in said


SHOWN = """
import sys
from pathlib import Path
from chatbot import console
console.prepare()
print(Path("/proc/self/cmdline").read_text(), sys.argv, sep="\\n")
"""


@pytest.mark.process
def test_other_users_of_the_machine_see_no_key_among_the_arguments() -> None:
    words = ["matrix", "--out", ROOT, "--batch=1,2", f"--resume={RUN}", "h\u00e9", "s3://a:b@c"]
    done = subprocess.run([sys.executable, "-c", SHOWN, *words], capture_output=True, text=True, timeout=60, check=True)
    listed, _, kept = done.stdout.rstrip("\n").rpartition("\n")
    hidden = [word.rstrip() for word in listed.split("\0")[-7:-1]]
    assert hidden == [
        "--out",
        "s3://***@bucket/results",
        *words[3:4],
        "--resume=s3://***@bucket/results/run?region=x&secret_key=***",
        "h\u00e9",
        "s3://***@c",
    ]
    assert SECRET not in listed
    assert kept == str(["-c", *words])
