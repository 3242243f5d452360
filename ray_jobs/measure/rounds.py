"""The timed part of a launch: prompts, warm-up and rounds, on any timer and any watch.

Each round gives every variant one turn on the same prompts; a turn is one untimed call, which refills the caches that
the others emptied, and a timed one, or a few where all calls are fast. A variant never gets the same prompt twice
within a launch.
"""

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot.variants import Reply, UnavailableError, Workload
from ray_jobs.measure import busy, dynamo, orders
from ray_jobs.measure.answers import bytes_of, copied, equal
from ray_jobs.measure.interference import Interference, per_round
from ray_jobs.measure.method import METHOD
from ray_jobs.measure.result import REFRESH, TIMED, WARMUP, Samples, one_line
from ray_jobs.measure.timing import Reading, Timer
from ray_jobs.measure.watch import Counters, Watch

ROUNDS = 36  # of a launch, rounded up to whole squares; fewer where a call is slow
CALLS, MOST_CALLS = METHOD.timed, METHOD.most_timed  # of a turn; more where all calls are fast
TURN_NS = 1_000_000  # what the timed calls of the slowest variant's turn should come to
WARMUP_CALLS = 6  # at least
MOST_WARMUP_CALLS = 30
WINDOW = 3  # calls, whose median is compared with that of the window before
HELD_BYTES = 2e9  # that a round's timed answers may take, until they are compared; one call of a turn always may
STEADY = 0.05  # a window that is faster by no more than this has settled


class Log:
    """Collects samples as lists of plain integers, which become arrays after the last call."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.readings: list[Reading] = []

    def add(self, where: tuple[int, int, int, int, int], reading: Reading) -> None:
        """``where``: variant, phase, round, position, call."""
        self.rows.append(where)
        self.readings.append(reading)

    def walls(self, variant: int, phase: int) -> list[int]:
        """The times in ns of a variant's calls."""
        pairs = zip(self.rows, self.readings, strict=True)
        return [reading.wall_ns for where, reading in pairs if where[:2] == (variant, phase)]

    def samples(self) -> Samples:
        """All samples so far."""
        where = np.array(self.rows, dtype=np.int64).reshape(-1, 5).T
        start, wall, device, cpu, switches = (
            np.array([-1 if value is None else value for value in column], dtype=np.int64)
            for column in (zip(*self.readings, strict=True) if self.readings else ((),) * 5)
        )
        return Samples(
            variant=where[0].astype(np.int16),
            phase=where[1].astype(np.int8),
            round=where[2].astype(np.int32),
            position=where[3].astype(np.int16),
            call=where[4].astype(np.int32),
            start_ns=start - start.min(initial=start[0] if len(start) else 0),
            wall_ns=wall,
            device_ns=device,
            cpu_ns=cpu,
            involuntary_switches=switches.astype(np.int32),
        )


class Questions(Protocol):
    """The inputs of a launch's calls, each given once to each variant."""

    lengths: Tensor
    for_warm_up: int  # calls at most
    every: bool  # answer of a turn is compared, that of its untimed call too; else they may be too large

    def start_rounds(self) -> None:
        """Continues after what is reserved for the warm-up."""

    def next(self) -> tuple[Any, Tensor]:
        """The two arguments of a call. Raises IndexError when all have been given."""

    def last(self) -> tuple[Any, Tensor]:
        """The last result of ``next``."""

    def at(self, number: int) -> tuple[Any, Tensor]:
        """The two arguments of that call after those of the warm-up; 0 is the first."""

    def single(self, number: int) -> tuple[Any, Tensor]:
        """As ``at``, of batch 1 whatever the workload's is: the requests that a call answers together."""

    def room(self) -> int:
        """How many calls inputs suffice for after the warm-up."""

    def singles(self) -> int:
        """How many requests inputs suffice for after the warm-up."""

    def most_calls(self, calls: int, variants: int) -> int:
        """The most timed calls of a turn, up to ``calls`` and at least one, that inputs suffice for in a square."""

    def most_rounds(self, rounds: int, calls: int, variants: int) -> int:
        """The most whole squares of rounds, up to ``rounds``, that inputs suffice for. Raises ValueError if none do."""


