"""The sides of a run: what must be there before anything starts, and what becomes of them on the nodes."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from chatbot.errors import UsageError
from ray_jobs.cluster.events import Station
from ray_jobs.cluster.holders import holding
from ray_jobs.driver import revisions
from ray_jobs.process.ready import Ready
from ray_jobs.sides import Side, require_files, require_interpreters, sides_of
from ray_jobs.spec import Spec


def asked_sides(spec: Spec) -> tuple[Side, ...]:
    """The sides of a spec, with the commits of their revisions. Raises UsageError for what is not there."""
    sides = sides_of(spec.against)
    require_interpreters(sides)
    require_files(sides)
    return revisions.resolved(sides, spec.model)


def commits_of(sides: Sequence[Side]) -> dict[str, str]:
    """The part of a run's identity that its revisions are; none where there are none."""
    named = [side.commit or "" for side in sides if side.revision is not None]
    return {"revisions": hashlib.sha256(" ".join(named).encode()).hexdigest()[:16]} if named else {}


@dataclass(frozen=True)
class Built:
    """The sides on the nodes that measure."""

    sides: tuple[Side, ...] = ()  # as asked
    on: Mapping[str, Sequence[Ready]] = field(default_factory=dict)  # by node id, those that were built

    def at(self, station: Station) -> tuple[Side, ...]:
        """The sides of a station's trials."""
        there = {one.side.name: one.side for one in self.on.get(station.node_id, ())}
        return tuple(there.get(side.name, side) for side in self.sides)

    def record(self, stations: Sequence[Station], earlier: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json says of them: commits, and the seconds that building took on each station, now or earlier."""
        told = {}
        for side in self.sides:
            if side.is_built:
                took = dict(earlier.get(side.name, {}).get("built_s", {}))
                for station in stations:
                    ready = next((one for one in self.on.get(station.node_id, ()) if one.side.name == side.name), None)
                    if ready is not None and ready.seconds is not None:
                        took[station.name] = round(ready.seconds, 1)
                told[side.name] = {"commit": side.commit, "built_s": took}
        return told


@contextmanager
def built(
    sides: tuple[Side, ...], stations: Sequence[Station], run_id: str, wait_s: float, say: Callable[[str], None]
) -> Iterator[Built]:
    """The sides on the nodes of the stations that measure, as long as the block lasts.

    Raises:
        UsageError: one can't be built on any of them.
    """
    hosts = {station.node_id: station.host for station in stations}
    wanted = [side for side in sides if side.is_built]
    if not wanted or not hosts:
        yield Built(sides)
        return
    archives = revisions.packed(wanted)
    say(f"getting ready: {'; '.join(side.name for side in wanted)}")

    def tell(node: str, one: Ready) -> None:
        where = f" on {hosts[node]}" if len(hosts) > 1 else ""
        if one.seconds is not None:
            say(f"built {one.side.name} in {one.seconds:.0f} s{where}")
        if one.since is not None:
            say(f"{one.side.name} was installed at {one.since}{where}: latency-matrix clean removes it")

    with holding(wanted, list(hosts), archives, run_id, wait_s, tell) as on:
        for place, side in enumerate(wanted):
            faults = {hosts[node]: there[place].side.fault for node, there in on.items()}
            if all(faults.values()):
                raise UsageError(f"--against {side.name!r} can't be built: {next(iter(faults.values()))}")
            for host, fault in faults.items():
                if fault is not None:
                    say(f"{side.name} can't be built on {host}: {fault}")
        yield Built(sides, on)
