"""What happens to the driver: it is killed or told to end, loses its head, or meets another one."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from testbed import SOURCES

from breakage.bench import NOTHING, PATIENCE_S, Bench, Fault, Injected, command_itself, line_with


def driver(name: str, number: int, words: str, code: int) -> Fault:
    """The driver itself is signalled; nothing runs on, and the run is resumed."""

    def inject(bench: Bench) -> Injected:
        run = name.replace(" ", "-")
        command = bench.running(run)
        before = bench.files(run)
        start = time.monotonic()
        os.kill(command_itself(command), number)
        ended = command.wait(PATIENCE_S)
        seconds = time.monotonic() - start
        left = bench.quiet(20)
        if left is None or ended not in (code, -number):
            return line_with(command.said, words), seconds, f"exit code {ended}, processes left: {left is None}"
        shown = line_with(command.said, words) or "the command is gone, and no process of it is left"
        return shown, seconds, bench.resumed(run, before)

    return Fault(name, inject)


def head_gone(bench: Bench) -> Injected:
    command = bench.running("head")
    before = bench.files("head")
    start = time.monotonic()
    others = set(_family(command.process.pid))
    bench.bed.end([pid for pid in bench.bed.pids("head") if pid not in others])
    code = command.wait(PATIENCE_S)
    seconds = time.monotonic() - start
    bench.bed.end(bench.bed.pids())
    bench.begin()
    shown = command.said.strip().splitlines()[-1] if code else "it ended as if nothing had happened"
    return shown[:200], seconds, bench.resumed("head", before)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from _family(int(child))


def busy(bench: Bench) -> Injected:
    first = bench.running("first", "--budget", "25")
    start = time.monotonic()
    second = bench.matrix("--budget", "1", run="second")
    second.wait_for("waiting for its station", PATIENCE_S)
    seconds = time.monotonic() - start
    codes = first.wait(PATIENCE_S), second.wait(PATIENCE_S)
    lost = bench.lost("first"), bench.lost("second")
    done = NOTHING if codes == (0, 0) and set(lost) == {NOTHING} else f"exit codes {codes}, lost {lost}"
    return line_with(second.said, "waiting for its station"), seconds, done


def busy_elsewhere(bench: Bench) -> Injected:
    first = bench.running("cluster", "--budget", "25")
    start = time.monotonic()
    second = bench.matrix("--budget", "1", run="local", address="local")
    second.wait_for("is held by", PATIENCE_S)
    seconds = time.monotonic() - start
    codes = first.wait(PATIENCE_S), second.wait(PATIENCE_S)
    lost = bench.lost("cluster"), bench.lost("local")
    done = NOTHING if codes == (0, 0) and set(lost) == {NOTHING} else f"exit codes {codes}, lost {lost}"
    return line_with(second.said, "is held by"), seconds, done


def two_drivers(bench: Bench) -> Injected:
    first = bench.running("twice")
    os.kill(command_itself(first), signal.SIGSTOP)  # else it may be over before the second has begun
    start = time.monotonic()
    try:
        second = bench.matrix("--resume", "twice")
        code = second.wait(PATIENCE_S)
        seconds = time.monotonic() - start
    finally:
        os.kill(command_itself(first), signal.SIGCONT)
    first.wait(PATIENCE_S)
    lost = bench.lost("twice") if code == 2 else f"exit code {code}"
    return line_with(second.said, "is being written"), seconds, lost


def other_sources(bench: Bench) -> Injected:
    command = bench.running("sources")
    before = bench.files("sources")
    os.kill(command_itself(command), signal.SIGKILL)
    command.wait(PATIENCE_S)
    bench.quiet(20)
    changed = bench.bed.folder / "changed"
    for package in ("chatbot", "ray_jobs"):
        shutil.copytree(SOURCES / package, changed / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (changed / "chatbot" / "model.py").open("a") as file:
        file.write("# another program\n")
    start = time.monotonic()
    again = bench.bed.command("matrix", "--address", bench.bed.address, "--resume", "sources", sources=changed)
    code = again.wait(PATIENCE_S)
    seconds = time.monotonic() - start
    lost = bench.resumed("sources", before) if code == 2 else f"exit code {code}"
    return line_with(again.said, "changed since"), seconds, lost
