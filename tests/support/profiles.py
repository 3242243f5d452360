"""How thorough a test run is: the environment's ``TEST_PROFILE``, which ``make quick`` and ``make test-all`` set."""

import os
import shutil
import sys
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import settings


class Profile(StrEnum):
    """How many examples Hypothesis tries, and how large a simulation is."""

    QUICK = "quick"
    USUAL = "usual"
    FULL = "full"


PROFILE = Profile(os.environ.get("TEST_PROFILE", Profile.USUAL))
QUICK = PROFILE is Profile.QUICK
EXAMPLES = {Profile.QUICK: 20, Profile.USUAL: 50, Profile.FULL: 100}[PROFILE]
MEMORY, ROOM = "/dev/shm", 4e9  # where it is a file system, and its least free bytes: a run takes 0.15e9
# What starts a process in this one's stead; that of Ray and of the launch server ends in subprocess.Popen too.
STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})


def examples(most: int) -> settings:
    """For a test whose examples are dear: ``most`` of them, fewer in a quick run."""
    return settings(max_examples=min(most, EXAMPLES))


def trials(count: int) -> int:
    """How many a simulation runs: all in a full run, half in a usual one, a fifth in a quick one."""
    return count // {Profile.QUICK: 5, Profile.USUAL: 2, Profile.FULL: 1}[PROFILE]


def load() -> None:
    """Applies the profile to Hypothesis. The machine may be busy, so no example has a deadline."""
    settings.register_profile(PROFILE, deadline=None, max_examples=EXAMPLES)
    settings.load_profile(PROFILE)


def keep_in_memory() -> None:
    """Lets pytest's temporary folders lie in memory, if there is room.

    Of a quick run on a disk that others use too, a quarter went to small files and to taking away earlier runs' ones.
    """
    if os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)


def forbid_processes() -> None:
    """From now on whatever starts a process fails the test that did it."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS:
        pytest.fail(f"This test starts a process ({event}): mark it pytest.mark.process, and make quick leaves it out")
