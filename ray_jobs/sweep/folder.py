"""The directory of a sweep: its spec, every validation, every trial and the best checkpoint, written as they come.

Only the driver writes here. The state of each running trial is kept next to the tables until the trial ends, so that
a sweep whose driver died continues where it was.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatbot.corpus import Pair
from chatbot.errors import UsageError
from ray_jobs.measure.result import one_line
from ray_jobs.provenance import command_line, driver_facts
from ray_jobs.results import schema
from ray_jobs.results.filesystem import below
from ray_jobs.results.run import read_record
from ray_jobs.results.store import BROKEN, RunDirectory
from ray_jobs.sweep.importance import Importances, importances
from ray_jobs.sweep.page import sweep_page
from ray_jobs.sweep.spec import SweepSpec, SweepTrial, make_spec
from ray_jobs.sweep.table import (
    SweepStatus,
    TrialRow,
    TrialStatus,
    Validation,
    best_trial,
    epochs_table,
    flat,
    trials_table,
    unflat,
)

SHEET = "sweep.json"
BEST = "best.pt"
MUST_MATCH = {"source_hash": "the sources of this program", "data": "the corpus", "torch": "PyTorch"}


class Listener:
    """Follows a sweep as it happens."""

    def started(self, trial: SweepTrial) -> None:
        """A trial runs for the first time."""

    def validated(self, row: Validation) -> None:
        """A trial has a loss."""

    def restarted(self, number: int, restarts: int) -> None:
        """A trial goes on from its last validation, because its worker was lost."""

    def ended(self, row: TrialRow) -> None:
        """A trial has ended."""


class Record:
    """One sweep's directory and what is known of it."""

    def __init__(self, directory: RunDirectory, spec: SweepSpec, data: str) -> None:
        self.directory, self.spec, self._data = directory, spec, data
        self.started = datetime.now(UTC)
        self._seconds_before, self._clock = 0.0, time.monotonic()
        self.validations: list[Validation] = []
        self.rows: list[TrialRow] = []  # of trials that ended, as they ended
        self.importances: Importances | None = None
        self.commands: list[list[str]] = []

    @property
    def id(self) -> str:
        return self.directory.run_id

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._clock

    def of_trial(self, number: int) -> list[Validation]:
        return [row for row in self.validations if row.trial == number]

    def add(self, row: Validation, state: bytes) -> bool:
        """Keeps a validation and the state that its trial continues from; False if it was known."""
        if any(row.iteration == known.iteration for known in self.of_trial(row.trial)):
            return False
        self.directory.write(state_name(row.trial), state)
        self.validations.append(row)
        self.directory.write_table("epochs.parquet", epochs_table(self.validations))
        return True

    def end(self, row: TrialRow, checkpoint: bytes | None) -> None:
        """Keeps the outcome of a trial, and its checkpoint if it is the best."""
        self.rows.append(row)
        if checkpoint is not None and self.best is row:
            self.directory.write(BEST, checkpoint)
        self.write(SweepStatus.RUNNING)
        self.directory.delete(state_name(row.trial))

    def write(self, status: SweepStatus) -> None:
        """``trials.json``, ``trials.parquet`` and ``sweep.json``."""
        rows = sorted(self.rows, key=lambda row: row.trial)
        self.directory.write_json("trials.json", [flat(row) for row in rows])
        self.directory.write_table("trials.parquet", trials_table(rows))
        self.directory.write_json(SHEET, self.sheet(status))

    @property
    def best(self) -> TrialRow | None:
        return best_trial(self.rows)

    def finish(self, status: SweepStatus) -> None:
        """Writes everything derived: the importances and the page."""
        judged = sorted((row for row in self.rows if row.judged), key=lambda row: row.trial)
        losses = [row.best_loss for row in judged if row.best_loss is not None]
        if status == SweepStatus.DONE:
            self.importances = importances([row.settings for row in judged], losses, self.spec.seed)
        self.write(status)
        rows = sorted(self.rows, key=lambda row: row.trial)
        text = sweep_page(self.sheet(status), rows, self.validations, self.importances)
        self.directory.write("sweep.html", text.encode())

    def summary(self) -> dict[str, Any]:
        """The summary for scripts."""
        sheet = self.sheet(SweepStatus.DONE)
        return {name: sheet[name] for name in ("sweep_id", "trials", "best", "importance")}

    def sheet(self, status: SweepStatus) -> dict[str, Any]:
        """``sweep.json``."""
        best = self.best
        facts = driver_facts()
        return {
            "schema_version": schema.VERSION,
            "sweep_id": self.id,
            "status": status,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "commands": self.commands or [command_line()],
            "spec": self.spec.model_dump(),
            "environment": facts,
            "identity": identity(facts, self._data),
            "trials": {name: sum(row.status == name for row in self.rows) for name in TrialStatus},
            "best": None if best is None else flat(best),
            "importance": None if self.importances is None else asdict(self.importances),
        }

    def state(self, number: int) -> bytes | None:
        """The state that an interrupted trial continues from."""
        try:
            return self.directory.read(state_name(number))
        except FileNotFoundError:
            return None

    def restore(self, sheet: dict[str, Any], rows: Sequence[TrialRow]) -> None:
        """Continues from the written files. Raises UsageError if new trials would differ from the old ones."""
        now = identity(driver_facts(), self._data)
        changed = [text for part, text in MUST_MATCH.items() if sheet["identity"].get(part) != now[part]]
        if changed:
            what = " and ".join(changed)
            raise UsageError(f"{self.directory.shown} can't be resumed: {what} changed since; start a new sweep")
        self.started = datetime.fromisoformat(sheet["started"])
        self._seconds_before = sheet["seconds"]
        self.commands = [*sheet["commands"], command_line()]
        self.rows = list(rows)
        self.validations = read_validations(self.directory)
        for row in rows:  # the driver may have died between the two
            self.directory.delete(state_name(row.trial))


