"""A host's cores and GPUs, each held by one trial at a time, whatever cluster, run or user that trial belongs to.

Ray knows only of its own tasks: two clusters on one host, or two local runs, would measure each other. Each core and
each GPU is a file that its holder has locked (flock(2)). The kernel releases it when the last process that shares the
descriptor has ended, even if killed, so nothing needs to be cleaned up after a crash.

The files lie in a folder that root or this user owns and where nobody removes another's files (sticky), because who may
remove a lock, or put a link or a pipe in its place, decides who measures.
"""

import fcntl
import getpass
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from chatbot.errors import UsageError
from chatbot.safe_text import printable

FOLDER = "LATENCY_MATRIX_LOCKS"  # the environment variable that names the folder of the locks
# Without that variable the first that is safe, of those that all users may write if there is one: where /run/lock is
# root's alone, root and another user would lock in two folders.
SHARED_FOLDERS = ("/run/lock", "/tmp")
SHARED_PREFIX = "latency-matrix-"  # of the files there, among those of others
TRIES = 50  # of one lock, whose file is removed again and again


class LeaseError(UsageError):
    """The locks can't be used; one line says why."""


def locks_for(cores: Sequence[int], gpus: Sequence[str] = ()) -> list[str]:
    """The names of the locks that a trial takes: one for each core that it may run on, and one for each GPU."""
    return [*(f"core-{core}" for core in sorted(cores)), *(f"gpu-{gpu}" for gpu in sorted(gpus))]


def describe(run_id: str, trial_id: str) -> str:
    """Describes a holder to those who wait."""
    since = f"{datetime.now(UTC):%H:%M:%S} UTC"
    return f"run {run_id}, trial {trial_id} (user {_user()}, process {os.getpid()}, since {since})"


class Lease:
    """Holds all of the named locks or none; a context manager that releases what ``take()`` has taken."""

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
                descriptor, holder = lock(_path(name))
            except LeaseError:
                self.release()
                raise
            if descriptor is None:
                self.release()
                return f"{name} is held by {holder}"
            self._descriptors.append(descriptor)
        for descriptor in self._descriptors:
            sign(descriptor, self._holder)
        return None

    def renew(self) -> str | None:
        """Takes a lock again whose file was removed meanwhile, so that nobody takes its successor.

        Returns:
            None if everything is ours still, else who holds what now.

        Raises:
            LeaseError: the folder can't be used.
        """
        for i, name in enumerate(self._names):
            if _is_at(self._descriptors[i], _path(name)):
                continue
            descriptor, holder = lock(_path(name))
            if descriptor is None:
                return f"{name} is held by {holder}"
            os.close(self._descriptors[i])
            self._descriptors[i] = descriptor
            sign(descriptor, self._holder)
        return None

    def release(self) -> None:
        """Releases everything; a second call does nothing."""
        for descriptor in self._descriptors:
            sign(descriptor, "")  # so that the next one is not taken for this one, before it has written its name
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take_within(lease: Lease, seconds: float) -> str | None:
    """Tries to take the lease for some seconds; returns None once it is ours, else the holder in the way."""
    end = time.monotonic() + seconds
    while (holder := lease.take()) is not None and time.monotonic() < end:
        time.sleep(0.05)
    return holder


def lock(path: Path) -> tuple[int | None, str]:
    """The open file of a path, locked until it is closed; or None and its holder. Raises LeaseError."""
    try:
        for _ in range(TRIES):
            descriptor = _opened(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    return descriptor, ""
            except BlockingIOError:
                said = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
                os.close(descriptor)
                return None, printable(said) or "another run"
            except OSError:  # a file system that knows no locks
                os.close(descriptor)
                raise
            os.close(descriptor)  # removed between opening and locking: the next one to come would not see it
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    raise _unusable(path, "it is removed again and again")


def _opened(path: Path) -> int:
    """The file of a lock, which every user may lock; neither a link is followed nor a pipe waited for."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:  # made by another at the same moment
            return _opened(path)
        os.fchmod(descriptor, 0o666)  # whatever the umask
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _unusable(path, "it is no plain file of its own")
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    """Tells whether an open file is still what its path leads to."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _path(name: str) -> Path:
    """The file of a lock, in a folder that is safe to use. Raises LeaseError."""
    chosen = os.environ.get(FOLDER)
    faults = {}
    for folder in [Path(chosen)] if chosen else sorted(map(Path, SHARED_FOLDERS), key=_closed):
        path = folder / (f"{name}.lock" if chosen else f"{SHARED_PREFIX}{name}.lock")
        if (fault := _made(folder) if chosen else _fault(folder)) is None:
            return path
        faults[path] = fault
    raise _unusable(*next(iter(faults.items())))


def _closed(folder: Path) -> bool:
    """Tells whether not every user may write there."""
    with suppress(OSError):
        return not folder.stat().st_mode & stat.S_IWOTH
    return True


def _made(folder: Path) -> str | None:
    """Creates a folder that every user may put locks in, if it is missing; then as ``_fault``."""
    try:
        folder.mkdir(mode=0o1777, parents=True)
        folder.chmod(0o1777)  # whatever the umask
    except FileExistsError:
        pass
    except OSError as error:
        return error.strerror
    return _fault(folder)


def _fault(folder: Path) -> str | None:
    """The reason why locks in a folder can't be trusted; None if they can."""
    try:
        found = folder.lstat()
    except OSError as error:
        return error.strerror
    if not stat.S_ISDIR(found.st_mode):
        return "Not a directory"
    if found.st_uid not in (0, os.geteuid()):
        return f"its folder belongs to user {found.st_uid}"
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        return "others may remove files from its folder (chmod +t)"
    return None if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"


def _unusable(path: Path, reason: str) -> LeaseError:
    return LeaseError(f"the lock {path} can't be used: {reason}; let {FOLDER} name a folder that all users may write")


def sign(descriptor: int, text: str) -> None:
    """Writes who holds a lock into it."""
    with suppress(OSError):  # a full disk: the lock holds all the same, it only has no name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{text}\n".encode() if text else b"", 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in /etc/passwd
        return str(os.getuid())
