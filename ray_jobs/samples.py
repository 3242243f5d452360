"""Launches as Arrow tables, and the run directory they are kept in.

A table holds the samples of one launch; what else the launch found out is JSON in the schema's metadata, so that one
Parquet file is a launch, whole. A launch counts when its file is there: written under a temporary name, then renamed.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from chatbot.errors import UsageError
from ray_jobs.interference import COLUMNS as WATCHED
from ray_jobs.interference import Interference
from ray_jobs.records import PHASES, Launch, LaunchResult, Samples, VariantFacts, one_line
from ray_jobs.rows import Row

NAMES = pa.dictionary(pa.int16(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("trial", NAMES, nullable=False),
        pa.field("launch", pa.int32(), nullable=False),
        pa.field("variant", NAMES, nullable=False),
        pa.field("phase", NAMES, nullable=False),  # warmup, refresh (untimed first call of a turn) or timed
        pa.field("round", pa.int32()),  # null in the warm-up
        pa.field("position", pa.int16(), nullable=False),
        pa.field("call", pa.int32(), nullable=False),
        pa.field("start_ns", pa.int64(), nullable=False),
        pa.field("wall_ns", pa.int64(), nullable=False),
        pa.field("device_ns", pa.int64()),
        pa.field("cpu_ns", pa.int64(), nullable=False),
        pa.field("involuntary_switches", pa.int32(), nullable=False),
        *(pa.field(name, pa.int64()) for name in WATCHED),  # of the whole round, the same on each of its rows
        pa.field("discarded", pa.bool_()),  # the round, by the rule of interference.kept; null in the warm-up
    ]
)
ABSENT = -1  # how Samples writes a null
METADATA = tuple(f.name for f in fields(LaunchResult) if f.name not in ("samples", "interference"))


def to_table(trial: str, result: LaunchResult) -> pa.Table:
    """The launch as an Arrow table."""
    samples = result.samples
    count = len(samples.wall_ns)
    names = {
        "trial": ([trial], np.zeros(count, dtype=np.int16)),
        "variant": (list(result.variants), samples.variant),
        "phase": (list(PHASES), samples.phase.astype(np.int16)),
    }
    columns = []
    for field in SCHEMA:
        if field.name in names:
            values, indices = names[field.name]
            columns.append(pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(values, pa.string())))
        elif field.name == "launch":
            columns.append(pa.array(np.full(count, result.launch.index), field.type))
        elif field.name in WATCHED:
            columns.append(_of_rounds(result, field.name))
        elif field.name == "discarded":
            rounds = samples.round
            columns.append(pa.array(~result.kept_rounds[np.maximum(0, rounds)], field.type, mask=rounds < 0))
        else:
            column = getattr(samples, field.name)
            columns.append(pa.array(column, field.type, mask=(column == ABSENT) if field.nullable else None))
    content = {key: getattr(result, key) for key in METADATA}
    content["launch"] = asdict(result.launch)
    content["facts"] = {name: asdict(facts) for name, facts in result.facts.items()}
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({"launch": json.dumps(content)}))


def _of_rounds(result: LaunchResult, name: str) -> pa.Array:
    """(samples,): what was watched in each one's round; null in the warm-up and where the machine does not tell."""
    rounds = result.samples.round
    values = np.full(len(rounds), ABSENT, dtype=np.int64)
    if result.interference is not None:
        values[rounds >= 0] = getattr(result.interference, name)[rounds[rounds >= 0]]
    return pa.array(values, pa.int64(), mask=values == ABSENT)


def _interference(table: pa.Table, rounds: NDArray[np.int32], count: int) -> Interference | None:
    """What ``_of_rounds`` wrote; None for a launch from before rounds were watched."""
    if WATCHED[0] not in table.column_names or table.column(WATCHED[0]).null_count == table.num_rows:
        return None
    timed = rounds >= 0
    arrays = {}
    for name in WATCHED:
        arrays[name] = np.full(count, ABSENT, dtype=np.int64)
        arrays[name][rounds[timed]] = table.column(name).fill_null(ABSENT).to_numpy()[timed]
    return Interference(**arrays)