def state_name(number: int) -> str:
    return f"trial-{number:04d}.state"


def data_digest(pairs: Sequence[Pair]) -> str:
    """A hash of the pairs that a sweep trains on and evaluates with."""
    return hashlib.sha256("\n".join("\t".join(pair) for pair in pairs).encode()).hexdigest()[:16]


def identity(facts: dict[str, Any], data: str) -> dict[str, str | None]:
    """The facts that must not change when a sweep is resumed."""
    return {"source_hash": facts["source_hash"], "torch": facts["packages"]["torch"], "data": data}


def find(place: str, root: str) -> tuple[RunDirectory, dict[str, Any], SweepSpec]:
    """Finds a sweep at a place, or by its name in the results root. Raises UsageError."""
    try:
        directory = RunDirectory.existing(place, SHEET)
    except UsageError as error:
        try:
            directory = RunDirectory.existing(below(root, place), SHEET)
        except UsageError:
            raise error from None
    try:
        sheet = read_record(directory, SHEET)
        return directory, sheet, make_spec(sheet["spec"])
    except schema.NewerVersionError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place} can't be read: its {SHEET} says too little ({error})") from None


def read_rows(directory: RunDirectory) -> list[TrialRow]:
    """The trials that ended."""
    try:
        return [unflat(row) for row in schema.renamed(json.loads(directory.read("trials.json")))]
    except FileNotFoundError:
        return []
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"{directory.shown} can't be resumed: its trials.json can't be read ({error})") from None


def read_validations(directory: RunDirectory) -> list[Validation]:
    """Every validation that was kept, in the order in which they came."""
    try:
        table = pq.read_table(pa.BufferReader(directory.read("epochs.parquet")))
        return [Validation(**row) for row in table.to_pylist()]
    except FileNotFoundError:
        return []
    except BROKEN as error:
        raise UsageError(
            f"{directory.shown} can't be resumed: its epochs.parquet can't be read ({one_line(error)})"
        ) from None
