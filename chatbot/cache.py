"""Folders of compiled artefacts. What lies in them is loaded and executed, so nobody else may write there."""

import atexit
import os
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

CACHE = "LATENCY_MATRIX_CACHE"  # the environment variable that names the folder, in place of the user's cache

# Within it: libraries, kernels, packages, and Inductor's trees.
KEPT = ("engine-*.so", "persistent-*.cubin", "aoti/*.pt2", "inductor-*", "cold-*")
UNUSED_S = 30 * 86400.0


class CacheError(Exception):
    """Compiled artefacts can't be kept or loaded anywhere; one line says why."""


def folder(name: str = "") -> Path:
    """The folder, or one within it, created if missing; one of this process where the user's can't be trusted.

    Raises:
        CacheError: none can be made, or what lies in it can't be executed.
    """
    problem = fault()
    try:
        place = _private((_temporary(problem) if problem else _chosen()) / name)
        executes = not os.statvfs(place).f_flag & os.ST_NOEXEC
    except OSError as error:
        raise CacheError(f"compiled code can't be kept: {error}; set {CACHE} to a writable folder of yours") from None
    if not executes:
        raise CacheError(f"{place} is mounted noexec; set {CACHE} to a folder on a mount without that option")
    return place


def used(place: Path) -> None:
    """Notes that it is in use, by its time of access: that of modification is when it was compiled."""
    with suppress(OSError):
        os.utime(place, ns=(time.time_ns(), place.stat().st_mtime_ns))


def forget() -> None:
    """Removes what was compiled and has not been used for 30 days: each version of a source or a compiler leaves some.

    Raises:
        CacheError: there is no folder.
    """
    root = folder()
    for left in [found for form in KEPT for found in root.glob(form)]:
        with suppress(OSError):
            times = left.lstat()
            if max(times.st_atime, times.st_mtime) < time.time() - UNUSED_S:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def fault() -> str | None:
    """The reason why the user's cache is not used (it can't be created, or others may write in it); else None."""
    try:
        _private(_chosen())
    except OSError as error:
        return str(error)
    return None


def _chosen() -> Path:
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latency-matrix"
    except RuntimeError:  # a user without an entry in /etc/passwd, and no HOME
        raise FileNotFoundError("this user has no home folder") from None


def _private(place: Path) -> Path:
    """A folder that only its owner, this user, may write; created if missing. Raises OSError."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{place} is a link or no folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{place} belongs to user {found.st_uid}, not to you")
    if found.st_mode & 0o022:
        raise PermissionError(f"{place} may be written by others (mode {stat.S_IMODE(found.st_mode):o})")
    return place


@cache
def _temporary(reason: str) -> Path:
    """A folder with a name that nobody can foresee, which ends with this process."""
    made = tempfile.mkdtemp(prefix="latency-matrix-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    print(f"{reason}: what is compiled goes to {made}, and is not kept", file=sys.stderr)
    return Path(made)
