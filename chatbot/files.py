"""Files that are there whole or not at all, after a power cut too."""

import os
from pathlib import Path


def put_in_place(made: Path, path: Path) -> None:
    """Renames ``made`` to ``path`` once its content is on the disk, then stores the name too. Raises OSError."""
    _flush(made, os.O_RDONLY)
    os.replace(made, path)
    _flush(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
