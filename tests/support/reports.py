"""Made-up finished runs for the report: known times, any names, any fate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launches import enter, made_launch, made_trial, stolen

from chatbot.variants import BASELINE, CONTROL, VARIANTS, Workload
from ray_jobs.driver.run import write_matrix
from ray_jobs.matrix.hardware import classes_of
from ray_jobs.matrix.rows import Row, rows_of
from ray_jobs.measure.result import LaunchResult, VariantFacts
from ray_jobs.measure.trial import Place
from ray_jobs.report.series import trial_series
from ray_jobs.report.view import RunView
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.sides import AGAIN, BASE, Side, label_of, sides_of

MARGIN = 0.02
NEEDED = {"device": ["cpu"], "precision": 0.01, "margin": MARGIN, "budget": 5.0, "seed": 0}
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"'&{{ 7 * 7 }}|`*"
LONG = "my_company.inference.experimental.variants:QUANTIZED_TORCHSCRIPT_WITH_A_VERY_LONG_NAME_INDEED"


@dataclass(frozen=True)
class Case:
    """A trial: what its variants took, and how it ended."""

    ms: Mapping[str, float] = field(default_factory=lambda: {BASELINE: 10.0, CONTROL: 10.0, "torchscript": 8.0})
    workload: Workload = field(default_factory=Workload)
    station: str | None = "workbench-7:cpu"
    device_name: str | None = "AMD EPYC"
    status: str = "done"
    reason: str | None = None
    facts: Mapping[str, VariantFacts] = field(default_factory=dict)
    noise: float = 0.002
    count: int = 6  # launches
    disturbed: Sequence[int] = ()  # rounds of each launch
    rounds: int = 8

    def trial(self, number: int) -> str:
        return f"t{number}-{self.workload.device}@{self.host or 'none'}"

    @property
    def host(self) -> str | None:
        return None if self.station is None else self.station.partition(":")[0]

    def launches(self) -> list[LaunchResult]:
        """Launches whose factors scatter evenly, so that a variant's mean is what was asked for."""
        factors = np.exp(self.noise * np.linspace(-1, 1, self.count))
        watched = stolen(self.rounds, self.disturbed)
        return [
            made_launch(
                {name: ms * factors[(index + 2 * v) % self.count] for v, (name, ms) in enumerate(self.ms.items())},
                index,
                self.rounds,
                3,
                {name: facts for name, facts in self.facts.items() if name in self.ms},
                interference=watched,
                elapsed_s=1000.0 * (index + 1),
            )
            for index in range(self.count)
        ]

    def rows(self, run: str, number: int, launches: Sequence[LaunchResult]) -> list[Row]:
        trial = made_trial(
            self.trial(number), run_id=run, workload=self.workload, variants=tuple(self.ms), margin=MARGIN
        )
        place = Place(self.station, self.host, self.device_name, self.device_name)
        return rows_of(trial, place, self.status, self.reason, launches)


def run_json(run: str, cases: Sequence[Case]) -> dict[str, Any]:
    trials = {case.trial(n): {"status": case.status, "station": case.station} for n, case in enumerate(cases)}
    return {
        "schema_version": 1,
        "run_id": run,
        "started": "2026-11-24T09:05:00+00:00",
        "seconds": 75.4,
        "command": ["python", "-m", "ray_jobs", "matrix", "--budget", "5"],
        "spec": {**NEEDED, "variants": list(cases[0].ms)},
        "environment": {"driver": {"git_commit": "abc123", "packages": {"torch": "2.13.0"}}, "stations": {}},
        "trials": trials,
    }


def made_view(cases: Sequence[Case], names: Mapping[str, str] | None = None, run: str = "made") -> RunView:
    """A finished run in memory; variants go by names of the table and are shown by ``names``."""
    shown, rows, series = dict(names or {}), [], {}
    for number, case in enumerate(cases):
        launches = case.launches()
        rows += [replace(row, variant=shown.get(row.variant, row.variant)) for row in case.rows(run, number, launches)]
        if launches:
            series[case.trial(number)] = trial_series([_renamed(launch, shown) for launch in launches])
    return RunView(run, run_json(run, cases), tuple(rows), MARGIN, tuple(classes_of(rows, MARGIN)), series)


