"""Launches as Arrow tables.

A table holds the samples of one launch; what else the launch found out is JSON in the schema's metadata, so that one
Parquet file is a launch, whole.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_jobs.matrix.rows import Row
from ray_jobs.measure.interference import ABSENT, COUNTERS, Interference
from ray_jobs.measure.requests import Requests, Served, Window
from ray_jobs.measure.result import PHASES, Launch, LaunchResult, Samples, VariantFacts
from ray_jobs.results import schema
from ray_jobs.scenario import Load

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
        *(pa.field(name, pa.int64()) for name in COUNTERS),  # of the whole round, the same on each of its rows
        pa.field("discarded", pa.bool_()),  # the round, by the rule of interference.kept; null in the warm-up
    ]
)
REQUESTS = tuple(f.name for f in fields(Requests))
# Of a launch under load also who answered each request, and when; start_ns is when it was due, wall_ns its latency.
LOAD_SCHEMA = pa.schema(
    [*SCHEMA, *(pa.field(name, pa.int16() if name == "replica" else pa.int64()) for name in REQUESTS)]
)
METADATA = tuple(f.name for f in fields(LaunchResult) if f.name not in ("samples", "interference", "served"))


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
    kinds = SCHEMA if result.served is None else LOAD_SCHEMA
    for field in kinds:
        if field.name in names:
            values, indices = names[field.name]
            columns.append(pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(values, pa.string())))
        elif field.name == "launch":
            columns.append(pa.array(np.full(count, result.launch.index), field.type))
        elif field.name in COUNTERS:
            columns.append(_of_rounds(result, field.name))
        elif result.served is not None and field.name in REQUESTS:
            columns.append(pa.array(getattr(result.served.requests, field.name), field.type))
        elif field.name == "discarded":
            rounds = samples.round
            columns.append(pa.array(~result.kept_rounds[np.maximum(0, rounds)], field.type, mask=rounds < 0))
        else:
            column = getattr(samples, field.name)
            columns.append(pa.array(column, field.type, mask=(column == ABSENT) if field.nullable else None))
    content = {key: getattr(result, key) for key in METADATA}
    content["launch"] = asdict(result.launch)
    content["facts"] = {name: asdict(facts) for name, facts in result.facts.items()}
    if result.served is not None:
        windows = [asdict(window) for window in result.served.windows]
        content["served"] = {"load": asdict(result.served.load), "windows": windows}
    return pa.Table.from_arrays(columns, schema=kinds.with_metadata({"launch": json.dumps(content)}))


def _of_rounds(result: LaunchResult, name: str) -> pa.Array:
    """(samples,): a counter in the round of each sample; null in the warm-up and if the machine does not report it."""
    rounds = result.samples.round
    values = np.full(len(rounds), ABSENT, dtype=np.int64)
    if result.interference is not None:
        values[rounds >= 0] = getattr(result.interference, name)[rounds[rounds >= 0]]
    return pa.array(values, pa.int64(), mask=values == ABSENT)


def _interference(table: pa.Table, rounds: NDArray[np.int32], count: int) -> Interference | None:
    """What ``_of_rounds`` wrote; None for a launch from before rounds were watched."""
    if COUNTERS[0] not in table.column_names or table.column(COUNTERS[0]).null_count == table.num_rows:
        return None
    timed = rounds >= 0
    arrays = {}
    for name in COUNTERS:
        arrays[name] = np.full(count, ABSENT, dtype=np.int64)
        arrays[name][rounds[timed]] = table.column(name).fill_null(ABSENT).to_numpy()[timed]
    return Interference(**arrays)


def to_result(table: pa.Table) -> LaunchResult:
    """The launch that ``to_table`` was given."""
    content = schema.renamed(json.loads(table.schema.metadata[b"launch"]))
    variants = content["variants"]
    columns: dict[str, Any] = {}
    for field in fields(Samples):
        column = table.column(field.name)
        if field.name in ("variant", "phase"):
            order = variants if field.name == "variant" else PHASES
            kind = np.int16 if field.name == "variant" else np.int8
            columns[field.name] = _places(column, order).astype(kind)
        else:
            columns[field.name] = column.fill_null(ABSENT).to_numpy()
    content["facts"] = {name: schema.known(VariantFacts, facts) for name, facts in content["facts"].items()}
    content["launch"] = schema.known(Launch, content["launch"])
    content["interference"] = _interference(table, columns["round"], content["rounds"])
    content["served"] = _served(table, content["served"]) if content.get("served") else None
    return schema.known(LaunchResult, {**content, "samples": Samples(**columns)})


def _served(table: pa.Table, content: Mapping[str, Any]) -> Served:
    """What ``to_table`` was given of a launch under load."""
    requests = Requests(**{name: table.column(name).fill_null(ABSENT).to_numpy() for name in REQUESTS})
    windows = tuple(schema.known(Window, window) for window in content["windows"])
    return Served(schema.known(Load, content["load"]), windows, requests)


def _places(column: pa.ChunkedArray, order: Sequence[str]) -> NDArray[np.int64]:
    """(samples,): the place of each one's name in ``order``. Names are looked up once each, not once a sample."""
    names = column.combine_chunks().dictionary_encode()
    places = {name: place for place, name in enumerate(order)}
    table = np.array([places.get(schema.renamed(name), ABSENT) for name in names.dictionary.to_pylist()], np.int64)
    found = table[names.indices.to_numpy()]
    if ABSENT in found:
        raise ValueError(f"its samples name something else than {', '.join(order)}")
    return np.asarray(found)


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


def with_trial_id(trial: str, table: pa.Table) -> pa.Table:
    """The table under another trial id."""
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(table.num_rows, dtype=np.int16)), pa.array([trial]))
    return table.set_column(0, SCHEMA.field(0), names)


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
