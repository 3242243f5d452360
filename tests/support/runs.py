"""Directories of finished runs, made of made-up launches without Ray."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from launches import WORKLOAD, made_trial

from chatbot.variants import Workload
from ray_jobs.driver.run import write_matrix
from ray_jobs.driver.trials import TrialState, trial_id
from ray_jobs.matrix.rows import Row, rows_of
from ray_jobs.measure.result import LaunchResult
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.results.samples import to_result, to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import read_spec

STARTED = "2026-11-23T12:00:00+00:00"
IDENTITY = {"spec": "s", "model": "m", "prompts": "p", "code": "c"}
HARDWARE = "cpu Intel"


def launches_in(directory: RunDirectory) -> dict[str, list[LaunchResult]]:
    """The committed launches of each trial, in order."""
    return {trial: [to_result(one) for one in tables] for trial, tables in tables_in(directory).items()}


def tables_in(directory: RunDirectory) -> dict[str, list[pa.Table]]:
    """The same as tables."""
    found: dict[str, list[pa.Table]] = {}
    for trial, table in directory.each_launch(lambda table: table):
        found.setdefault(trial, []).append(table)
    return found


def trial_at(
    run_id: str, variants: Sequence[str], workload: Workload = WORKLOAD, host: str = "host", **more: Any
) -> tuple[Trial, Place]:
    """A trial on a station of that host."""
    place = Place(**{"station": f"{host}:cpu", "host": host, "device_name": "Intel", "hardware": HARDWARE, **more})
    name = f"{trial_id(workload, None).rpartition('@')[0]}@{host}"
    return made_trial(name, run_id=run_id, workload=workload, variants=tuple(variants)), place


def finished_run(
    run_dir: RunDirectory,
    trials: Sequence[tuple[tuple[Trial, Place], Sequence[LaunchResult]]],
    identity: Mapping[str, str] = IDENTITY,
    more: Sequence[Row] = (),
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> list[Row]:
    """Puts a run that has ended into the directory; returns its rows, among them ``more``, of trials not measured.

    ``asked`` are further keys of its spec.
    """
    states = {}
    with run_dir.created():
        for (trial, place), launches in trials:
            states[trial.id] = TrialState(trial, place, status="done", launches_kept=len(launches))
            states[trial.id].rows = rows_of(trial, place, "done", None, launches)
            states[trial.id].environments = launches[0].machine.get("environments", {}) if launches else {}
            for launch in launches:
                run_dir.add_launch(trial.id, to_table(trial.id, launch))
        rows = [*(row for state in states.values() for row in state.rows), *more]
        write_matrix(run_dir, rows, 0.02)
        spec = read_spec(None, {"variants": ",".join(trials[0][0][0].variants), **asked})
        content = {"run_id": run_dir.run_id, "started": STARTED, "spec": spec.model_dump(mode="json")}
        content |= {"identity": dict(identity), "environment": {"driver": {"python": "3"}, "stations": {}}}
        content["trials"] = {name: state.record() for name, state in states.items()}
        run_dir.write_json("run.json", content)
    return rows
