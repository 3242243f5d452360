"""One station of a local Ray, on which the audit runs trials through the same pipeline as the matrix."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from chatbot.errors import UsageError
from chatbot.variants import BASELINE
from ray_jobs.cluster.connection import connected
from ray_jobs.cluster.events import Event
from ray_jobs.cluster.stations import find_stations
from ray_jobs.cluster.tasks import measure
from ray_jobs.driver.inputs import inputs_of
from ray_jobs.driver.trials import Kept, TrialState, place_trials
from ray_jobs.measure.result import LaunchResult
from ray_jobs.measure.trial import Inputs
from ray_jobs.process.cores import choose_cores, topology
from ray_jobs.provenance import driver_facts
from ray_jobs.sides import Side
from ray_jobs.spec import Spec

BUSY_WAIT_S = 600.0  # for a station that somebody else holds


@dataclass
class Measured(TrialState):
    """A trial with its launches."""

    launches: list[LaunchResult] = field(default_factory=list)


@dataclass(frozen=True)
class AuditStation:
    """A station and the inputs of its trials."""

    spec: Spec
    run_id: str
    inputs: Inputs
    template: TrialState

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores that launches are pinned to, as the station chooses them."""
        return choose_cores(os.sched_getaffinity(0), self.template.trial.workload.threads, topology()).cpus

    def environment(self) -> dict[str, Any]:
        """The environment as recorded: the program and the machine."""
        assert self.template.station is not None
        facts = self.template.station.facts
        return {
            "driver": driver_facts(),
            "station": {name: fact for name, fact in facts.items() if name not in ("host", "machine_ids")},
        }

    def run(
        self,
        trial_id: str,
        variants: Sequence[str],
        seed: int,
        memory: bool = False,
        watch: Callable[[Event], None] | None = None,
        sides: Sequence[Side] = (),
    ) -> Measured:
        """Runs one trial from beginning to end; ``watch`` gets each event as it happens."""
        names = tuple(dict.fromkeys([BASELINE, *variants]))
        trial = replace(self.template.trial, id=trial_id, variants=names, seed=seed, memory=memory)
        trial = replace(trial, sides=tuple(sides))
        state = Measured(trial, self.template.place, self.template.station)
        assert state.job is not None
        kept = Kept()
        started = time.monotonic()
        with closing(measure([state.job], self.inputs)) as events:
            for event in events:
                state.take(event.outcome, kept)
                if watch is not None:
                    watch(event)
        state.seconds = time.monotonic() - started
        state.launches = kept.launches(trial_id, ())
        return state


@contextmanager
def audit_station(spec: Spec, run_id: str) -> Iterator[AuditStation]:
    """Starts Ray on this machine and takes its station.

    Raises:
        UsageError: the model or the corpus can't be used, or the machine has too few cores.
    """
    inputs = inputs_of(spec)
    with connected("local"):
        stations = find_stations(spec.device, by_device=False, cores_per_gpu=None)
        template = next(iter(place_trials(spec, run_id, stations, BUSY_WAIT_S).values()))
        if template.station is None:
            raise UsageError(f"nothing to audit on: {template.reason}")
        yield AuditStation(spec, run_id, inputs, template)
