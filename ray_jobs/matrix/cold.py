"""Cold starts -> columns of rows: what a start costs in each state, and after how many replies it pays for itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ray_jobs.measure.cold import Start, Starts, State
from ray_jobs.statistics import Interval, Verdict, median_interval

PAYING = (State.EMPTY, State.CACHED)  # of a live process nothing has to pay for itself
Cell = Mapping[str, Any]  # a row's columns by their names


def columns(starts: Starts | None) -> dict[str, Any]:
    """The columns of a variant's own starts; empty of none."""
    if starts is None:
        return {}
    told: dict[str, Any] = {"artifact_mb": starts.artifact_mb, "weights_mb": starts.weights_mb}
    told["kept_share"] = starts.kept_mb / starts.loaded_mb if starts.loaded_mb else None
    for state, made in starts.of.items():
        if made:
            told |= _of_state(state, made)
    return told


def _of_state(state: str, made: Sequence[Start]) -> dict[str, Any]:
    def middle(step: Callable[[Start], float]) -> float:
        return float(np.median([step(one) for one in made]))

    whole = median_interval([one.to_first_reply_s for one in made])
    return {
        f"import_s_{state}": middle(lambda one: one.import_s),
        f"load_s_{state}": middle(lambda one: one.load_s),
        f"prepare_cold_s_{state}": middle(lambda one: one.prepare_s),
        f"first_reply_ms_{state}": 1e3 * middle(lambda one: one.first_reply_s),
        f"to_first_reply_s_{state}": middle(lambda one: one.to_first_reply_s),
        f"to_first_reply_s_{state}_low": whole.low if whole else None,
        f"to_first_reply_s_{state}_high": whole.high if whole else None,
    }


def warnings(starts: Starts | None, lost: str | None) -> list[str]:
    """Why there are none, or too few."""
    return [] if lost is None else [f"{'its cold start is not known' if starts is None else 'cold start'}: {lost}"]


def pays_after(row: Cell, base: Cell) -> dict[str, Any]:
    """After how many replies a faster variant has won back what its start costs more than the baseline's.

    The limits hold whatever the errors of starts, speedup and the baseline's median do: the longest extra start over
    the least saving, and the reverse. Null where it is not faster beyond doubt.
    """
    if row.get("verdict") != Verdict.FASTER or not base.get("p50_ms"):
        return {}
    saved = [(base.get(f"p50{end}_ms") or base["p50_ms"], row[f"speedup{end}"]) for end in ("", "_low", "_high")]
    savings = [milliseconds / 1e3 * (1 - 1 / speedup) for milliseconds, speedup in saved]
    told: dict[str, Any] = {}
    for state in PAYING:
        name = f"to_first_reply_s_{state}"
        starts = [_whole(one, name) for one in (row, base)]
        if starts[0] is not None and starts[1] is not None:
            mine, others = starts[0], starts[1]
            extra = Interval(mine.value - others.value, mine.low - others.high, mine.high - others.low)
            told[f"pays_after_{state}"] = max(0.0, extra.value / savings[0])
            told[f"pays_after_{state}_low"] = max(0.0, extra.low / savings[2])
            told[f"pays_after_{state}_high"] = max(0.0, extra.high / savings[1])
    return told


def _whole(row: Cell, name: str) -> Interval | None:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return None if value is None or low is None or high is None else Interval(value, low, high)
