"""What the launches of a trial say of a side: the same variant, ``base`` over this side."""

from collections.abc import Sequence
from typing import Any

from chatbot.variants import CONTROL
from ray_jobs import statistics
from ray_jobs.matrix.row_warnings import against_imprecision
from ray_jobs.matrix.tails import tails
from ray_jobs.measure.result import LaunchResult
from ray_jobs.measure.trial import Pair, Trial
from ray_jobs.sides import AGAIN, BASE
from ray_jobs.statistics import Verdict


def against(trial: Trial, pair: Pair, launches: Sequence[LaunchResult], invalid: str | None) -> dict[str, Any]:
    """The columns of a side's comparison with ``base``, and its warnings; none for ``base`` itself or a control."""
    if pair.side == BASE or pair.variant == CONTROL:
        return {}
    if invalid is not None or not any(launch.sound(pair.variant) for launch in launches):
        return {"side_verdict": Verdict.INVALID}
    found = [(launch, launch.log_side_speedups()) for launch in launches]
    both = [(launch, logs[pair.label]) for launch, logs in found if pair.label in logs]
    interval = statistics.speedup([log for _, log in both])
    verdict = statistics.verdict(interval, trial.margin)
    if interval is None:
        return {"side_verdict": verdict}
    warnings = []
    if interval.half_width > trial.precision:
        warnings.append(against_imprecision(interval, trial.precision))
    if pair.side == AGAIN and verdict in (Verdict.FASTER, Verdict.SLOWER):
        warnings.append("a second process of base differs from the first, which is the same: distrust this trial")
    told = {"side_verdict": verdict, "warnings": tuple(warnings)}
    slow = tails(pair.variant, pair.label, [launch for launch, _ in both], "side_")
    return {**interval.columns("side_speedup"), **told, **slow}
