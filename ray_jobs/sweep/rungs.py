"""Early stopping of trials: asynchronous successive halving (Li et al., *A system for massively parallel hyperparameter
tuning*, MLSys 2020), decided by Ray Tune's own ``ASHAScheduler``.

Decisions follow from the validations in the order in which they came, and from nothing else: fed the same ones again
after the driver died, they are the same.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ray_jobs.sweep.spec import SweepSpec
from ray_jobs.sweep.table import TrialStatus, Validation, waited


class EarlyStopping(FIFOScheduler):  # type: ignore[misc]
    """Decides after each validation whether its trial continues, ends, or is stopped."""

    def __init__(self, spec: SweepSpec) -> None:
        super().__init__()
        self._spec = spec
        self._asha = None
        self.ends: dict[int, tuple[TrialStatus, str | None]] = {}  # of trials that ended: status, reason
        if spec.asha:
            self._asha = ASHAScheduler(
                time_attr="iteration",
                metric="best_loss",
                mode="min",
                max_t=spec.iterations,
                grace_period=spec.grace_iterations,
                reduction_factor=spec.reduction,
            )
        self._seen: dict[int, list[Validation]] = {}

    def replay(self, rows: Sequence[Validation]) -> None:
        """Replays the decisions made before the driver died."""
        for row in rows:
            self.decide(row)

    def decide(self, row: Validation) -> bool:
        """Decides whether a validation's trial continues. One repeated after the loss of a worker changes nothing."""
        seen = self._seen.setdefault(row.trial, [])
        if any(row.iteration == known.iteration for known in seen):
            return row.trial not in self.ends
        seen.append(row)
        stopped = self._stops(row, first=len(seen) == 1)
        if row.iteration >= self._spec.iterations:
            self.ends[row.trial] = TrialStatus.DONE, None
        elif self._spec.patience is not None and waited(seen) >= self._spec.patience:
            self.ends[row.trial] = TrialStatus.DONE, f"no better loss in {self._spec.patience} validations"
        elif stopped:
            why = f"at {row.iteration} iterations its loss was not in the best 1 in {self._spec.reduction:g}"
            self.ends[row.trial] = TrialStatus.STOPPED, why
        return row.trial not in self.ends

    def _stops(self, row: Validation, first: bool) -> bool:
        if self._asha is None:
            return False
        trial: Any = SimpleNamespace(trial_id=str(row.trial))
        controller: Any = None
        if first:
            self._asha.on_trial_add(controller, trial)
        result = {"iteration": row.iteration, "best_loss": row.best_loss}
        return bool(self._asha.on_trial_result(controller, trial, result) == TrialScheduler.STOP)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Answers Tune."""
        row = Validation.of(result)
        return str(TrialScheduler.CONTINUE if row is None or self.decide(row) else TrialScheduler.STOP)
