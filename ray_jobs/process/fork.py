"""A forked process that leaves nothing behind: its result, its end, and the end of everything that it started.

It leads a session of its own. Who forks is the subreaper of its descendants: whatever the process leaves running, in
its group or (after setsid(2)) out of it, becomes a child of who forked, and is killed. Linux only.
"""

import ctypes
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "LATENCY_MATRIX_MARK"  # the environment variable that tells whose descendant a process is
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
HEADER = struct.Struct("<Q")  # the length of a result, before it
PATIENCE_S = 30.0  # with the kernel, until a killed process is gone: a driver gives back a GPU's memory first
LOOK_EVERY_S = 0.002


class CallerGoneError(EOFError):
    """The process that waited for the result is gone."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: with a result, at its deadline (``late``), or by a signal or an exit code."""

    result: bytes | None = None
    late: bool = False
    signal: int | None = None
    code: int = 0

    @property
    def text(self) -> str:
        """Describes how it ended without a result."""
        if self.signal is None:
            return f"ended with exit code {self.code} and no result"
        try:
            return f"was killed by {signal.Signals(self.signal).name}"
        except ValueError:  # a real-time signal
            return f"was killed by signal {self.signal}"


def adopt() -> None:
    """Makes this process the subreaper of its descendants: orphans become its own children."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)


def run(work: Callable[[], bytes], timeout_s: float, caller: int, closed: Sequence[int] = ()) -> Ended:
    """Runs ``work`` in a forked process and ends whatever is left of it and of what it started.

    Args:
        work: gives the result. It must not raise.
        timeout_s: when the process is ended.
        caller: the descriptor of who waits for the result; readable or closed, it has gone.
        closed: further descriptors of this process that are not the other one's.

    Raises:
        CallerGoneError: the caller has gone; the process is ended then too.
        RuntimeError: a process can't be ended.
    """
    deadline = time.monotonic() + timeout_s
    parent = os.getpid()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _child(work, parent, write_end, [read_end, caller, *closed])
    os.close(write_end)
    try:
        result, over = _result(read_end, caller, deadline)
        if over and result is None:
            return _ending(child, deadline)
        return Ended(result, late=result is None)
    finally:
        os.close(read_end)
        end(child)


def _child(work: Callable[[], bytes], parent: int, write_end: int, closed: Sequence[int]) -> None:
    """The forked process: works, sends the result, and ends without the other one's clean-up."""
    try:
        os.setsid()
        die_with(parent)
        for descriptor in closed:
            os.close(descriptor)
        ends = [write_end]
        os.register_at_fork(after_in_child=lambda: os.close(ends.pop()) if ends else None)  # it is not a helper's
        result = work()
        with os.fdopen(write_end, "wb", closefd=False) as pipe:
            pipe.write(HEADER.pack(len(result)) + result)
    finally:
        os._exit(0)


def die_with(parent: int) -> None:
    """Lets the kernel end this process when ``parent`` does, and ends it here if that has happened already."""
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _result(pipe: int, caller: int, deadline: float) -> tuple[bytes | None, bool]:
    """The whole result, as soon as it is there; else None, and whether no more of it can come."""
    waiting = select.poll()  # select() knows no descriptor above 1023
    for descriptor in (pipe, caller):
        waiting.register(descriptor, select.POLLIN)
    received = bytearray()
    while True:
        left_s = deadline - time.monotonic()
        ready = dict(waiting.poll(max(0.0, left_s) * 1000))
        if caller in ready:
            raise CallerGoneError
        if not ready:
            return None, False
        chunk = os.read(pipe, 1 << 20)
        received += chunk
        if len(received) >= HEADER.size and len(received) >= HEADER.size + HEADER.unpack_from(received)[0]:
            return bytes(received[HEADER.size :]), True
        if not chunk:
            return None, True


def _ending(child: int, deadline: float) -> Ended:
    """How a process ended that sends nothing any more. It stays a zombie, so that its number is nobody else's."""
    while (found := os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
        if time.monotonic() > deadline:
            return Ended(late=True)
        time.sleep(LOOK_EVERY_S)
    if found.si_code == os.CLD_EXITED:
        return Ended(code=found.si_status)
    return Ended(signal=found.si_status)


def end(leader: int) -> None:
    """Kills the session of a child, and all other children of this process; waits for them.

    Raises:
        RuntimeError: one is still there after ``PATIENCE_S``.
    """
    until = time.monotonic() + PATIENCE_S
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    while left := children():
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > until:
            raise RuntimeError(f"process {left[0]} of a launch can't be ended: the kernel does not let go of it")
        time.sleep(LOOK_EVERY_S if children() else 0)


def children() -> list[int]:
    """The children of this process, which has one thread; ended ones too, until they are waited for."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{me}/children").read_text().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        return [pid for pid in pids if _parent(pid) == me]


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def end_marked(mark: str) -> None:
    """Kills every process of this user whose environment holds ``MARK`` with this value.

    For the descendants of a subreaper that was killed itself: nothing else ties them together any more.
    """
    wanted = f"{MARK}={mark}".encode()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or is somebody else's
            process = os.pidfd_open(int(name))  # its number may become another's meanwhile
            try:
                if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)
