"""What reaches the disk, and in which order."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

WHOLE = ["file", "name", "folder"]  # a file and its name survive a power cut: the content first, its folder last


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every flush of a file or a folder from now on, and every file that gets its name."""
    steps: list[str] = []

    def sync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replace(made: Path, path: Path, move: Callable[..., None] = os.replace) -> None:
        steps.append("name")
        move(made, path)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    return steps
