"""Fresh pinned processes: a server that has imported PyTorch and nothing that starts threads, and forks when asked.

``python -m ray_jobs.process.server`` forks a process for each request and ends it at its deadline; ``LaunchServer`` is
the caller's side. It is a program of its own rather than multiprocessing's fork server, which would import the caller's
``__main__`` (Ray's worker) into every launch. If the caller dies, the server and the launch in progress end with it.
"""

import gc
import io
import os
import pickle
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import torch

from chatbot import cache, compiler
from chatbot.variants import Workload
from ray_jobs import machine
from ray_jobs.measure import busy
from ray_jobs.measure import session as _session  # noqa: F401 (so that no launch spends its time on importing it)
from ray_jobs.measure.result import one_line
from ray_jobs.process import fork, memory
from ray_jobs.process.search import replaced, search_of
from ray_jobs.process.threads import other_threads
from ray_jobs.sides import Side, version_fault

START_S = 50.0  # of a server: importing PyTorch, on a machine that is busy; a trial may be silent for ten seconds more
READY, STARTED = b"ready", b"started"  # for what it is given; for launches
LEAVE_S = 5.0  # for a server to end by itself
GRACE_S = 10.0  # between a launch's deadline and giving up on its server
COMPLAINTS_BYTES = 1_000_000  # that a server and its launches may have printed before a launch
LAST_WORDS_BYTES = 10_000


@dataclass(frozen=True)
class Request:
    """A request to the fork server: the value of ``work()`` in a fresh process pinned to ``cores``."""

    work: Callable[[], Any]
    cores: tuple[int, ...]
    threads: int
    timeout_s: float


class LossKind(StrEnum):
    """How a process was lost."""

    RAISED = "raised"  # its work did
    DIED = "died"  # without a whole result
    LATE = "late"  # ended at its deadline
    RESTLESS = "restless"  # computed while it was another side's turn
    MOVED = "moved"  # left its cores, or its number of threads


@dataclass(frozen=True)
class Loss:
    """A process that ended without a result, and the reason."""

    kind: LossKind
    reason: str
    variant: str | None = None  # that it was busy with


class TrialError(RuntimeError):
    """The trial can't go on; one line says why."""


