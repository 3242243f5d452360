"""A Ray cluster of real processes on this machine, to break things in.

As root every node is a host of its own: a network namespace with its own address, and its own name; cutting its link is
a network partition. Else all nodes share the loopback address. Each worker node is pinned to a core. Every process
carries a mark in its environment, by which it is found and, in the end, ended; nothing else is touched.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ray_jobs.cluster.job import IN_A_JOB
from ray_jobs.process.lease import FOLDER

MARK = "LATENCY_MATRIX_TESTBED"
SOURCES = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0  # of ray start, on a machine with other work too
# Noticed in 8 s instead of minutes; cluster.yaml names these too.
TIGHT = {
    "RAY_grpc_client_keepalive_time_ms": "3000",
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
DROPPED = ("RAY_ADDRESS", "RAY_TMPDIR", "WANDB_API_KEY", "WANDB_MODE", IN_A_JOB)


class TestbedError(RuntimeError):
    """Ray did not come up; one line says why."""

    __test__ = False


@dataclass
class Command:
    """A running command and its output so far, both streams in one file."""

    process: "subprocess.Popen[bytes]"
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises TestbedError where it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise TestbedError(f"it did not end within {seconds:.0f} s: {self.said[-500:]}") from None

    def wait_for(self, words: str, seconds: float) -> float:
        """Seconds until the output holds these. Raises TestbedError where it does not."""
        start = time.monotonic()
        if not until(lambda: words in self.said or self.process.poll() is not None, seconds) or words not in self.said:
            raise TestbedError(f"{words!r} was not said within {seconds:.0f} s, but: {self.said[-500:]}")
        return time.monotonic() - start


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def can_partition() -> str | None:
    """None where network namespaces can be made here, else why not."""
    if os.geteuid() != 0:
        return "it needs root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"lm{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return None if made.returncode == 0 else f"network namespaces can't be made: {made.stderr.strip()}"


class Testbed:
    """A head without CPUs and worker nodes beside it; a context manager that leaves nothing behind."""

    __test__ = False

    def __init__(self, hosts: bool) -> None:
        """``hosts``: a network namespace for each node; ``can_partition`` tells whether that works here."""
        self.hosts = hosts
        self.folder = Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))  # Ray's sockets need a short path
        self._id = secrets.token_hex(3)
        self._names: list[str] = []
        self._logs = 0
        self.port, self.dashboard = _free_port(), _free_port()

    def __enter__(self) -> "Testbed":
        if self.hosts:
            self._ip("link", "add", self._bridge, "type", "bridge")
            self._ip("link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.end(self.pids())
        for name in self._names:
            self._ip("netns", "delete", self._namespace(name), check=False)
        if self.hosts:
            self._ip("link", "delete", self._bridge, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self._host_address('head')}:{self.port}"

    @property
    def dashboard_url(self) -> str:
        return f"http://{self._host_address('head')}:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: no telemetry, no keys, locks of its own."""
        kept = {key: value for key, value in os.environ.items() if key not in DROPPED}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "WANDB_ERROR_REPORTING": "false", "RAY_AUTH_MODE": "disabled"}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        mine = {"PATH": path, MARK: self._id, FOLDER: str(self.folder / "locks"), "RAY_worker_niceness": "0"}
        return {**kept, **quiet, **TIGHT, **mine, "COLUMNS": "200"}

    def start_head(self, dashboard: bool = False) -> None:
        """The head node, which measures nothing."""
        options = ["--head", f"--port={self.port}", "--num-cpus=0", f"--temp-dir={self.folder / 'ray'}"]
        options += [f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={self.dashboard}"]
        options += [f"--dashboard-host={self._host_address('head')}"]
        self._start("head", options)

    def start_node(
        self, name: str, core: int, labels: str = "", environment: Mapping[str, str] | None = None, gpus: int = 0
    ) -> None:
        """A worker node with one CPU and, by Ray's count, so many GPUs."""
        options = [f"--address={self.address}", "--num-cpus=1", f"--num-gpus={gpus}", f"--labels={labels}"]
        self._start(name, options, core, environment)

    def _start(
        self,
        name: str,
        options: Sequence[str],
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if self.hosts and name not in self._names:
            self._make_host(name)
        elif name not in self._names:
            self._names.append(name)
        ports = [f"--{kind}={_free_port()}" for kind in ("dashboard-agent-listen-port", "metrics-export-port")]
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self._host_address(name)}"]
        command = [*self._inside(name), *pinned, *ray, *ports, "--disable-usage-stats", *options]
        mark = {**self.environment, **(environment or {}), f"{MARK}_NODE": name}
        done = subprocess.run(
            command, env=mark, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False, cwd=self.folder
        )
        if done.returncode != 0:
            raise TestbedError(f"ray start failed on {name}: {(done.stderr or done.stdout).strip()[-500:]}")

    def command(
        self, *arguments: str | Path, program: Sequence[str] = ("-m", "ray_jobs"), sources: Path = SOURCES
    ) -> Command:
        """``python -m ray_jobs`` on the head's host, interruptible, in this test bed's folder."""
        self._logs += 1
        log = self.folder / f"command{self._logs}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self._inside("head"), sys.executable, *program, *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**self.environment, "PYTHONPATH": str(sources)},
                cwd=self.folder,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return Command(process, log)

    def pids(self, node: str | None = None, words: str = "") -> list[int]:
        """Processes of this test bed, or of one of its nodes, whose command line holds these words."""
        mark = f"{MARK}={self._id}\0" if node is None else f"{MARK}_NODE={node}\0"
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (path / "environ").read_bytes().decode(errors="replace") + "\0"
                command = (path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if f"{MARK}={self._id}\0" in environment and mark in environment and words in command:
                    found.append(int(path.name))
        return found

    def end(self, pids: Sequence[int]) -> None:
        """Kills processes of this test bed and waits until they are gone."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(_alive, pids)), 10)

    def kill_node(self, name: str) -> None:
        """All of a node's processes at once, as if its machine had lost power."""
        self.end(self.pids(name))

    def cut(self, name: str) -> None:
        """Takes a host's network away: a partition."""
        self._ip("link", "set", self._cable(name), "down")

    def mend(self, name: str) -> None:
        """Gives it back."""
        self._ip("link", "set", self._cable(name), "up")

    def _make_host(self, name: str) -> None:
        number, space = len(self._names), self._namespace(name)
        self._names.append(name)
        cable = self._cable(name)
        self._ip("netns", "add", space)
        self._ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("link", "set", cable, "master", self._bridge, "up")
        self._ip("-n", space, "address", "add", f"{self._address_of(number)}/24", "dev", "eth0")
        self._ip("-n", space, "link", "set", "eth0", "up")
        self._ip("-n", space, "link", "set", "lo", "up")

    def _inside(self, name: str) -> list[str]:
        """What puts a command on a host."""
        if not self.hosts:
            return []
        named = ["unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
        return ["ip", "netns", "exec", self._namespace(name), *named]

    def _host_address(self, name: str) -> str:
        if not self.hosts:
            return "127.0.0.1"
        return self._address_of(self._names.index(name) if name in self._names else len(self._names))

    def _address_of(self, number: int) -> str:
        return f"10.{int(self._id[:2], 16)}.{int(self._id[2:4], 16)}.{number + 1}"

    def _namespace(self, name: str) -> str:
        return f"lm{self._id}-{name}"

    def _cable(self, name: str) -> str:
        return f"v{self._id}{self._names.index(name)}"

    @property
    def _bridge(self) -> str:
        return f"b{self._id}"

    def _ip(self, *arguments: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise TestbedError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
