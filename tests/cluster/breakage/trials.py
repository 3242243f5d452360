"""What dies or hangs while it measures: launches, workers, raylets, the network."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed import Command

from breakage.bench import NOTHING, PATIENCE_S, Bench, Fault, Injected, line_with

PARTITION_S = 60.0


def signalled(name: str, find: Callable[[Bench], int], number: int, words: str, *arguments: str) -> Fault:
    """A process of a trial gets a signal; the run goes on to its end."""

    def inject(bench: Bench) -> Injected:
        run = name.replace(" ", "-")
        command = bench.running(run, *arguments)
        before = bench.files(run)
        os.kill(find(bench), number)
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        lost = bench.lost(run, before)
        return line_with(command.said, words), seconds, lost if code == 0 else f"exit code {code}, {lost}"

    return Fault(name, inject)


def hanging_variant(bench: Bench) -> Injected:
    plant = "ray_jobs.audit.mistakes:HANGS"
    run = bench.matrix("--budget", "1", "--launch-timeout", "3", "--variants", plant, "--stations", "zone=a")
    words = "failed 3 times"
    seconds = run.wait_for(words, PATIENCE_S)
    code = run.wait(PATIENCE_S)
    return line_with(run.said, words), seconds, NOTHING if code == 1 else f"exit code {code}"


def node_gone(bench: Bench) -> Injected:
    command = bench.running("raylet")
    before = bench.files("raylet")
    bench.bed.end(bench.bed.pids("node-2", "raylet/raylet"))
    seconds = command.wait_for("failed: its node", PATIENCE_S)
    return _rest_and_resume(bench, command, "raylet", before, "failed: its node", seconds)


def partition(bench: Bench) -> Injected:
    command = bench.running("partition", "--budget", "40")
    before = bench.files("partition")
    bench.bed.cut("node-2")
    try:
        seconds = command.wait_for("failed: its node", PARTITION_S)
        return _rest_and_resume(bench, command, "partition", before, "failed: its node", seconds)
    finally:
        bench.bed.mend("node-2")


def _rest_and_resume(
    bench: Bench, command: Command, run: str, before: dict[str, str], words: str, seconds: float
) -> Injected:
    """The other node's trial ends as if nothing had happened; then the lost node's is resumed."""
    code = command.wait(PATIENCE_S)
    trials = json.loads((bench.folder(run) / "run.json").read_text())["trials"]
    statuses = sorted(record["status"] for record in trials.values())
    if code != 1 or statuses != ["done", "failed"]:
        return line_with(command.said, words), seconds, f"exit code {code}, trials {statuses}"
    with _mended(bench):
        return line_with(command.said, words), seconds, bench.resumed(run, before)


@contextmanager
def _mended(bench: Bench) -> Iterator[None]:
    """With both nodes again."""
    if bench.bed.hosts:
        bench.bed.mend("node-2")
    bench.bed.kill_node("node-2")
    bench.begin()
    yield
