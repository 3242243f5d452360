"""The tables of a sweep: a row for each validation, one for each trial. All but times follow from the sweep's seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, get_args

import pyarrow as pa

from ray_jobs.results.samples import schema_of
from ray_jobs.sweep.space import KINDS, Value
from ray_jobs.sweep.spec import SweepTrial


class TrialStatus(StrEnum):
    """The outcome of a training trial."""

    DONE = "done"
    STOPPED = "stopped"  # early, because others were better
    FAILED = "failed"


class SweepStatus(StrEnum):
    """The progress of a sweep."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    DONE = "done"


@dataclass(frozen=True)
class Validation:
    """A trial's state after a validation. Losses are nats per reply token on the same held-out pairs."""

    trial: int
    iteration: int
    epoch: float  # passes over the training pairs
    train_loss: float  # mean since the validation before; depends on the teacher forcing, so never judged by
    validation_loss: float  # teacher forced
    free_running_loss: float
    best_loss: float  # the least validation_loss so far
    seconds: float  # since the validation before
    host: str

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Validation | None":
        """Reads a validation from a trial's report to Tune; None if the report is something else, such as a failure."""
        return cls(**{name: told[name] for name in cls.__dataclass_fields__}) if "iteration" in told else None


@dataclass(frozen=True)
class TrialRow:
    """The outcome of a trial. Losses are those of its best validation; None if it had none."""

    trial: int
    seed: int
    settings: Mapping[str, Value]
    status: TrialStatus
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
        """True if its loss may be the best."""
        return self.status != TrialStatus.FAILED and self.best_loss is not None


EPOCHS = schema_of(Validation)


def row_of(
    trial: SweepTrial, rows: Sequence[Validation], status: TrialStatus, reason: str | None = None, restarts: int = 0
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


def best_trial(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The judged trial with the least loss; the first of equals."""
    judged = [row for row in rows if row.judged]
    return min(judged, key=lambda row: (row.best_loss, row.trial), default=None)


def waited(rows: Sequence[Validation]) -> int:
    """The number of validations since the best one."""
    losses = [row.validation_loss for row in rows]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def flat(row: TrialRow) -> dict[str, Any]:
    """A row with a column for each hyperparameter; a clip of none is null."""
    return _spread(asdict(row), row.settings)


def unflat(values: Mapping[str, Any]) -> TrialRow:
    """Restores the row. Raises TypeError and ValueError if it is not one."""
    own = TrialRow.__dataclass_fields__
    settings = {name: value for name, value in values.items() if name not in own}
    plain = {name: value for name, value in values.items() if name in own}
    return TrialRow(**{**plain, "settings": settings, "status": TrialStatus(str(plain.get("status")))})


def _spread(columns: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces ``settings`` by the hyperparameters' columns."""
    found: dict[str, Any] = {}
    for name, value in columns.items():
        found |= settings if name == "settings" else {name: value}
    return found


def epochs_table(rows: Sequence[Validation]) -> pa.Table:
    """Every validation of every trial, in the order of arrival."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=EPOCHS)


def trials_table(rows: Sequence[TrialRow]) -> pa.Table:
    """One row for each trial."""
    settings = {name: KINDS[name] for name in (rows[0].settings if rows else ())}
    kinds = _spread({field.name: field.type for field in fields(TrialRow)}, settings)
    return pa.Table.from_pylist(
        [flat(row) for row in rows], pa.schema([(n, _arrow(kind)) for n, kind in kinds.items()])
    )


def _arrow(kind: Any) -> pa.DataType:
    """The Arrow type of a column of that kind, or null."""
    known = next(one for one in get_args(kind) or (kind,) if one is not type(None))
    return pa.string() if issubclass(known, str) else pa.int64() if known is int else pa.float64()
