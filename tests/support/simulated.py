"""A simulated machine: it takes the times it is told to, so that what the tool finds can be held against the truth.

Its clock advances by what is simulated and by nothing else. Orders, rounds, records, the stopping rule, the
statistics and the rows are the tool's own: only the programs, the clock and the counters are made up.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import scipy.stats
import torch
from launches import made_trial
from torch import Tensor

from chatbot.variants import BASELINE, CONTROL, Reply, Workload
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure import orders
from ray_jobs.measure.method import METHOD
from ray_jobs.measure.orders import Orders
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.rounds import Log, Prompts, run_rounds
from ray_jobs.measure.timing import Reading
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.measure.watch import Counters
from ray_jobs.process.trial import Failure, launches
from ray_jobs.statistics import Interval, speedup

PAIR = (BASELINE, CONTROL)
WORKLOAD = Workload(batch=1, prompt_tokens=2, reply_tokens=1, model="tiny")
ROUNDS, CALLS = 8, METHOD.timed
CALL_NS = 20e6  # of the baseline on a quiet machine
PREPARE_NS = 1e9  # of a launch: the process, and every variant
SENTINEL_NS = 5e6
SPIKE = 3.0  # times as long
TOKENS = torch.zeros(1, 1, dtype=torch.long)
POOL = np.arange(4 * ROUNDS * (1 + CALLS), dtype=np.int64).reshape(-1, 2)  # for up to twice ``ROUNDS``


@dataclass(frozen=True)
class Conditions:
    """What the machine does to programs; shares of their time unless a unit is named."""

    launch_sd: float = 0.01  # of each program in each launch, e.g. by where its memory came to lie
    call_sd: float = 0.05
    spikes: float = 0.01  # share of calls that take ``SPIKE`` times as long
    place: float = 0.0  # how much slower the program is that a launch builds first
    slot: float = 0.0  # how much slower the first turn of a round is
    drift: float = 0.0  # how far a slow sine takes the machine's speed up and down
    drift_s: float = 100.0  # its period
    step: float = 0.0  # how much slower the machine becomes
    step_s: float = 0.0  # and when
    burst_every_s: float = math.inf  # on average, from the end of one burst to the start of the next
    burst_s: tuple[float, float] = (0.1, 0.5)  # how short and how long they are


class Program:
    """A variant's callable: it answers at once, the machine says how long it took."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        return TOKENS


