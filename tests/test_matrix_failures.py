"""Runs of the matrix that fail, are refused or are interrupted, through its command line."""

import json
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import Arguments, environment, interrupting, run, start

from ray_jobs.cli.app import main


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


@pytest.mark.process
def test_a_trial_that_fails_is_a_row_with_its_reason_and_exit_code_one(home: Path, asking_toy: Arguments) -> None:
    done = run(home, "matrix", *asking_toy, "--batch", "1000", "--run-id", "failing", "--wandb", "off", "--json")
    assert done.code == 1
    assert done.json["failed"] == 1
    rows = json.loads((home / "results/failing/matrix.json").read_text())
    assert {row["status"] for row in rows} == {"failed"}
    assert "do not make a batch of 1000" in rows[0]["reason"]
    assert "do not make a batch of 1000" in done.out
    assert not (home / "results/failing/wandb").exists()


BAD = {
    "unknown variant 'eagr'; choose from: eager, eager-again, torchscript": ("--variants", "eagr"),
    "unknown device 'tpu'; choose from: cpu, cuda, all": ("--device", "tpu"),
    "no model 'nope'; give small, tutorial, or the path of a checkpoint": ("--model", "nope"),
    "batch is '0'": ("--batch", "0"),
    "threads is '-1'": ("--threads", "-1"),
    "prompt_tokens is '1'": ("--prompt-tokens", "1"),
    "spec nowhere.toml can't be read": ("--spec", "nowhere.toml"),
    "no corpus 'nowhere'": ("--corpus", "nowhere"),
    "results can't be kept in": ("--out", "/dev/null/results"),
    "unknown wandb mode 'maybe'": ("--wandb", "maybe"),
    "ray job submit": ("--address", "ray://127.0.0.1:10001"),
    "no Ray cluster at '127.0.0.1:9'": ("--address", "127.0.0.1:9"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a dozen imports of Ray would take most of a minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "argv", ["ray_jobs", "matrix", *BAD[message]])
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in err
    assert (err.count("\n"), out) == (1, "")
    assert list(tmp_path.iterdir()) == []


def wait_for_launches(samples: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not samples.is_dir() or len(list(samples.glob("*.parquet"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.process
def test_an_interrupted_run_leaves_its_launches_and_no_process(home: Path, asking_toy: Arguments) -> None:
    temporary = Path(environment(home)["TMPDIR"])
    before = set(temporary.iterdir())
    process = start(home, "matrix", *asking_toy, "--budget", "600", "--precision", "0.0001", "--run-id", "stopped")
    samples = home / "results/stopped/samples"
    with interrupting(process) as interrupt:
        wait_for_launches(samples, 2)
        assert "interrupted" in interrupt().splitlines()[-1]
    assert set(temporary.iterdir()) <= before
    for path in samples.glob("*.parquet"):
        assert pq.read_table(path).num_rows
