"""GPUs of one node side by side: who gets which GPU and which cores. Ray counts the GPUs; no launch computes on one."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

NULLS = Path(__file__).resolve().parents[1] / "nulls.py"
CORES = sorted(os.sched_getaffinity(0))
TRIALS = {f"cuda{gpu}-b{batch}" for gpu in "01" for batch in (1, 2)}

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="two stations need two cores")


@pytest.fixture(scope="module")
def said() -> list[dict[str, Any]]:
    """Two workloads on each GPU of a node with two; its host has four, of which Ray was given the last two."""
    spec = {"device": "cuda", "isolation": "device", "batch": [1, 2], "variants": "eager", "cores_per_gpu": 1}
    asked = {"raylets": 1, "seconds": 0.3, "resources": {"num_cpus": 2, "num_gpus": 2}, "spec": {**spec, "budget": 1}}
    done = subprocess.run(
        [sys.executable, str(NULLS), json.dumps(asked)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "2,3"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def launches(said: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Of each trial: where its launches were."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in said:
        if "machine" in one:
            found.setdefault(one["trial"].partition("-p")[0], []).append(one["machine"])
    return found


def test_every_trial_of_every_gpu_is_measured(
    said: list[dict[str, Any]], launches: dict[str, list[dict[str, Any]]]
) -> None:
    assert set(launches) == TRIALS
    assert {len(found) for found in launches.values()} == {10}
    assert [one["reason"] for one in said if one["event"] == "TrialEnded"] == [None] * 4
    assert not [one for one in said if one["event"] in ("LaunchLost", "WorkerLost")]


def test_a_launch_sees_the_one_gpu_that_ray_gave_its_trial(launches: dict[str, list[dict[str, Any]]]) -> None:
    for found in launches.values():
        (seen,) = {(one["visible"], *one["gpus"]) for one in found}
        assert seen in {("2", "2"), ("3", "3")}


def test_each_gpu_has_its_own_share_of_the_cores(launches: dict[str, list[dict[str, Any]]]) -> None:
    """Also where the node's GPUs are not the first of its host."""
    shares = {(one["visible"], *one["cores"]) for found in launches.values() for one in found}
    assert shares == {("2", CORES[0]), ("3", CORES[1])}


def test_the_gpu_and_its_cores_are_held_while_a_launch_runs(launches: dict[str, list[dict[str, Any]]]) -> None:
    assert [one["unheld"] for found in launches.values() for one in found] == [[]] * 40


def test_gpus_work_side_by_side_and_none_does_two_things_at_once(launches: dict[str, list[dict[str, Any]]]) -> None:
    spans = {
        gpu: sorted(
            (one["begun"], one["ended"]) for found in launches.values() for one in found if one["visible"] == gpu
        )
        for gpu in "23"
    }
    for mine in spans.values():
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(mine))
    first = {name: (found[0]["begun"], found[-1]["ended"]) for name, found in launches.items()}
    assert any(
        first[a][0] < first[b][1] and first[b][0] < first[a][1] for a in first for b in first if a[:5] < b[:5]
    ), "the two GPUs never worked at the same time"
