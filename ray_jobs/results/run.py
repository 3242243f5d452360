"""A finished run, read back from its directory alone: a new one, one of an earlier version, or a compacted one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from chatbot.errors import UsageError
from ray_jobs.matrix.rows import COLUMNS, Row
from ray_jobs.measure.result import LaunchResult
from ray_jobs.results.samples import to_result
from ray_jobs.results.store import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """What a run was and what it found; its samples stay where they are."""

    directory: RunDirectory
    run: Mapping[str, Any]  # run.json
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, place: str) -> "FinishedRun":
        """The run at a place: a folder or a URI. Raises UsageError."""
        directory = RunDirectory.existing(place)
        try:
            run, rows = json.loads(directory.read("run.json")), json.loads(directory.read("matrix.json"))
            return cls(directory, run, tuple(row_of(row) for row in rows))
        except FileNotFoundError:
            again = f"python -m ray_jobs matrix --resume {place}"
            raise UsageError(f"{place} is not a finished run: it has no matrix.json; finish it with: {again}") from None
        except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
            raise UsageError(f"{place} can't be read: its run.json or matrix.json is broken ({error})") from None

    @property
    def id(self) -> str:
        return str(self.run.get("run_id", self.directory.run_id))

    def launches(self) -> Iterator[tuple[str, LaunchResult]]:
        """(trial, launch) of one committed launch after the other."""
        for trial, table in self.directory.each_table():
            yield trial, to_result(table)


def row_of(values: Mapping[str, Any]) -> Row:
    """A row of ``matrix.json``; columns that its version did not have are unknown. Raises TypeError."""
    known = {name: value for name, value in values.items() if name in COLUMNS}
    warnings: Sequence[str] = known.get("warnings") or ()
    return Row(**{**known, "warnings": tuple(warnings)})
