"""One driver at a time writes a run: two locks where they can be had, and the driver's name in the run's records.

A process locks a local run directory twice: by its path on this host, and by a file in the directory itself, which
other hosts may see too. Where neither lock is possible (an object store), the random name in each record still shows
whether another driver has written it.
"""

import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from chatbot.errors import UsageError
from ray_jobs.process import lease
from ray_jobs.process.lease import Lease
from ray_jobs.results.filesystem import reaching

Found = tuple[int | None, str]  # an open lock, or None and its holder

LOCK = ".driver.lock"  # in a local run directory, for all hosts that see it
RECORDS = ("run.json", "audit.json", "sweep.json")
DRIVER = "driver"  # the key in those records: a random name of the process that writes the run


@dataclass
class Ownership:
    """This process's name as a driver, and by record the name of the driver that had written it before."""

    name: str = field(default_factory=lambda: secrets.token_hex(8))
    before: dict[str, object] = field(default_factory=dict)

    def allows(self, record: str, found: object) -> bool:
        """Tells whether the name found in a record is none, ours, or that of the driver before us."""
        return found in (None, self.name, self.before.get(record))


@contextmanager
def locked_on_host(path: str, shown: str) -> Iterator[None]:
    """Locks a local directory on this host; it need not exist yet. Raises UsageError if another process holds it."""
    place = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16]
    with Lease([f"run-{place}"], f"process {os.getpid()}") as held:
        if (holder := held.take()) is not None:
            raise _held(shown, holder)
        yield


@contextmanager
def locked_everywhere(path: str, shown: str, timed: Callable[[Callable[[], Found]], Found]) -> Iterator[None]:
    """Locks an existing local directory for all hosts that see it, where its file system can.

    Args:
        path: the directory.
        shown: its place in messages.
        timed: runs an action of the file system within its time.

    Raises:
        UsageError: another process holds it.
    """
    file = Path(path) / LOCK
    descriptor: int | None = None
    with suppress(lease.LeaseError), reaching(shown):  # a file system without locks: the driver's name must do
        descriptor, holder = timed(lambda: lease.lock(file))
        if descriptor is None:
            raise _held(shown, f"another host or container sees it too, and it is held by {holder}")
        lease.sign(descriptor, f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            os.close(descriptor)


def _held(shown: str, holder: str) -> UsageError:
    return UsageError(f"{shown} is being written: {holder}; wait for it, or stop it first")
