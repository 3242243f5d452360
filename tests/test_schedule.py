"""Which trial runs when, and how each one ends: on a made-up cluster, whose trials alone advance a made-up clock."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launches import made_trial
from profiles import examples

from ray_jobs.cluster.events import (
    Event,
    Job,
    LaunchDone,
    Station,
    TrialEnded,
    TrialStarted,
    WorkerLost,
)
from ray_jobs.cluster.schedule import ATTEMPTS, PENDING_S, POLL_S, SILENCE_S, ClusterLostError, Schedule
from ray_jobs.measure.result import Launch, Limits, Memory
from ray_jobs.measure.roofline import Speeds
from ray_jobs.process.server import GRACE_S
from ray_jobs.process.trial import Committed, Failure, Waiting
from ray_jobs.process.untimed import Alive

LAUNCH_TIMEOUT_S = 60.0
PATIENCE_S = LAUNCH_TIMEOUT_S + GRACE_S + SILENCE_S
WAIT_S = 600.0
FOREVER = 1e9  # seconds
POOL = np.zeros((1, 1), dtype=np.int64)
NOTHING = pa.table({})


def station(node: str, name: str | None = None, alone: bool = True) -> Station:
    where = name or f"{node}:cpu"
    return Station(where, node, where.partition(":")[2], "a processor", node, 2.0, cores=(0, 1), alone=alone)


def job(trial_id: str, where: Station, wait_s: float = WAIT_S, launch_timeout_s: float = LAUNCH_TIMEOUT_S) -> Job:
    return Job(where, made_trial(trial_id, wait_s=wait_s, launch_timeout_s=launch_timeout_s))


def committed(index: int) -> Committed:
    return Committed(index, 7, 5, {"torchscript": 0.1 * index}, 10.0 * index)


Told = list[tuple[float, Event]]  # when, and what

# How the worker of one attempt ends
DONE, FAILED, LOST, NODE_LOST, SILENT = "done", "failed", "lost", "node lost", "silent"


@dataclass(frozen=True)
class Life:
    """What one attempt at a trial does: it begins after a while, says things, and ends."""

    begins: float | None = 1.0  # None: never
    launches: tuple[float, ...] = (10.0, 10.0)  # after how many seconds each comes home
    after: float = 5.0
    ends: str = DONE
    extra: tuple[Event, ...] = ()  # what else it says, as it ends

    @property
    def seconds(self) -> float:
        assert self.begins is not None
        return self.begins + sum(self.launches) + self.after


@dataclass
class World:
    """A cluster that keeps its promises and checks those of its caller; its clock goes on while it is listened to."""

    lives: Mapping[str, Sequence[Life]]  # of each trial, attempt by attempt; ordinary ones beyond
    cut: Mapping[str, float] = field(default_factory=dict)  # nodes, and when they can't be reached any more
    held: Callable[[str, float], str] = lambda trial_id, now: "somebody else"
    fetch_s: float = 0.0  # that one event takes
    now: float = 1000.0
    jobs: dict[int, Job] = field(default_factory=dict)  # all that were submitted, by handle
    running: dict[int, Told] = field(default_factory=dict)  # what they will say, and when
    started: list[tuple[float, str]] = field(default_factory=list)
    said: Told = field(default_factory=list)  # so far, and when
    cancelled: list[str] = field(default_factory=list)
    asked: list[tuple[float, str]] = field(default_factory=list)  # whose station was asked for

    def clock(self) -> float:
        return self.now

    def submit(self, job: Job) -> int:
        for other in self._on(job.station.node_id):
            assert not other.alone, f"{job.trial.id} beside one that has the node for itself"
            assert not job.station.alone, f"{job.trial.id}, which needs the node for itself, beside another"
            assert other.name != job.station.name, f"two at a time on {other.name}"
        handle, name = len(self.jobs), job.trial.id
        attempt = sum(other.trial.id == name for other in self.jobs.values())
        lives = self.lives.get(name, ())
        self.jobs[handle] = job
        self.running[handle] = self._future(job, lives[attempt] if attempt < len(lives) else Life(), attempt + 1)
        self.started.append((self.now, name))
        return handle

    def _on(self, node: str) -> list[Station]:
        """The stations of a node that are in use."""
        return [s for s in (self.jobs[handle].station for handle in self.running) if s.node_id == node]

    def _future(self, job: Job, life: Life, attempt: int) -> Told:
        name, time = job.trial.id, self.now
        if life.begins is None:
            return []
        time += life.begins
        said: Told = [(time, Event(name, Alive()))]
        for index, seconds in enumerate(life.launches, start=len(job.committed)):
            time += seconds
            said.append((time, Event(name, LaunchDone(committed(index), NOTHING))))
        last: dict[str, Event] = {
            DONE: Event(name, TrialEnded(None)),
            FAILED: Event(name, TrialEnded("launch 0 failed 3 times")),
            LOST: Event(name, WorkerLost(attempt, f"it died at attempt {attempt}")),
            NODE_LOST: Event(name, TrialEnded(f"the node of {name} is gone", node_lost=True)),
        }
        ends = [*life.extra, *([last[life.ends]] if life.ends in last else [])]
        return [*said, *((time + life.after, event) for event in ends)]

    def ready(self, handles: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        assert handles, "Ray refuses to wait for nothing"
        assert set(handles) <= set(self.running), "asked for one that is over"
        assert timeout_s <= POLL_S, "nothing is waited for without end"
        times = [self.running[handle][0][0] for handle in handles if self.running[handle]]
        self.now = max(self.now, min([*times, self.now + timeout_s]))
        return [handle for handle in handles if self.running[handle] and self.running[handle][0][0] <= self.now]

    def next(self, handle: Any, job: Job, attempt: int) -> Event:
        self.now += self.fetch_s
        time, event = self.running[handle].pop(0)
        assert time <= self.now
        self.said.append((time, event))
        assert job is self.jobs[handle]
        if isinstance(event.outcome, WorkerLost):
            assert attempt == event.outcome.attempt
        if isinstance(event.outcome, TrialEnded | WorkerLost):
            del self.running[handle]
        return event

    def cancel(self, handle: Any) -> None:
        self.cancelled.append(self.jobs[handle].trial.id)
        self.running.pop(handle, None)

    def holder(self, job: Job) -> str:
        self.asked.append((self.now, job.trial.id))
        return self.held(job.trial.id, self.now)

    def unreachable(self) -> Mapping[str, str]:
        """Only nodes in use are watched."""
        return {n: f"{n} can't be reached" for n, since in self.cut.items() if since <= self.now and self._on(n)}


def run(jobs: Sequence[Job], world: World) -> Told:
    """Everything that is told, until all is over."""
    told = [(world.now, event) for event in Schedule(jobs, world, world.clock).events()]
    assert world.running == {}
    return told


def of(told: Told, trial_id: str) -> list[Event]:
    return [event for _, event in told if event.trial_id == trial_id]


def kinds(events: Iterable[Event]) -> list[str]:
    return [type(event.outcome).__name__ for event in events]


def endings(told: Told) -> dict[str, str | None]:
    """Why each trial failed, None where it did not; a trial ends once, and says nothing more."""
    ends = [(event, event.outcome.reason) for _, event in told if isinstance(event.outcome, TrialEnded)]
    assert len({end.trial_id for end, _ in ends}) == len(ends), "a trial ended twice"
    for end, _ in ends:
        assert of(told, end.trial_id)[-1] is end, "something was told of a trial that is over"
    return {end.trial_id: reason for end, reason in ends}


def ended(told: Told, reason: str) -> list[float]:
    """When trials failed for this reason."""
    return [t for t, e in told if isinstance(e.outcome, TrialEnded) and e.outcome.reason == reason]


# Any jobs at all, on any nodes

thorough = examples(50)
SECONDS = st.integers(0, 240).map(lambda quarters: quarters / 4)  # 0 to 60, and often two at one time
LIVES = st.builds(
    Life,
    begins=st.integers(0, 36).map(lambda quarters: quarters / 4),
    launches=st.lists(SECONDS, max_size=4).map(tuple),
    after=SECONDS,
    ends=st.sampled_from([DONE, DONE, FAILED, LOST]),
)


@dataclass(frozen=True)
class Plan:
    """Jobs, and the lives of their trials."""

    jobs: list[Job]
    lives: dict[str, list[Life]]

    def on(self, node: str) -> "Plan":
        return Plan([job for job in self.jobs if job.station.node_id == node], self.lives)

    @property
    def nodes(self) -> list[str]:
        return sorted({job.station.node_id for job in self.jobs})

    def reasons(self) -> dict[str, str | None]:
        """How each trial should end on a cluster whose nodes last."""
        return {job.trial.id: self.reason(job.trial.id) for job in self.jobs}

    def reason(self, trial_id: str) -> str | None:
        for life in self.lives[trial_id][:ATTEMPTS]:
            if life.ends != LOST:
                return None if life.ends == DONE else "launch 0 failed 3 times"
        return f"its worker was lost {ATTEMPTS} times, last: it died at attempt {ATTEMPTS}"


EITHER = st.booleans()


@st.composite
def plans(draw: st.DrawFn, alone: st.SearchStrategy[bool] = EITHER) -> Plan:
    """Up to 14 jobs on up to 4 nodes, each with its cores and up to three GPUs with a share of them."""
    jobs: list[Job] = []
    lives: dict[str, list[Life]] = {}
    for number in range(draw(st.integers(1, 14))):
        node = f"node-{draw(st.integers(0, 3))}"
        whole = draw(alone)
        device = "cpu" if whole else f"cuda{draw(st.integers(0, 2))}"
        jobs.append(job(f"trial-{number}", station(node, f"{node}:{device}", alone=whole)))
        lives[f"trial-{number}"] = [draw(LIVES)]
        while lives[f"trial-{number}"][-1].ends == LOST and len(lives[f"trial-{number}"]) < ATTEMPTS:
            lives[f"trial-{number}"].append(draw(LIVES))
    return Plan(jobs, lives)


@thorough
@given(plans())
def test_every_trial_starts_runs_and_ends_once(plan: Plan) -> None:
    told = run(plan.jobs, World(plan.lives))
    assert endings(told) == plan.reasons()
    for number, one in enumerate(plan.jobs):
        events = of(told, one.trial.id)
        expected = ["TrialStarted"]
        for life in plan.lives[f"trial-{number}"][:ATTEMPTS]:
            expected += ["Alive", *["LaunchDone"] * len(life.launches)]
            if life.ends != LOST:
                break
            expected += ["WorkerLost", "TrialStarted"]
        else:
            del expected[-2:]
        assert kinds(events) == [*expected, "TrialEnded"]
    assert [time for time, _ in told] == sorted(time for time, _ in told)


@thorough
@given(plans())
def test_what_a_trial_says_is_told_when_it_says_it(plan: Plan) -> None:
    world = World(plan.lives)
    told = run(plan.jobs, world)
    assert [time for time, event in told if not isinstance(event.outcome, TrialStarted)] == [
        time for time, _ in world.said
    ]


@thorough
@given(plans())
def test_nodes_run_at_the_same_time_each_as_if_it_were_alone(plan: Plan) -> None:
    told = run(plan.jobs, World(plan.lives))
    for node in plan.nodes:
        mine = plan.on(node)
        names = {one.trial.id for one in mine.jobs}
        assert [(t, e) for t, e in told if e.trial_id in names] == run(mine.jobs, World(mine.lives))


@thorough
@given(plans(alone=st.just(True)))
def test_a_node_runs_its_trials_one_after_another_without_a_break_in_their_order(plan: Plan) -> None:
    world = World(plan.lives)
    told = run(plan.jobs, world)
    for node in plan.nodes:
        names = [one.trial.id for one in plan.on(node).jobs]
        firsts = {name: time for time, name in reversed(world.started)}
        ends = {event.trial_id: time for time, event in told if isinstance(event.outcome, TrialEnded)}
        assert firsts[names[0]] == 1000.0
        assert [firsts[later] for later in names[1:]] == [ends[earlier] for earlier in names[:-1]]


@thorough
@given(plans())
def test_the_gpus_of_a_node_run_beside_each_other_when_those_that_need_it_whole_are_over(plan: Plan) -> None:
    told = run(plan.jobs, World(plan.lives))
    starts = {event.trial_id: time for time, event in reversed(told) if isinstance(event.outcome, TrialStarted)}
    ends = {event.trial_id: time for time, event in told if isinstance(event.outcome, TrialEnded)}
    for node in plan.nodes:
        mine = plan.on(node).jobs
        whole = [one.trial.id for one in mine if one.station.alone]
        free = max([1000.0, *(ends[name] for name in whole)])
        for name in {one.station.name for one in mine if not one.station.alone}:
            queue = [one.trial.id for one in mine if one.station.name == name]
            assert starts[queue[0]] == free, "every GPU starts at once"
            assert all(starts[later] == ends[earlier] for earlier, later in pairwise(queue)), "and has no break"


@thorough
@given(plans())
def test_a_lost_worker_goes_on_behind_its_launches_on_the_same_station(plan: Plan) -> None:
    world = World(plan.lives)
    told = run(plan.jobs, world)
    for one in plan.jobs:
        launches: list[Committed] = []
        expected: list[tuple[Committed, ...]] = []
        for event in of(told, one.trial.id):
            if isinstance(event.outcome, TrialStarted):
                expected.append(tuple(launches))
            elif isinstance(event.outcome, LaunchDone):
                launches.append(event.outcome.committed)
        assert [launch.index for launch in launches] == list(range(len(launches))), "none is run twice"
        submitted = [other for other in world.jobs.values() if other.trial.id == one.trial.id]
        assert [other.committed for other in submitted] == expected
        assert all(replace(other, committed=()) == one for other in submitted)


@thorough
@given(plans(), st.data())
def test_closing_ends_what_runs_and_starts_nothing(plan: Plan, data: st.DataObject) -> None:
    events = len(run(plan.jobs, World(plan.lives)))
    world = World(plan.lives)
    going = Schedule(plan.jobs, world, world.clock).events()
    for _ in range(data.draw(st.integers(0, events - 1))):
        next(going)
    running, submitted = sorted(world.jobs[handle].trial.id for handle in world.running), len(world.jobs)
    going.close()
    assert sorted(world.cancelled) == running
    assert world.running == {}
    assert len(world.jobs) == submitted


def test_an_error_in_between_ends_what_runs() -> None:
    def fail(trial_id: str, now: float) -> str:
        raise RuntimeError("nobody knows")

    world = World({"b": [Life(begins=None)]}, held=fail)
    with pytest.raises(RuntimeError, match="nobody knows"):
        run([job("a", station("n")), job("b", station("m"))], world)
    assert sorted(world.cancelled) == ["a", "b"]


def test_a_lost_cluster_ends_all_of_it() -> None:
    @dataclass
    class Losing(World):
        def unreachable(self) -> Mapping[str, str]:
            if self.now > 1030.0:
                raise ClusterLostError("the cluster's head is gone")
            return {}

    world = Losing({"c": [Life(launches=(100.0,))]})
    with pytest.raises(ClusterLostError, match="the cluster's head is gone"):
        run([job("a", station("n")), job("b", station("n")), job("c", station("m"))], world)
    assert sorted(world.cancelled) == ["b", "c"]


def test_without_jobs_nothing_is_told() -> None:
    assert run([], World({})) == []


def test_trials_that_need_the_whole_node_come_first_in_their_order() -> None:
    shared, whole = station("n", "n:cuda0", alone=False), station("n")
    world = World({})
    run([job("s1", shared), job("w1", whole), job("s2", shared), job("w2", whole)], world)
    assert [name for _, name in world.started] == ["w1", "w2", "s1", "s2"]


def test_other_things_are_told_as_they_are() -> None:
    lost = Event("a", Failure(Launch(3, seed=0), "it was killed by SIGKILL"))
    waiting = Event("a", Waiting("core-0 is held by another run"))
    limits = Event("a", Limits(Speeds(((1, 20.0),), {"float32": 100.0}), {}))
    extra = (lost, waiting, Event("a", Memory({"eager": 300.0})), limits)
    told = run([job("a", station("n"))], World({"a": [Life(extra=extra)]}))
    assert of(told, "a")[-5:-1] == list(extra)


# Nodes that are lost


@st.composite
def with_a_lost_node(draw: st.DrawFn) -> Plan:
    """A plan in which the worker of one trial tells that its node is gone."""
    plan = draw(plans())
    chosen = draw(st.sampled_from(plan.jobs)).trial.id
    return Plan(plan.jobs, {**plan.lives, chosen: [replace(draw(LIVES), ends=NODE_LOST)]})


@thorough
@given(with_a_lost_node())
def test_a_lost_node_ends_everything_on_it_and_nothing_else(plan: Plan) -> None:
    world = World(plan.lives)
    told = run(plan.jobs, world)
    (lost,) = [(time, e) for time, e in told if isinstance(e.outcome, TrialEnded) and e.outcome.node_lost]
    time, event = lost
    (node,) = [one.station.node_id for one in plan.jobs if one.trial.id == event.trial_id]
    ends, reason = endings(told), f"the node of {event.trial_id} is gone"
    before = endings([(t, e) for t, e in told[: told.index(lost)] if isinstance(e.outcome, TrialEnded)])
    without = Plan(plan.jobs, {**plan.lives, event.trial_id: [Life()]}).reasons()
    for one in plan.jobs:
        name = one.trial.id
        if one.station.node_id != node or name in before:
            assert ends[name] == without[name]
        else:
            assert ends[name] == reason
    assert all(start <= time for start, name in world.started if name in plan.on(node).reasons())
    assert set(ended(told, reason)) == {time}, "at once"
    assert set(world.cancelled) == {n for n in ends if ends[n] == reason and of(told, n)[0] != of(told, n)[-1]} - {
        event.trial_id
    }


@thorough
@given(plans(), st.data())
def test_a_node_out_of_reach_ends_everything_on_it_and_nothing_else(plan: Plan, data: st.DataObject) -> None:
    whole = run(plan.jobs, World(plan.lives))
    node = data.draw(st.sampled_from(plan.nodes))
    since = data.draw(st.integers(1000, 1 + int(whole[-1][0])))
    world = World(plan.lives, cut={node: float(since)})
    told = run(plan.jobs, world)
    ends, expected, mine = endings(told), plan.reasons(), plan.on(node).reasons()
    assert {n: reason for n, reason in ends.items() if n not in mine} == {
        n: reason for n, reason in expected.items() if n not in mine
    }
    reason = f"{node} can't be reached"
    late = ended(told, reason)
    if late:
        assert len(set(late)) == 1, "all of it ends at once"
        assert since <= late[0] <= since + 2 * POLL_S
        assert all(start <= late[0] for start, name in world.started if name in mine)
    else:
        over = max(time for time, event in told if event.trial_id in mine)
        assert over <= since + 2 * POLL_S, "only where all of it was over"
    assert {name for name in mine if ends[name] not in (reason, expected[name])} == set()
    assert set(world.cancelled) <= set(mine)


def test_a_node_out_of_reach_is_noticed_where_one_trial_ends_and_the_next_begins() -> None:
    """Every look at the nodes falls on the end of a trial; found by the test above."""
    quick = Life(begins=0.0, launches=())
    lives = {"a": [replace(quick, after=0.5)], "b": [replace(quick, after=0.75)], "c": [replace(quick, after=1.0)]}
    told = run([job(name, station("n")) for name in lives], World(lives, cut={"n": 1000.0}))
    assert endings(told) == {"a": None, "b": None, "c": "n can't be reached"}
    assert ended(told, "n can't be reached") == [1001.25]


# Silence, on a clock


def test_a_trial_that_falls_silent_is_ended_when_its_patience_is_over_and_not_before() -> None:
    silent = Life(begins=2.0, launches=(30.0,), ends=SILENT)
    world = World({"a": [silent]})
    told = run([job("a", station("n")), job("b", station("n"))], world)
    assert endings(told) == {"a": f"nothing was heard of it for {PATIENCE_S:.0f} s", "b": None}
    (end,) = [time for time, event in told if event == of(told, "a")[-1]]
    heard = 1000.0 + 2.0 + 30.0
    assert heard + PATIENCE_S < end <= heard + PATIENCE_S + 2 * POLL_S
    assert world.cancelled == ["a"]
    assert ("b", end) in [(name, time) for time, name in world.started], "the next one has the node at once"


@pytest.mark.parametrize("seconds", [5.0, 60.0, 1000.0])
def test_patience_is_a_launch_with_its_deadline_and_some_more(seconds: float) -> None:
    told = run(
        [job("a", station("n"), launch_timeout_s=seconds)], World({"a": [Life(begins=0.0, launches=(), ends=SILENT)]})
    )
    patience = seconds + GRACE_S + SILENCE_S
    assert patience < told[-1][0] - 1000.0 <= patience + 2 * POLL_S


@pytest.mark.parametrize("pause", [PATIENCE_S - 1, PATIENCE_S])
def test_a_trial_that_takes_all_of_its_time_is_not_ended(pause: float) -> None:
    slow = Life(begins=1.0, launches=(pause, pause, pause), after=pause)
    assert endings(run([job("a", station("n"))], World({"a": [slow]}))) == {"a": None}


def test_a_silent_worker_is_not_tried_again_elsewhere_or_here() -> None:
    world = World({"a": [Life(ends=SILENT)]})
    run([job("a", station("n"))], world)
    assert len(world.jobs) == 1


@pytest.mark.parametrize("stall", [PATIENCE_S + 5, WAIT_S + 5])
def test_a_driver_that_was_held_up_does_not_take_it_for_the_silence_of_others(stall: float) -> None:
    """Storing a launch of one trial takes long; what the other one said meanwhile has still to be heard."""
    world = World({"a": [Life(launches=(20.0,) * 3)], "b": [Life(begins=3.0, launches=(30.0,) * 3)]})
    told: Told = []
    for event in Schedule([job("a", station("n")), job("b", station("m"))], world, world.clock).events():
        told.append((world.now, event))
        if kinds(of(told, "a")) == ["TrialStarted", "Alive"] and event.trial_id == "a":
            world.now += stall  # b has not been heard yet
        elif isinstance(event.outcome, LaunchDone):
            world.now += stall
    assert endings(told) == {"a": None, "b": None}


def test_slow_fetches_of_others_do_not_count_as_silence() -> None:
    """Each of five nodes needs long for what it says."""
    lives = {f"t{i}": [Life(launches=(10.0,) * 4)] for i in range(5)}
    world = World(lives, fetch_s=0.9 * 30.0)
    jobs = [job(f"t{i}", station(f"n{i}"), launch_timeout_s=5.0) for i in range(5)]
    assert set(endings(run(jobs, world)).values()) == {None}


# Trials that do not begin


def test_a_trial_that_does_not_begin_tells_who_holds_its_station_once_and_ends_in_its_time() -> None:
    world = World({"a": [Life(begins=None)]})
    told = run([job("a", station("n")), job("b", station("n"))], world)
    waiting = [(time, event) for time, event in told if isinstance(event.outcome, Waiting)]
    assert [event for _, event in waiting] == [Event("a", Waiting("somebody else"))]
    assert PENDING_S < waiting[0][0] - 1000.0 <= PENDING_S + 2 * POLL_S
    assert min(world.asked)[0] == waiting[0][0], "not asked before"
    assert endings(told) == {"a": "the station was busy for 600 s: somebody else", "b": None}
    (end,) = [time for time, event in told if isinstance(event.outcome, TrialEnded) and event.trial_id == "a"]
    assert WAIT_S < end - 1000.0 <= WAIT_S + 2 * POLL_S
    assert world.cancelled == ["a"]


def test_each_holder_is_told_when_it_changes() -> None:
    world = World({"a": [Life(begins=None)]}, held=lambda name, now: f"run {int(now) // 100}")
    told = run([job("a", station("n"), wait_s=250.0)], world)
    holders = [event.outcome.holder for event in of(told, "a") if isinstance(event.outcome, Waiting)]
    assert holders == ["run 10", "run 11", "run 12"]
    assert endings(told) == {"a": "the station was busy for 250 s: run 12"}


def test_a_trial_that_begins_at_last_is_not_ended_for_its_waiting() -> None:
    late = Life(begins=WAIT_S - 1, launches=(PATIENCE_S, PATIENCE_S))
    told = run([job("a", station("n"))], World({"a": [late]}))
    assert endings(told) == {"a": None}
    assert kinds(of(told, "a")).count("Waiting") == 1


def test_a_trial_that_begins_soon_asks_for_no_holder() -> None:
    world = World({"a": [Life(begins=PENDING_S)]})
    run([job("a", station("n"))], world)
    assert world.asked == []


def test_one_that_waits_keeps_no_other_node_from_running() -> None:
    world = World({"a": [Life(begins=None)]})
    told = run([job("a", station("n")), *(job(f"b{i}", station("m")) for i in range(5))], world)
    ends = {event.trial_id: time for time, event in told if isinstance(event.outcome, TrialEnded)}
    assert [ends[f"b{i}"] for i in range(5)] == [1000.0 + (i + 1) * Life().seconds for i in range(5)]


def test_a_lost_worker_has_all_of_its_time_again_to_begin() -> None:
    lives = [Life(begins=400.0, ends=LOST), Life(begins=400.0, ends=LOST), Life(begins=400.0)]
    told = run([job("a", station("n"))], World({"a": lives}))
    assert endings(told) == {"a": None}
    assert kinds(of(told, "a")).count("Waiting") == 3


def test_the_launches_of_an_earlier_run_are_kept_when_a_worker_is_lost() -> None:
    earlier = (committed(0), committed(1))
    first = job("a", station("n"))
    resumed = replace(first, committed=earlier)
    world = World({"a": [Life(ends=LOST), Life(launches=(), ends=LOST), Life()]})
    run([resumed], world)
    four = (*earlier, committed(2), committed(3))
    assert [one.committed for one in world.jobs.values()] == [earlier, four, four]
