"""Lets files leave the page cache, those alone: ``drop_caches`` would hit everybody on a shared machine.

What another process has mapped and touched stays; how much that is can be asked.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Dropped:
    """The bytes of files, and those of them that stayed in the page cache."""

    total: int = 0
    kept: int = 0


def drop(files: Iterable[str]) -> Dropped:
    """Asks the kernel to forget these files; the figures are of those that it tells this user of."""
    found = [dropped for file in dict.fromkeys(files) if (dropped := _drop(file)) is not None]
    return Dropped(sum(one.total for one in found), sum(one.kept for one in found))


def mapped_files(process: str = "self") -> list[str]:
    """The regular files that a process has in its memory: its libraries, and what it maps itself."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    named = (line.split(maxsplit=5) for line in lines)
    paths = dict.fromkeys(parts[5] for parts in named if len(parts) == 6 and parts[5].startswith("/"))
    return [path for path in paths if Path(path).is_file()]


def _drop(file: str) -> Dropped | None:
    with suppress(OSError, ValueError):
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return Dropped(size, _resident(descriptor, size)) if _may_ask(file, descriptor) else None
        finally:
            os.close(descriptor)
    return None


def _may_ask(file: str, descriptor: int) -> bool:
    """Whether mincore(2) tells the truth: to who may not write a file it says that all of it is there."""
    return os.fstat(descriptor).st_uid == os.geteuid() or os.access(file, os.W_OK)


def _resident(descriptor: int, size: int) -> int:
    """The bytes of a file that are in the page cache, by mincore(2)."""
    if not size:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    present = (ctypes.c_ubyte * pages)()
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        first = ctypes.c_char.from_buffer(view)
        try:
            if _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), present):
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            del first
    return min(size, sum(one & 1 for one in present) * mmap.PAGESIZE)
