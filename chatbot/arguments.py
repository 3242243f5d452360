"""Takes keys out of a process's arguments, which ``ps`` shows to every user of the machine, and Ray to its cluster."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

from chatbot.safe_text import keyless

PROCESS = Path("/proc/self")
ARGUMENTS = 47, 48  # fields of /proc/PID/stat, counted from 0: where they begin and end, see proc(5)


def hide_keys() -> None:
    """Overwrites arguments that hold keys, where the system reads them; ``sys.argv`` keeps them.

    Whoever looks in the first moments of the process still sees them.
    """
    if any(keyless(word) != word for word in sys.orig_argv):
        with suppress(OSError, ValueError, IndexError):  # a system without /proc
            _overwrite()


def _overwrite() -> None:
    fields = (PROCESS / "stat").read_text().rpartition(") ")[2].split()  # the name before may hold blanks
    start, end = (int(fields[number - 2]) for number in ARGUMENTS)
    shown = (PROCESS / "cmdline").read_bytes()
    if 0 < start < end and end - start == len(shown):
        words = (_covered(word) for word in shown.split(b"\0"))
        ctypes.memmove(start, b"\0".join(words), end - start)


def _covered(word: bytes) -> bytes:
    """The argument without keys, in as many bytes."""
    told = word.decode(errors="surrogateescape")
    if (safe := keyless(told)) == told:
        return word
    return safe.encode(errors="surrogateescape")[: len(word)].ljust(len(word))
