"""The environments of a trial's sides, as their processes found them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.matrix.rows import Row
from ray_jobs.report import text
from ray_jobs.report.view import RunView
from ray_jobs.sides import BASE

HEADS = ("Python", "PyTorch", "NumPy", "Instructions", "Preloaded", "Variables")


@dataclass(frozen=True)
class SideFacts:
    """One side: its facts by ``HEADS``, each with whether it differs from that of ``base``."""

    side: str
    facts: tuple[tuple[str, bool], ...]


def environments_of(run: RunView, rows: Sequence[Row]) -> tuple[SideFacts, ...]:
    """Those of the sides that started, ``base`` first; empty where none were compared, or they were not kept."""
    trial = (run.run.get("trials") or {}).get(rows[0].trial_id) or {}
    found: Mapping[str, Mapping[str, Any]] = trial.get("environments") or {}
    sides = {section.side or "": section.heading for section in text.by_side(rows)}
    told = {heading: _facts(found[side]) for side, heading in sides.items() if side in found}
    base = told.get(BASE)
    if base is None:
        return ()
    return tuple(
        SideFacts(side, tuple((fact, fact != other) for fact, other in zip(facts, base, strict=True)))
        for side, facts in told.items()
    )


def _facts(found: Mapping[str, Any]) -> tuple[str, ...]:
    variables = [f"{name}={value}" for name, value in (found.get("variables") or {}).items() if value is not None]
    versions = (found.get(name) for name in ("python", "torch", "numpy", "cpu_capability"))
    lists = (", ".join(map(str, values)) for values in (found.get("preloaded") or (), variables))
    return (*(str(value or text.DASH) for value in versions), *(value or text.DASH for value in lists))
