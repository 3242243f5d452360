"""``ray job``, as its user types it: the job's status follows the exit code, and the run comes home."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from breakage.bench import NOTHING, Bench
from breakage.jobs import ask, fetch, submit
from testbed import Testbed, can_partition

WITHOUT = can_partition()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WITHOUT is not None, reason=f"no hosts of its own: {WITHOUT}"),
]


@pytest.fixture(scope="module")
def bench(toy_checkpoint: Path, toy_tsv: Path) -> Iterator[Bench]:
    """Two stations that measure the toy model."""
    toy = ("--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5", "--reply-tokens", "3")
    with Testbed(hosts=True) as bed:
        bench = Bench(bed, tuple(map(str, toy)))
        bench.begin(jobs=True)
        yield bench


def test_a_job_that_succeeds_comes_home_whole(bench: Bench) -> None:
    """Without shared storage: nothing names an output, so it goes where the head keeps it."""
    home = bench.bed.folder / "home"
    out = bench.bed.folder / "on-the-head"
    submitted = submit(bench, "good", [*bench.model, "--budget", "1", "--out", out, "--run-id", "r1"], wait=True)
    assert "succeeded" in submitted.said, submitted.said
    assert "Job 'good' succeeded" in ask(bench, "status", "good")
    logs = ask(bench, "logs", "good")
    assert f"ray_jobs: the run directory is {out / 'r1'} on head" in logs
    assert "eager-again" in logs, "the table is in the job's log"
    fetched = fetch(bench, "good", home)
    assert fetched.wait(120) == 0, fetched.said
    assert fetched.said.strip().splitlines()[-1] == str(home / "r1")
    assert bench.lost("r1", folder=home / "r1") == NOTHING
    there = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {p.relative_to(home): p.read_bytes() for p in home.rglob("*") if p.is_file()} == there
    again = fetch(bench, "good", home)
    assert again.wait(120) == 2
    assert f"{home / 'r1'} already exists" in again.said


def test_a_trial_that_fails_fails_the_job(bench: Bench) -> None:
    plant = ("--variants", "ray_jobs.audit.mistakes:HANGS", "--launch-timeout", "1", "--stations", "zone=a")
    out = bench.bed.folder / "on-the-head"
    submitted = submit(bench, "bad", [*bench.model, "--out", out, "--budget", "1", *plant], wait=True)
    assert "failed 3 times" in submitted.said, submitted.said
    status = ask(bench, "status", "bad")
    assert "Job 'bad' failed" in status
    assert "exit code 1" in status


def test_what_cant_be_understood_fails_the_job_and_leaves_nothing_to_fetch(bench: Bench) -> None:
    submitted = submit(bench, "ugly", ["--device", "quantum"], wait=True)
    assert "ray_jobs: unknown device 'quantum'" in submitted.said, submitted.said
    status = ask(bench, "status", "ugly")
    assert "Job 'ugly' failed" in status
    assert "exit code 2" in status
    fetched = fetch(bench, "ugly", bench.bed.folder / "nothing")
    assert fetched.wait(120) == 2
    assert "names no run directory" in fetched.said


def test_a_job_that_nobody_knows_is_one_line(bench: Bench) -> None:
    fetched = fetch(bench, "nobodys", bench.bed.folder / "nothing")
    assert fetched.wait(120) == 2
    (line,) = [line for line in fetched.said.splitlines() if line.startswith("ray_jobs:")]
    assert "no job 'nobodys' there" in line
    assert "its jobs: bad, good, ugly" in line
