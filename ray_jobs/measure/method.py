"""How a launch is measured, and what is estimated from it: figures of two methods are no figures of one thing.

Whoever changes the pattern of calls or the estimator gives the method its next version, and leaves the old one here:
runs that were measured by it are read with its estimator.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray_jobs.statistics import Centre

FIRST = 1  # of runs that do not say


@dataclass(frozen=True)
class Method:
    """A pattern of calls with an estimator over them."""

    version: int
    untimed: int  # calls at the start of a turn, which refill the caches that others emptied
    timed: int  # calls of a turn after these, at least
    most_timed: int  # where calls are fast
    estimator: str  # of a launch's ln speedup
    centre: Centre  # of rounds, in the estimator


METHODS = {
    method.version: method
    for method in (
        Method(FIRST, 1, 3, 9, "median over rounds of ln of the ratio of medians of turns", Centre.MEDIAN),
        Method(2, 1, 1, 3, "Hodges-Lehmann over rounds of ln of the ratio of medians of turns", Centre.HODGES_LEHMANN),
    )
}
METHOD = METHODS[max(METHODS)]


class UnknownMethodError(ValueError):
    """A later version of this program measured it."""


def recorded() -> dict[str, Any]:
    """What stands in the record of a run."""
    return asdict(METHOD)


def version_in(record: Mapping[str, Any]) -> int:
    """The version that a run's record names."""
    return int((record.get("method") or {}).get("version", FIRST))


def known(version: int) -> Method:
    """The method of this version. Raises UnknownMethodError."""
    if version not in METHODS:
        raise UnknownMethodError(f"measured by method {version}, and this program knows methods up to {METHOD.version}")
    return METHODS[version]
