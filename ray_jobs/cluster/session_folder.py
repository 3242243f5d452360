"""A private folder for a local Ray: short enough for its sockets, closed to others, and gone when the run is over.

By itself Ray takes ``$TMPDIR/ray``: too long a path in many batch systems, and open to every user of the host.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chatbot.errors import UsageError

PARENTS = ("/tmp", "/var/tmp")  # whatever TMPDIR says: a socket's path has 107 bytes, of which Ray needs 68
PREFIX = "lm-"
OWNER = "owner"  # a file that its owner keeps locked
KEPT = "kept"  # a file: the run failed, and what Ray wrote may tell why
KEEP_S = 7 * 86400.0


class SessionFolder:
    """A folder of this process; ``path`` is its place, ``keep()`` leaves it behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = False

    def keep(self) -> None:
        """Keeps the folder for a week, so that somebody can look into it."""
        with suppress(OSError):
            (self.path / KEPT).touch()
        self.kept = True


@contextmanager
def session_folder(parents: Sequence[str] = PARENTS) -> Iterator[SessionFolder]:
    """A new folder with mode 0700, removed at the end; left-overs of dead processes are removed first.

    Raises:
        UsageError: no folder can be made in any of ``parents``.
    """
    for parent in parents:
        remove_leftovers(Path(parent))
    folder = SessionFolder(_made(parents))
    lock = _locked(folder.path)
    try:
        yield folder
    finally:
        if not folder.kept:
            _remove(folder.path)
        os.close(lock)


def _made(parents: Sequence[str]) -> Path:
    for parent in parents:
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    raise UsageError(f"Ray needs a folder for its sockets, and none can be made in {' or '.join(parents)}")


def _locked(folder: Path) -> int:
    """Locks it for as long as this process lives; the file gets its name when it is locked."""
    descriptor = os.open(folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(folder / "new", folder / OWNER)
    return descriptor


def remove_leftovers(parent: Path) -> None:
    """Removes folders of ours whose owner is dead; those that were kept, after a week."""
    with suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            with suppress(OSError):
                _remove_if_dead(folder)


def _remove_if_dead(folder: Path) -> None:
    """Raises OSError where it is in use or not such a folder."""
    there = folder.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
        return
    descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kept = folder / KEPT
        if not kept.exists() or time.time() - kept.stat().st_mtime > KEEP_S:
            _remove(folder)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """The owner's file goes last: what an agent of Ray's writes as it ends is then left to a later sweep."""
    with suppress(OSError):
        for one in folder.iterdir():
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one, ignore_errors=True)
            elif one.name != OWNER:
                one.unlink(missing_ok=True)
        if os.listdir(folder) == [OWNER]:
            shutil.rmtree(folder)
