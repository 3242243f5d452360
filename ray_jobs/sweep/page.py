"""``sweep.html``: one self-contained file, made from the directory."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.report.page import template
from ray_jobs.sweep import charts
from ray_jobs.sweep.importance import Importances
from ray_jobs.sweep.space import Space, Value
from ray_jobs.sweep.table import TrialRow, TrialStatus, Validation, best_trial

MOST_LISTED = 6  # values with which trials failed


def sweep_page(
    sheet: Mapping[str, Any], rows: Sequence[TrialRow], validations: Sequence[Validation], found: Importances | None
) -> str:
    """The whole page; ``sheet`` is ``sweep.json``."""
    order = charts.goodness(rows)
    varied = Space.of(sheet["spec"]["space"]).varied
    return template("sweep.html", Path(__file__).parent).render(
        sheet=sheet,
        spec=sheet["spec"],
        rows=sorted(rows, key=lambda row: (order.get(row.trial, 2), row.trial)),
        names=varied,
        fixed={name: value for name, value in rows[0].settings.items() if name not in varied} if rows else {},
        best=best_trial(rows),
        counts=Counter(row.status for row in rows),
        failures=failures_by_value(rows),
        found=found,
        plots=[charts.curves(rows, validations), charts.curves(rows, validations, free=True)],
        parallel=charts.parallel(rows),
        bars=charts.importance(found) if found else None,
        findings=findings(found) if found else "available when the sweep ends",
        shown=charts.shown,
        settings_of=charts.settings_of,
        loss=loss_text,
        perplexity=perplexity,
    )


def failures_by_value(rows: Sequence[TrialRow]) -> list[tuple[str, str, int, int]]:
    """(hyperparameter, value, failed trials, trials) of values with which more than the usual share of trials failed.

    The worst share comes first. Where nearly every trial has a value of its own, halves stand for values.
    """
    usual = sum(row.status == TrialStatus.FAILED for row in rows) / len(rows) if rows else 0.0
    found: list[tuple[str, str, int, int]] = []
    for name in rows[0].settings if usual else ():
        labels = _labels([row.settings[name] for row in rows])
        of = Counter(labels)
        failed = Counter(label for label, row in zip(labels, rows, strict=True) if row.status == TrialStatus.FAILED)
        found += [(name, label, failed[label], of[label]) for label in of if failed[label] / of[label] > usual]
    return sorted(found, key=lambda one: (-one[2] / one[3], -one[3], one[0], one[1]))[:MOST_LISTED]


def _labels(values: Sequence[Value]) -> list[str]:
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(values) or len(set(numbers)) <= len(values) // 2:
        return [charts.shown(value) for value in values]
    middle = sorted(numbers)[(len(numbers) - 1) // 2]
    return [f"{'up to' if value <= middle else 'above'} {middle:.3g}" for value in numbers]


def findings(found: Importances) -> str:
    """The importances in a sentence."""
    if found.explained is None:
        return next((one.reason for one in found.of if one.reason), None) or "nothing varied"
    if found.explained <= 0:
        return "the settings do not predict the loss of unseen trials; treat these shares as noise"
    clear = [f"{name} ({charts.whole_percent(share)})" for name, share, low, _ in found.known if low > 0]
    told = f"the settings predict {found.explained:.0%} of the variance between {found.trials} trials"
    return f"{told}; {'beyond luck: ' + ', '.join(clear) if clear else 'no hyperparameter stands out from luck'}"


def loss_text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def perplexity(loss: float | None) -> str:
    return "" if loss is None or loss > 50 else f"{math.exp(loss):,.1f}"
