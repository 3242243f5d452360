"""File systems that can hold a results root: a path on disk, or any URI that ``pyarrow.fs`` knows."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from chatbot.errors import UsageError
from chatbot.files import put_in_place
from ray_jobs.measure.result import one_line
from ray_jobs.results.deadline import in_time

PART = ".part"  # ends the name of a file that is not whole yet
OBJECT_STORES = ("s3", "gcs", "abfs")


class StoreError(OSError):
    """Results can't be stored any more; one line says why. Everything committed before is safe."""


def below(root: str, name: str) -> str:
    """A folder of a results root, as the user would name it, with a URI's options at the end."""
    place, mark, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def open_root(root: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a results root: a path, or a URI such as ``s3://bucket/results``."""
    try:
        if "://" in root:
            filesystem, path = in_time(lambda: fs.FileSystem.from_uri(root))  # which may look for a bucket's region
            return filesystem, path.rstrip("/")
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(root))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"results root {root!r} is not usable: {str(error).splitlines()[0]}") from None


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turns an error of the file system into a UsageError that names the place."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"results can't be kept in {place}: {one_line(cause_of(error))}") from None


def cause_of(error: BaseException) -> BaseException:
    """The error that a StoreError was raised from, if any; otherwise the error itself."""
    return error.__cause__ if isinstance(error, StoreError) and error.__cause__ else error


def write_locally(path: str, parts: Iterable[bytes], wanted: Callable[[], bool]) -> None:
    """Writes a whole file next to ``path`` and puts it in place if it is still ``wanted``."""
    try:
        with open(path + PART, "wb") as file:
            file.writelines(parts)
        put_in_place(Path(path + PART), Path(path), wanted)
    except BaseException:
        with suppress(OSError):
            os.unlink(path + PART)
        raise
