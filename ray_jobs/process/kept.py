"""What a run builds and later runs find again: environments and revisions, in the user's private cache on a machine.

Each has a folder of its own. Its file ``lock`` is locked (flock(2)) by all who use it, or by the one who builds or
removes it: the kernel releases it when they end, even if killed. Without ``built.json`` it was never finished, and the
next who needs it begins anew.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from chatbot import cache
from chatbot.cache import CacheError
from chatbot.safe_text import printable

ENVIRONMENTS, REVISIONS = KINDS = ("environments", "revisions")
LOOK_EVERY_S = 0.05
LOCK, RECORD, CONTENT = "lock", "built.json", "content"


@dataclass(frozen=True)
class Kept:
    """Something built, which stays where it is until its lock is closed, or this process ends."""

    lock: int
    content: Path
    seconds: float | None  # that building it took just now; None: it was there
    since: str  # when it was built


@dataclass(frozen=True)
class Found:
    """Something in the cache, as ``clean`` lists it."""

    place: Path
    name: str | None  # None: it was never finished
    size: int  # bytes
    used: datetime

    @property
    def kind(self) -> str:
        """Environment or revision."""
        return self.place.parent.name.removesuffix("s")


def hold(kind: str, key: str, name: str, build: Callable[[Path], None]) -> Kept:
    """What has this key, built if it is not there (``build`` fills a folder that does not exist yet), and then held.

    Raises:
        CacheError: nothing can be kept on this machine.
        Exception: whatever ``build`` raises; nothing is left of it then.
    """
    place, seconds = _folder(kind) / key, None
    while True:
        lock = _opened(place)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not _is_built(place):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who got it and built keeps a lock for a whole run
                if _is_at(lock, place) and not _is_built(place):
                    seconds = _build(place, name, build)
                fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_at(lock, place) and _is_built(place):
                os.utime(lock)
                return Kept(lock, place / CONTENT, seconds, _record(place)["built"])
        except BlockingIOError:
            time.sleep(LOOK_EVERY_S)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # somebody else was faster: to build it, or to remove it


def found() -> Iterator[Found]:
    """All that lies in the cache. Raises CacheError."""
    root = _folder()
    for place in [place for kind in KINDS for place in sorted((root / kind).glob("*")) if place.is_dir()]:
        with suppress(FileNotFoundError):  # another removes it
            name = printable(_record(place)["name"]) if _is_built(place) else None
            last = next(one for one in (place / LOCK, place) if one.exists()).stat().st_mtime
            yield Found(place, name, _size(place), datetime.fromtimestamp(last, UTC))


def remove(place: Path, really: bool = True) -> bool:
    """Removes what is not in use, or only tells whether it would; False where it is in use. Raises OSError."""
    lock = _opened(place)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if really and _is_at(lock, place):
            _take_away(place)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _folder(name: str = "") -> Path:
    """As ``cache.folder``, but none that ends with this process. Raises CacheError."""
    if (problem := cache.fault()) is not None:
        raise CacheError(f"nothing can be kept: {problem}; set {cache.CACHE} to a folder of yours alone")
    return cache.folder(name)


def _opened(place: Path) -> int:
    """The open lock of a folder, which is made if it is missing."""
    while True:
        place.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # removed between the two
            return os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_at(lock: int, place: Path) -> bool:
    """Whether an open lock is still that of its folder."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), (place / LOCK).lstat())
    return False


def _is_built(place: Path) -> bool:
    return (place / RECORD).is_file()


def _record(place: Path) -> dict[str, str]:
    content: dict[str, str] = json.loads((place / RECORD).read_text())
    return content


def _build(place: Path, name: str, build: Callable[[Path], None]) -> float:
    """Fills a folder while its lock is ours alone; returns the seconds."""
    start = time.monotonic()
    shutil.rmtree(place / CONTENT, ignore_errors=True)  # of a build that was killed
    try:
        build(place / CONTENT)
        record, made = {"name": name, "built": datetime.now(UTC).isoformat(timespec="seconds")}, place / f"{RECORD}.new"
        made.write_text(json.dumps(record))
        made.replace(place / RECORD)
    except BaseException:
        _take_away(place)
        raise
    return time.monotonic() - start


def _take_away(place: Path) -> None:
    """Removes a folder whose lock is ours alone; from its first step on it counts as never finished."""
    for name in (RECORD, f"{RECORD}.new"):
        (place / name).unlink(missing_ok=True)
    if (place / CONTENT).exists():
        shutil.rmtree(place / CONTENT)
    (place / LOCK).unlink()
    with suppress(OSError):  # who waits for it has made a new lock
        place.rmdir()


def _size(place: Path) -> int:
    """The bytes of its files; a link counts for itself."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
