"""Fresh pinned processes of a trial, until precision or budget.

``python -m ray_jobs.launch`` is the fork server of a trial: it has imported PyTorch and started nothing, forks a
process for each launch that it is asked for, and ends it at its deadline. ``LaunchServer`` is the caller's side. The
server is a program of its own rather than multiprocessing's, which would import the caller's ``__main__`` (Ray's
worker) into every launch. If the caller dies, the server and the launch in progress end with it.
"""

import ctypes
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from chatbot.variants import Workload
from ray_jobs import measure, orders
from ray_jobs.measure import Launch, LaunchResult, Weights
from ray_jobs.statistics import LEAST_LAUNCHES, precise_enough

ATTEMPTS = 3  # of one launch
GRACE_S = 10.0  # between a launch's deadline and giving up on its server


@dataclass(frozen=True)
class Trial:
    """One workload on one station, as the process that measures it needs it."""

    id: str
    workload: Workload
    variants: tuple[str, ...]
    weights: Weights
    pool: NDArray[np.int64]  # (N, T) prompts
    seed: int
    precision: float
    budget_s: float
    launch_timeout_s: float


@dataclass(frozen=True)
class Request:
    """What the fork server is asked for: a launch, or (``memory`` names a variant) its peak memory."""

    workload: Workload
    variants: tuple[str, ...]
    weights: Weights
    pool: NDArray[np.int64]
    launch: Launch
    cores: tuple[int, ...]
    timeout_s: float
    memory: str | None = None


@dataclass(frozen=True)
class Failure:
    """A launch that brought nothing home, and why."""

    launch: Launch
    reason: str


@dataclass(frozen=True)
class Memory:
    """Peak memory in MB of each variant that told it."""

    peak_mb: dict[str, float]


Outcome = LaunchResult | Failure | Memory


class TrialError(RuntimeError):
    """The trial can't go on; one line says why."""


def choose_cores(allowed: Sequence[int], threads: int) -> tuple[int, ...]:
    """The cores to measure on: the last ``threads`` allowed ones, so that the first is left to everything else.

    Raises:
        TrialError: fewer cores are allowed than threads asked for.
    """
    if threads > len(allowed):
        raise TrialError(f"{threads} threads asked for, but the station has {len(allowed)} cores")
    return tuple(sorted(allowed)[-threads:])


def run_trial(trial: Trial, clock: Callable[[], float] = time.monotonic) -> Iterator[Outcome]:
    """Launches until every speedup is precise enough or the budget ends; then each variant's peak memory.

    Launches come in whole blocks of as many as there are variants, at least ``LEAST_LAUNCHES``. A lost launch is
    yielded as a ``Failure`` and run again in its place with the same order.

    Raises:
        TrialError: the cores do not suffice, or a launch failed ``ATTEMPTS`` times.
    """
    allowed = sorted(os.sched_getaffinity(0))
    cores = choose_cores(allowed, trial.workload.threads)
    others = [core for core in allowed if core not in cores]
    with LaunchServer(trial.workload, others) as server:
        yield from _launches(trial, cores, server, clock)
        yield Memory(_peak_memory(trial, cores, server))


def _launches(
    trial: Trial, cores: tuple[int, ...], server: "LaunchServer", clock: Callable[[], float]
) -> Iterator[LaunchResult | Failure]:
    start = clock()
    block = len(trial.variants)
    least = orders.up_to_multiple(LEAST_LAUNCHES, block)
    # The least number of launches should fit in the budget; a tenth of it goes to starting and preparing.
    launch = Launch(0, trial.seed, seconds=0.9 * trial.budget_s / least)
    speedups: list[dict[str, float]] = []
    while True:
        outcome = server.run(_request(trial, cores, launch))
        assert not isinstance(outcome, Memory)
        yield outcome
        if isinstance(outcome, Failure):
            if launch.attempt == ATTEMPTS:
                raise TrialError(f"launch {launch.index} failed {ATTEMPTS} times, last: {outcome.reason}")
            launch = replace(launch, attempt=launch.attempt + 1)
            continue
        speedups.append(outcome.log_speedups())
        done = launch.index + 1
        launch = replace(launch, index=done, attempt=1, rounds=outcome.rounds, calls=outcome.calls)
        enough = done >= least and done % block == 0
        if enough and (precise_enough(speedups, trial.precision) or clock() - start >= trial.budget_s):
            return


