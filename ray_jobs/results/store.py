"""The run directory: launches and everything derived from them, on any file system that ``pyarrow.fs`` knows.

A launch counts when its file is there: written under a temporary name and renamed, or, in an object store, which shows
an object only when it is whole, written at once.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic_core import to_json

from chatbot.errors import UsageError
from chatbot.safe_text import safe
from ray_jobs.measure.result import one_line
from ray_jobs.results import no_run
from ray_jobs.results.deadline import Moved, in_time
from ray_jobs.results.filesystem import (
    OBJECT_STORES,
    PART,
    StoreError,
    below,
    cause_of,
    open_root,
    reaching,
    write_locally,
)
from ray_jobs.results.ownership import DRIVER, LOCK, RECORDS, Ownership, locked_everywhere, locked_on_host
from ray_jobs.results.samples import SCHEMA, split_launches, with_trial_id

T = TypeVar("T")
BROKEN = (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError)  # what reading a broken file raises

PROBE = ".probe"
RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # the same in a path, a URI and a shell


class RunDirectory:
    """``<results root>/<run id>/`` on any file system that ``pyarrow.fs`` knows. Only the driver writes in it."""

    def __init__(self, filesystem: fs.FileSystem, path: str, place: str) -> None:
        self._fs, self._path = filesystem, path
        self.place = place  # as the user would name it: with the keys that a URI may hold
        self._ownership: Ownership | None = None  # while this process drives it
        self._silent = False  # it has not answered in time; nothing is asked of it any more

    @property
    def shown(self) -> str:
        """Its place as it may be printed and recorded: without keys."""
        return safe(self.place)

    @classmethod
    def named(cls, root: str, run_id: str) -> "RunDirectory":
        """The directory of a new run, not created yet.

        Raises:
            UsageError: the run id is not a plain name or already exists, or the root can't be reached.
        """
        if not RUN_ID.fullmatch(run_id):
            raise UsageError(
                f"run id {run_id!r} is not a plain name: give 1 to 100 of A-Z a-z 0-9 . _ -, no . or - first"
            )
        filesystem, base = open_root(root)
        run = cls(filesystem, f"{base}/{run_id}", below(root, run_id))
        with reaching(root):
            if in_time(lambda: filesystem.get_file_info(run._path)).type != fs.FileType.NotFound:
                raise UsageError(f"run {run_id!r} exists already in {root}; give another --run-id or leave it out")
        return run

    @classmethod
    def existing(cls, place: str, holds: str = "run.json") -> "RunDirectory":
        """The directory of an existing run, recognised by a file in it. Raises UsageError if there is none."""
        filesystem, path = open_root(place)
        with reaching(place):
            if in_time(lambda: filesystem.get_file_info(f"{path}/{holds}")).type != fs.FileType.File:
                raise no_run(place, holds)
        return cls(filesystem, path, place)

    @contextmanager
    def created(self, samples: bool = True, room: int = 0) -> Iterator[None]:
        """Creates the directory and its root; a UsageError before the first launch removes what was created.

        Args:
            samples: whether launches will be stored in it.
            room: bytes that it will need.

        Raises:
            UsageError: it can't be written, or its disk has less room.
        """
        with self._driven():  # first: what another process made is not ours to take away
            with reaching(self.shown):
                rootless = self._timed(lambda: self._make(samples))
            with self._locked():
                try:
                    self._try(room)
                    yield
                except UsageError:
                    with suppress(OSError, pa.ArrowException):
                        self._timed(lambda: self._take_away(samples, rootless))
                    raise

    def _make(self, samples: bool) -> bool:
        """Returns whether the root had to be created too."""
        rootless = self._fs.get_file_info(self._root).type == fs.FileType.NotFound
        self._fs.create_dir(f"{self._path}/samples" if samples else self._path, recursive=True)
        return bool(rootless)

    def _take_away(self, samples: bool, rootless: bool) -> None:
        if self._precious(samples):  # What was measured is never deleted.
            return
        self._fs.delete_dir(self._path)
        if rootless and not self._fs.get_file_info(fs.FileSelector(self._root)):
            self._fs.delete_dir(self._root)

    def _precious(self, samples: bool) -> bool:
        return bool(self._names("samples") if samples else self._names(""))

    @contextmanager
    def reopened(self, room: int = 0) -> Iterator[None]:
        """Opens a run for continuing it; removes what a killed writer left incomplete.

        Raises:
            UsageError: it can't be written, its disk has less room, or another process is writing it.
        """
        with self._driven(), self._locked():
            self._try(room)
            self._ownership = Ownership(before={name: self._driver_in(name) for name in RECORDS if self.holds(name)})
            for name in self.names("samples"):
                if name.endswith(PART):
                    self.delete(f"samples/{name}")
            yield

    def _try(self, room: int) -> None:
        """Raises UsageError if a file can't be written, or the disk has less room than ``room`` bytes."""
        with reaching(self.shown):
            self.write(PROBE, b"can this be written?")
            self.delete(PROBE)
            if (path := self.local_path) is None:
                return
            free = self._timed(lambda: shutil.disk_usage(path)).free
        if free < room:
            raise UsageError(
                f"results can't be kept in {self.shown}: its disk has {free / 1e6:.0f} MB left, and the run may need "
                f"{room / 1e6:.0f} MB; free some, or give another --out"
            )

    @contextmanager
    def _driven(self) -> Iterator[None]:
        """Makes this process the driver; locks a local directory for it on this host."""
        self._ownership = Ownership()
        with locked_on_host(path, self.shown) if (path := self.local_path) is not None else nullcontext():
            yield

    def _locked(self) -> AbstractContextManager[None]:
        """Locks a local directory for all hosts that see it."""
        path = self.local_path
        return nullcontext() if path is None else locked_everywhere(path, self.shown, self._timed)

    def _timed(self, action: Callable[[], T], moved: Moved | None = None) -> T:
        """Returns the value of an action of the store. Once one is late, every call raises StoreError."""
        if self._silent:
            raise StoreError(f"{self.shown} does not answer any more")
        try:
            return in_time(action, moved)
        except TimeoutError as error:
            if error.errno is not None:  # the system's own
                raise
            self._silent = True
            raise StoreError(f"{self.shown}: {error}") from error

    @property
    def _root(self) -> str:
        return self._path.rpartition("/")[0]

    @property
    def run_id(self) -> str:
        """The name of its folder in the results root."""
        return self._path.rpartition("/")[2]

    @property
    def local_path(self) -> str | None:
        """The path if it is on this machine's disk, else None."""
        return self._path if isinstance(self._fs, fs.LocalFileSystem) else None

    def make_folder(self, name: str) -> None:
        """Creates a folder within it, if there is none yet. Raises UsageError."""
        with reaching(self.shown):
            self._timed(lambda: self._fs.create_dir(f"{self._path}/{name}", recursive=True))

    def holds(self, name: str) -> bool:
        """Tells whether a file of that name exists."""
        info = self._timed(lambda: self._fs.get_file_info(f"{self._path}/{name}"))
        return bool(info.type == fs.FileType.File)

    def write(self, name: str, content: bytes) -> None:
        """Puts a whole file in place: readers see the old one or the new one. Raises StoreError."""
        self._write(name, (content,))

    def _write(self, name: str, parts: Iterable[bytes]) -> None:
        moved = Moved()
        counted = moved.counting(parts)
        try:
            self._timed(lambda: self._put(f"{self._path}/{name}", counted), moved)
        except (OSError, pa.ArrowException) as error:
            cause = cause_of(error)
            raise StoreError(f"{name} can't be written to {self.shown}: {one_line(cause)}") from cause

    def _put(self, path: str, parts: Iterable[bytes]) -> None:
        if self.local_path is not None:
            write_locally(path, parts, lambda: not self._silent)
        elif self._fs.type_name in OBJECT_STORES:
            self._stream(path, [b"".join(parts)])  # whole before it is begun: ending an upload shows what there is
        else:
            self._stream(path + PART, parts)
            self._fs.move(path + PART, path)

    def _stream(self, path: str, parts: Iterable[bytes]) -> None:
        with self._fs.open_output_stream(path) as stream:
            for part in parts:
                stream.write(part)

    def delete(self, name: str) -> None:
        """Deletes a file, if it exists."""
        with suppress(FileNotFoundError):
            self._timed(lambda: self._fs.delete_file(f"{self._path}/{name}"))

    def write_json(self, name: str, value: object) -> None:
        """Writes JSON; refuses NaN and infinity: unknown values are null.

        A record (it has a schema version) gets our name, and is written only if no other driver's is in it.

        Raises:
            StoreError: it can't be written, or another driver is at it.
        """
        if self._ownership and isinstance(value, dict) and "schema_version" in value:
            self._require_ours(self._ownership, name)
            value = {**value, DRIVER: self._ownership.name}
        json.dumps(value, allow_nan=False)  # only to refuse; with indent=1 it would be ten times slower than the next
        self.write(name, to_json(value, indent=1) + b"\n")

    def _require_ours(self, ours: Ownership, name: str) -> None:
        """Raises StoreError if another driver has written a record meanwhile."""
        if not ours.allows(name, self._driver_in(name)):
            raise StoreError(f"another driver is at {self.shown}: its {name} was written by another process meanwhile")

    def _driver_in(self, name: str) -> object:
        try:
            return json.loads(self.read(name)).get(DRIVER)
        except (FileNotFoundError, *BROKEN):
            return None

    def write_json_rows(self, name: str, batches: Iterable[Sequence[object]]) -> None:
        """Writes a list as JSON, like ``write_json``, without holding it in memory as a whole."""
        self._write(name, _json_list(batches))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())

    def add_launch(self, trial: str, table: pa.Table, identity: str = "") -> None:
        """Commits a launch; ``identity`` distinguishes it from launches of another run."""
        launch = json.loads(table.schema.metadata[b"launch"])["launch"]["index"]
        if identity:
            table = table.replace_schema_metadata({**table.schema.metadata, b"identity": identity.encode()})
        self.write_table(_launch_file(trial, launch), table)

    def launch(self, trial: str, index: int) -> pa.Table:
        """Reads a committed launch."""
        return pq.ParquetFile(pa.BufferReader(self.read(_launch_file(trial, index)))).read(use_threads=False)

    def sample_files(self) -> list[str]:
        """The names of the committed launches, in order."""
        return [name for name in self.names("samples") if name.endswith(".parquet")]

    def names(self, folder: str = "") -> list[str]:
        """The names of the files in it, or in one of its folders, in order; none if there is no such folder."""
        return self._timed(lambda: self._names(folder))

    def _names(self, folder: str) -> list[str]:
        place = f"{self._path}/{folder}".rstrip("/")
        found = self._fs.get_file_info(fs.FileSelector(place, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.File and info.base_name != LOCK)

    def read(self, name: str) -> bytes:
        """Reads a whole file. Raises FileNotFoundError."""
        moved = Moved()

        def fetched() -> bytes:
            with self._fs.open_input_file(f"{self._path}/{name}") as file:
                moved.size = file.size()
                content: bytes = file.read()
            return content

        return self._timed(fetched, moved)

    def each_launch(
        self, read: Callable[[pa.Table], T], trials: Collection[str] | None = None
    ) -> Iterator[tuple[str, T]]:
        """Yields (trial, what ``read`` makes of its table) of each committed launch, of all trials or of these.

        One after the other: a long run has too many to hold at once.

        Raises:
            UsageError: a sample file can't be read; it is named.
        """
        for name in self.sample_files():
            of = name.removesuffix(".parquet").rpartition(".")[0]  # empty: of many trials
            if trials is not None and of and of not in trials:
                continue
            content = self.read(f"samples/{name}")
            with self._readable(f"samples/{name}"):
                tables = list(split_launches(pq.read_table(pa.BufferReader(content), use_threads=False)))
            for trial, table in tables:
                if trials is None or trial in trials:
                    with self._readable(f"samples/{name}"):
                        launch = read(table)
                    yield trial, launch

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Raises a UsageError that names the file where making sense of its content fails."""
        try:
            yield
        except (OSError, *BROKEN) as error:
            raise UsageError(f"{self.shown}: {name} can't be read: {one_line(error)}") from None

    def add_launches(self, trials: Mapping[str, Sequence[pa.Table]], name: str) -> None:
        """Commits many launches as one file, which ``each_launch`` splits again."""
        tables = [(trial, table) for trial, launches in trials.items() for table in launches]
        metadata = [[trial, table.num_rows, json.loads(table.schema.metadata[b"launch"])] for trial, table in tables]
        parts = [with_trial_id(trial, table).replace_schema_metadata(None) for trial, table in tables]
        # Those under load have more columns.
        together = pa.concat_tables(parts, promote_options="default") if parts else SCHEMA.empty_table()
        self.write_table(name, together.replace_schema_metadata({"launches": json.dumps(metadata)}))


def _launch_file(trial: str, index: int) -> str:
    return f"samples/{trial}.{index:04d}.parquet"


def _json_list(batches: Iterable[Sequence[object]]) -> Iterator[bytes]:
    between = b"[\n"
    for batch in batches:
        json.dumps(batch, allow_nan=False)
        for row in batch:
            yield between + to_json(row, indent=1)
            between = b",\n"
    yield (b"[" if between == b"[\n" else b"\n") + b"]\n"