class Machine:
    """A ``Timer`` and a ``Watch`` of one core.

    In a burst another process of two threads takes half of this core and the whole of another one.
    """

    def __init__(self, conditions: Conditions, base: Mapping[str, float], seed: int) -> None:
        """``base``: of each variant, its time as a multiple of ``CALL_NS``."""
        self.conditions = conditions
        self.base = base
        self.rng = np.random.default_rng([seed, 1])
        self.phase = self.rng.uniform(0, 2 * math.pi)
        self.now = self.cpu = self.delay = self.foreign = 0.0  # ns
        self.usual: dict[str, float] = {}  # ns of each program of this launch
        self.bursts: list[tuple[float, float]] = []  # all so far and the next one, from when to when
        self.noise = self._noise()
        self.last: Reply | None = None  # whose turn it is
        self.slot = -1  # and which one of the round
        self._next_burst()

    def clock(self) -> float:
        """Seconds."""
        return self.now / 1e9

    def speed(self) -> float:
        """How slow the machine is now: 1 on average."""
        c = self.conditions
        speed = math.exp(c.drift * math.sin(2 * math.pi * self.now / 1e9 / c.drift_s + self.phase)) if c.drift else 1.0
        return speed * (1 + c.step) if c.step and self.now >= c.step_s * 1e9 else speed

    def prepare(self, built: Sequence[str]) -> None:
        """A fresh process that builds its programs in this order."""
        self._rest(PREPARE_NS)
        self.last, self.slot = None, -1
        for place, name in enumerate(built):
            luck = math.exp(self.conditions.launch_sd * self.rng.standard_normal())
            self.usual[name] = CALL_NS * self.base[name] * luck * (1.0 if place else 1 + self.conditions.place)

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        """A timed call, as ``timing.Timer`` has it."""
        assert isinstance(reply, Program)
        if reply is not self.last:
            self.last, self.slot = reply, self.slot + 1
        ns = self.usual[reply.name] * self.speed() * next(self.noise)
        if not self.slot:
            ns *= 1 + self.conditions.slot
        start = self.now
        self._work(ns)
        return reply(prompts, lengths), Reading(round(start), round(self.now - start), None, round(ns), 0)

    def read(self) -> Counters:
        """The counters, as ``interference.Watch`` has them: a round is over, its turns begin anew."""
        self.last, self.slot = None, -1
        return Counters(
            wall_ns=round(self.now),
            cpu_ns=round(self.cpu),
            run_delay_ns=round(self.delay),
            busy_ns=round(self.cpu + self.foreign),
        )

    def sentinel_ns(self) -> int:
        """The fixed computation."""
        ns = SENTINEL_NS * self.speed()
        self._rest(ns)
        return round(ns)

    def _work(self, ns: float) -> None:
        """Passes the time in which this process gets ``ns`` of the core."""
        self.cpu += ns
        while True:
            start, end = self.bursts[-1]
            free = start - self.now
            if ns <= free:
                self.now += ns
                return
            if free > 0:
                self.now, ns = start, ns - free
            shared = min(ns, (end - self.now) / 2)
            self.now += 2 * shared
            self.delay += shared
            self.foreign += 3 * shared
            ns -= shared
            if ns <= 0:
                return
            self._next_burst()

    def _rest(self, ns: float) -> None:
        """Passes time in which nothing is measured; bursts come and go."""
        self.now += ns
        while self.bursts[-1][1] <= self.now:
            self._next_burst()

    def _next_burst(self) -> None:
        every = self.conditions.burst_every_s
        if math.isinf(every):
            self.bursts.append((math.inf, math.inf))
            return
        start = (self.bursts[-1][1] if self.bursts else 0.0) + 1e9 * self.rng.exponential(every)
        self.bursts.append((start, start + 1e9 * self.rng.uniform(*self.conditions.burst_s)))

    def _noise(self) -> Iterator[float]:
        """Of each call, drawn many at a time: one at a time would be most of the simulation's own cost."""
        while True:
            noise = np.exp(self.conditions.call_sd * self.rng.standard_normal(4096))
            noise[self.rng.random(4096) < self.conditions.spikes] *= SPIKE
            yield from noise.tolist()


@dataclass(frozen=True)
class Rules:
    """How launches and rounds are ordered: the tool's own way, or a naive one."""

    building: Callable[[int, int, int], tuple[int, ...]] = orders.building_order
    turns: Callable[[int, int, np.random.Generator], Orders] = orders.round_orders


def always_built_alike(n: int, launch: int, seed: int) -> tuple[int, ...]:
    """A naive building order: in each launch the same."""
    return tuple(range(n))


def always_in_turn(n: int, rounds: int, rng: np.random.Generator) -> Orders:
    """A naive order of turns: in each round the same."""
    return np.tile(np.arange(n), (rounds, 1))


def turns_by_lot(n: int, rounds: int, rng: np.random.Generator) -> Orders:
    """A nearly naive order of turns: random in each round, and no more balanced than luck has it."""
    return rng.permuted(np.tile(np.arange(n), (rounds, 1)), axis=1)


class Remembering(LaunchResult):
    """A launch that works its speedups out once: the stopping rule and a test ask for them."""

    @cached_property
    def _logs(self) -> dict[str, float]:
        return super().log_speedups()

    def log_speedups(self) -> dict[str, float]:
        return self._logs