def _peak_memory(trial: Trial, cores: tuple[int, ...], server: "LaunchServer") -> dict[str, float]:
    peaks: dict[str, float] = {}
    for variant in trial.variants:
        outcome = server.run(replace(_request(trial, cores, Launch(0, trial.seed)), memory=variant))
        if isinstance(outcome, Memory):
            peaks |= outcome.peak_mb
    return peaks


def _request(trial: Trial, cores: tuple[int, ...], launch: Launch) -> Request:
    return Request(trial.workload, trial.variants, trial.weights, trial.pool, launch, cores, trial.launch_timeout_s)


class LaunchServer:
    """The fork server as a child process; a context manager that leaves no process behind."""

    def __init__(self, workload: Workload, housekeeping_cores: Sequence[int] = ()) -> None:
        """``housekeeping_cores`` are where the server itself stays while a launch measures; none: anywhere."""
        package = Path(__file__).resolve().parent.parent
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join([str(package), *filter(None, [env.get("PYTHONPATH")])])
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(workload.threads)
        env["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's would start threads on import, before the fork
        if workload.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.launch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=env,
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

    def run(self, request: Request) -> Outcome:
        """One launch in a fresh process; a ``Failure`` where it died, raised or outlasted its time.

        Raises:
            TrialError: the server itself is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, request)
            ready, _, _ = select.select([self._process.stdout], [], [], request.timeout_s + GRACE_S)
            outcome: Outcome | None = _receive(self._process.stdout) if ready else None
        except (BrokenPipeError, EOFError):
            outcome = None
        if outcome is None:
            raise TrialError(f"the launch server died: {self._last_words()}")
        return outcome

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


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
    while True:
        try:
            request: Request = _receive(requests)
        except EOFError:
            return
        outcome = _fork_launch(request, requests)
        if outcome is None:
            return
        _send(outcomes, outcome)


def _fork_launch(request: Request, requests: IO[bytes]) -> Outcome | None:
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
        return Failure(request.launch, reason or "")
    outcome: Outcome = pickle.loads(data)
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
            return b"", "it did not finish in its time and was ended"
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
    """The launch's own process: pins itself, measures, sends the result, and ends without the server's clean-up."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the server
        outcome: Outcome = _pinned(request)
    except BaseException as error:
        outcome = Failure(request.launch, measure.one_line(error))
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(pickle.dumps(outcome))
    os._exit(0)


def _pinned(request: Request) -> LaunchResult | Memory:
    os.sched_setaffinity(0, request.cores)
    torch.set_num_threads(request.workload.threads)
    torch.set_num_interop_threads(1)
    if request.memory is not None:
        peak = measure.measure_memory(request.workload, request.memory, request.weights, request.pool)
        return Memory({request.memory: peak})
    result = measure.measure(request.workload, request.variants, request.weights, request.pool, request.launch)
    machine = measure.machine_facts()
    if tuple(machine["cores"]) != request.cores or machine["threads"] != request.workload.threads:
        raise RuntimeError(f"it ended on cores {machine['cores']} with {machine['threads']} threads, not as pinned")
    return replace(result, machine=machine)


if __name__ == "__main__":
    # Results go to the pipe that the caller reads; anything a library prints must not mix with them.
    outcomes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from ray_jobs.launch import serve as serve_importable  # classes pickled as ray_jobs.launch, not __main__

    serve_importable(os.fdopen(os.dup(0), "rb"), outcomes)
