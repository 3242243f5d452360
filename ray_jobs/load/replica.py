"""One replica of a launch under load: it holds every variant, of which one answers at a time."""

import gc
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatbot.variants import BASELINE, Reply, UnavailableError
from ray_jobs.load import wire
from ray_jobs.load.joining import joined
from ray_jobs.load.request_queue import Taker
from ray_jobs.measure import busy, steps
from ray_jobs.measure.anew import memory_fault
from ray_jobs.measure.answers import copied
from ray_jobs.measure.channel import NO_ARRAYS, Channel
from ray_jobs.measure.result import one_line
from ray_jobs.measure.rounds import HELD_BYTES
from ray_jobs.measure.session import Session, Told
from ray_jobs.scenario import Load

ANEW = 48  # answers of a variant at most for which the baseline, having been asked by another replica, is asked too
HELD = 2000  # answers of a variant at most that are kept until they are compared

DRAWING = threading.Lock()  # replicas that are threads share torch's generator, which own models draw inputs from

clock = time.perf_counter_ns  # the same in every process of a machine
Asked = tuple[Any, Tensor]
Numbers = tuple[int, ...]  # of the requests that are answered by one call


class Replica(Session):
    """What it can be told to do are its public methods, as in ``Session``, and these."""

    _channel: Channel

    def serve_load(self, load: Load, channel: Channel, takes: int) -> None:
        """Does what it is told until the other end hangs up.

        Args:
            load: how requests come; the session's workload is that of a full call.
            channel: to who tells it.
            takes: the descriptor that it takes requests from.
        """
        self._taker = Taker(takes, load.max_batch, load.batch_window_ns)
        self.hold(load, channel)
        self.serve(channel)

    def hold(self, load: Load, channel: Channel) -> None:
        """Gets ready to keep answers."""
        self._channel, self._most = channel, load.max_batch
        self._answers: dict[str, dict[Numbers, Any]] = {name: {} for name in self._variants}
        self._walls: dict[str, list[int]] = {name: [] for name in self._variants}
        self._most_held = HELD

    def idle(self) -> None:
        """What it is busy with is noted by who tells it: the note is one for all replicas."""

    def warm(self, variant: str, place: int) -> Told:
        """As ``Session``; also finds out how many answers can be kept."""
        told, arrays = super().warm(variant, place)
        each = max(1, told["answer_bytes"]) * len(self._variants)
        self._most_held = min(self._most_held, max(1, int(HELD_BYTES / each)))
        return told, arrays

    def room(self) -> Told:
        """How many requests inputs suffice for."""
        steps.require_baseline(self._replies, self._facts)
        return {"room": self._subject.questions.singles()}, NO_ARRAYS

    def answer(self, variant: str, first: int, count: int) -> Told:
        """Answers the requests of a window as they come, numbered from 0: of these inputs, from ``first``."""
        asked = self._ready(variant, first, count)
        incoming, outgoing = self._ends
        os.write(outgoing, wire.READY)
        reply, fault = self._replies[variant], {}
        with _no_collection():
            while numbers := self._taker.take():
                together = [asked[number] for number in numbers]
                try:
                    began, ended = self._one(variant, reply, together, [first + number for number in numbers])
                except Exception as error:
                    fault = fault_of(error)
                    os.write(outgoing, wire.ANSWER.pack(wire.OVER, len(numbers), 0))
                    wire.read(incoming, wire.ASK.size)  # what follows is read by who has understood this
                    break
                os.write(outgoing, b"".join(wire.ANSWER.pack(number, began, ended) for number in numbers))
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
            for at in range(0, count, self._most):
                together = asked[at : at + self._most]
                try:
                    times[at : at + self._most] = self._one(variant, reply, together, _numbers(first + at, together))
                except Exception as error:
                    fault = fault_of(error)
                    break
        return self._over(variant, fault), {"times": times}

    def _ready(self, variant: str, first: int, count: int) -> list[Asked]:
        """The inputs of a window; everything that is slow happens here."""
        gc.collect(0)
        with DRAWING:
            return [self._asked(first + number) for number in range(count)]

    def _asked(self, number: int) -> Asked:
        """The arguments of a call that answers this request alone."""
        questions = self._subject.questions
        return questions.at(number) if self._most == 1 else questions.single(number)

    def _call(self, together: Sequence[Asked]) -> Asked:
        """The arguments of the call that answers these requests."""
        if self._most == 1:
            return together[0]
        return joined([inputs for inputs, _ in together], self._most), self._subject.questions.lengths

    @property
    def _ends(self) -> tuple[int, int]:
        return self._channel.incoming.fileno(), self._channel.outgoing.fileno()

    def _one(self, variant: str, reply: Reply, together: Sequence[Asked], numbers: Sequence[int]) -> tuple[int, int]:
        """Answers requests by one call. Its answer is copied within its time, as it would be sent to somebody."""
        began = clock()
        answer = copied(reply(*self._call(together)))
        if self._workload.device == "cuda":
            torch.cuda.synchronize()
        ended = clock()
        self._walls[variant].append(ended - began)
        if len(self._answers[variant]) < self._most_held:
            self._answers[variant][tuple(numbers)] = answer
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
            self._ask_baseline(_some([numbers for numbers in mine if numbers not in known], ANEW), baseline, known, end)
            calls = [numbers for numbers in sorted(mine) if numbers in known]
            own = self._workload.own_model  # whose answers are compared by its ``same``, as they are
            asked = [] if own else [self._again(numbers)[0][: len(numbers)] for numbers in calls]
            answers, expected = ([self._of(one[c], c) for c in calls] for one in (mine, known))
            check = self._subject.compare(name, answers, expected, asked)
            told = replace(self._facts[name], replies=check.replies, identical=check.identical, tokens=check.tokens)
            self._facts[name] = replace(told, differing=check.differing, invalid=told.invalid or check.fault)
        self._examine_again(left)
        return {}, NO_ARRAYS

    def _of(self, answer: Any, numbers: Numbers) -> Any:
        """The part of an answer that answers requests: what fills a call up is asked twice."""
        return answer if self._workload.own_model else answer[: len(numbers)]

    def _again(self, numbers: Numbers) -> Asked:
        """The arguments of a call that was made."""
        return self._call([self._asked(number) for number in numbers])

    def _ask_baseline(self, calls: list[Numbers], baseline: Reply, known: dict[Numbers, Any], end: float) -> None:
        for numbers in calls:
            if time.monotonic() > end:
                return
            known[numbers] = copied(baseline(*self._again(numbers)))

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


def _some(calls: Sequence[Numbers], most: int) -> list[Numbers]:
    """So many at most, from the first to the last: later windows are other ones."""
    return [calls[at] for at in np.unique(np.linspace(0, len(calls) - 1, most).astype(int))] if calls else []


def _numbers(first: int, together: Sequence[Asked]) -> range:
    return range(first, first + len(together))


def fault_of(error: Exception) -> dict[str, str]:
    """What a variant is that can't answer, and why."""
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
