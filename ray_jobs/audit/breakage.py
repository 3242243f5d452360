"""What a cluster does to a run, done to a real one: each fault is injected, and what a person sees of it is timed.

Every fault runs ``python -m ray_jobs matrix`` against real Ray processes and, where something was cut off, resumes it.
Lost is what the run directory then lacks of the launches that its trials had, or has changed of those committed before.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.audit.testbed import Command, Testbed, TestbedError, until

PATIENCE_S = 120.0  # of a command that should end
NOTHING = "nothing"
LONG = ("--budget", "6", "--precision", "0.0001")  # long enough to break something in the middle
PARTITION_S = 60.0
UNREACHABLE = "s3://bucket/results?region=eu-central-1&scheme=http&endpoint_override=127.0.0.1:9"


@dataclass(frozen=True)
class Seen:
    """A fault, and what came of it."""

    fault: str
    shows: str  # the line that a person sees
    seconds: float | None  # from the fault to that line
    lost: str


@dataclass(frozen=True)
class Fault:
    """One that can be injected."""

    name: str
    inject: Callable[["Bench"], tuple[str, float | None, str]]  # (line, seconds, lost)
    hosts: bool = False  # needs network namespaces


@dataclass
class Bench:
    """A test bed with two stations, node-1 (zone a) and node-2 (zone b), and how the matrix is run on it."""

    bed: Testbed
    model: tuple[str, ...] = ("--model", "small")
    _runs: int = 0
    _before: dict[str, dict[str, str]] = field(default_factory=dict)

    def begin(self) -> None:
        """Head and nodes, where they do not run."""
        if not self.bed.pids("head", "gcs_server"):
            self.bed.end(self.bed.pids())
            self.bed.start_head(dashboard=True)
        for number, zone in enumerate("ab"):
            self.node(f"node-{number + 1}", zone)

    def node(self, name: str, zone: str) -> None:
        """A station's node, unless it runs."""
        if not self.bed.pids(name, "raylet/raylet"):
            self.bed.kill_node(name)
            self.bed.start_node(name, (ord(zone) - ord("a")) % (os.cpu_count() or 1), labels=f"zone={zone}")

    def matrix(self, *arguments: str | Path, run: str | None = None, address: str | None = None) -> Command:
        """Starts one on both stations, or goes on with one."""
        self._runs += 1
        asked = ["--run-id", run or f"run-{self._runs}"] if "--resume" not in arguments else []
        model = self.model if "--resume" not in arguments else ()
        where = ("--address", address or self.bed.address, "--wandb", "off")
        return self.bed.command("matrix", *where, *model, *asked, *arguments)

    def running(self, run: str, *arguments: str | Path, launches: int = 2) -> Command:
        """One that has committed this many launches of each of its trials by now."""
        command = self.matrix(*LONG, *arguments, run=run)

        def far_enough() -> bool:
            trials = {name.rsplit(".", 2)[0] for name in self.files(run)}
            return len(trials) == 2 and len(self.files(run)) >= launches * len(trials)

        if not until(lambda: far_enough() or command.process.poll() is not None, PATIENCE_S) or not far_enough():
            raise TestbedError(f"it measured nothing: {command.said[-500:]}")
        return command

    def folder(self, run: str) -> Path:
        return self.bed.folder / "results" / run

    def files(self, run: str) -> dict[str, str]:
        """The committed launches, and hashes of what is in them."""
        paths = sorted((self.folder(run) / "samples").glob("*.parquet"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def resumed(self, run: str, before: dict[str, str], place: str | Path | None = None) -> str:
        """Goes on with a run to its end; what was lost of it."""
        command = self.matrix("--resume", place or run)
        code = command.wait(PATIENCE_S)
        if code != 0:
            return f"the resumed run ended with {code}: {command.said[-300:]}"
        return self.lost(run, before)

    def lost(self, run: str, before: dict[str, str] | None = None, folder: Path | None = None) -> str:
        """What a finished run lacks of its launches, or has changed of those committed before."""
        folder = folder or self.folder(run)
        trials = json.loads((folder / "run.json").read_text())["trials"]
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "samples").glob("*.parquet")}
        for name, record in trials.items():
            planned = {f"{name}.{index:04d}.parquet" for index in range(record["launches"])}
            there = {file for file in files if file.rsplit(".", 2)[0] == name}
            if record["status"] != "done" or not planned or planned != there:
                return f"{name}: {record['status']}, launches {sorted(there ^ planned)} are not as planned"
        changed = [name for name, content in (before or {}).items() if files.get(name) != content]
        return f"changed: {changed}" if changed else NOTHING

    def worker_of(self, node: str) -> int:
        """The process that holds the trial on a node."""
        return _parent(self.server_of(node))

    def launch_of(self, node: str) -> int:
        """The launch in progress on a node."""
        server = self.server_of(node)
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in self.bed.pids(node, "ray_jobs.forkserver") if _parent(pid) == server]
            return bool(found)

        if not until(look, 30):
            raise TestbedError("no launch is in progress")
        return found[0]

    def server_of(self, node: str) -> int:
        servers = self.bed.pids(node, "ray_jobs.forkserver")
        outer = [pid for pid in servers if _parent(pid) not in servers]
        if not outer:
            raise TestbedError(f"no launch server runs on {node}")
        return outer[0]

    def quiet(self, seconds: float) -> float | None:
        """Seconds until no trial's process is left; None where some are."""
        start = time.monotonic()
        gone = until(lambda: not self.bed.pids(None, "ray_jobs.forkserver"), seconds)
        return time.monotonic() - start if gone else None


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _line(command: Command, words: str) -> str:
    """The line of the output that holds these words."""
    return next((line.strip() for line in command.said.splitlines() if words in line), "")


