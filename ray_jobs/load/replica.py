"""One replica of a launch under load: it holds every variant, of which one answers at a time."""

import gc
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatbot.variants import BASELINE, Reply, UnavailableError
from ray_jobs.load import wire
from ray_jobs.measure import busy, steps
from ray_jobs.measure.anew import memory_fault
from ray_jobs.measure.answers import copied
from ray_jobs.measure.channel import NO_ARRAYS, Channel
from ray_jobs.measure.result import one_line
from ray_jobs.measure.rounds import HELD_BYTES
from ray_jobs.measure.session import Session, Told

ANEW = 48  # answers of a variant at most for which the baseline, having been asked by another replica, is asked too
HELD = 2000  # answers of a variant at most that are kept until they are compared

DRAWING = threading.Lock()  # replicas that are threads share torch's generator, which own models draw inputs from

clock = time.perf_counter_ns  # the same in every process of a machine
Asked = tuple[Any, Tensor]


class Replica(Session):
    """What it can be told to do are its public methods, as in ``Session``, and these."""

    _channel: Channel

    def serve(self, channel: Channel) -> None:
        self._channel = channel
        self._answers: dict[str, dict[int, Any]] = {name: {} for name in self._variants}
        self._walls: dict[str, list[int]] = {name: [] for name in self._variants}
        self._most_held = HELD
        super().serve(channel)

    def idle(self) -> None:
        """What it is busy with is noted by who tells it: the note is one for all replicas."""

    def warm(self, variant: str, place: int) -> Told:
        """As ``Session``; also finds out how many answers can be kept."""
        told, arrays = super().warm(variant, place)
        each = max(1, told["answer_bytes"]) * len(self._variants)
        self._most_held = min(self._most_held, max(1, int(HELD_BYTES / each)))
        return told, arrays

    def room(self) -> Told:
        """How many calls inputs suffice for."""
        steps.require_baseline(self._replies, self._facts)
        return {"room": self._subject.questions.room()}, NO_ARRAYS

    def answer(self, variant: str, first: int, count: int) -> Told:
        """Answers the requests of a window as they come, numbered from 0: of these inputs, from ``first``."""
        asked = self._ready(variant, first, count)
        incoming, outgoing = self._ends
        os.write(outgoing, wire.READY)
        reply, fault = self._replies[variant], {}
        with _no_collection():
            while (number := wire.ASK.unpack(wire.read(incoming, wire.ASK.size))[0]) != wire.OVER:
                try:
                    began, ended = self._one(variant, reply, asked[number], first + number)
                except Exception as error:
                    fault = _fault(error)
                    os.write(outgoing, wire.ANSWER.pack(wire.OVER, 0, 0))
                    break
                os.write(outgoing, wire.ANSWER.pack(number, began, ended))
        return self._over(variant, fault), NO_ARRAYS

    def saturate(self, variant: str, first: int, count: int) -> Told:
        """Answers so many requests without a pause, from when it is told that all replicas begin."""
        asked = self._ready(variant, first, count)
        incoming, outgoing = self._ends
        os.write(outgoing, wire.READY)
        reply, fault = self._replies[variant], {}
        times = np.zeros((count, 2), dtype=np.int64)
        start = wire.ASK.unpack(wire.read(incoming, wire.ASK.size))[0]
        with _no_collection():
            while clock() < start:
                pass
            for number, one in enumerate(asked):
                try:
                    times[number] = self._one(variant, reply, one, first + number)
                except Exception as error:
                    fault = _fault(error)
                    break
        return self._over(variant, fault), {"times": times}

    def _ready(self, variant: str, first: int, count: int) -> list[Asked]:
        """The inputs of a window; everything that is slow happens here."""
        gc.collect(0)
        with DRAWING:
            return [self._subject.questions.at(first + number) for number in range(count)]

    @property
    def _ends(self) -> tuple[int, int]:
        return self._channel.incoming.fileno(), self._channel.outgoing.fileno()

    def _one(self, variant: str, reply: Reply, asked: Asked, number: int) -> tuple[int, int]:
        """Answers a request. Its answer is copied within its time, as it would be sent to somebody."""
        began = clock()
        answer = copied(reply(*asked))
        if self._workload.device == "cuda":
            torch.cuda.synchronize()
        ended = clock()
        self._walls[variant].append(ended - began)
        if len(self._answers[variant]) < self._most_held:
            self._answers[variant][number] = answer
        return began, ended

    def _over(self, variant: str, fault: Mapping[str, str]) -> dict[str, Any]:
        facts = self._facts[variant]
        failed, skipped = fault.get("failed", facts.failed), fault.get("skipped", facts.skipped)
        self._facts[variant] = replace(facts, failed=failed, skipped=skipped)
        return {"broken": bool(fault)}

    def compare(self, seconds: float) -> Told:
        """Compares what it answered with the baseline's answers, and examines the programs once more."""
        baseline, end = self._replies[BASELINE], time.monotonic() + seconds
        known = dict(self._answers[BASELINE])
        facts = self._facts
        left = {name: one for name, one in self._replies.items() if not (facts[name].failed or facts[name].skipped)}
        for name in left:
            busy.on(name)
            mine = self._answers[name]
            self._ask_baseline([number for number in mine if number not in known][:ANEW], baseline, known, end)
            numbers = [number for number in sorted(mine) if number in known]
            own = self._workload.own_model  # whose answers are compared by its ``same``
            asked = [] if own else [self._subject.questions.at(number)[0] for number in numbers]
            check = self._subject.compare(name, [mine[n] for n in numbers], [known[n] for n in numbers], asked)
            told = replace(self._facts[name], replies=check.replies, identical=check.identical, tokens=check.tokens)
            self._facts[name] = replace(told, differing=check.differing, invalid=told.invalid or check.fault)
        self._examine_again(left)
        return {}, NO_ARRAYS

    def _ask_baseline(self, numbers: list[int], baseline: Reply, known: dict[int, Any], end: float) -> None:
        for number in numbers:
            if time.monotonic() > end:
                return
            known[number] = copied(baseline(*self._subject.questions.at(number)))

    def _examine_again(self, left: Mapping[str, Reply]) -> None:
        for name in () if self._workload.stop_at_eos else left:
            busy.on(name)
            with suppress(Exception):  # as in ``Session``
                fault = memory_fault(left[name], self._walls[name], self._subject.unasked, self._timer)
                self._facts[name] = steps.invalid(self._facts[name], fault) if fault else self._facts[name]
        busy.at(None)
        self._subject.questions.start_rounds()
        self._subject.questions.next()
        self._probe(left)


def _fault(error: Exception) -> dict[str, str]:
    """What a variant that can't answer is, and why."""
    if isinstance(error, UnavailableError):
        return {"skipped": str(error)}
    return {"failed": f"could not answer: {one_line(error)}"}


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected while requests are answered."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
