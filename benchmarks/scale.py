"""What the driver costs with many trials on many stations, none of which measures anything.

``python benchmarks/scale.py`` runs the driver's own code (placing, scheduling, keeping, run.json, matrix.json) against
simulated stations whose launches are made beforehand. Writing samples is timed apart: it grows with them.
``--ray 2 --trials 300`` does it against real Ray tasks on two raylets of this machine, whose launches are null.
"""

import argparse
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import nulls  # (tests/, which is not a package)
from launches import made_launch

from chatbot.variants import BASELINE, CONTROL
from ray_jobs import provenance
from ray_jobs.cluster.events import Event, Job, LaunchDone, Station, TrialEnded
from ray_jobs.cluster.schedule import Schedule
from ray_jobs.cluster.stations import find_stations
from ray_jobs.cluster.tasks import measure
from ray_jobs.driver import run
from ray_jobs.driver.trials import place_trials
from ray_jobs.matrix.rows import Status
from ray_jobs.measure.result import LaunchResult, Memory
from ray_jobs.process.trial import Committed
from ray_jobs.process.untimed import Alive
from ray_jobs.report.terminal import Reporter
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import Spec, read_spec
from ray_jobs.wandb_sink.sink import WandbSink

VARIANTS = (BASELINE, CONTROL, "torchscript")


@dataclass(frozen=True)
class Cost:
    """One size of it."""

    trials: int
    stations: int
    launches: int  # of each trial
    ray: bool  # whether Ray ran the trials
    own_ms_a_trial: float  # CPU time of the driver's own thread, writing samples left out
    writing_ms_a_launch: float  # of which fsync waits take none
    process_ms_a_trial: float | None  # CPU time of all of its threads, Ray's among them, writing samples too
    peak_mb: float  # of the driver's resident memory
    before_mb: float  # of it before the first trial


class NullBackend:
    """Stations that answer at once, in any order, with launches that were made beforehand."""

    def __init__(self, launches: int, rounds: int) -> None:
        self._made = [_made(index, rounds) for index in range(launches)]
        self._committed = [(Committed.of(launch), to_table("null", launch)) for launch in self._made]
        self._said: dict[int, Iterator[Event]] = {}
        self._random = random.Random(0)
        self._count = 0
        self.spent_s = 0.0  # CPU time of the stations' side

    def submit(self, job: Job) -> int:
        """Begins to say what a trial says."""
        self._count += 1
        self._said[self._count] = self._events(job)
        return self._count

    def _events(self, job: Job) -> Iterator[Event]:
        """New objects: that is how they come from another process."""
        trial = job.trial.id
        yield Event(trial, Alive())
        for made in self._committed:
            committed, table = pickle.loads(pickle.dumps(made))
            yield Event(trial, LaunchDone(committed, table))
        yield Event(trial, Memory())
        yield Event(trial, TrialEnded(None))

    def ready(self, handles: Sequence[int], timeout_s: float) -> Sequence[int]:
        """A few of them."""
        return self._random.sample(list(handles), min(len(handles), 64))

    def next(self, handle: int, job: Job, attempt: int) -> Event:
        """What it says next."""
        start = time.thread_time()
        event: Event = next(self._said[handle])
        self.spent_s += time.thread_time() - start
        if isinstance(event.outcome, TrialEnded):
            del self._said[handle]
        return event

    def cancel(self, handle: int) -> None:
        """Nothing more of it."""
        self._said.pop(handle, None)

    def holder(self, job: Job) -> str:
        """Never asked."""
        return "nobody"

    def unreachable(self) -> Mapping[str, str]:
        """All answer."""
        return {}


def _made(index: int, rounds: int) -> LaunchResult:
    rng = np.random.default_rng(index)
    walls = {name: 5 + rng.random((rounds, 2)) for name in VARIANTS}
    made: LaunchResult = replace(made_launch(walls, index=index, rounds=rounds, calls=2), elapsed_s=1.0)
    return made


class TimedDirectory(RunDirectory):
    """Knows how long it took to write samples."""

    writing_s = 0.0

    def add_launch(self, trial: str, table: pa.Table, identity: str = "") -> None:
        """Commits a launch."""
        start = time.thread_time()
        super().add_launch(trial, table, identity)
        self.writing_s += time.thread_time() - start


