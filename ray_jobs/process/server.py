"""Fresh pinned processes: a server that has imported PyTorch and nothing that starts threads, and forks when asked.

``python -m ray_jobs.process.server`` forks a process for each request and ends it at its deadline; ``LaunchServer`` is
the caller's side. It is a program of its own rather than multiprocessing's fork server, which would import the caller's
``__main__`` (Ray's worker) into every launch. If the caller dies, the server and the launch in progress end with it.
"""

import ctypes
import gc
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
from pathlib import Path
from typing import IO, Any

import torch

import chatbot
import ray_jobs
from chatbot.variants import Workload
from ray_jobs.measure import custom_model, launch  # noqa: F401 (so that no launch spends its time on importing it)
from ray_jobs.measure.result import one_line

OUT_OF_TIME = "it did not finish in its time and was ended"
GRACE_S = 10.0  # between a launch's deadline and giving up on its server


@dataclass(frozen=True)
class Request:
    """What the fork server is asked for: the value of ``work()`` in a fresh process pinned to ``cores``."""

    work: Callable[[], Any]
    cores: tuple[int, ...]
    threads: int
    timeout_s: float


@dataclass(frozen=True)
class Loss:
    """A process that brought nothing home, and why."""

    reason: str


class TrialError(RuntimeError):
    """The trial can't go on; one line says why."""


class LaunchServer:
    """The fork server as a child process; a context manager that leaves no process behind."""

    def __init__(
        self, workload: Workload, housekeeping_cores: Sequence[int] = (), descriptors: Sequence[int] = ()
    ) -> None:
        """Starts it.

        Args:
            workload: its threads and device are the environment that launches find.
            housekeeping_cores: where the server itself stays while a launch measures; none: anywhere.
            descriptors: open files that the server and its launches keep open until they end.
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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.process.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=env,
            pass_fds=descriptors,
        )
        if housekeeping_cores:
            os.sched_setaffinity(self._process.pid, housekeeping_cores)

    @property
    def pid(self) -> int:
        """The server's process id; its only child is the launch in progress."""
        return self._process.pid

    def __enter__(self) -> "LaunchServer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()  # the launch in progress has asked the kernel to die with it
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._complaints.close()

    def run(self, request: Request) -> Any:
        """The work's value from a fresh process; a ``Loss`` where it died, raised or outlasted its time.

        Raises:
            TrialError: the server itself is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, request)
            ready, _, _ = select.select([self._process.stdout], [], [], request.timeout_s + GRACE_S)
            answer = _receive(self._process.stdout) if ready else None
        except (BrokenPipeError, EOFError):
            answer = None
        if answer is None:
            raise TrialError(f"the launch server died: {self._last_words()}")
        return answer.value if isinstance(answer, _Value) else answer

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@dataclass(frozen=True)
class _Value:
    """What ``work()`` returned, which may be anything."""

    value: Any


def _send(pipe: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """The next value; EOFError where the other end is closed."""
    header = pipe.read(8)
    if len(header) < 8:
        raise EOFError
    data = pipe.read(struct.unpack("<Q", header)[0])
    return pickle.loads(data)


def serve(requests: IO[bytes], outcomes: IO[bytes]) -> None:
    """The server's loop: one launch at a time, until the caller closes the pipe or dies."""
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a thread was started before the first launch: its locks would be copied by a fork")
    gc.freeze()  # a launch's collections need not walk through PyTorch, nor copy its pages
    while True:
        try:
            request: Request = _receive(requests)
        except EOFError:
            return
        outcome = _fork_launch(request, requests)
        if outcome is None:
            return
        _send(outcomes, outcome)


def _fork_launch(request: Request, requests: IO[bytes]) -> _Value | Loss | None:
    """Forks, waits for the outcome and ends the child at its deadline; None: the caller is gone."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(request, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data, reason = _wait_for(pipe, requests, time.monotonic() + request.timeout_s)
    if reason is not None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if reason == "":
        return None
    if reason is None and not data:
        reason = f"it {_ending(status)}"
    if reason is not None:
        return Loss(reason)
    outcome: _Value | Loss = pickle.loads(data)
    return outcome


def _wait_for(pipe: IO[bytes], requests: IO[bytes], deadline: float) -> tuple[bytes, str | None]:
    """(all bytes of the pipe, None), or (.., why the launch is to be ended: "" where the caller has gone)."""
    chunks: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([pipe, requests], [], [], max(0.0, left))
        if requests in ready:  # the caller sends nothing while a launch runs: its end is closed
            return b"", ""
        if not ready:
            return b"", OUT_OF_TIME
        chunk = os.read(pipe.fileno(), 1 << 20)
        if not chunk:
            return b"".join(chunks), None
        chunks.append(chunk)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit code {os.WEXITSTATUS(status)} and no result"


def _child(request: Request, write_end: int) -> None:
    """The launch's own process: pins itself, works, sends the result, and ends without the server's clean-up."""
    outcome: _Value | Loss
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the server
        os.sched_setaffinity(0, request.cores)
        with suppress(PermissionError):  # Ray's workers, and what they start, are nice to everybody else
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        torch.set_num_threads(request.threads)
        torch.set_num_interop_threads(1)
        outcome = _Value(request.work())
    except BaseException as error:
        outcome = Loss(one_line(error))
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(pickle.dumps(outcome))
    os._exit(0)


if __name__ == "__main__":
    # Results go to the pipe that the caller reads; anything a library prints must not mix with them.
    outcomes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from ray_jobs.process.server import (
        serve as serve_importable,  # classes pickled as ray_jobs.forkserver, not __main__
    )

    serve_importable(os.fdopen(os.dup(0), "rb"), outcomes)
