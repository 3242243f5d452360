"""Files that exist whole or not at all, even after a power cut."""

import os
from collections.abc import Callable
from pathlib import Path


def put_in_place(made: Path, path: Path, wanted: Callable[[], bool] = lambda: True) -> None:
    """Renames ``made`` to ``path`` once its content is on the disk, then stores the name too.

    Raises:
        OSError: it can't be written, or is no longer wanted once it is on the disk.
    """
    _flush(made, os.O_RDONLY)
    if not wanted():
        raise TimeoutError(f"{path} is not wanted any more")
    os.replace(made, path)
    _flush(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