def made_run(place: Path, cases: Sequence[Case]) -> RunDirectory:
    """The same on disk."""
    directory = RunDirectory.named(str(place.parent), place.name)
    rows: list[Row] = []
    with directory.created():
        for number, case in enumerate(cases):
            launches = case.launches()
            for launch in launches:
                directory.add_launch(case.trial(number), to_table(case.trial(number), launch))
            rows += case.rows(place.name, number, launches)
        write_matrix(directory, rows, MARGIN)
        directory.write_json("run.json", run_json(place.name, cases))
    return directory


def _renamed(launch: LaunchResult, names: Mapping[str, str]) -> LaunchResult:
    def of(name: str) -> str:
        return names.get(name, name)

    facts = {of(name): one for name, one in launch.facts.items()}
    return replace(launch, variants=tuple(map(of, launch.variants)), built=tuple(map(of, launch.built)), facts=facts)


INVALID = "its replies differ from the baseline's in 31 of 63, where an exact variant may differ only in ties"
GONE = "launch 4 failed 3 times, last: RuntimeError: it ended on cores [1] with 4 threads, not as pinned"
MARKETED = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with an even longer marketing name"
TROUBLED = (
    Case(),
    Case(workload=Workload(batch=16), facts={"torchscript": VariantFacts(invalid=INVALID, replies=63, identical=32)}),
    Case(workload=Workload(batch=16, threads=2), noise=0.2),
    Case({BASELINE: 10.0, CONTROL: 10.6, "torchscript": 12.5}, Workload(batch=16, threads=4), disturbed=(1, 5)),
    Case(
        workload=Workload(threads=2),
        station="a-very-long-host-name.with.a.domain.example.org:cpu",
        device_name=MARKETED,
        status="failed",
        reason=GONE,
        count=4,
    ),
    Case(workload=Workload(device="cuda"), station=None, device_name=None, status="skipped", reason="no GPU", count=0),
    Case(workload=Workload(threads=64), status="skipped", reason="64 threads, but the station has 2 cores", count=0),
    Case(workload=Workload(threads=8), status="failed", reason="the station was busy for 600 s", count=0),
)


@contextmanager
def many_rows() -> Iterator[list[Case]]:
    """A hundred trials of five variants: five stations, four batches, five counts of threads."""
    more = {"int8": 0.25, "bf16": 1.1}
    with pytest.MonkeyPatch.context() as patch:
        for name in more:
            enter(patch, name, VARIANTS["torchscript"].prepare)
        yield [
            Case(
                {
                    BASELINE: base,
                    CONTROL: base,
                    "torchscript": base * (0.8 + 0.1 * s),
                    **{name: base * ms for name, ms in more.items()},
                },
                Workload(batch=batch, threads=threads),
                f"node-{s + 1}:cpu",
                count=3,
                rounds=6,
            )
            for s in range(5)
            for batch in (1, 4, 16, 64)
            for threads in (1, 2, 4, 8, 16)
            for base in (10 * batch**0.5 / threads**0.3,)
        ]


ARENAS = "env MALLOC_ARENA_MAX=1"
LONG_SIDE = "pip torch==2.14.1, env LD_PRELOAD=libjemalloc.so.2"
NO_TORCH = "No module named 'torch'"


def sided_view() -> RunView:
    """Three sides: one in which a variant is slower, one of a long name that failed, and the control."""
    trial = made_trial(sides=(*sides_of(["env=MALLOC_ARENA_MAX=1"]), Side(LONG_SIDE)))
    gone = {label_of(LONG_SIDE, name): VariantFacts(failed=NO_TORCH) for name in (BASELINE, CONTROL, "torchscript")}
    slower, launches = label_of(ARENAS, "torchscript"), []
    for i in range(10):
        walls = {pair.label: 20.0 if pair.label == slower else 10.0 + i % 3 for pair in trial.pairs}
        launch = made_launch(walls, i, rounds=10, facts=gone)
        launches.append(replace(launch, sides=tuple(pair.side for pair in trial.pairs)))
    base = {"python": "3.12.1", "torch": "2.13.0", "cpu_capability": "AVX2", "variables": {"MALLOC_ARENA_MAX": None}}
    environments = {BASE: base, AGAIN: base, ARENAS: {**base, "variables": {"MALLOC_ARENA_MAX": "1"}}}
    run = {"trials": {trial.id: {"environments": environments}}, "spec": {"precision": 0.01}}
    rows = rows_of(trial, Place("here", "host", "a CPU"), "done", None, launches)
    return RunView("run", run, tuple(rows), MARGIN, (), {trial.id: trial_series(launches)})
