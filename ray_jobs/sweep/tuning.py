"""The sweep on Ray Tune: sends trials to the cluster, and their news to the directory, the terminal and W&B."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chatbot.errors import UsageError
from ray_jobs.cluster.job import host_and_port
from ray_jobs.cluster.reachability import Watchman
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.results.filesystem import StoreError
from ray_jobs.sweep.folder import Listener, Record
from ray_jobs.sweep.rungs import EarlyStopping
from ray_jobs.sweep.spec import SweepSpec, SweepTrial
from ray_jobs.sweep.table import TrialStatus, Validation, row_of
from ray_jobs.sweep.worker import KEEPER_S, Data, States, Terms, checkpoint_in, train

MOST_RESTARTS = 3  # of one trial, after its worker was lost
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results have their own directory
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the driver; --resume goes on
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # which speaks even where it is told to be silent
}


@dataclass(frozen=True)
class Patience:
    """The time that a sweep waits for a node that can hold a trial, and what was missing at the start."""

    seconds: float = 600.0
    missed: str | None = None


def run_trials(
    record: Record,
    trials: Sequence[SweepTrial],
    data: Data,
    listeners: Sequence[Listener],
    patience: Patience = Patience(),
) -> None:
    """Runs the trials that have not ended, on the cluster that this process has joined.

    Raises:
        UsageError: no node can hold a trial.
        StoreError: results can't be stored.
        ClusterLostError: the head is gone, or every node that could hold a trial.
    """
    spec = record.spec
    if (lack := no_room(spec, _nodes())) is not None:
        raise UsageError(f"{lack}{f' ({patience.missed})' if patience.missed else ''}; give other --cpus or --gpus")
    stopping = EarlyStopping(spec)
    stopping.replay(record.validations)
    with closing(_watchman()) as watchman:
        watchdog = Watchdog(spec, patience.seconds, watchman.headless, _nodes)
        driver = _Driver(record, stopping, trials, listeners, watchdog)
        if left := driver.left_over():
            driver.keeper = _keeper(record, left)
            terms = Terms(spec.cpus, spec.device, spec.half)
            trainable = tune.with_parameters(train, trials=trials, data=data, terms=terms, keeper=driver.keeper)
            _fit(trainable, record, left, stopping, driver)


def _keeper(record: Record, left: Sequence[SweepTrial]) -> Any:
    """The actor on this node that keeps the states of trials, with those that an earlier driver left."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper = ray.remote(States).options(num_cpus=0, scheduling_strategy=here).remote()
    for trial in left:
        if (state := record.state(trial.number)) is not None:
            ray.get(keeper.put.remote(trial.number, state), timeout=KEEPER_S)
    return keeper


def _fit(
    trainable: Any, record: Record, left: Sequence[SweepTrial], stopping: EarlyStopping, driver: "_Driver"
) -> None:
    """Runs the trials that are left by Ray Tune, which keeps its own files in a folder of this call."""
    spec = record.spec
    with TemporaryDirectory(prefix="sweep") as folder, _quiet():
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"CPU": spec.cpus, "GPU": spec.gpus}),
            param_space={"trial": tune.grid_search([trial.number for trial in left])},
            tune_config=tune.TuneConfig(
                scheduler=stopping,
                max_concurrent_trials=spec.concurrent,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=record.id,
                storage_path=folder,
                callbacks=[driver],
                failure_config=tune.FailureConfig(max_failures=MOST_RESTARTS),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except Exception:
            if driver.trouble is not None:  # Tune tells only the text of what a callback raised
                raise driver.trouble from None
            raise


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:04d}"


