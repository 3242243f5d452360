"""How a launch is measured, and what is estimated from it: figures of two methods are no figures of one thing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FIRST = 1  # of runs that do not say


@dataclass(frozen=True)
class Method:
    """A pattern of calls with an estimator over them; whoever changes either gives it the next version."""

    version: int
    untimed: int  # calls at the start of a turn, which refill the caches that others emptied
    timed: int  # calls of a turn after these, at least
    most_timed: int  # where calls are fast
    estimator: str  # of a launch's ln speedup


METHOD = Method(
    FIRST, untimed=1, timed=3, most_timed=9, estimator="median over rounds of ln of the ratio of medians of turns"
)


def recorded() -> dict[str, Any]:
    """What stands in the record of a run."""
    return asdict(METHOD)


def version_in(record: Mapping[str, Any]) -> int:
    """The version that a run's record names."""
    return int((record.get("method") or {}).get("version", FIRST))
