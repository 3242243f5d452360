"""The real ``ray job``, as its user types it."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import SOURCES, Command, until

from breakage.bench import LONG, PATIENCE_S, Bench, Injected, line_with

RAY_JOB = ("-m", "ray.scripts.scripts", "job")


def ask(bench: Bench, verb: str, job: str) -> str:
    """What ``ray job status | logs | stop`` says of a job."""
    command = bench.bed.command(verb, job, "--address", bench.bed.dashboard_url, program=RAY_JOB)
    command.wait(PATIENCE_S)
    return command.said


def submit(bench: Bench, job: str, arguments: Sequence[str | Path], wait: bool = False) -> Command:
    """``ray job submit -- python -m ray_jobs matrix``, from a working directory without anything but the sources."""
    submitted = bench.bed.folder / "submitted"
    if not submitted.exists():
        for package in ("chatbot", "ray_jobs"):
            shutil.copytree(SOURCES / package, submitted / package, ignore=shutil.ignore_patterns("__pycache__"))
    where = ["--address", bench.bed.dashboard_url, "--submission-id", job, "--working-dir", str(submitted)]
    wanted = where if wait else [*where, "--no-wait"]
    matrix = ["python", "-m", "ray_jobs", "matrix", "--address", "auto", "--wandb", "off"]
    command = bench.bed.command("submit", *wanted, "--", *matrix, *arguments, program=RAY_JOB)
    command.wait(PATIENCE_S)
    return command


def fetch(bench: Bench, job: str, home: Path) -> Command:
    """``python -m ray_jobs fetch``."""
    return bench.bed.command("fetch", job, "--address", bench.bed.dashboard_url, "--out", home)


def stopped(bench: Bench) -> Injected:
    """Submit, stop, submit again with --resume, fetch."""
    out = bench.bed.folder / "results"
    first = submit(bench, "first-job", ["--out", out, *bench.model, *LONG, "--run-id", "job"])
    if not until(lambda: len(bench.files("job")) >= 4, PATIENCE_S):
        return "", None, f"the job measured nothing: {first.said[-500:]}"
    start = time.monotonic()
    ask(bench, "stop", "first-job")
    seconds = time.monotonic() - start
    before = bench.files("job")
    left = bench.quiet(20)
    status = ask(bench, "status", "first-job")
    shown = line_with(ask(bench, "logs", "first-job"), "terminated")
    if left is None or "was stopped" not in status:
        return shown, seconds, f"processes left: {left is None}, status: {status[-200:]}"
    second = submit(bench, "second-job", ["--out", out, "--resume", out / "job"], wait=True)
    if "succeeded" not in second.said:
        return shown, seconds, f"the resumed job did not succeed: {second.said[-500:]}"
    home = bench.bed.folder / "home"
    fetched = fetch(bench, "second-job", home)
    if fetched.wait(PATIENCE_S) != 0:
        return shown, seconds, f"it could not be fetched: {fetched.said[-300:]}"
    return shown, seconds, bench.lost("job", before, home / "job")