def _skipped(words: str, *arguments: str) -> Callable[[Bench], tuple[str, float | None, str]]:
    """Nothing can be measured: said at once, and the command ends."""

    def inject(bench: Bench) -> tuple[str, float | None, str]:
        command = bench.matrix(*arguments)
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return _line(command, words), seconds, NOTHING if code == 0 else f"exit code {code}"

    return inject


def _refused(words: str, *arguments: str) -> Callable[[Bench], tuple[str, float | None, str]]:
    """Said before anything is measured, with exit code 2."""

    def inject(bench: Bench) -> tuple[str, float | None, str]:
        command = bench.matrix(*arguments)
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return _line(command, words), seconds, NOTHING if code == 2 else f"exit code {code}"

    return inject


def _late_node(bench: Bench) -> tuple[str, float | None, str]:
    run = bench.matrix("--wait-for", "cpu=3", "--wait", "90", "--stations", "zone=c", "--budget", "1", run="late")
    run.wait_for("waiting for the cluster", PATIENCE_S)
    try:
        bench.node("node-3", "c")
        seconds = run.wait_for("starting", PATIENCE_S)
        run.wait(PATIENCE_S)
        return _line(run, "waiting for the cluster") + " ... " + _line(run, "starting"), seconds, bench.lost("late")
    finally:
        bench.bed.kill_node("node-3")


def _signalled(name: str, find: Callable[[Bench], int], number: int, words: str, *arguments: str) -> Fault:
    """A process of a trial gets a signal; the run goes on to its end."""

    def inject(bench: Bench) -> tuple[str, float | None, str]:
        run = name.replace(" ", "-")
        command = bench.running(run, *arguments)
        before = bench.files(run)
        os.kill(find(bench), number)
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        lost = bench.lost(run, before)
        return _line(command, words), seconds, lost if code == 0 else f"exit code {code}, {lost}"

    return Fault(name, inject)


def _hanging_variant(bench: Bench) -> tuple[str, float | None, str]:
    plant = "ray_jobs.audit.plants:HANGS"
    run = bench.matrix("--budget", "1", "--launch-timeout", "3", "--variants", plant, "--stations", "zone=a")
    words = "failed 3 times"
    seconds = run.wait_for(words, PATIENCE_S)
    code = run.wait(PATIENCE_S)
    return _line(run, words), seconds, NOTHING if code == 1 else f"exit code {code}"