class LaunchServer:
    """The fork server as a child process; a context manager that leaves no process behind."""

    def __init__(
        self,
        workload: Workload,
        housekeeping_cores: Sequence[int] = (),
        descriptors: Sequence[int] = (),
        given: object = None,
        side: Side | None = None,
    ) -> None:
        """Starts it.

        Args:
            workload: its threads and device are the environment that launches find.
            housekeeping_cores: where the server itself stays while a launch measures; none: anywhere.
            descriptors: open files that the server keeps open until it ends; its launches do not.
            given: what it gets once, for its launches to inherit, because requests mention it (prompts, say).
            side: its interpreter, sources and variables; none: those of this process.
        """
        search = search_of(workload, side)
        self._interpreter = interpreter = None if side is None else side.python
        env = {name: value for name, value in os.environ.items() if name not in machine.AFFINITY}
        env |= dict(side.variables) if side is not None else {}
        env["PYTHONPATH"] = os.pathsep.join(search.first)
        if interpreter:
            env.pop("PYTHONHOME", None)
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(workload.threads)
        env["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's would start threads on import, before the fork
        self._mark = env[fork.MARK] = secrets.token_hex(16)
        if workload.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        self._cache: tempfile.TemporaryDirectory[str] | None = None
        self.warnings: tuple[str, ...] = ()  # about what launches find
        if (fault := cache.fault()) is not None:  # one for all launches, as the user's own can't be trusted
            self.warnings = (f"what was compiled is not kept: {fault}; set {cache.CACHE} to a folder of yours alone",)
            self._cache = tempfile.TemporaryDirectory(prefix="latency-matrix-", ignore_cleanup_errors=True)
            env[cache.CACHE] = self._cache.name
        self._complaints: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed with the server)
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [
                    interpreter or sys.executable,
                    "-P",
                    "-m",
                    "ray_jobs.process.server",
                    *map(str, [theirs.fileno(), *descriptors]),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                env=env,
                pass_fds=[theirs.fileno(), *descriptors],
            )
        self.stay_on(housekeeping_cores)
        self._given, self._started = given, False
        self._links, self._searched = search.links, (search.last, dict(search.instead))

    @property
    def pid(self) -> int:
        """The server's process id; its only child is the launch in progress."""
        return self._process.pid

    def __enter__(self) -> "LaunchServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # then the server ends, with the launch in progress and whatever that has started
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode:  # it could not end what its launch had started
            fork.end_marked(self._mark)
        self._complaints.close()
        for folder in filter(None, (self._cache, self._links)):
            folder.cleanup()

    def fileno(self) -> int:
        """Of what becomes readable when a request that began has an outcome."""
        return self._connection.fileno()

    def run(self, request: Request) -> Any:
        """The work's value from a fresh process; a ``Loss`` where it died, raised or outlasted its time.

        Raises:
            TrialError: the server itself died or hangs.
        """
        self.begin(request)
        return self.outcome(request.timeout_s)

    def begin(self, request: Request) -> None:
        """Lets the work begin; ``outcome`` must be asked for before the next request. Raises TrialError."""
        self.wait()
        # Bytes, as Connection.send() would move tensors into shared memory.
        with self._alive():
            self._connection.send_bytes(dumps(request, self._given))

    def wait(self) -> None:
        """Waits until it has started: importing PyTorch is not a launch's time. Raises TrialError."""
        with self._alive():
            if not self._started:
                self._told()
                for given in (self._searched, self._given):
                    self._connection.send_bytes(pickle.dumps(given))
                self._told()
                self._started = True

    def _told(self) -> None:
        """Waits for its next word."""
        if not self._connection.poll(START_S):
            raise TrialError(f"the launch server hangs: it had not started after {START_S:.0f} s")
        self._connection.recv_bytes()

    def stay_on(self, cores: Sequence[int]) -> None:
        """Moves it to these cores; none: it may be anywhere."""
        if cores:
            os.sched_setaffinity(self._process.pid, cores)

    def outcome(self, timeout_s: float) -> Any:
        """As ``run``, of the request that began ``timeout_s`` before its deadline or later."""
        with self._alive():
            if not self._connection.poll(timeout_s + GRACE_S):
                late_s = f"{GRACE_S:.0f} s after its launch's deadline"
                raise TrialError(f"the launch server hangs: it had not answered {late_s}")
            return _value_of(self._connection.recv_bytes())

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Raises TrialError with its last words where it has died."""
        try:
            yield
        except (EOFError, OSError):
            old = version_fault(self._interpreter) if self._interpreter and not self._started else None
            raise TrialError(old or f"the launch server died: {self._last_words()}") from None

    def _last_words(self) -> str:
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class _Pickler(pickle.Pickler):
    given: object = None

    def persistent_id(self, obj: object) -> str | None:
        return "given" if self.given is not None and obj is self.given else None


class _Unpickler(pickle.Unpickler):
    given: object = None

    def persistent_load(self, pid: object) -> object:
        return self.given


def dumps(request: Request, given: object) -> bytes:
    """The request, without what its server was given."""
    content = io.BytesIO()
    pickler = _Pickler(content)
    pickler.given = given
    pickler.dump(request)
    return content.getvalue()


def _loads(content: bytes, given: object) -> Request:
    unpickler = _Unpickler(io.BytesIO(content))
    unpickler.given = given
    request: Request = unpickler.load()
    return request


@dataclass(frozen=True)
class _Value:
    """The value that ``work()`` returned."""

    value: Any


def _value_of(answer: bytes) -> Any:
    try:
        outcome: _Value | Loss = pickle.loads(answer)
    except Exception as error:  # whatever its classes raise
        return Loss(LossKind.RAISED, f"its result can't be read: {one_line(error)}")
    return outcome.value if isinstance(outcome, _Value) else outcome


def serve(caller: Connection, leases: Sequence[int] = ()) -> None:
    """The server's loop: one launch at a time, until the caller closes its end or dies.

    ``leases`` are descriptors that stay open here, and in nothing that is started from here.
    """
    with suppress(EOFError, ConnectionError):
        caller.send_bytes(READY)
        last, instead = pickle.loads(caller.recv_bytes())
        sys.path[:] = replaced(sys.path, instead)  # those that a .pth file has put there too
        sys.path += [place for place in last if place not in sys.path]
        given = pickle.loads(caller.recv_bytes())
        if others := other_threads():
            raise RuntimeError(
                f"a thread runs before the first launch, and a fork would copy its locks: {', '.join(others)}; measure "
                "without the agent that starts it (through PYTHONPATH, LD_PRELOAD or a .pth file)"
            )
        for descriptor in leases:
            os.set_inheritable(descriptor, False)
        fork.adopt()
        gc.freeze()  # a launch's collections need not walk through PyTorch, nor copy its pages
        caller.send_bytes(STARTED)
        while True:
            request = _loads(caller.recv_bytes(), given)
            _shorten_complaints()
            caller.send_bytes(_launched(request, caller.fileno(), leases))


def _launched(request: Request, caller: int, leases: Sequence[int]) -> bytes:
    """The pickled outcome of a fresh process. Raises EOFError where the caller has gone."""
    before = memory.kills()
    busy.at(None)
    ended = fork.run(partial(_work, request), request.timeout_s, caller, leases)
    if ended.result is not None:
        return ended.result
    variant = busy.last()
    where = f" in {variant}" if variant else ""
    if ended.late:
        return pickle.dumps(Loss(LossKind.LATE, f"it did not finish in its time and was ended{where}", variant))
    out_of_memory = ended.signal == signal.SIGKILL and memory.kills() > before
    how = "ran out of memory: the kernel killed it" if out_of_memory else ended.text
    return pickle.dumps(Loss(LossKind.DIED, f"it {how}{where}", variant))


def _work(request: Request) -> bytes:
    """Runs in the launch's own process: pins itself and does the work."""
    try:
        compiler.must_end_by(time.monotonic() + request.timeout_s)
        os.sched_setaffinity(0, request.cores)
        with suppress(PermissionError):  # Ray's workers, and what they start, are nice to everybody else
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        torch.set_num_threads(request.threads)
        torch.set_num_interop_threads(1)
        return pickle.dumps(_Value(request.work()))
    except BaseException as error:
        return pickle.dumps(Loss(LossKind.RAISED, one_line(error)))


def _shorten_complaints() -> None:
    """Empties the unnamed file that launches print to once it is long: only its last lines matter."""
    found = os.fstat(sys.stderr.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size > COMPLAINTS_BYTES:
        os.ftruncate(sys.stderr.fileno(), 0)
        os.lseek(sys.stderr.fileno(), 0, os.SEEK_SET)  # else the next word would follow a megabyte of zeros


if __name__ == "__main__":
    # Classes are pickled as ray_jobs.process.server's, not __main__'s.
    from ray_jobs.process.server import serve as serve_importable

    serve_importable(Connection(int(sys.argv[1])), [int(lease) for lease in sys.argv[2:]])
    os._exit(0)  # at once: its caller waits for it
