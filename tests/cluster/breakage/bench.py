"""The bench that faults are injected on, and what is held against the plan afterwards."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed import Command, Testbed, TestbedError, until

PATIENCE_S = 300.0  # of a command that should end, on a machine with other work too
NOTHING = "nothing"
LONG = ("--budget", "6", "--precision", "0.0001")  # long enough to break something in the middle

Injected = tuple[str, float | None, str]  # (line, seconds, lost), as in Seen


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
    inject: Callable[["Bench"], Injected]
    hosts: bool = False  # needs network namespaces
    jobs: bool = False  # needs the dashboard, where ray job submits


@dataclass
class Bench:
    """A test bed with two stations, node-1 (zone a) and node-2 (zone b), and how the matrix is run on it."""

    bed: Testbed
    model: tuple[str, ...] = ("--model", "small")
    _runs: int = 0
    _dashboard: bool = False

    def begin(self, jobs: bool = False) -> None:
        """Head and nodes, where they do not run; ``jobs``: a head that takes them."""
        if not self.bed.pids("head", "gcs_server") or jobs > self._dashboard:
            self.bed.end(self.bed.pids())
            self.bed.start_head(dashboard=jobs)
            self._dashboard = jobs
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
        return parent_of(self.server_of(node))

    def launch_of(self, node: str) -> int:
        """The launch in progress on a node."""
        server = self.server_of(node)
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in self.bed.pids(node, "ray_jobs.process.server") if parent_of(pid) == server]
            return bool(found)

        if not until(look, 30):
            raise TestbedError("no launch is in progress")
        return found[0]

    def server_of(self, node: str) -> int:
        servers = self.bed.pids(node, "ray_jobs.process.server")
        outer = [pid for pid in servers if parent_of(pid) not in servers]
        if not outer:
            raise TestbedError(f"no launch server runs on {node}")
        return outer[0]

    def quiet(self, seconds: float) -> float | None:
        """Seconds until no trial's process is left; None where some are."""
        start = time.monotonic()
        gone = until(lambda: not self.bed.pids(None, "ray_jobs.process.server"), seconds)
        return time.monotonic() - start if gone else None


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def line_with(said: str, words: str) -> str:
    """The line of an output that holds these words; empty where there is none."""
    return next((line.strip() for line in said.splitlines() if words in line), "")


def command_itself(command: Command) -> int:
    """The command itself, below what put it on its host."""
    pid = command.process.pid
    while b"ray_jobs" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0:4]:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            break
        pid = int(children[0])
    return pid
