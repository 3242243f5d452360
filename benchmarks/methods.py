"""Ways to measure, simulated on machines' noise: how precise in the same time, and how far off where calls are hit.

``python benchmarks/methods.py SPECTRA [--out FILE]`` reads what ``noise.py`` wrote, fits noise to each spectrum (white
noise of heavy tails, and drifts of time constants from 5 ms to 100 s), and measures two variants with it in every way:
so many untimed and timed calls a turn, and an estimator over rounds. Prints a line of JSON for each.

- ``time``: of the time that method 1 needs for the same standard error of a launch's ln speedup, the launch's fixed
  costs aside.
- ``bias``: of ln speedup, where 10% or 30% of the slower variant's calls are hit and take longer, and of the faster's
  as many fewer as they are shorter.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ray_jobs.statistics import hodges_lehmann

Floats = NDArray[np.float64]
CONSTANTS_S = np.geomspace(0.005, 100, 9)
LAUNCHES = 400  # simulated for each figure
HIT = 0.5  # mean of ln of how much longer a call of the slower variant takes that was hit
OVERHEAD_S = 0.0004  # between rounds
DEGREES = 5  # of white noise: heavier tails than normal
VARIANTS = 3  # the baseline, what is compared with it, and the control


@dataclass(frozen=True)
class Noise:
    """The standard deviations of ln of a call's time, by how fast they change."""

    white: float
    drifts: Floats  # by CONSTANTS_S

    @classmethod
    def of(cls, spectrum: Sequence[dict[str, float]]) -> "Noise":
        """The noise whose differences scatter as these do: variances add, none is negative."""
        seconds = np.array([one["seconds"] for one in spectrum])
        scatter = np.array([one["scatter"] for one in spectrum])
        drift = 1 - np.exp(-seconds[:, None] / CONSTANTS_S)
        parts, _ = nnls(2 * np.column_stack([np.ones_like(seconds), drift]), scatter**2)
        return cls(float(np.sqrt(parts[0])), np.sqrt(parts[1:]))

    def at(self, seconds: Floats, rng: np.random.Generator) -> Floats:
        """(LAUNCHES, calls): of calls at these times."""
        state = rng.standard_normal((LAUNCHES, len(CONSTANTS_S)))
        found = self.white * rng.standard_t(DEGREES, (LAUNCHES, len(seconds))) / np.sqrt(DEGREES / (DEGREES - 2))
        before = seconds[0]
        for call, now in enumerate(seconds):
            kept = np.exp(-(now - before) / CONSTANTS_S)
            state = kept * state + np.sqrt(1 - kept**2) * rng.standard_normal(state.shape)
            found[:, call] += state @ self.drifts
            before = now
        return np.asarray(found)


def midmean(values: Floats) -> Floats:
    """The mean of the middle half."""
    ordered, cut = np.sort(values, axis=1), values.shape[1] // 4
    return np.asarray(ordered[:, cut : values.shape[1] - cut].mean(axis=1))


ESTIMATORS: dict[str, Callable[[Floats], Floats]] = {
    "median": lambda values: np.asarray(np.median(values, axis=1)),
    "hodges-lehmann": lambda values: hodges_lehmann(values.T),
    "midmean": midmean,
}
PATTERNS = {(1, 3): 21, (1, 1): 42, (1, 2): 28, (0, 1): 84}  # untimed and timed calls of a turn: rounds of equal time


def measured(
    noise: Noise, slow_s: float, ratio: float, pattern: tuple[int, int], hit: float, rng: np.random.Generator
) -> tuple[Floats, float]:
    """(LAUNCHES, rounds): ln of slow over fast, less its true value; and the seconds of a launch's rounds."""
    untimed, timed = pattern
    rounds = PATTERNS[pattern]
    lasts = np.array([slow_s, slow_s / ratio, slow_s])
    order = np.concatenate([rng.permutation(VARIANTS) for _ in range(rounds)])
    whose = np.repeat(order, untimed + timed)
    gaps = np.zeros(len(whose))
    gaps[:: VARIANTS * (untimed + timed)] = OVERHEAD_S
    ends = np.cumsum(lasts[whose] + gaps)
    logs = noise.at(ends - lasts[whose] / 2, rng)
    if hit:
        chance = 1 - (1 - hit) ** (lasts[whose] / slow_s)
        longer = rng.exponential(HIT, logs.shape) * (slow_s / lasts[whose]) ** 0.5
        logs += (rng.random(logs.shape) < chance) * longer
    counted = np.tile(np.arange(untimed + timed) >= untimed, rounds * VARIANTS)
    turns = np.stack(
        [np.median(logs[:, counted & (whose == one)].reshape(LAUNCHES, rounds, timed), axis=2) for one in (0, 1)]
    )
    return turns[0] - turns[1], float(ends[-1])


def figures(spectrum: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every way on one machine."""
    noise, slow_s = Noise.of(spectrum["spectrum"]), spectrum["p50_ms"] / 1e3
    found: list[dict[str, Any]] = []
    for ratio in (1.02, 3.0, 10.0):
        for pattern in PATTERNS:
            quiet, seconds = measured(noise, slow_s, ratio, pattern, 0.0, rng)
            hits = {hit: measured(noise, slow_s, ratio, pattern, hit, rng)[0] for hit in (0.1, 0.3)}
            for name, estimator in ESTIMATORS.items():
                error = float(np.std(estimator(quiet)))
                biases = {f"bias_{hit:.0%}": float(np.mean(estimator(logs))) for hit, logs in hits.items()}
                errors = {f"error_{hit:.0%}": float(np.std(estimator(logs))) for hit, logs in hits.items()}
                way: dict[str, Any] = {"ratio": ratio, "untimed": pattern[0], "timed": pattern[1], "estimator": name}
                found.append({**way, "seconds": seconds, "error": error, **biases, **errors})
        first = next(o for o in found if (o["ratio"], o["timed"], o["estimator"]) == (ratio, 3, "median"))
        for one in found:
            if one["ratio"] == ratio:
                one["time"] = one["error"] ** 2 * one["seconds"] / (first["error"] ** 2 * first["seconds"])
    return found


def main() -> None:
    """Prints every way on every machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spectra", type=Path)
    parser.add_argument("--out", type=Path, help="a file to append to")
    asked = parser.parse_args()
    for line in asked.spectra.read_text().splitlines():
        spectrum = json.loads(line)
        for one in figures(spectrum, np.random.default_rng(1)):
            shown = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in one.items()}
            told = json.dumps({"run": spectrum["run"], **shown})
            print(told, flush=True)
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(f"{told}\n")


if __name__ == "__main__":
    main()
