"""Fresh pinned processes: a server that has imported PyTorch and nothing that starts threads, and forks when asked.

``python -m ray_jobs.process.server`` forks a process for each request and ends it at its deadline; ``LaunchServer`` is
the caller's side. It is a program of its own rather than multiprocessing's fork server, which would import the caller's
``__main__`` (Ray's worker) into every launch. If the caller dies, the server and the launch in progress end with it.
"""

import ctypes
import gc
import io
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import torch

import chatbot
import ray_jobs
from chatbot.variants import Workload
from ray_jobs.measure import custom_model, launch  # noqa: F401 (so that no launch spends its time on importing it)
from ray_jobs.measure.result import one_line

HEADER = struct.Struct("<Q")  # the length of a launch's result, before it
GRACE_S = 10.0  # between a launch's deadline and giving up on its server


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


@dataclass(frozen=True)
class Loss:
    """A process that brought nothing home, and why."""

    kind: LossKind
    reason: str


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
    ) -> None:
        """Starts it.

        Args:
            workload: its threads and device are the environment that launches find.
            housekeeping_cores: where the server itself stays while a launch measures; none: anywhere.
            descriptors: open files that the server and its launches keep open until they end.
            given: what it gets once, for its launches to inherit, because requests mention it (prompts, say).
        """
        places = [str(Path(package.__path__[0]).resolve().parent) for package in (ray_jobs, chatbot)]
        if workload.own_model:
            places += custom_model.places_of(workload.model)
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [env.get("PYTHONPATH")])])
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(workload.threads)
        env["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's would start threads on import, before the fork
        if workload.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs.process.server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                env=env,
                pass_fds=[theirs.fileno(), *descriptors],
            )
        if housekeeping_cores:
            os.sched_setaffinity(self._process.pid, housekeeping_cores)
        self._given = given
        with suppress(OSError):  # it died; the first request says so
            self._connection.send_bytes(pickle.dumps(given))

    @property
    def pid(self) -> int:
        """The server's process id; its only child is the launch in progress."""
        return self._process.pid

    def __enter__(self) -> "LaunchServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # the launch in progress has asked the kernel to die with it
        self._process.wait()
        self._connection.close()
        self._complaints.close()

    def run(self, request: Request) -> Any:
        """The work's value from a fresh process; a ``Loss`` where it died, raised or outlasted its time.

        Raises:
            TrialError: the server itself died or hangs.
        """
        # Bytes, as Connection.send() would move tensors into shared memory.
        try:
            self._connection.send_bytes(dumps(request, self._given))
            if not self._connection.poll(request.timeout_s + GRACE_S):
                late_s = f"{GRACE_S:.0f} s after its launch's deadline"
                raise TrialError(f"the launch server hangs: it had not answered {late_s}")
            answer = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise TrialError(f"the launch server died: {self._last_words()}") from None
        return _value_of(answer)

    def _last_words(self) -> str:
        self._complaints.seek(0)
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


def serve(caller: Connection) -> None:
    """The server's loop: one launch at a time, until the caller closes its end or dies."""
    with suppress(EOFError, ConnectionError):
        given = pickle.loads(caller.recv_bytes())
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError("a thread was started before the first launch: its locks would be copied by a fork")
        gc.freeze()  # a launch's collections need not walk through PyTorch, nor copy its pages
        while True:
            caller.send_bytes(_fork_launch(_loads(caller.recv_bytes(), given), caller))


def _fork_launch(request: Request, caller: Connection) -> bytes:
    """Forks, waits for the outcome and ends the child at its deadline. Raises EOFError where the caller has gone."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(request, write_end)
    os.close(write_end)
    data: bytes | None = None
    try:
        with os.fdopen(read_end, "rb") as pipe:
            data = _wait_for(pipe, caller, time.monotonic() + request.timeout_s)
    finally:
        if data is None:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if data is None:
        return pickle.dumps(Loss(LossKind.LATE, "it did not finish in its time and was ended"))
    size, outcome = data[: HEADER.size], data[HEADER.size :]
    if len(size) < HEADER.size or len(outcome) < HEADER.unpack(size)[0]:  # killed before or while it sent
        return pickle.dumps(Loss(LossKind.DIED, f"it {_ending(status)}"))
    return outcome


def _wait_for(pipe: IO[bytes], caller: Connection, deadline: float) -> bytes | None:
    """All bytes of the pipe, None where its deadline came first. Raises EOFError where the caller has gone."""
    chunks: list[bytes] = []
    while True:
        ready, _, _ = select.select([pipe.fileno(), caller.fileno()], [], [], max(0.0, deadline - time.monotonic()))
        if caller.fileno() in ready:  # it sends nothing while a launch runs: its end is closed
            raise EOFError
        if not ready:
            return None
        chunk = os.read(pipe.fileno(), 1 << 20)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit code {os.WEXITSTATUS(status)} and no result"


def _child(request: Request, write_end: int) -> None:
    """The launch's own process: pins itself, works, sends the result, and ends without the server's clean-up."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the server
        os.sched_setaffinity(0, request.cores)
        with suppress(PermissionError):  # Ray's workers, and what they start, are nice to everybody else
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        torch.set_num_threads(request.threads)
        torch.set_num_interop_threads(1)
        outcome = pickle.dumps(_Value(request.work()))
    except BaseException as error:
        outcome = pickle.dumps(Loss(LossKind.RAISED, one_line(error)))
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(HEADER.pack(len(outcome)) + outcome)
    os._exit(0)


if __name__ == "__main__":
    # Classes are pickled as ray_jobs.process.server's, not __main__'s.
    from ray_jobs.process.server import serve as serve_importable

    serve_importable(Connection(int(sys.argv[1])))
