"""How long a run of many launches takes to read, next to how it was read before: names looked up once per sample.

``python benchmarks/reading.py [--launches 1000] [--out FILE]`` makes a compacted run, decodes its launches both ways by
turns, and checks that both give the same samples. Reading the Parquet file is timed apart: both ways share it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from launches import ALL, made_launch  # (tests/, which is not a package)

from ray_jobs.measure.result import LaunchResult
from ray_jobs.results import samples
from ray_jobs.results.samples import to_result, to_table
from ray_jobs.results.store import RunDirectory

ROUNDS, CALLS = 120, 3  # of a launch of the tutorial's size, about
TURNS = 3
Places = Callable[[pa.ChunkedArray, Sequence[str]], NDArray[np.int64]]


def places_before(column: pa.ChunkedArray, order: Sequence[str]) -> NDArray[np.int64]:
    """As the samples were decoded before."""
    return np.array([order.index(name) for name in column.to_pylist()], dtype=np.int64)


def made_run(root: str, launches: int) -> RunDirectory:
    """A run of one trial, in one sample file."""
    run = RunDirectory.named(root, "many")
    walls = {variant: [[2.0]] for variant in ALL}
    tables = [to_table("t", made_launch(walls, index, ROUNDS, CALLS)) for index in range(launches)]
    with run.created():
        run.add_launches({"t": tables}, "samples/launches.parquet")
    return run


def decoded(tables: Sequence[pa.Table], places: Places) -> tuple[float, LaunchResult]:
    """(seconds, the last launch)."""
    with patch.object(samples, "_places", places):
        before = time.perf_counter()
        for table in tables:
            found = to_result(table)
        return time.perf_counter() - before, found


def main() -> None:
    """Prints the medians as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=1000, help="number of launches")
    parser.add_argument("--out", type=Path, help="file to append the line to")
    asked = parser.parse_args()
    columnar = samples._places
    with tempfile.TemporaryDirectory() as root:
        run = made_run(root, asked.launches)
        before = time.perf_counter()
        tables = [table for _, table in run.each_launch(lambda table: table)]
        file_s = time.perf_counter() - before
    turns = [(decoded(tables, places_before), decoded(tables, columnar)) for _ in range(TURNS)]
    for old, new in turns:
        for name, array in vars(old[1].samples).items():
            np.testing.assert_array_equal(array, getattr(new[1].samples, name))
    old_s, new_s = (statistics.median(turn[way][0] for turn in turns) for way in (0, 1))
    line = {
        "launches": asked.launches,
        "samples": sum(table.num_rows for table in tables),
        "file_s": round(file_s, 3),
        "before_s": round(old_s, 3),
        "columnar_s": round(new_s, 3),
        "times_as_fast": round(old_s / new_s, 1),
    }
    print(json.dumps(line))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