def _node_gone(bench: Bench) -> tuple[str, float | None, str]:
    command = bench.running("raylet")
    before = bench.files("raylet")
    bench.bed.end(bench.bed.pids("node-2", "raylet/raylet"))
    seconds = command.wait_for("failed: its node", PATIENCE_S)
    return _rest_and_resume(bench, command, "raylet", before, "failed: its node", seconds)


def _partition(bench: Bench) -> tuple[str, float | None, str]:
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
) -> tuple[str, float | None, str]:
    """The other node's trial ends as if nothing had happened; then the lost node's is resumed."""
    code = command.wait(PATIENCE_S)
    trials = json.loads((bench.folder(run) / "run.json").read_text())["trials"]
    statuses = sorted(record["status"] for record in trials.values())
    if code != 1 or statuses != ["done", "failed"]:
        return _line(command, words), seconds, f"exit code {code}, trials {statuses}"
    with bench_mended(bench):
        return _line(command, words), seconds, bench.resumed(run, before)


@contextmanager
def bench_mended(bench: Bench) -> Iterator[None]:
    """With both nodes again."""
    if bench.bed.hosts:
        bench.bed.mend("node-2")
    bench.bed.kill_node("node-2")
    bench.begin()
    yield


def _driver(name: str, number: int, words: str, code: int) -> Fault:
    """The driver itself is signalled; nothing runs on, and the run is resumed."""

    def inject(bench: Bench) -> tuple[str, float | None, str]:
        run = name.replace(" ", "-")
        command = bench.running(run)
        before = bench.files(run)
        start = time.monotonic()
        os.kill(_python(command), number)
        ended = command.wait(PATIENCE_S)
        seconds = time.monotonic() - start
        left = bench.quiet(20)
        if left is None or ended not in (code, -number):
            return _line(command, words), seconds, f"exit code {ended}, processes left: {left is None}"
        shown = _line(command, words) or "the command is gone, and no process of it is left"
        return shown, seconds, bench.resumed(run, before)

    return Fault(name, inject)


def _python(command: Command) -> int:
    """The command itself, below what put it on its host."""
    pid = command.process.pid
    while b"ray_jobs" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0:4]:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            break
        pid = int(children[0])
    return pid


def _head_gone(bench: Bench) -> tuple[str, float | None, str]:
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


def _busy(bench: Bench) -> tuple[str, float | None, str]:
    first = bench.running("first", "--budget", "25")
    start = time.monotonic()
    second = bench.matrix("--budget", "1", run="second")
    second.wait_for("waiting for its station", PATIENCE_S)
    seconds = time.monotonic() - start
    codes = first.wait(PATIENCE_S), second.wait(PATIENCE_S)
    lost = bench.lost("first"), bench.lost("second")
    done = NOTHING if codes == (0, 0) and set(lost) == {NOTHING} else f"exit codes {codes}, lost {lost}"
    return _line(second, "waiting for its station"), seconds, done


def _busy_elsewhere(bench: Bench) -> tuple[str, float | None, str]:
    first = bench.running("cluster", "--budget", "25")
    start = time.monotonic()
    second = bench.matrix("--budget", "1", run="local", address="local")
    second.wait_for("is held by", PATIENCE_S)
    seconds = time.monotonic() - start
    codes = first.wait(PATIENCE_S), second.wait(PATIENCE_S)
    lost = bench.lost("cluster"), bench.lost("local")
    done = NOTHING if codes == (0, 0) and set(lost) == {NOTHING} else f"exit codes {codes}, lost {lost}"
    return _line(second, "is held by"), seconds, done


def _two_drivers(bench: Bench) -> tuple[str, float | None, str]:
    first = bench.running("twice")
    start = time.monotonic()
    second = bench.matrix("--resume", "twice")
    code = second.wait(PATIENCE_S)
    seconds = time.monotonic() - start
    first.wait(PATIENCE_S)
    lost = bench.lost("twice") if code == 2 else f"exit code {code}"
    return _line(second, "is being written"), seconds, lost


