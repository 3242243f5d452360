"""GPUs of one node side by side: who gets which GPU and which cores. Ray counts the GPUs; no launch computes on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nulls import TOGETHER

NULLS = Path(__file__).resolve().parents[1] / "support" / "nulls.py"
CORES = sorted(os.sched_getaffinity(0))
TRIALS = {"cuda0-b1", "cuda1-b1"}
LAUNCHES = 10

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(len(CORES) < 2, reason="two stations need two cores"),
]


@pytest.fixture(scope="module")
def said() -> list[dict[str, Any]]:
    """A trial on each GPU of a node with two; its host has four, of which Ray was given the last two."""
    spec = {
        "device": "cuda",
        "isolation": "device",
        "variants": "eager",
        "cores_per_gpu": 1,
        "budget": 1,
        "launch_timeout": 250,
    }
    asked = {"raylets": 1, "resources": {"num_cpus": 2, "num_gpus": 2}, "spec": spec}
    done = subprocess.run(
        [sys.executable, str(NULLS), json.dumps(asked)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "2,3", TOGETHER: "2"},
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


def test_both_gpus_are_measured_at_the_same_time(
    said: list[dict[str, Any]], launches: dict[str, list[dict[str, Any]]]
) -> None:
    """Each trial's first launch ends only when the other trial has come to its own."""
    assert set(launches) == TRIALS
    assert {len(found) for found in launches.values()} == {LAUNCHES}
    assert [one["reason"] for one in said if one["event"] == "TrialEnded"] == [None, None]
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
    assert [one["unheld"] for found in launches.values() for one in found] == [[]] * 2 * LAUNCHES
