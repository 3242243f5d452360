"""How much faster slow calls are: the ratios of the percentiles of launches."""

from collections.abc import Sequence

from ray_jobs import statistics
from ray_jobs.measure.result import LaunchResult

SHARES = {"p90": 0.90, "p99": 0.99}


def tails(over: str, label: str, launches: Sequence[LaunchResult], prefix: str = "") -> dict[str, float]:
    """The columns of how many times faster the slow calls of ``label`` are than those of ``over``.

    Both are labels of launches. Empty where a launch has too few calls of either: see ``statistics.tail_speedup``.
    """
    pairs = [(launch.timed_ms(over), launch.timed_ms(label)) for launch in launches]
    told: dict[str, float] = {}
    for name, share in SHARES.items():
        interval = statistics.tail_speedup(pairs, share)
        told |= {} if interval is None else interval.columns(f"{prefix}{name}_speedup")
    return told