def _other_torch(bench: Bench) -> tuple[str, float | None, str]:
    """A node on whose path stands the description of another release."""
    shadow = bench.bed.folder / "shadow" / "torch-1.0.dist-info"
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    bench.bed.start_node("node-4", 0, labels="zone=d", environment={"PYTHONPATH": str(shadow.parent)})
    try:
        command = bench.matrix("--budget", "1", "--stations", "zone=d")
        seconds = command.wait_for("it has torch 1.0", PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return _line(command, "it has torch 1.0"), seconds, NOTHING if code == 1 else f"exit code {code}"
    finally:
        bench.bed.kill_node("node-4")


def _other_sources(bench: Bench) -> tuple[str, float | None, str]:
    command = bench.running("sources")
    before = bench.files("sources")
    os.kill(_python(command), signal.SIGKILL)
    command.wait(PATIENCE_S)
    bench.quiet(20)
    changed = bench.bed.folder / "changed"
    root = Path(__file__).resolve().parents[2]
    for package in ("chatbot", "ray_jobs"):
        shutil.copytree(root / package, changed / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (changed / "chatbot" / "model.py").open("a") as file:
        file.write("# another program\n")
    start = time.monotonic()
    again = bench.bed.command("matrix", "--address", bench.bed.address, "--resume", "sources", sources=changed)
    code = again.wait(PATIENCE_S)
    seconds = time.monotonic() - start
    lost = bench.resumed("sources", before) if code == 2 else f"exit code {code}"
    return _line(again, "changed since"), seconds, lost


def _full_disk(bench: Bench) -> tuple[str, float | None, str]:
    with _small_disk(bench, "4m") as disk:
        return _refused("MB left", "--out", str(disk))(bench)


def _disk_fills_up(bench: Bench) -> tuple[str, float | None, str]:
    with _small_disk(bench, "40m") as disk:
        (bench.bed.folder / "results").mkdir(exist_ok=True)
        os.symlink(disk, bench.bed.folder / "results" / "disk")
        command = bench.running("disk/filling", "--out", str(disk), "--run-id", "filling")
        with (disk / "filler").open("wb") as file:
            free = shutil.disk_usage(disk).free
            file.write(b"\0" * (free - free % 4096))
        seconds = command.wait_for("can't be written", PATIENCE_S)
        code = command.wait(PATIENCE_S)
        before = bench.files("disk/filling")
        (disk / "filler").unlink()
        lost = bench.resumed("disk/filling", before, disk / "filling") if code == 1 else f"exit code {code}"
        return _line(command, "can't be written"), seconds, lost


@contextmanager
def _small_disk(bench: Bench, size: str) -> Iterator[Path]:
    place = bench.bed.folder / f"disk-{size}"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def _job_stopped(bench: Bench) -> tuple[str, float | None, str]:
    """The real ``ray job``: submit, stop, submit again with --resume, fetch."""
    out = bench.bed.folder / "results"
    arguments = ["--address", "auto", "--wandb", "off", "--out", str(out)]
    first = _submit(bench, "first-job", [*arguments, *bench.model, *LONG, "--run-id", "job"])
    if not until(lambda: len(bench.files("job")) >= 4, PATIENCE_S):
        return "", None, f"the job measured nothing: {first.said[-500:]}"
    start = time.monotonic()
    stopped = bench.bed.command("stop", "first-job", "--address", bench.bed.dashboard_url, program=RAY_JOB)
    stopped.wait(PATIENCE_S)
    seconds = time.monotonic() - start
    before = bench.files("job")
    left = bench.quiet(20)
    status = bench.bed.command("status", "first-job", "--address", bench.bed.dashboard_url, program=RAY_JOB)
    status.wait(PATIENCE_S)
    logs = bench.bed.command("logs", "first-job", "--address", bench.bed.dashboard_url, program=RAY_JOB)
    logs.wait(PATIENCE_S)
    shown = _line(logs, "terminated")
    if left is None or "was stopped" not in status.said:
        return shown, seconds, f"processes left: {left is None}, status: {status.said[-200:]}"
    second = _submit(bench, "second-job", [*arguments, "--resume", str(out / "job")], wait=True)
    if "succeeded" not in second.said:
        return shown, seconds, f"the resumed job did not succeed: {second.said[-500:]}"
    home = bench.bed.folder / "home"
    fetched = bench.bed.command("fetch", "second-job", "--address", bench.bed.dashboard_url, "--out", home)
    if fetched.wait(PATIENCE_S) != 0:
        return shown, seconds, f"it could not be fetched: {fetched.said[-300:]}"
    return shown, seconds, bench.lost("job", before, home / "job")


RAY_JOB = ("-m", "ray.scripts.scripts", "job")


def _submit(bench: Bench, job: str, arguments: Sequence[str], wait: bool = False) -> Command:
    root = Path(__file__).resolve().parents[2]
    submitted = bench.bed.folder / "submitted"
    if not submitted.exists():
        for package in ("chatbot", "ray_jobs"):
            shutil.copytree(root / package, submitted / package, ignore=shutil.ignore_patterns("__pycache__"))
    where = ["--address", bench.bed.dashboard_url, "--submission-id", job, "--working-dir", str(submitted)]
    wanted = where if wait else [*where, "--no-wait"]
    command = bench.bed.command(
        "submit", *wanted, "--", "python", "-m", "ray_jobs", "matrix", *arguments, program=RAY_JOB
    )
    command.wait(PATIENCE_S)
    return command


FAULTS = (
    Fault("no GPU in the cluster", _skipped("no station of kind cuda", "--device", "cuda")),
    Fault("a label that nobody has", _skipped("has zone=nowhere", "--stations", "zone=nowhere")),
    Fault(
        "a GPU that never comes",
        _skipped("3 s were waited for", "--device", "cuda", "--wait-for", "gpu=1", "--wait", "3"),
    ),
    Fault("a node that joins late", _late_node),
    Fault("a station with another torch", _other_torch),
    _signalled("a launch is killed", lambda b: b.launch_of("node-2"), signal.SIGKILL, "was killed by SIGKILL"),
    _signalled(
        "a launch hangs",
        lambda b: b.launch_of("node-2"),
        signal.SIGSTOP,
        "did not finish in its time",
        "--launch-timeout",
        "10",
    ),
    Fault("a variant that loops for ever", _hanging_variant),
    _signalled("a worker is killed", lambda b: b.worker_of("node-2"), signal.SIGKILL, "worker 1 lost"),
    Fault("a raylet is killed", _node_gone),
    Fault("the network of a node is cut", _partition, hosts=True),
    _driver("the driver is killed", signal.SIGKILL, "no such words", -9),
    _driver("Ctrl-C", signal.SIGINT, "interrupted", 130),
    _driver("SIGTERM", signal.SIGTERM, "terminated", 143),
    Fault("the head is killed", _head_gone),
    Fault("ray job stop", _job_stopped),
    Fault("the station is busy with another run of this cluster", _busy),
    Fault("the station is busy with a run of another cluster", _busy_elsewhere),
    Fault("two drivers on one run", _two_drivers),
    Fault("resumed with other sources", _other_sources),
    Fault("an output that can't be written", _refused("can't be kept", "--out", "/proc/results")),
    Fault("an output that can't be reached", _refused("can't be", "--out", UNREACHABLE)),
    Fault("a full disk", _full_disk, hosts=True),
    Fault("a disk that fills up", _disk_fills_up, hosts=True),
)


def inject(bench: Bench, fault: Fault) -> Seen:
    """Makes the cluster whole, injects one fault, and says what came of it."""
    try:
        bench.begin()
        shows, seconds, lost = fault.inject(bench)
    except (TestbedError, OSError, subprocess.SubprocessError) as error:
        return Seen(fault.name, str(error), None, "not seen")
    return Seen(fault.name, shows, None if seconds is None else round(seconds, 1), lost)


def sound(seen: Seen) -> bool:
    """Whether it was said, and nothing was lost."""
    return bool(seen.shows) and seen.lost == NOTHING


def table(found: Sequence[Seen]) -> str:
    """In Markdown."""
    rows = ["| fault | what the user sees | after s | lost |", "|---|---|---|---|"]
    for seen in found:
        seconds = "" if seen.seconds is None else f"{seen.seconds:.1f}"
        rows.append(f"| {seen.fault} | {_cell(seen.shows)} | {seconds} | {_cell(seen.lost)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def facts(found: Sequence[Seen]) -> list[dict[str, Any]]:
    """For JSON."""
    return [vars(seen) for seen in found]
