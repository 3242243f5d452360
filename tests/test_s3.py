"""A results root in an object store: a real S3 protocol, spoken by a server on this machine.

The server is moto's (``pip install -e '.[s3]'``); without it these are skipped.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import commands
import pyarrow as pa
import pytest
from launches import made_launch
from runs import tables_in

from ray_jobs.cli.app import main
from ray_jobs.driver.resume import Earlier
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import read_spec

BUCKET = "bucket"
SERVED = all(find_spec(name) for name in ("moto", "flask", "flask_cors"))
TRIAL = "cpu-b1-p8-r10-t1@a"

pytestmark = pytest.mark.skipif(not SERVED, reason="no S3 server: pip install -e '.[s3]'")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server with one bucket, empty at first."""
    with socket.socket() as probe, pytest.MonkeyPatch.context() as patch:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        for name, value in {
            "ACCESS_KEY_ID": "any",
            "SECRET_ACCESS_KEY": "any",
            "EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(f"AWS_{name}", value)
        probe.close()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _make_bucket(port)
            yield port
        finally:
            server.kill()
            server.wait()


def _make_bucket(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.05)
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert answer.status == 200


def uri(port: int, root: str = f"{BUCKET}/results") -> str:
    return f"s3://{root}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"


def launch(index: int) -> pa.Table:
    return to_table(TRIAL, made_launch({"eager": 1.0 + index}, index=index, rounds=2, calls=1))


def told(spec: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": "r1", "started": "", "spec": spec, "identity": {"code": "c"}, "trials": {}}


def test_what_was_written_is_read_again_and_a_second_writer_goes_on_behind_it(port: int) -> None:
    first = RunDirectory.named(uri(port), "r1")
    spec = read_spec(None, {"batch": [1, 2]})
    with first.created():
        first.write_json("run.json", told(spec.model_dump()))
        for index in range(3):
            first.add_launch(TRIAL, launch(index), "who")
    earlier = Earlier.of("r1", uri(port))
    assert earlier.directory.shown == uri(port, f"{BUCKET}/results/r1")
    assert (earlier.id, earlier.spec) == ("r1", spec)
    assert [one.index for one in earlier._committed("who")[TRIAL]] == [0, 1, 2]
    with earlier.directory.reopened():
        earlier.directory.add_launch(TRIAL, launch(3), "who")
    again = RunDirectory.existing(first.shown)
    assert again.sample_files() == [f"{TRIAL}.{index:04d}.parquet" for index in range(4)]
    assert again.names() == ["run.json"], "a probe is left, or something half-written"
    assert again.names("samples") == again.sample_files()
    for index, table in enumerate(tables_in(again)[TRIAL]):
        assert table.drop_columns("trial") == launch(index).drop_columns("trial")


def matrix(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    """The one line that the command is refused with."""
    monkeypatch.setattr(sys, "argv", ["ray_jobs", "matrix", "--wandb", "off", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("place", ["nobody/results", "bucket/results"], ids=["no such bucket", "nothing listens"])
def test_a_store_that_cant_be_used_is_one_line(
    place: str,
    port: int,
    toy_checkpoint: Path,
    toy_tsv: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as silent:  # bound, but nothing listens
        silent.bind(("127.0.0.1", 0))
        out = uri(port if place.startswith("nobody") else silent.getsockname()[1], place)
        toy = ("--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5")
        line = matrix(capsys, monkeypatch, *toy, "--out", out)
    assert line.startswith(f"ray_jobs: results can't be kept in {out[: out.index('?')]}")
    assert ("Bucket 'nobody' not found" if place.startswith("nobody") else "NETWORK_CONNECTION") in line


def test_a_run_that_is_not_there_cant_be_gone_on_with(
    port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = matrix(capsys, monkeypatch, "--resume", uri(port, f"{BUCKET}/results/never"))
    assert line == f"ray_jobs: no run at {uri(port, f'{BUCKET}/results/never')}: it has no run.json"


@pytest.mark.slow
def test_a_matrix_that_was_killed_goes_on_from_the_bucket(
    port: int, toy_checkpoint: Path, toy_tsv: Path, tmp_path: Path
) -> None:
    toy = ("--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5", "--reply-tokens", "3")
    run = RunDirectory.named(uri(port), "cut")
    process = commands.start(tmp_path, "matrix", *toy, "--budget", "30", "--out", uri(port), "--run-id", "cut")
    try:
        end = time.monotonic() + 120
        while len(run.sample_files()) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert f"--resume '{run.shown}'" in said, "the URI holds characters of the shell"
    before = {name: run.read(f"samples/{name}") for name in run.sample_files()}
    done = commands.run(tmp_path, "matrix", "--resume", run.shown, "--json")
    assert (done.code, done.json["done"], done.json["run_dir"]) == (0, 1, run.shown), done.err
    record = Earlier.of(run.shown, "").run["trials"]
    (trial,) = record
    planned = [f"{trial}.{index:04d}.parquet" for index in range(record[trial]["launches"])]
    assert run.sample_files() == planned
    assert {name: run.read(f"samples/{name}") for name in before} == before
    assert not os.listdir(tmp_path), "nothing is written beside the bucket"