def to_result(table: pa.Table) -> LaunchResult:
    """The launch that ``to_table`` was given."""
    content = json.loads(table.schema.metadata[b"launch"])
    variants = tuple(content["variants"])
    columns: dict[str, Any] = {}
    for field in fields(Samples):
        column = table.column(field.name)
        if field.name in ("variant", "phase"):
            order = variants if field.name == "variant" else PHASES
            kind = np.int16 if field.name == "variant" else np.int8
            columns[field.name] = np.array([order.index(name) for name in column.to_pylist()], dtype=kind)
        else:
            columns[field.name] = column.fill_null(ABSENT).to_numpy()
    content["facts"] = {name: VariantFacts(**facts) for name, facts in content["facts"].items()}
    content |= {"launch": Launch(**content["launch"]), "variants": variants, "built": tuple(content["built"])}
    content["sentinel_ns"] = tuple(content.get("sentinel_ns", ()))
    watched = _interference(table, columns["round"], content["rounds"])
    return LaunchResult(samples=Samples(**columns), interference=watched, **content)


class RunDirectory:
    """``<results root>/<run id>/`` on any file system that ``pyarrow.fs`` knows. Only the driver writes in it."""

    def __init__(self, filesystem: fs.FileSystem, path: str, shown: str) -> None:
        self._fs, self._path = filesystem, path
        self.shown = shown  # as the user would name it

    @classmethod
    def named(cls, root: str, run_id: str) -> "RunDirectory":
        """The directory of a new run, not made yet.

        Raises:
            UsageError: the run id is no plain name or exists already, or the root can't be reached.
        """
        if not run_id or run_id in (".", "..") or set(run_id) & set("/\\:\0"):
            raise UsageError(f"run id {run_id!r} is not a plain folder name")
        filesystem, base = open_root(root)
        run = cls(filesystem, f"{base}/{run_id}", f"{root.rstrip('/')}/{run_id}")
        with _reaching(root):
            if filesystem.get_file_info(run._path).type != fs.FileType.NotFound:
                raise UsageError(f"run {run_id!r} exists already in {root}; give another --run-id or leave it out")
        return run

    @classmethod
    def existing(cls, place: str) -> "RunDirectory":
        """The directory of a run that was made. Raises UsageError where there is none."""
        filesystem, path = open_root(place)
        with _reaching(place):
            if filesystem.get_file_info(f"{path}/run.json").type != fs.FileType.File:
                raise UsageError(f"no run at {place}: it has no run.json")
        return cls(filesystem, path, place)

    @contextmanager
    def created(self, samples: bool = True) -> Iterator[None]:
        """Makes the directory, and its root; a UsageError before the first launch takes away what was made.

        ``samples``: whether launches are to be kept in it.

        Raises:
            UsageError: it can't be written.
        """
        root = self._path.rpartition("/")[0]
        with _reaching(self.shown):
            rootless = self._fs.get_file_info(root).type == fs.FileType.NotFound
            self._fs.create_dir(f"{self._path}/samples" if samples else self._path, recursive=True)
        try:
            yield
        except UsageError:
            if not (self.sample_files() if samples else self._fs.get_file_info(fs.FileSelector(self._path))):
                # What was measured is never deleted.
                self._fs.delete_dir(self._path)
                if rootless and not self._fs.get_file_info(fs.FileSelector(root)):
                    self._fs.delete_dir(root)
            raise

    @property
    def run_id(self) -> str:
        """Its name in the results root."""
        return self._path.rpartition("/")[2]

    @property
    def local_path(self) -> str | None:
        """Its path where it lies on this machine's disk."""
        return self._path if isinstance(self._fs, fs.LocalFileSystem) else None

    def write(self, name: str, content: bytes) -> None:
        """Puts a whole file in place: readers see the old one or the new one."""
        path = f"{self._path}/{name}"
        temporary = f"{path}.part"
        if self.local_path is not None:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        else:
            with self._fs.open_output_stream(temporary) as stream:
                stream.write(content)
            self._fs.move(temporary, path)

    def write_json(self, name: str, value: object) -> None:
        """NaN and infinity are refused: what is unknown is null."""
        self.write(name, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        """A Parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())

    def add_launch(self, trial: str, table: pa.Table) -> None:
        """Commits a launch."""
        launch = json.loads(table.schema.metadata[b"launch"])["launch"]["index"]
        self.write_table(f"samples/{trial}.{launch:04d}.parquet", table)

    def sample_files(self) -> list[str]:
        """The names of the committed launches, in order."""
        selector = fs.FileSelector(f"{self._path}/samples", allow_not_found=True)
        names = [info.base_name for info in self._fs.get_file_info(selector)]
        return sorted(name for name in names if name.endswith(".parquet"))

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        with self._fs.open_input_file(f"{self._path}/{name}") as file:
            content: bytes = file.read()
        return content

    def read_tables(self) -> dict[str, list[pa.Table]]:
        """The committed launches of each trial as tables, in order."""
        launches: dict[str, list[pa.Table]] = {}
        for name in self.sample_files():
            table = pq.read_table(pa.BufferReader(self.read(f"samples/{name}")))
            for trial, launch in split_launches(table):
                launches.setdefault(trial, []).append(launch)
        return launches

    def read_launches(self) -> dict[str, list[LaunchResult]]:
        """The committed launches of each trial, in order."""
        return {trial: [to_result(table) for table in tables] for trial, tables in self.read_tables().items()}

    def add_launches(self, trials: Mapping[str, Sequence[pa.Table]], name: str) -> None:
        """Commits many launches as one file, from which ``read_tables`` makes single ones again."""
        tables = [(trial, table) for trial, launches in trials.items() for table in launches]
        metadata = [[trial, table.num_rows, json.loads(table.schema.metadata[b"launch"])] for trial, table in tables]
        parts = [_named(trial, table).replace_schema_metadata(None) for trial, table in tables]
        together = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
        self.write_table(name, together.replace_schema_metadata({"launches": json.dumps(metadata)}))


def split_launches(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """(trial, launch) of each launch in a sample file, which holds one or, compacted, many."""
    metadata = table.schema.metadata
    if b"launches" not in metadata:
        yield table.column("trial")[0].as_py() if table.num_rows else "", table
        return
    start = 0
    for trial, count, content in json.loads(metadata[b"launches"]):
        part = table.slice(start, count).replace_schema_metadata({"launch": json.dumps(content)})
        yield trial, part
        start += count


def _named(trial: str, table: pa.Table) -> pa.Table:
    """The table under another trial id."""
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(table.num_rows, dtype=np.int16)), pa.array([trial]))
    return table.set_column(0, SCHEMA.field(0), names)


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"results can't be kept in {place}: {one_line(error)}") from None


def open_root(root: str) -> tuple[fs.FileSystem, str]:
    """The file system and path of a results root: a path, or a URI such as ``s3://bucket/results``."""
    try:
        if "://" in root:
            filesystem, path = fs.FileSystem.from_uri(root)
            return filesystem, path.rstrip("/")
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(root))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"results root {root!r} is not usable: {str(error).splitlines()[0]}") from None


def rows_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the matrix as a table; a column's type does not depend on what the rows hold."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=ROW_SCHEMA)


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _row_field(name: str, kind: Any) -> pa.Field:
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if get_origin(kind) is tuple:
        return pa.field(name, pa.list_(pa.string()))
    return pa.field(name, _ARROW[kinds[0]])


def schema_of(kind: type) -> pa.Schema:
    """The columns of a dataclass of plain values."""
    return pa.schema([_row_field(name, hint) for name, hint in get_type_hints(kind).items()])


ROW_SCHEMA = schema_of(Row)
