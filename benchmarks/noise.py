"""How far calls of one program lie apart, by how far apart they were made: the spectrum of a machine's noise.

``python benchmarks/noise.py RUN ... [--out FILE]`` reads the calls of finished runs in their order. Each call has ln of
its time, less the median of its variant in its launch; and pairs of calls so many calls apart, whatever variants made
them, have the robust standard deviation of the difference (1.4826 times the median distance from the median). White
noise gives the same at every distance, a machine that drifts more at larger ones. Prints a line of JSON a trial.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.measure.result import TIMED, WARMUP, LaunchResult
from ray_jobs.results.run import FinishedRun

LAGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # calls
LEAST_PAIRS = 100


def spread(values: NDArray[np.float64]) -> float:
    """A robust standard deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def residuals(launch: LaunchResult) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(calls of the rounds,) when each began in s, and ln of its time over its variant's; NaN where it is not timed."""
    samples = launch.samples
    after = samples.phase != WARMUP
    logs = np.full(len(samples.wall_ns), np.nan)
    for variant in np.unique(samples.variant):
        mine = (samples.variant == variant) & (samples.phase == TIMED)
        if mine.any():
            walls = np.log(samples.wall_ns[mine])
            logs[mine] = walls - np.median(walls)
    return samples.start_ns[after] / 1e9, logs[after]


def spectrum(launches: Iterable[LaunchResult]) -> list[dict[str, float]]:
    """Of each distance that enough pairs have: calls, seconds, and the scatter of the difference."""
    told = [residuals(launch) for launch in launches]
    found = []
    for lag in LAGS:
        apart = np.concatenate([logs[lag:] - logs[:-lag] for _, logs in told if len(logs) > lag] or [np.empty(0)])
        seconds = np.concatenate([start[lag:] - start[:-lag] for start, _ in told if len(start) > lag] or [np.empty(0)])
        known = ~np.isnan(apart)
        if known.sum() >= LEAST_PAIRS:
            one = {"calls": lag, "seconds": float(np.median(seconds[known])), "scatter": spread(apart[known])}
            found.append({name: float(f"{value:.3g}") for name, value in one.items()})
    return found


def lines(place: str) -> Iterable[dict[str, Any]]:
    """One record for each trial of a run that was measured."""
    run = FinishedRun.of(place)
    by_trial: dict[str, list[LaunchResult]] = {}
    for trial, launch in run.launches():
        by_trial.setdefault(trial, []).append(launch)
    for trial, launches in by_trial.items():
        rows = [row for row in run.rows if row.trial_id == trial]
        medians = {row.name: row.p50_ms for row in rows if row.p50_ms is not None}
        yield {
            "run": run.id,
            "hardware": rows[0].hardware,
            "model": rows[0].model,
            "launches": len(launches),
            "rounds": launches[0].rounds,
            "p50_ms": medians.get("eager"),
            "spectrum": spectrum(launches),
        }


def main() -> None:
    """Prints what each run tells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, help="a file to append to")
    asked = parser.parse_args()
    for place in asked.runs:
        for one in lines(place):
            line = json.dumps(one)
            print(line, flush=True)
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(f"{line}\n")


if __name__ == "__main__":
    main()
