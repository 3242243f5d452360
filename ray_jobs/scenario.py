"""How requests come to a variant, by MLPerf's names: one after the other, as many as it can answer, or at random times.

Source of the names: Reddi et al. 2020, MLPerf Inference Benchmark, https://doi.org/10.1109/ISCA45697.2020.00045.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from chatbot.errors import UsageError


class Scenario(StrEnum):
    """How requests come."""

    SINGLE_STREAM = "single-stream"  # the next one when the last one is answered
    OFFLINE = "offline"  # all are there from the start
    SERVER = "server"  # at random times, independent of each other and of the answers


class ReplicaKind(StrEnum):
    """What a replica is."""

    PROCESS = "process"
    THREAD = "thread"  # of one process: all of them share the interpreter's lock


class Through(StrEnum):
    """What requests pass through on their way to a replica."""

    DIRECT = "direct"  # nothing: a queue that replicas take them from
    SERVE = "serve"  # the handle of a Ray Serve deployment


UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
BOUND = re.compile(r"p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(us|ms|s)")
TIME = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
LEAST_SHARE = 0.5
MOST_BATCH = 128  # requests that are answered together: their answers are sent in one piece


@dataclass(frozen=True)
class Bound:
    """A service level: at least this share of the requests is answered within so many seconds."""

    share: float
    seconds: float

    @classmethod
    def of(cls, asked: str) -> "Bound":
        """Parses ``p99=50ms``. Raises UsageError."""
        found = BOUND.fullmatch(asked.replace(" ", ""))
        bound = found and cls(round(float(found[1]) / 100, 6), float(found[2]) * UNITS[found[3]])
        if not bound or bound.share < LEAST_SHARE or not bound.seconds:
            raise UsageError(f"slo is {asked!r}: give a percentile from p50 to p99.9 and a time above 0, as p99=50ms")
        return bound

    @property
    def percentile(self) -> str:
        """As p99."""
        return f"p{100 * self.share:g}"


@dataclass(frozen=True)
class Load:
    """A trial's scenario other than ``single-stream``, and who answers."""

    scenario: Scenario
    replicas: int = 1
    kind: ReplicaKind = ReplicaKind.PROCESS
    slo: str | None = None  # of ``server``, as ``Bound.of`` takes it
    max_batch: int = 1  # requests that a replica answers together, at most
    batch_window: str | None = None  # that it waits for more than one, as ``window_of`` takes it
    through: Through = Through.DIRECT

    @property
    def bound(self) -> Bound | None:
        """What ``server`` must hold."""
        return None if self.slo is None else Bound.of(self.slo)

    @property
    def batch_window_ns(self) -> int:
        """How long a replica that has a request waits for others."""
        return 0 if self.batch_window is None else round(window_of(self.batch_window) * 1e9)

    @property
    def generators(self) -> int:
        """Cores that send requests and do nothing else; in ``offline`` each replica takes its next one itself."""
        return int(self.scenario == Scenario.SERVER)

    def cores(self, threads: int) -> int:
        """That a station needs for replicas of so many threads."""
        return self.replicas * threads + self.generators

    @property
    def id(self) -> str:
        """Its part of a trial's id."""
        kind = "" if self.kind == ReplicaKind.PROCESS else f"-{self.kind}"
        together = "" if self.max_batch == 1 else f"-b{self.max_batch}"
        through = "" if self.through == Through.DIRECT else f"-{self.through}"
        return f"{self.scenario}-x{self.replicas}{kind}{together}{through}"


def loads_of(
    scenarios: Sequence[str],
    replicas: Sequence[int],
    kinds: Sequence[str],
    slo: str | None,
    batches: Sequence[int] = (1,),
    window: str | None = None,
    ways: Sequence[str] = (Through.DIRECT,),
) -> tuple[Load | None, ...]:
    """Every combination that is asked for; None is ``single-stream``. A single replica is no thread of several.

    Raises:
        UsageError: the bound is missing, or it, the replicas, the batches or the ways are for no scenario.
    """
    if Through.SERVE in ways:
        _require_servable(scenarios, kinds, batches)
    alone = all(scenario == Scenario.SINGLE_STREAM for scenario in scenarios)
    if alone and (tuple(replicas) != (1,) or tuple(kinds) != (ReplicaKind.PROCESS,)):
        raise UsageError("replicas are of scenarios server and offline: add one to --scenario, or leave them out")
    if alone and tuple(batches) != (1,):
        raise UsageError("max_batch is of scenarios server and offline: add one to --scenario, or leave it out")
    if max(batches) > MOST_BATCH:
        raise UsageError(f"max_batch is {max(batches)}: give at most {MOST_BATCH}")
    if window is not None and (max(batches) == 1 or Scenario.SERVER not in scenarios):
        raise UsageError("batch_window is what scenario server waits for more requests: give a --max-batch above 1 too")
    if Scenario.SERVER in scenarios and slo is None:
        raise UsageError("scenario server needs a bound for its latencies: give --slo, as p99=50ms")
    if Scenario.SERVER not in scenarios and slo is not None:
        raise UsageError("slo is the bound of scenario server: add it to --scenario, or leave --slo out")
    found: list[Load | None] = []
    for scenario in map(Scenario, scenarios):
        if scenario == Scenario.SINGLE_STREAM:
            found.append(None)
            continue
        bound = slo if scenario == Scenario.SERVER else None
        for count in replicas:
            mine = [ReplicaKind(kind) for kind in kinds] if count > 1 else [ReplicaKind.PROCESS]
            for kind, most, through in product(mine, batches, map(Through, ways)):
                waits = window if bound is not None and most > 1 else None
                found.append(Load(scenario, count, kind, bound, most, waits, through))
    return tuple(dict.fromkeys(found))


def _require_servable(scenarios: Sequence[str], kinds: Sequence[str], batches: Sequence[int]) -> None:
    """Raises UsageError where something is asked for that no deployment of Ray Serve can be."""
    if Scenario.SERVER not in scenarios:
        raise UsageError("through serve is of scenario server: add it to --scenario, or leave --through out")
    if Scenario.OFFLINE in scenarios:
        raise UsageError("in scenario offline replicas take inputs by themselves, none through serve: leave one out")
    if ReplicaKind.THREAD in kinds:
        raise UsageError("replicas behind Ray Serve are processes: leave out replica kind thread, or --through serve")
    if max(batches) > 1:
        raise UsageError("through serve each request is answered alone: leave out --max-batch, or --through serve")


def window_of(asked: str) -> float:
    """The seconds of ``2ms``. Raises UsageError."""
    found = TIME.fullmatch(asked.replace(" ", ""))
    if not found:
        raise UsageError(f"batch_window is {asked!r}: give a time, as 2ms")
    return float(found[1]) * UNITS[found[2]]


def price_of(asked: str) -> tuple[str, float]:
    """(how a hardware class begins, its price of an hour), from ``AMD EPYC=0.096``. Raises UsageError."""
    name, _, price = asked.rpartition("=")
    try:
        value = float(price)
    except ValueError:
        value = -1.0
    if not name.strip() or not 0 < value < float("inf"):
        raise UsageError(f"price is {asked!r}: give how a hardware class begins and a price of its hour, as EPYC=0.096")
    return name.strip(), value


def price_for(prices: Sequence[tuple[str, float]], hardware: str | None) -> float | None:
    """Of an hour of this hardware: of the longest beginning that fits; None where none does."""
    fitting = [(name, price) for name, price in prices if (hardware or "").startswith(name)]
    return max(fitting, key=lambda one: len(one[0]))[1] if fitting else None
