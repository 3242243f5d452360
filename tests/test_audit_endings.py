"""Audits that are refused or interrupted, through their command line."""

import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from commands import interrupting, start

from ray_jobs.cli.app import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("effect", "--percent", "3"), "percent is 3; choose from: 1, 2, 5"),
        (("aa", "--load", "much"), "unknown load 'much'; choose from: none, beside, both"),
        (("aa", "--model", "nowhere.pt"), "nowhere.pt"),
        (("aa", "--budget", "-1"), "budget is -1.0"),
        (("summary", "nowhere"), "no comparisons of an audit in nowhere"),
        (("--out", "elsewhere", "aa"), "give --out behind aa"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: half a dozen imports of Ray would take most of a minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ray_jobs", "audit", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_an_interrupted_audit_keeps_what_it_found_and_leaves_no_process(tmp_path: Path) -> None:
    asked = "--comparisons 99 --load beside --no-peers --budget 1 --run-id stopped"
    process = start(tmp_path, "audit", "aa", *asked.split())
    with interrupting(process) as interrupt:
        assert process.stderr is not None
        while "1 of 99" not in process.stderr.readline():
            assert process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("ray_jobs.audit.load" in " ".join(child.cmdline()) for child in family if child.is_running())
        time.sleep(1)  # into the next comparison
        interrupt()
    assert pq.read_table(tmp_path / "results/stopped/comparisons.parquet").num_rows >= 1