@dataclass
class Comparison:
    """A finished trial on a simulated machine."""

    machine: Machine
    trial: Trial
    launches: list[LaunchResult] = field(default_factory=list)
    round_times: list[list[tuple[float, float]]] = field(default_factory=list)  # of each launch's rounds, ns

    def run(self, launch: Launch, rules: Rules) -> LaunchResult:
        """One launch, as ``measure.measure`` has it without its warm-up and its checks."""
        names, machine, rng = self.trial.variants, self.machine, launch.rng()
        sentinel = machine.sentinel_ns()
        built = tuple(names[i] for i in rules.building(len(names), launch.index, launch.seed))
        machine.prepare(built)
        rounds, calls = launch.rounds or orders.up_to_multiple(ROUNDS, len(names)), launch.calls or CALLS
        prompts, log = Prompts(POOL, self.trial.workload), Log()
        turns = rules.turns(len(names), rounds, rng).tolist()
        answers = run_rounds(turns, calls, [Program(name) for name in names], prompts, machine, log, machine)
        assert not answers.broken
        times = [float(reading.wall_ns) for reading in answers.readings]
        self.round_times.append(list(itertools.pairwise(times)))
        same = rounds * calls
        return Remembering(
            launch,
            names,
            built,
            rounds,
            calls,
            {name: VariantFacts(prepare_s=0.5, replies=same, identical=same, warmup_calls=0) for name in names},
            log.samples(),
            interference=answers.interference,
            sentinel_ns=(sentinel, machine.sentinel_ns()),
            method=METHOD.version,
        )

    def interval(self, variant: str = CONTROL) -> Interval:
        """Its speedup."""
        found = speedup([launch.log_speedups()[variant] for launch in self.launches])
        assert found is not None
        return found

    def rows(self, margin: float = 0.02) -> dict[str, Row]:
        """The matrix's rows of this trial, by variant."""
        trial = replace(self.trial, margin=margin)
        return {row.variant: row for row in rows_of(trial, Place(), Status.DONE, None, self.launches)}


def compare(
    conditions: Conditions,
    seed: int,
    base: Mapping[str, float] | None = None,
    rules: Rules | None = None,
    precision: float = 0.025,
    budget_s: float = 20.0,
) -> Comparison:
    """A trial under the tool's own stopping rule. Without ``base``, of two programs that are the same."""
    base = base or dict.fromkeys(PAIR, 1.0)
    names = tuple(base)
    trial = made_trial(workload=WORKLOAD, variants=names, seed=seed, precision=precision, budget_s=budget_s)
    found = Comparison(Machine(conditions, base, seed), trial)
    chosen = rules or Rules()
    for outcome in launches(trial, lambda launch: found.run(launch, chosen), found.machine.clock):
        assert not isinstance(outcome, Failure)
        found.launches.append(outcome)
    return found


def one_after_the_other(conditions: Conditions, seed: int, calls: int) -> float:
    """The naive way: all calls of one program, then all of the same again, in one process; p of a t test over calls."""
    machine, programs = _in_one_process(conditions, seed)
    walls = [[_wall(machine, program) for _ in range(calls)] for program in programs]
    return _p_value(walls)


def call_by_call(conditions: Conditions, seed: int, calls: int) -> float:
    """The naive way but for its order: one call each in turn; p of a t test over calls."""
    machine, programs = _in_one_process(conditions, seed)
    walls = [[_wall(machine, program) for program in programs] for _ in range(calls)]
    return _p_value(list(zip(*walls, strict=True)))


def processes_one_after_the_other(conditions: Conditions, seed: int, processes: int, calls: int) -> float:
    """Fresh processes of one program, then as many of the same again; p of a t test over their medians."""
    machine = Machine(conditions, dict.fromkeys(PAIR, 1.0), seed)
    medians: list[list[float]] = []
    for name in PAIR:
        medians.append([])
        for _ in range(processes):
            machine.prepare([name])
            medians[-1].append(float(np.median([_wall(machine, Program(name)) for _ in range(calls)])))
    return _p_value(medians)


def _in_one_process(conditions: Conditions, seed: int) -> tuple[Machine, list[Program]]:
    machine = Machine(conditions, dict.fromkeys(PAIR, 1.0), seed)
    machine.prepare(PAIR)
    return machine, [Program(name) for name in PAIR]


def _wall(machine: Machine, program: Program) -> int:
    machine.read()
    return machine.call(program, TOKENS, TOKENS)[1].wall_ns


def _p_value(samples: Sequence[Sequence[float]]) -> float:
    first, second = (np.log(walls) for walls in samples)
    return float(scipy.stats.ttest_ind(first, second, equal_var=False).pvalue)
