"""The tables of a sweep: one row a validation, one row a trial. All but times follow from the sweep's seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from ray_jobs.results.samples import schema_of
from ray_jobs.sweep.space import KINDS, Value
from ray_jobs.sweep.spec import Trial

DONE, STOPPED, FAILED, UNFINISHED = "done", "stopped", "failed", "unfinished"
JUDGED = (DONE, STOPPED)  # these have a loss that may be the best
TIMES = ("seconds", "host")  # columns that do not follow from the seed


@dataclass(frozen=True)
class Validation:
    """Where a trial stood after a validation. Losses are nats per reply token on the same held-out pairs."""

    trial: int
    iteration: int
    epoch: float  # passes over the training pairs
    train_loss: float  # mean since the validation before; depends on the teacher forcing, so never judged by
    validation_loss: float  # teacher forced
    free_running_loss: float
    best_loss: float  # the least validation_loss so far
    seconds: float  # since the validation before
    host: str


@dataclass(frozen=True)
class TrialRow:
    """What became of a trial. Losses are of its best validation, None where it had none."""

    trial: int
    seed: int
    settings: Mapping[str, Value]
    status: str
    reason: str | None
    best_loss: float | None
    best_iteration: int | None
    free_running_loss: float | None
    iterations: int
    validations: int
    restarts: int  # after its worker was lost
    seconds: float

    @property
    def judged(self) -> bool:
        return self.status in JUDGED and self.best_loss is not None


EPOCHS = schema_of(Validation)


def row_of(
    trial: Trial, rows: Sequence[Validation], status: str, reason: str | None = None, restarts: int = 0
) -> TrialRow:
    """A trial's row from its validations."""
    best = min(rows, key=lambda row: row.validation_loss, default=None)
    return TrialRow(
        trial=trial.number,
        seed=trial.options.seed,
        settings=trial.settings,
        status=status,
        reason=reason,
        best_loss=best.validation_loss if best else None,
        best_iteration=best.iteration if best else None,
        free_running_loss=best.free_running_loss if best else None,
        iterations=rows[-1].iteration if rows else 0,
        validations=len(rows),
        restarts=restarts,
        seconds=round(sum(row.seconds for row in rows), 3),
    )


def best_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The judged trial with the least loss; of equals the first."""
    judged = [row for row in rows if row.judged]
    return min(judged, key=lambda row: (row.best_loss, row.trial), default=None)


def waited(rows: Sequence[Validation]) -> int:
    """Validations since the best one."""
    losses = [row.validation_loss for row in rows]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def flat(row: TrialRow) -> dict[str, Any]:
    """A row with a column for each hyperparameter; a clip of none is null."""
    values = asdict(row)
    settings = values.pop("settings")
    return {"trial": values.pop("trial"), "seed": values.pop("seed"), **settings, **values}


def epochs_table(rows: Sequence[Validation]) -> pa.Table:
    """Every validation of every trial, in the order in which they were told."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=EPOCHS)


def trials_table(rows: Sequence[TrialRow]) -> pa.Table:
    """One row a trial."""
    names = rows[0].settings if rows else {}
    own = [field for field in schema_of(_Plain) if field.name not in ("trial", "seed")]
    ids = [pa.field("trial", pa.int64()), pa.field("seed", pa.int64())]
    settings = [pa.field(name, _arrow(name)) for name in names]
    return pa.Table.from_pylist([flat(row) for row in rows], schema=pa.schema([*ids, *settings, *own]))


@dataclass(frozen=True)
class _Plain:
    """The columns of TrialRow beside its settings."""

    trial: int
    seed: int
    status: str
    reason: str | None
    best_loss: float | None
    best_iteration: int | None
    free_running_loss: float | None
    iterations: int
    validations: int
    restarts: int
    seconds: float


def _arrow(name: str) -> pa.DataType:
    kinds = {int: pa.int64(), str: pa.string()}
    kind = KINDS[name]
    return kinds.get(kind, pa.float64()) if isinstance(kind, type) else pa.float64()
