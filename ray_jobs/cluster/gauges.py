"""How a run stands, among Ray's own metrics: whoever scrapes the cluster sees its trials, launches and half-widths."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ray.util.metrics import Gauge

from ray_jobs.process.trial import Committed
from ray_jobs.statistics import speedup

RUNNING = "running"
MOST_TRIALS = 200  # with series of their own: each costs whoever keeps them


class Gauges:
    """The gauges of one run, set by the driver as events come in: nothing of them is near a launch."""

    def __init__(self, run_id: str, trials: int = 1) -> None:
        """Ray must be connected: a gauge belongs to a process of its cluster."""
        of_trial = ("run", "trial")
        self._trials = Gauge("latency_matrix_trials", "Trials of a run, by their state.", ("run", "state"))
        self._launches = Gauge("latency_matrix_launches", "Launches that a trial has committed.", of_trial)
        self._discarded = Gauge("latency_matrix_discarded_rounds", "Rounds that a trial has discarded.", of_trial)
        self._half_width = Gauge(
            "latency_matrix_half_width", "The widest half-width of a trial's speedups, as a share of them.", of_trial
        )
        self._run, self._each = run_id, trials <= MOST_TRIALS
        self._states: set[str] = set()

    def count(self, states: Iterable[str | None]) -> None:
        """Sets how many trials are in each state; None: not ended."""
        counts = Counter(state or RUNNING for state in states)
        self._states |= set(counts)
        for state in self._states:
            self._trials.set(counts[state], {"run": self._run, "state": state})

    def stand(self, trial: str, committed: Sequence[Committed]) -> None:
        """Sets what a trial's launches tell so far."""
        if not self._each:
            return
        tags = {"run": self._run, "trial": trial}
        self._launches.set(len(committed), tags)
        self._discarded.set(sum(one.discarded for one in committed), tags)
        if (widest := widest_of(committed)) is not None:
            self._half_width.set(widest, tags)


def widest_of(committed: Sequence[Committed]) -> float | None:
    """The widest half-width of the speedups of these launches; None where none has an interval."""
    names = {name for one in committed for name in one.log_speedups}
    logs = ([one.log_speedups[name] for one in committed if name in one.log_speedups] for name in names)
    return max((known.half_width for mine in logs if (known := speedup(mine)) is not None), default=None)
