"""A cluster of real Ray processes whose launches measure nothing: for what surrounds the measuring.

Stations, scheduling, leases, launch servers, pinning and everything that comes home are the tool's own.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from launches import made_launch
from locks import holder_of

from ray_jobs.measure import launch as measure
from ray_jobs.measure.launch import Alone
from ray_jobs.measure.result import Launch, LaunchResult, Memory, VariantFacts
from ray_jobs.measure.trial import Inputs, Preset, Trial
from ray_jobs.process import lease, untimed
from ray_jobs.process import trial as launching
from ray_jobs.process.trial import WHOLE, Committed, Share, TrialOutcome
from ray_jobs.spec import Spec, read_spec

TESTS = Path(__file__).resolve().parent
# Environment variables of the workers.
TOGETHER = "LATENCY_MATRIX_NULL_TOGETHER"  # how many trials wait for each other in their first launch
LAUNCHES = "LATENCY_MATRIX_NULL_LAUNCHES"  # how many a trial has, where no process is started for them
MEETING_S = 200.0


def null_launch(
    trial: Trial,
    inputs: Inputs,
    share: Share,
    launch: Launch,
    cores: tuple[int, ...],
    left_out: Mapping[str, VariantFacts] = MappingProxyType({}),
) -> LaunchResult:
    """Made-up times of the trial's variants, and where this process was when it made them."""
    if launch.index == 0:
        _meet(trial.id, int(os.environ.get(TOGETHER, "0")))
    walls = {name: 5 + np.random.default_rng(launch.index).random((3, 2)) for name in trial.variants}
    made: LaunchResult = replace(made_launch(walls, launch.index, rounds=3, calls=2), launch=launch)
    here = {
        "gpus": list(share.gpus),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "unheld": [name for name in lease.locks_for(cores, share.gpus) if holder_of([name]) is None],
    }
    return replace(made, machine={**measure.machine_facts(), **here})


def _meet(name: str, count: int) -> None:
    """Returns when so many have come. Raises TimeoutError where trials run one after the other."""
    place = Path(os.environ[lease.FOLDER])
    place.mkdir(exist_ok=True)
    (place / f"met-{name}").touch()
    end = time.monotonic() + MEETING_S
    while len(list(place.glob("met-*"))) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{name} was alone for {MEETING_S:.0f} s")
        time.sleep(0.01)


def install() -> None:
    """In each of Ray's workers: launches are null from now on, or trials where ``LAUNCHES`` is set."""
    launching._launch = null_launch
    untimed.run_alone = _no_memory
    launching._cuda_fault = _no_fault
    if LAUNCHES in os.environ:
        launching.run_trial = null_trial


def _no_memory(trial: Trial, inputs: Inputs, variant: str, compare_s: float) -> Alone:
    return Alone(1.0)


def _no_fault() -> str | None:
    return None


def null_trial(
    trial: Trial,
    inputs: Inputs,
    share: Share = WHOLE,
    committed: Sequence[Committed] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[TrialOutcome]:
    """Launches without a process of their own, all at once."""
    for index in range(int(os.environ[LAUNCHES])):
        yield replace(null_launch(trial, inputs, share, Launch(index, trial.seed), (), {}), elapsed_s=1.0)
    yield Memory()


@contextmanager
def cluster(raylets: int, **resources: Any) -> Iterator[None]:
    """Raylets of one host and this process as their driver; ``resources``: of each, as ``Cluster.add_node`` says it.

    A single one is the cluster's head; several stand beside a head without CPUs.
    """
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        os.environ["RAY_TMPDIR"] = folder
        os.environ[lease.FOLDER] = f"{folder}/locks"
        node = {"num_cpus": 1, **resources}
        nodes = [node] if raylets == 1 else [{"num_cpus": 0}, *[node] * raylets]
        made = Cluster()
        try:
            for one in nodes:  # the first is the head
                made.add_node(**one, include_dashboard=False)
            ray.init(
                address=made.address,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"worker_process_setup_hook": "nulls.install"},
            )
            yield
        finally:
            ray.shutdown()
            made.shutdown()


def inputs(spec: Spec) -> Inputs:
    """What trials of any prompt length are given, without a model or a corpus."""
    return Inputs(Preset("tiny"), {n: np.zeros((10, n), dtype=np.int64) for n in spec.prompt_tokens})


def tell(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measures a spec on raylets and says what the cluster says; ``asked``: raylets, resources, spec."""
    from ray_jobs.cluster.events import LaunchDone
    from ray_jobs.cluster.stations import find_stations
    from ray_jobs.cluster.tasks import measure as measure_all
    from ray_jobs.driver.trials import place_trials
    from ray_jobs.results.samples import to_result

    spec = read_spec(None, asked["spec"])
    with cluster(asked["raylets"], **asked["resources"]):
        stations = find_stations(spec.device, spec.isolation == "device", spec.cores_per_gpu)
        trials = place_trials(spec, "r1", stations, 60.0)
        for event in measure_all([trial.job for trial in trials.values() if trial.job is not None], inputs(spec)):
            said: dict[str, Any] = {"event": type(event.outcome).__name__, "trial": event.trial_id}
            if isinstance(event.outcome, LaunchDone):
                said["machine"] = dict(to_result(event.outcome.table).machine)
            else:
                said |= {"reason": getattr(event.outcome, "reason", None)}
            yield said


def main() -> None:
    """In a process of its own: Ray leaves threads and sockets behind. Prints what ``tell`` says, a line for each."""
    for said in tell(json.loads(sys.argv[1])):
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
