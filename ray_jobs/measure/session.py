"""A launch as one side of a comparison takes part in it: its process does one thing after another, as it is told to.

Whoever tells it lets the process of one side work at a time; the others wait in a read.
"""

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chatbot.variants import BASELINE, Reply, Workload
from ray_jobs.measure import busy, gpu, steps
from ray_jobs.measure.anew import memory_fault
from ray_jobs.measure.channel import NO_ARRAYS, Arrays, Channel
from ray_jobs.measure.launch import machine_facts
from ray_jobs.measure.program import Program
from ray_jobs.measure.result import TIMED, Launch, Samples
from ray_jobs.measure.rounds import Log, Turns, Warming
from ray_jobs.measure.subject import subject_of
from ray_jobs.measure.timing import floor_ns, timer_for
from ray_jobs.measure.trial import Factory, ModelSource
from ray_jobs.measure.watch import MachineWatch, watch_for

Told = tuple[dict[str, Any], Arrays]


class Session:
    """One process of a launch. Its public methods but ``serve`` are what it can be told to do, by their names."""

    def __init__(
        self,
        workload: Workload,
        variants: Sequence[str],
        model: ModelSource,
        pool: NDArray[np.int64],
        launch: Launch,
        share: tuple[int, ...] | None = None,
    ) -> None:
        """The arguments are those of ``launch.measure``, and so is the mode to be in; ``variants`` are this side's."""
        gpu.require_float32()
        busy.enter(variants)
        self._workload, self._variants, self._model, self._share = workload, tuple(variants), model, share
        self._facts: steps.Facts = {}
        self._log = Log()
        self._card = gpu.own_device() if workload.device == "cuda" else None
        own = pool[launch.rng().permutation(len(pool))]
        self._subject = subject_of(model, own, workload, launch.index)
        self._replies: dict[str, Reply] = {}
        self._programs: dict[str, Program] = {}
        self._sentinels: list[tuple[int, int | None]] = []
        self._floor_ns = 0
        self._shape = (0, 0)  # timed calls of a turn, rounds
        self._watch: MachineWatch | None = None

    def serve(self, channel: Channel) -> None:
        """Does what it is told until the other end hangs up."""
        with suppress(EOFError):
            while True:
                asked, arrays = channel.receive()
                work: Callable[..., Told] = getattr(self, asked.pop("do"))
                told, found = work(arrays, **asked) if arrays else work(**asked)
                self.idle()
                channel.send({**told, "threads": torch.get_num_threads()}, found)

    def idle(self) -> None:
        """What ends this process while it waits is no variant's fault."""
        busy.at(None)

    def hello(self) -> Told:
        """Who this is, and a hash of its weights."""
        return {"pid": os.getpid(), "weights": self._subject.weights()}, NO_ARRAYS

    def sentinel(self) -> Told:
        """The fixed computations of ``steps.sentinels``."""
        self._sentinels.append(steps.sentinels(self._workload))
        return {}, NO_ARRAYS

    def prepare(self, variant: str) -> Told:
        """Prepares a variant."""
        reply = steps.prepare(variant, self._subject, self._workload, self._facts, self._programs)
        if reply is not None:
            self._replies[variant] = reply
        return {"able": reply is not None}, NO_ARRAYS

    def examine(self) -> Told:
        """Examines what was prepared."""
        steps.examine(self._programs, self._workload, self._facts)
        self._floor_ns = floor_ns(self._timer)
        return {}, NO_ARRAYS

    def warm(self, variant: str, place: int) -> Told:
        """Warms a variant up; the result is a ``WarmUp``."""
        found = self._warming.one(self._replies[variant], self._variants.index(variant), place)
        steps.take_warm_up(variant, found, self._facts)
        if found.failed or found.skipped:
            del self._replies[variant]
        return asdict(found), NO_ARRAYS

    def held(self, rounds: int, calls: int, turns: int) -> Told:
        """The most rounds of so many turns, and timed calls of each, that inputs suffice for."""
        steps.require_baseline(self._replies, self._facts)
        self._subject.questions.start_rounds()
        calls = self._subject.questions.most_calls(calls, turns)
        return {"rounds": self._subject.questions.most_rounds(rounds, calls, turns), "calls": calls}, NO_ARRAYS

    def begin(self, rounds: int, calls: int) -> Told:
        """Gets ready for the rounds: no garbage is collected within a turn."""
        self._shape = (calls, rounds)
        _ = self._turns
        gc.collect()
        gc.disable()
        return {}, NO_ARRAYS

    def watch(self, sides: Sequence[int], beside: Sequence[int]) -> Told:
        """Lets this process read the counters, for all of them."""
        self._watch = watch_for(self._card, self._share, tuple(sides), tuple(beside))
        return {}, NO_ARRAYS

    def read(self) -> Told:
        """The counters now."""
        assert self._watch is not None
        return {"counters": list(self._watch.read())}, NO_ARRAYS

    def round(self, number: int) -> Told:
        """Draws the inputs of a round."""
        self._turns.begin(number)
        return {}, NO_ARRAYS

    def turn(self, variant: str, position: int) -> Told:
        """Takes a turn: the code that is timed, and nothing else."""
        self._turns.turn(self._variants.index(variant), position)
        return {}, NO_ARRAYS

    def rest(self) -> Told:
        """After the turns of a round."""
        self._turns.rest()
        self._turns.judge(steps.judge_of(self._subject, self._variants))
        return {}, NO_ARRAYS

    def check(self, told: Arrays = NO_ARRAYS) -> Told:
        """Checks the answers, against those that ``base`` told where this is another side; tells its own."""
        answers, variants = self._turns.answers, self._variants
        steps.take_answers(variants, answers, self._facts)
        steps.require_baseline([variants[i] for i in answers.replies], self._facts)
        own = answers.replies[variants.index(BASELINE)]
        baseline, fault = self._replies[BASELINE], None
        expected = own
        if told:
            given = [torch.from_numpy(array) for array in told.values()]
            expected, fault = self._subject.expected(given, baseline)
        steps.check_all(variants, answers.replies, expected or own, self._subject, self._shape, self._facts)
        if fault is not None:
            self._facts[BASELINE] = steps.invalid(self._facts[BASELINE], fault)
        left = {variants[i]: self._replies[variants[i]] for i in answers.replies}
        self._ask_anew(left)
        self._probe(left)
        said = [] if told else self._subject.told(own, baseline)
        return {}, {str(number): tensor.numpy() for number, tensor in enumerate(said)}

    def finish(self) -> Told:
        """Everything that this process found out; the samples as arrays."""
        samples = self._log.samples()
        origin = min((reading.start_ns for reading in self._log.readings), default=0)
        gpu_facts = steps.gpu_facts(self._card, [device for _, device in self._sentinels])
        told = {
            "facts": {name: asdict(facts) for name, facts in self._facts.items()},
            "machine": {**machine_facts(), "timing_floor_ns": self._floor_ns, **gpu_facts},
            "sentinel_ns": [machine for machine, _ in self._sentinels],
            "origin_ns": origin,
        }
        return told, {one.name: getattr(samples, one.name) for one in fields(Samples)}

    def _ask_anew(self, left: Mapping[str, Reply]) -> None:
        """Asks what is left of the variants something new: later launches and other sides get the same inputs.

        Where replies stop by themselves it would tell nothing: new ones may be longer.
        """
        for name in () if self._workload.stop_at_eos else left:
            busy.on(name)
            timed = self._log.walls(self._variants.index(name), TIMED)
            with suppress(Exception):  # what it can't answer is not among the timed inputs either
                fault = memory_fault(left[name], timed, self._subject.unasked, self._timer)
                self._facts[name] = steps.invalid(self._facts[name], fault) if fault else self._facts[name]
        busy.at(None)

    def _probe(self, left: Mapping[str, Reply]) -> None:
        """Calls what is left of the variants once more, after all timing."""
        asked, gradients = self._subject.questions.last(), isinstance(self._model, Factory) and self._model.gradients
        steps.probe_all(left, asked, self._workload, self._facts, gradients)
        steps.tell_tokens(left, asked, self._workload, self._facts)

    @cached_property
    def _timer(self) -> Any:
        return timer_for(self._workload.device)

    @cached_property
    def _warming(self) -> Warming:
        return Warming(self._subject.questions, self._timer, self._log)

    @cached_property
    def _turns(self) -> Turns:
        ordered = [self._replies.get(name) for name in self._variants]
        return Turns(self._shape[0], ordered, self._subject.questions, self._timer, self._log)
