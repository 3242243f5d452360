"""What a side needs on the machine that measures it: built there or found, and held until this process ends.

Imports neither PyTorch nor NumPy.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from chatbot.cache import CacheError
from chatbot.errors import UsageError
from chatbot.safe_text import safe
from ray_jobs.process import kept, lease, packages, revisions
from ray_jobs.process.kept import Kept
from ray_jobs.process.packages import BuildError
from ray_jobs.sides import Side


@dataclass(frozen=True)
class Ready:
    """A side as it is on a machine; it has a ``fault`` where it can't be."""

    side: Side
    seconds: float | None = None  # that building took; None: everything was there
    since: str | None = None  # when its packages were installed, if by an earlier run


class Holder:
    """Builds, and holds what it has built, in a process of its own that imports no PyTorch."""

    def begun(self) -> int:
        """Says that it is there."""
        return os.getpid()

    def ready(self, side: Side, archive: bytes, run_id: str, patience_s: float) -> Ready:
        """As ``ready``."""
        return ready(side, archive, run_id, patience_s)


def ready(side: Side, archive: bytes, run_id: str, patience_s: float) -> Ready:
    """Builds what is missing; ``archive`` are the files of its commit.

    Installing takes cores from whoever measures here: it waits ``patience_s`` for them.
    """
    made, since = side, None
    holding: list[Kept] = []
    try:
        if side.packages:
            holding.append(environment := _environment(side, run_id, patience_s))
            since = environment.since if environment.seconds is None else None
            made = replace(made, python=str(environment.content / packages.PYTHON))
        if side.commit is not None:
            holding.append(revision := _revision(side.commit, archive))
            made = replace(made, sources=str(revision.content))
    except (BuildError, CacheError, UsageError, OSError) as error:
        return Ready(replace(side, fault=safe(str(error))))
    took = [one.seconds for one in holding if one.seconds is not None]
    return Ready(made, sum(took) if took else None, since)


def _environment(side: Side, run_id: str, patience_s: float) -> Kept:
    holder = f"run {run_id}, which installs what {side.name} asks for (process {os.getpid()})"

    def build(place: Path) -> None:
        with _alone(holder, patience_s):
            packages.build(place, side.packages)

    key = packages.key_of(side.packages)
    return kept.hold(kept.ENVIRONMENTS, key, f"pip {' '.join(side.packages)}", build)


def _revision(commit: str, archive: bytes) -> Kept:
    return kept.hold(kept.REVISIONS, commit, commit, lambda place: revisions.unpack(place, archive))


@contextmanager
def _alone(holder: str, patience_s: float) -> Iterator[None]:
    """Holds all cores of the machine, as a trial does."""
    with lease.Lease(lease.locks_for(sorted(os.sched_getaffinity(0))), holder) as held:
        if (other := lease.take_within(held, patience_s)) is not None:
            raise BuildError(f"the machine was busy for {patience_s:.0f} s: {other}")
        yield