def stations(count: int) -> list[Station]:
    """Simulated ones, of four kinds of hardware."""
    return [
        Station(f"node-{n}:cpu", f"node-{n}", "cpu", f"CPU {n % 4}", f"id-{n}", 1.0, (0,), facts={"cores": 1})
        for n in range(count)
    ]


def simulated(trials: int, count: int, launches: int, rounds: int) -> Cost:
    """Takes in as many trials on as many simulated stations."""
    backend = NullBackend(launches, rounds)
    found = _run(_spec(trials // count), stations(count), lambda jobs: Schedule(jobs, backend).events())
    own = found.own_ms_a_trial - 1000 * backend.spent_s / found.trials
    return replace(found, ray=False, own_ms_a_trial=round(own, 3), process_ms_a_trial=None)


def on_ray(trials: int, raylets: int, launches: int) -> Cost:
    """Takes in as many trials of as many raylets."""
    os.environ[nulls.LAUNCHES] = str(launches)
    spec = _spec(trials // raylets)
    with nulls.cluster(raylets):
        return _run(spec, find_stations(["cpu"], False, None)["cpu"], lambda jobs: measure(jobs, nulls.inputs(spec)))


def _spec(workloads: int) -> Spec:
    return read_spec(None, {"batch": list(range(1, workloads + 1)), "variants": VARIANTS})


def _run(spec: Spec, places: list[Station], events: Callable[[Iterable[Job]], Generator[Event]]) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        named = RunDirectory.named(folder, "scale")
        directory = TimedDirectory(named._fs, named._path, named.shown)
        with directory.created():
            this = run.Run("scale", spec, directory, WandbSink("off", directory), {}, datetime.now(UTC).isoformat())
            before, start, all_threads = _memory_mb(), time.thread_time(), time.process_time()
            this.trials = place_trials(spec, "scale", {"cpu": places}, 60.0)
            jobs = (trial.job for trial in this.trials.values() if trial.job is not None)
            with closing(events(jobs)) as said:
                run.take_in(this, said, Silent(1.0, 0.01))
            rows = [row for trial in this.trials.values() for row in trial.rows]
            run.write_matrix(directory, rows, spec.margin)
            spent, process = time.thread_time() - start, time.process_time() - all_threads
        written = len(directory.sample_files())
    _require_done(this)
    count = len(this.trials)
    return Cost(
        trials=count,
        stations=len(places),
        launches=written // count,
        ray=True,
        own_ms_a_trial=round(1000 * (spent - directory.writing_s) / count, 3),
        writing_ms_a_launch=round(1000 * directory.writing_s / written, 3),
        process_ms_a_trial=round(1000 * process / count, 3),
        peak_mb=round(_memory_mb(), 1),
        before_mb=round(before, 1),
    )


def _require_done(this: run.Run) -> None:
    """A trial that failed would have cost nothing."""
    failed = [trial.reason for trial in this.trials.values() if trial.status != Status.DONE]
    if failed:
        raise SystemExit(f"{len(failed)} trials failed: {failed[0]}")


class Silent(Reporter):
    """Makes its lines, and says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


def _memory_mb() -> float:
    """The highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Prints a table, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--stations", type=int, default=1_000, help="simulated ones")
    parser.add_argument("--launches", type=int, default=1, help="of each trial")
    parser.add_argument("--rounds", type=int, default=3, help="of each simulated launch")
    parser.add_argument("--ray", type=int, default=0, metavar="RAYLETS", help="instead of simulated stations")
    parser.add_argument("--out", type=Path, help="a file that the line of JSON is added to")
    asked = parser.parse_args()
    if asked.ray:
        cost = on_ray(asked.trials, asked.ray, asked.launches)
    else:
        cost = simulated(asked.trials, asked.stations, asked.launches, asked.rounds)
    found: dict[str, Any] = vars(cost)
    for name, value in found.items():
        print(f"{name:20} {value}")
    print(json.dumps(found))
    if asked.out:
        with asked.out.open("a") as file:
            file.write(json.dumps({**found, **_where()}) + "\n")


def _where() -> dict[str, Any]:
    """What machine and day a line is from."""
    facts = provenance.station_facts()
    machine = {name: facts[name] for name in ("cpu", "cores", "python")}
    return {**machine, "ray_version": facts["packages"]["ray"], "date": f"{datetime.now(UTC):%Y-%m-%d}"}


if __name__ == "__main__":
    main()
