"""The environments of a trial's sides, as their processes found them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.matrix.rows import Row
from ray_jobs.report import text
from ray_jobs.report.view import RunView
from ray_jobs.sides import BASE

HEADS = ("Python", "PyTorch", "NumPy", "Other packages", "Commit", "Instructions", "Preloaded", "Variables")
SHOWN = ("torch", "numpy")  # in columns of their own
NAMED = 6  # packages; the run's record has all


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
    if BASE not in found:
        return ()
    told = {heading: _facts(found[side], found[BASE]) for side, heading in sides.items() if side in found}
    base = told[BASE]
    return tuple(
        SideFacts(side, tuple((fact, fact != other) for fact, other in zip(facts, base, strict=True)))
        for side, facts in told.items()
    )


def _facts(found: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    variables = [f"{name}={value}" for name, value in (found.get("variables") or {}).items() if value is not None]
    commit = str(found.get("commit") or "")[:12]
    *versions, instructions = (found.get(name) for name in ("python", "torch", "numpy", "cpu_capability"))
    lists = (", ".join(map(str, values)) for values in (found.get("preloaded") or (), variables))
    return tuple(str(fact or text.DASH) for fact in (*versions, _packages(found, base), commit, instructions, *lists))


def _packages(found: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The packages that ``base`` has in another version or not at all; what it has beside these is still found."""
    of_base = base.get("installed") or {}
    others = [
        f"{name} {version}"
        for name, version in (found.get("installed") or {}).items()
        if of_base.get(name) != version and name not in SHOWN
    ]
    more = len(others) - NAMED
    return ", ".join(others[:NAMED]) + (f" and {more} more" if more > 0 else "")