class Prompts:
    """Batches of prompts, none given twice; the first ones are reserved for the warm-up, however long it takes."""

    every = True

    def __init__(self, pool: NDArray[np.int64], workload: Workload) -> None:
        rows = len(pool) // workload.batch * workload.batch
        if not rows:
            raise ValueError(f"{len(pool)} prompts do not make a batch of {workload.batch}")
        batches = torch.from_numpy(np.ascontiguousarray(pool[:rows])).to(workload.device)
        # Each in memory of its own, as the warm-up's copies are: a part of another tensor may not be aligned.
        self._batches = [batch.clone() for batch in torch.split(batches, workload.batch)]
        self.lengths = torch.full((workload.batch,), pool.shape[1])
        self._used = 0
        self.for_warm_up = min(MOST_WARMUP_CALLS, max(WARMUP_CALLS, len(self._batches) // 4))

    def start_rounds(self) -> None:
        """Continues after the warm-up's batches, so that the same launch always uses the same prompts."""
        self._used = self.for_warm_up

    def next(self) -> tuple[Tensor, Tensor]:
        """(prompts (B, T), lengths (B,)). Raises IndexError when all have been given."""
        batch = self._batches[self._used]
        self._used += 1
        return batch, self.lengths

    def last(self) -> tuple[Tensor, Tensor]:
        """The last result of ``next``."""
        return self._batches[self._used - 1], self.lengths

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """(prompts (B, T), lengths (B,)) of that call after those of the warm-up."""
        return self._batches[self.for_warm_up + number], self.lengths

    def single(self, number: int) -> tuple[Tensor, Tensor]:
        """(a prompt (1, T), its length (1,)) of those after the warm-up's."""
        call, place = divmod(number, len(self.lengths))
        return self._batches[self.for_warm_up + call][place : place + 1], self.lengths[:1]

    def room(self) -> int:
        """The batches that are not reserved for the warm-up."""
        return len(self._batches) - self.for_warm_up

    def singles(self) -> int:
        """Every prompt of those batches."""
        return self.room() * len(self.lengths)

    def first(self, count: int) -> list[Tensor]:
        """The batches from the pool's start that hold ``count`` prompts, or all of them if there are fewer."""
        return self._batches[: -(-count // len(self.lengths))]

    def most_calls(self, calls: int, variants: int) -> int:
        """The most timed calls of a turn, up to ``calls``, that unused prompts suffice for in a square of rounds."""
        return max(1, min(calls, (len(self._batches) - self._used) // variants - 1))

    def most_rounds(self, rounds: int, calls: int, variants: int) -> int:
        """The most whole squares of rounds, up to ``rounds``, that the unused prompts suffice for."""
        possible = (len(self._batches) - self._used) // (1 + calls) // variants * variants
        if not possible:
            raise ValueError(
                f"{len(self._batches)} batches of prompts do not suffice for {variants} rounds of {1 + calls} calls"
            )
        return min(rounds, possible)

    def asked(self, calls: int, rounds: int) -> list[Tensor]:
        """The batches of the last ``rounds``, in order: those of untimed calls too."""
        return self._batches[self._used - rounds * (1 + calls) : self._used]


def size(typical_ns: Mapping[str, float], seconds: float, variants: int) -> tuple[int, int]:
    """Returns (rounds, calls) so that the rounds last about ``seconds``, given each variant's typical call."""
    calls = int(np.clip(TURN_NS / max(typical_ns.values()), CALLS, MOST_CALLS))
    round_s = sum(typical_ns.values()) * (1 + calls) / 1e9
    affordable = int(seconds / round_s) // variants * variants
    return max(variants, min(orders.up_to_multiple(ROUNDS, variants), affordable)), calls


@dataclass(frozen=True)
class WarmUp:
    """The result of one variant's warm-up."""

    typical_ns: float  # the median of the last calls
    calls: int | None = None  # slow ones before it was settled; None: it was not
    failed: str | None = None
    skipped: str | None = None  # it can't answer this call, as it says itself
    answer_bytes: int = field(default=0, compare=False)


def calls_held(calls: int, answer_bytes: int) -> int:
    """Of ``calls`` timed calls of a turn, those whose answers fit: ``answer_bytes`` for one of each variant."""
    return max(1, min(calls, int(HELD_BYTES / max(1, answer_bytes))))


def settled(walls: Sequence[float]) -> bool:
    """Tells whether the last calls are no faster than those before them, beyond noise."""
    if len(walls) < max(2 * WINDOW, WARMUP_CALLS):
        return False
    before, last = np.median(walls[-2 * WINDOW : -WINDOW]), np.median(walls[-WINDOW:])
    return bool(last >= before * (1 - STEADY))


def slow_calls(walls: Sequence[float]) -> int:
    """Counts the calls at the start that were slower than the settled ones."""
    final = float(np.median(walls[-WINDOW:]))
    for first in range(len(walls) - WINDOW + 1):
        if walls[first] <= 1.25 * final and np.median(walls[first : first + WINDOW]) <= 1.1 * final:
            return first
    return len(walls) - WINDOW + 1


class Warming:
    """Warms variants up one by one, all on the same prompts."""

    def __init__(self, prompts: Questions, timer: Timer, log: Log) -> None:
        self._prompts, self._timer, self._log = prompts, timer, log
        self._batches: list[tuple[Any, Tensor]] = []

    def one(self, reply: Reply, index: int, place: int) -> WarmUp:
        """Calls a variant until it has settled; ``place``: of its building, ``index``: of it in the samples."""
        busy.at(index)
        try:
            walls, answer = self._called(reply, index, place)
        except UnavailableError as error:
            return WarmUp(0.0, skipped=str(error))
        except Exception as error:
            return WarmUp(0.0, failed=f"could not answer: {one_line(error)}")
        calls = slow_calls(walls) if settled(walls) else None
        return WarmUp(float(np.median(walls[-WINDOW:])), calls, answer_bytes=bytes_of(answer))

    def _called(self, reply: Reply, index: int, place: int) -> tuple[list[float], Any]:
        """The time of each call, and the last answer."""
        walls: list[float] = []
        while len(walls) < self._prompts.for_warm_up and not settled(walls):
            call = len(walls)
            if call == len(self._batches):
                self._batches.append(self._prompts.next())
            batch, lengths = self._batches[call]
            own = copied(batch)
            answer, reading = self._timer.call(reply, own, lengths)
            self._log.add((index, WARMUP, -1, place, call), reading)
            walls.append(reading.wall_ns)
            if not equal(own, batch):
                raise ValueError("it changes its inputs, which the other variants read after it")
        return walls, answer


def warm_up(
    replies: Mapping[str, Reply], variants: Sequence[str], prompts: Questions, timer: Timer, log: Log
) -> dict[str, WarmUp]:
    """Calls each variant on the same prompts until it has settled (a profiling JIT recompiles on its second call).

    ``replies`` are in building order, ``variants`` in the order of the samples' indices.
    """
    warming = Warming(prompts, timer, log)
    found = {
        name: warming.one(reply, variants.index(name), place) for place, (name, reply) in enumerate(replies.items())
    }
    busy.at(None)
    return found


@dataclass
class Answers:
    """The replies of the rounds, by the variants' indices."""

    replies: dict[int, list[Any]]  # those that are compared and were not judged yet, in order
    broken: dict[int, str] = field(default_factory=dict)  # why a variant that raised is left out
    skipped: dict[int, str] = field(default_factory=dict)  # and one that said that it can't answer a call
    readings: list[Counters] = field(default_factory=list)  # before the first round, and after each
    recompiled: Counter[int] = field(default_factory=Counter)  # functions that Dynamo looked at in a variant's turns

    @property
    def interference(self) -> Interference:
        """The machine's activity during each round."""
        return per_round(self.readings)


class Turns:
    """The turns of the variants of one process, taken when ``turn`` says so: whose turn it is others decide.

    A reply is copied as soon as its time is taken: what is filled in later, or overwritten by the next call, was not
    an answer within that time.
    """

    def __init__(self, calls: int, replies: Sequence[Reply | None], prompts: Questions, timer: Timer, log: Log) -> None:
        self.answers = Answers({i: [] for i, reply in enumerate(replies) if reply is not None})
        self._calls, self._replies, self._prompts, self._timer, self._log = calls, replies, prompts, timer, log
        self._number, self._batches = -1, list[tuple[Any, Tensor]]()

    def begin(self, number: int) -> None:
        """Draws the prompts of a round, the same for each of its turns."""
        self._number, self._batches = number, [self._prompts.next() for _ in range(1 + self._calls)]

    def turn(self, i: int, position: int) -> None:
        """Calls the variant of this index, unless it has broken before."""
        reply, answers = self._replies[i], self.answers
        if reply is None or i not in answers.replies:
            return
        busy.at(i)
        looked_at = dynamo.looked_at()
        try:
            for call, (batch, lengths) in enumerate(self._batches):
                tokens, reading = self._timer.call(reply, batch, lengths)
                if call or self._prompts.every:
                    answers.replies[i].append(copied(tokens))
                self._log.add((i, TIMED if call else REFRESH, self._number, position, call), reading)
        except UnavailableError as error:
            answers.skipped[i] = str(error)
            del answers.replies[i]
        except Exception as error:
            answers.broken[i] = f"could not answer: {one_line(error)}"
            del answers.replies[i]
        answers.recompiled[i] += dynamo.looked_at() - looked_at

    def rest(self) -> None:
        """Between two rounds: collects what the turns left behind."""
        busy.at(None)
        gc.collect(0)

    def judge(self, judged: Callable[[Mapping[int, list[Any]]], bool]) -> None:
        """Forgets the answers so far if ``judged`` returns True of them."""
        if judged(self.answers.replies):
            for kept in self.answers.replies.values():
                kept.clear()


def run_rounds(
    turns: Sequence[Sequence[int]],
    calls: int,
    replies: Sequence[Reply | None],
    prompts: Questions,
    timer: Timer,
    log: Log,
    watch: Watch,
    judged: Callable[[Mapping[int, list[Any]]], bool] = lambda answers: False,
) -> Answers:
    """Measures the rounds of variants in one process.

    After each, outside of all timing, ``judged`` is given the answers so far by the variants' indices; where it returns
    True they are forgotten: those of a model of the user's own may be large.
    """
    taken = Turns(calls, replies, prompts, timer, log)
    gc.collect()
    gc.disable()
    try:
        taken.answers.readings.append(watch.read())
        for number, order in enumerate(turns):
            taken.begin(number)
            for position, i in enumerate(order):
                taken.turn(i, position)
            taken.rest()
            taken.answers.readings.append(watch.read())
            taken.judge(judged)
    finally:
        gc.enable()
    return taken.answers