def _nodes() -> list[Mapping[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def no_room(spec: SweepSpec, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """The reason why Tune would wait for ever; None if some node can hold a trial."""
    asked = {"CPU": spec.cpus, "GPU": spec.gpus}
    if any(all(node.get(name, 0) >= count for name, count in asked.items()) for node in nodes):
        return None
    most = ", ".join(f"{max((node.get(name, 0) for node in nodes), default=0):g} {name}" for name in asked)
    return f"no node can hold a trial of {spec.cpus} CPU and {spec.gpus:g} GPU; the most there is: {most}"


def _watchman() -> Watchman:
    """Pings the cluster's head, unless it is here."""
    head = host_and_port(ray.get_runtime_context().gcs_address)
    here = ray.util.get_node_ip_address()
    watchman = Watchman(here, None if head is None or head[0] == here else head)
    watchman.watch("head", "head", (here, 0))  # no node: Tune itself starts trials of a lost one again elsewhere
    return watchman


@contextmanager
def _quiet() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


@dataclass
class Watchdog:
    """Ends a sweep that would wait for ever: the head does not answer, or no node can hold a trial any more."""

    spec: SweepSpec
    patience_s: float
    headless: Callable[[], str | None]
    nodes: Callable[[], Sequence[Mapping[str, float]]]
    clock: Callable[[], float] = time.monotonic
    idle_since: float | None = None

    def look(self, busy: bool) -> None:
        """Checks the cluster; ``busy`` tells whether a trial is running. Raises ClusterLostError."""
        if (reason := self.headless()) is not None:
            raise ClusterLostError(reason)
        if busy:
            self.idle_since = None
            return
        now = self.clock()
        self.idle_since = now if self.idle_since is None else self.idle_since
        if now - self.idle_since > self.patience_s and (lack := no_room(self.spec, self.nodes())) is not None:
            raise ClusterLostError(f"{lack}; waited {self.patience_s:.0f} s")


class _Driver(tune.Callback):  # type: ignore[misc]
    """Tune's callback in the driver's process. Trouble with the store ends the sweep."""

    def __init__(
        self,
        record: Record,
        stopping: EarlyStopping,
        trials: Sequence[SweepTrial],
        listeners: Sequence[Listener],
        watch: "Watchdog",
    ) -> None:
        self._watch = watch
        self._record, self._stopping, self._listeners = record, stopping, listeners
        self._trials = {trial.number: trial for trial in trials}
        self._failures: dict[int, str] = {}
        self._restarts = Counter[int]()
        self._begun: set[int] = set()
        self.keeper: Any = None
        self.trouble: StoreError | ClusterLostError | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its callbacks for its own way to resume, which a sweep does not use."""
        return tune.Callback, ()

    def left_over(self) -> list[SweepTrial]:
        """The trials left to run; ends those whose last validation was kept but not their end."""
        over = {row.trial for row in self._record.rows}
        for number in self._stopping.ends:
            if number not in over:
                self._end(number, self._record.state(number))
                over.add(number)
        return [trial for number, trial in self._trials.items() if number not in over]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        with self._noting():
            self._watch.look(any(trial.status == "RUNNING" for trial in trials))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self._trials[trial.config["trial"]]
        if mine.number in self._begun:  # again, after its worker was lost
            return
        self._begun.add(mine.number)
        for listener in self._listeners:
            listener.started(mine)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        number = trial.config["trial"]
        if "failure" in result:
            self._failures[number] = result["failure"]
            return
        if (row := Validation.of(result)) is None:
            return
        with self._noting():
            new = self._record.add(row, ray.get(self.keeper.get.remote(number), timeout=KEEPER_S))
        for listener in self._listeners if new else ():
            listener.validated(row)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["trial"]
        self._restarts[number] += 1
        for listener in self._listeners:
            listener.restarted(number, self._restarts[number])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["trial"]
        self._end(number, ray.get(self.keeper.drop.remote(number), timeout=KEEPER_S))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lost = f"its worker was lost {MOST_RESTARTS + 1} times; out of memory, or its node went away"
        self._failures[trial.config["trial"]] = lost
        self.on_trial_complete(iteration, trials, trial)

    def _end(self, number: int, state: bytes | None) -> None:
        rows = self._record.of_trial(number)
        status, reason = self._stopping.ends.get(number, (TrialStatus.FAILED, "it ended without a loss"))
        if number in self._failures:
            status, reason = TrialStatus.FAILED, self._failures[number]
        row = row_of(self._trials[number], rows, status, reason, self._restarts[number])
        with self._noting():
            judged = status != TrialStatus.FAILED
            self._record.end(row, checkpoint_in(state) if judged and state is not None else None)
        for listener in self._listeners:
            listener.ended(row)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, ClusterLostError) as error:
            self.trouble = error
            raise
