"""Does a process rest while others have their turns, where it was put? Read from outside, between turns."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.measure.watch import cpu_ns_of

MOST_SHARE, MOST_S = 0.02, 0.005  # of others' turns, that a library's own threads may take to look about
ASLEEP = "SIXZ"  # states of threads, see proc_pid_stat(5), that use no core and will not until they are woken


@dataclass
class Resting:
    """How much a process computed while it was not asked to, in one launch."""

    seconds: float = 0.0
    used_s: float = 0.0
    _began: tuple[float, int] | None = None  # on the clock, and by the process's own

    def begin(self, pid: int) -> None:
        """It sleeps."""
        used_ns = _used_ns(pid)
        self._began = None if used_ns is None else (time.monotonic(), used_ns)

    def end(self, pid: int) -> None:
        """It will be asked again."""
        used_ns = _used_ns(pid)
        if self._began is not None and used_ns is not None:
            began, before_ns = self._began
            self.seconds += time.monotonic() - began
            self.used_s += (used_ns - before_ns) / 1e9
        self._began = None

    @property
    def too_much(self) -> bool:
        return self.used_s > MOST_S + MOST_SHARE * self.seconds


def _used_ns(pid: int) -> int | None:
    """The processor time of a process; None where it has ended, or the machine does not tell."""
    try:
        return cpu_ns_of(pid) if pid else None
    except OSError:
        return None


def strays(pid: int, cores: frozenset[int]) -> Iterator[frozenset[int]]:
    """The cores of each thread of a process that may run beside ``cores``; its first must be on all of them."""
    for task in _listed(Path(f"/proc/{pid}/task")):
        try:
            found = frozenset(os.sched_getaffinity(int(task.name)))
        except OSError:  # it has ended
            continue
        if not found <= cores or (int(task.name) == pid and found != cores):
            yield found


def awake(pid: int) -> list[str]:
    """The names of a process's threads that do not sleep; none of a process that has ended."""
    found = []
    for task in _listed(Path(f"/proc/{pid}/task")):
        try:
            name, _, rest = task.joinpath("stat").read_text(errors="replace").partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        if rest.split()[0] not in ASLEEP:
            found.append(name)
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
