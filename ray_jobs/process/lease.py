"""A host's cores and GPUs, each held by one trial at a time, whatever cluster, run or user that trial belongs to.

Ray knows only of its own tasks: two clusters on one host, or two local runs, would measure each other. Each core and
each GPU is a file that its holder has locked (flock(2)). The kernel releases it when the last process that shares the
descriptor has ended, even if killed, so nothing needs to be cleaned up after a crash.
"""

import fcntl
import getpass
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from chatbot.errors import UsageError

FOLDER = "LATENCY_MATRIX_LOCKS"  # the environment variable that names the folder of the locks
DEFAULT_FOLDER = "/tmp/latency-matrix-locks"


class LeaseError(UsageError):
    """The locks can't be used; one line says why."""


def names_of(cores: Sequence[int], gpus: Sequence[str] = ()) -> list[str]:
    """The locks that a trial takes: every core it may run on, and its GPUs."""
    return [*(f"core-{core}" for core in sorted(cores)), *(f"gpu-{gpu}" for gpu in sorted(gpus))]


def describe(run_id: str, trial_id: str) -> str:
    """Describes a holder to those who wait."""
    since = f"{datetime.now(UTC):%H:%M:%S} UTC"
    return f"run {run_id}, trial {trial_id} (user {_user()}, process {os.getpid()}, since {since})"


class Lease:
    """All of some names, or none; a context manager that releases what ``take()`` has taken."""

    def __init__(self, names: Sequence[str], holder: str) -> None:
        """``holder`` is shown to others; see ``describe``."""
        self._names, self._holder = list(names), holder
        self._descriptors: list[int] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files. A child process that inherits them holds the lease too, until it ends."""
        return tuple(self._descriptors)

    def take(self) -> str | None:
        """None if everything is ours now, else the holder of the first thing that is not. Never waits.

        Raises:
            LeaseError: the folder can't be used.
        """
        for name in self._names:
            try:
                holder = self._take(name)
            except LeaseError:
                self.release()
                raise
            if holder is not None:
                self.release()
                return f"{name} is held by {holder}"
        for descriptor in self._descriptors:
            _write(descriptor, self._holder)
        return None

    def _take(self, name: str) -> str | None:
        descriptor = _opened(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            return holder or "another run"
        except OSError as error:  # a file system that knows no locks
            os.close(descriptor)
            raise _unusable(_path(name), error) from None
        self._descriptors.append(descriptor)
        return None

    def release(self) -> None:
        """Releases everything; a second call does nothing."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder_of(names: Sequence[str]) -> str | None:
    """The holder of one of these; None if they are free."""
    with Lease(names, "a look at who holds it") as lease:
        return lease.take()


def wait_for(lease: Lease, seconds: float) -> str | None:
    """Tries for a while; None once the lease is ours, else the remaining holder."""
    end = time.monotonic() + seconds
    while (holder := lease.take()) is not None and time.monotonic() < end:
        time.sleep(0.05)
    return holder


def _opened(name: str) -> int:
    """The file of a name, which every user may lock."""
    path = _path(name)
    try:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o1777)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(PermissionError):  # another user made it at the same moment
            os.fchmod(descriptor, 0o666)
    except OSError as error:
        raise _unusable(path, error) from None
    return descriptor


def _path(name: str) -> Path:
    return Path(os.environ.get(FOLDER) or DEFAULT_FOLDER) / f"{name}.lock"


def _unusable(path: Path, error: OSError) -> LeaseError:
    return LeaseError(
        f"the lock {path} can't be used: {error.strerror}; let {FOLDER} name a folder that all users may write"
    )


def _write(descriptor: int, text: str) -> None:
    with suppress(OSError):  # a full disk: the lock holds all the same, it only has no name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{text}\n".encode(), 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in /etc/passwd
        return str(os.getuid())
