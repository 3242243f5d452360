"""A finished run, read back from its directory alone: a new one, one of an earlier version, or a compacted one."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chatbot.errors import UsageError
from ray_jobs.matrix.rows import Row
from ray_jobs.measure.result import LaunchResult, one_line
from ray_jobs.provenance import typed
from ray_jobs.results import schema
from ray_jobs.results.samples import to_result
from ray_jobs.results.store import BROKEN, RunDirectory

MARGIN = 0.02  # of a run that does not say


@dataclass(frozen=True)
class FinishedRun:
    """A run's record and rows; its samples are read on demand."""

    directory: RunDirectory
    run: Mapping[str, Any]  # run.json
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, place: str) -> "FinishedRun":
        """Reads the run at a place: a folder or a URI. Raises UsageError."""
        return cls.within(RunDirectory.existing(place))

    @classmethod
    def within(cls, directory: RunDirectory) -> "FinishedRun":
        """Reads the run in a directory. Raises UsageError."""
        place = directory.shown
        try:
            run = read_record(directory)
            rows = schema.renamed(json.loads(directory.read("matrix.json")))
            return cls(directory, run, tuple(schema.known(Row, row) for row in rows))
        except schema.NewerVersionError:
            raise
        except FileNotFoundError:
            missing = "matrix.json" if directory.holds("run.json") else "run.json"
            again = f"{typed()} matrix --resume {place}"
            raise UsageError(f"{place} is not a finished run: it has no {missing}; finish it with: {again}") from None
        except BROKEN as error:
            raise UsageError(f"{place} can't be read: its run.json or matrix.json is broken ({error})") from None

    @property
    def id(self) -> str:
        return str(self.run.get("run_id", self.directory.run_id))

    @property
    def margin(self) -> float:
        """The margin about 1 within which the run calls speedups the same."""
        return float((self.run.get("spec") or {}).get("margin", MARGIN))

    def launches(self, trials: Collection[str] | None = None) -> Iterator[tuple[str, LaunchResult]]:
        """(trial, launch) of one committed launch after the other, of all trials or of these. Raises UsageError."""
        yield from self.directory.each_launch(to_result, trials)


def is_complete(directory: RunDirectory) -> bool:
    """Tells whether every trial has ended and the matrix is written; the page and W&B come after."""
    try:
        return read_record(directory)["seconds"] is not None and directory.holds("classes.json")
    except (OSError, *BROKEN):
        return False


def read_record(directory: RunDirectory, name: str = "run.json") -> dict[str, Any]:
    """A run's ``run.json``, or its like of an audit or a sweep, as today's version writes it.

    Raises:
        FileNotFoundError: there is none.
        NewerVersionError: a later version wrote it.
        ValueError: it is broken.
    """
    content = json.loads(directory.read(name))
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}, not a table")
    return schema.current(content, directory.shown)


def read_index(directory: RunDirectory) -> list[dict[str, Any]]:
    """The entries of a run's ``traces/index.json``; none where it was not traced. Raises UsageError if it is broken."""
    name = "traces/index.json"
    try:
        content = schema.renamed(json.loads(directory.read(name)))
        return [{"file": str(entry["file"]), **entry} for entry in content]
    except FileNotFoundError:
        return []
    except BROKEN as error:
        raise UsageError(f"{directory.shown}: {name} can't be read: {one_line(error)}") from None
