"""Warm-up and rounds on a timer that follows a script and a watch that notes when it is read."""

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import WORKLOAD, prompts
from profiles import examples
from torch import Tensor

from chatbot.variants import Reply
from ray_jobs.measure.result import REFRESH, TIMED, WARMUP
from ray_jobs.measure.rounds import (
    MOST_WARMUP_CALLS,
    WARMUP_CALLS,
    Answers,
    Log,
    Prompts,
    WarmUp,
    calls_held,
    run_rounds,
    settled,
    slow_calls,
    warm_up,
)
from ray_jobs.measure.timing import CpuTimer, Reading
from ray_jobs.measure.watch import Counters

WALLS = st.lists(st.integers(1, 10**9), min_size=MOST_WARMUP_CALLS, max_size=MOST_WARMUP_CALLS)


def echo(batch: Tensor, lengths: Tensor) -> Tensor:
    return batch + 1


@dataclass
class Scripted:
    """A timer on which the calls of each reply take the times of its script, one after the other."""

    walls_ns: Mapping[Reply, Iterator[int]]
    now: int = 0

    def call(self, reply: Reply, batch: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        tokens, start, wall = reply(batch, lengths), self.now, next(self.walls_ns[reply])
        self.now += wall
        return tokens, Reading(start, wall, None, wall, 0)


@dataclass
class Noting:
    """A watch that notes in ``events`` when it is read, and counts its readings as ns."""

    events: list[str] = field(default_factory=list)

    def read(self) -> Counters:
        self.events.append("watch")
        return Counters(self.events.count("watch"), 0)


def source(count: int = 400) -> Prompts:
    return Prompts(prompts(count), WORKLOAD)


def warmed(walls_ns: Sequence[int], then: int | None = None) -> tuple[WarmUp, int]:
    """What becomes of a variant whose calls take these times, and then this; and how many calls it had."""
    log = Log()
    later = itertools.repeat(walls_ns[-1] if then is None else then)
    timer = Scripted({echo: itertools.chain(walls_ns, later)})
    found = warm_up({"odd": echo}, ["odd"], source(), timer, log)["odd"]
    return found, len(log.rows)


# Warm-up


@pytest.mark.process
def test_a_profiling_jit_is_waited_for_and_its_slow_calls_are_counted() -> None:
    """The first call profiles, the second compiles."""
    assert warmed([30, 400, 7]) == (WarmUp(7.0, calls=2), 7)


def test_a_fast_call_before_slow_ones_is_one_of_the_slow() -> None:
    assert warmed([8, 400, 300, 7]) == (WarmUp(7.0, calls=3), 8)


def test_one_slow_first_call_is_one_slow_call() -> None:
    found, calls = warmed([400, 7])
    assert found == WarmUp(7.0, calls=1)
    assert calls == WARMUP_CALLS


def test_a_variant_that_is_fast_at_once_has_the_fewest_calls_and_none_is_slow() -> None:
    assert warmed([50]) == (WarmUp(50.0, calls=0), WARMUP_CALLS)


def test_a_variant_that_is_compiled_late_is_warmed_until_then() -> None:
    assert warmed([100, 100, 100, 300, 10]) == (WarmUp(10.0, calls=4), 9)


def test_a_variant_that_keeps_getting_faster_is_not_settled_after_the_most_calls() -> None:
    walls = [round(10**9 * 0.9**i) for i in range(MOST_WARMUP_CALLS)]
    assert warmed(walls) == (WarmUp(float(walls[-2]), calls=None), MOST_WARMUP_CALLS)


def test_a_variant_that_has_stopped_getting_faster_is_settled() -> None:
    found, calls = warmed([round(1000 * 0.9**i) for i in range(12)], then=300)
    assert found.calls is not None
    assert found.typical_ns == 300
    assert 12 < calls < MOST_WARMUP_CALLS


def test_a_variant_that_gets_slower_is_settled() -> None:
    """It is no faster later: nothing is to be waited for."""
    assert warmed([100, 110, 120, 130, 140, 150])[1] == WARMUP_CALLS


def test_one_disturbed_call_among_even_ones_does_not_prolong_the_warm_up() -> None:
    for place in range(WARMUP_CALLS):
        walls = [100] * WARMUP_CALLS
        walls[place] = 10_000
        assert warmed(walls, then=100)[1] == WARMUP_CALLS


@given(WALLS)
@examples(50)
def test_a_warm_up_ends_at_the_first_call_after_which_it_is_settled(walls: list[int]) -> None:
    found, calls = warmed(walls)
    ends = [n for n in range(WARMUP_CALLS, MOST_WARMUP_CALLS + 1) if settled(walls[:n])]
    assert calls == (ends[0] if ends else MOST_WARMUP_CALLS)
    assert (found.calls is not None) == bool(ends)
    assert found.typical_ns == np.median(walls[calls - 3 : calls])
    assert found.calls is None or 0 <= found.calls <= calls - 3
    assert found.failed is None


@given(WALLS, st.integers(2, 1000))
def test_being_settled_does_not_depend_on_how_fast(walls: list[int], factor: int) -> None:
    exact = [wall * 1000 for wall in walls]
    assert settled(exact) == settled([wall * factor for wall in exact])
    assert slow_calls(exact) == slow_calls([wall * factor for wall in exact])


@given(st.lists(st.integers(1, 10**9), max_size=WARMUP_CALLS - 1))
def test_too_few_calls_are_never_settled(walls: list[int]) -> None:
    assert not settled(walls)


def test_each_variant_is_warmed_for_itself_on_the_same_prompts_in_the_order_of_building() -> None:
    seen: dict[str, list[bytes]] = {"a": [], "b": []}

    def telling(name: str) -> Reply:
        def reply(batch: Tensor, lengths: Tensor) -> Tensor:
            seen[name].append(batch.numpy().tobytes())
            return batch

        return reply

    a, b = telling("a"), telling("b")
    log = Log()
    timer = Scripted({b: itertools.chain([30, 400], itertools.repeat(7)), a: itertools.repeat(50)})
    pool = source()
    found = warm_up({"b": b, "a": a}, ["a", "b"], pool, timer, log)
    assert {name: warm.calls for name, warm in found.items()} == {"b": 2, "a": 0}
    assert seen["a"] == seen["b"][: len(seen["a"])]
    assert log.rows == [
        *((1, WARMUP, -1, 0, call) for call in range(7)),
        *((0, WARMUP, -1, 1, call) for call in range(WARMUP_CALLS)),
    ]
    assert pool.next()[0].numpy().tobytes() not in seen["b"]


def fails_after(calls: int) -> Reply:
    count = itertools.count(1)

    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        if next(count) > calls:
            raise NotImplementedError("no such\nkernel")
        return batch

    return reply


def test_a_variant_that_raises_in_its_warm_up_has_failed_and_the_next_is_warmed() -> None:
    odd, log = fails_after(2), Log()
    timer = Scripted({odd: itertools.repeat(5), echo: itertools.repeat(5)})
    found = warm_up({"odd": odd, "sound": echo}, ["odd", "sound"], source(), timer, log)
    assert found["odd"].failed == "could not answer: NotImplementedError: no such"
    assert found["sound"] == WarmUp(5.0, calls=0)
    assert [row[0] for row in log.rows] == [0] * 2 + [1] * WARMUP_CALLS


def test_a_variant_that_changes_its_prompts_has_failed_and_the_next_gets_them_unchanged() -> None:
    pool = {tuple(row) for row in prompts(400).tolist()}
    seen: list[tuple[int, ...]] = []

    def spoil(batch: Tensor, lengths: Tensor) -> Tensor:
        return batch.zero_()

    def sound(batch: Tensor, lengths: Tensor) -> Tensor:
        seen.append(tuple(batch[0].tolist()))
        return batch

    timer = Scripted({spoil: itertools.repeat(5), sound: itertools.repeat(5)})
    found = warm_up({"odd": spoil, "sound": sound}, ["odd", "sound"], source(), timer, Log())
    assert "changes its inputs" in (found["odd"].failed or "")
    assert found["sound"].failed is None
    assert set(seen) <= pool


# Rounds


def play(
    replies: Sequence[Reply | None], turns: Sequence[Sequence[int]], calls: int = 2, watch: Noting | None = None
) -> tuple[Answers, Log]:
    log = Log()
    return run_rounds(turns, calls, replies, source(), CpuTimer(), log, watch or Noting()), log


def test_the_watch_is_read_before_the_first_round_and_after_each_and_never_in_between() -> None:
    events: list[str] = []

    def clock() -> int:
        events.append("clock")
        return len(events)

    def noting(name: str) -> Reply:
        def reply(batch: Tensor, lengths: Tensor) -> Tensor:
            events.append(name)
            return batch

        return reply

    answers = run_rounds(
        [[0, 1], [1, 0]], 2, [noting("a"), noting("b")], source(), CpuTimer(clock), Log(), Noting(events)
    )
    a, b = ["clock", "a", "clock"] * 3, ["clock", "b", "clock"] * 3
    assert events == ["watch", *a, *b, "watch", *b, *a, "watch"]
    assert [reading.wall_ns for reading in answers.readings] == [1, 2, 3]
    assert answers.interference.round_ns.tolist() == [1, 1]


def one_buffer() -> Reply:
    """It writes every answer to the same memory."""
    buffer = torch.zeros(1, 4, dtype=torch.long)
    return lambda batch, lengths: buffer.copy_(batch + 1)


def late() -> Reply:
    """It answers with zeros at once, and writes what it should have said there when it is asked again."""
    owed: list[tuple[Tensor, Tensor]] = []

    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        for answer, said in owed:
            answer.copy_(said)
        tokens = torch.zeros_like(batch)
        owed.append((tokens, batch + 1))
        return tokens

    return reply


def answered(make: Callable[[], Reply]) -> list[list[list[int]]]:
    return [tokens.tolist() for tokens in play([make()], [[0]] * 3)[0].replies[0]]


def test_a_variant_that_overwrites_one_buffer_is_seen_as_it_answered() -> None:
    assert answered(one_buffer) == answered(lambda: echo)


def test_a_variant_that_fills_its_answers_in_later_is_seen_as_it_answered() -> None:
    assert answered(late) == [[[0] * 4]] * 9


def test_every_reply_is_compared_that_of_the_untimed_call_too_unless_answers_may_be_large() -> None:
    pool = source()
    pool.every = False
    answers = run_rounds([[0], [0]], 2, [echo], pool, CpuTimer(), Log(), Noting())
    every = [(batch + 1).tolist() for batch in pool.asked(calls=2, rounds=2)]
    assert [tokens.tolist() for tokens in answers.replies[0]] == [*every[1:3], *every[4:]]


def test_replies_are_of_all_calls_in_order() -> None:
    pool = source()
    answers = run_rounds([[0], [0]], 2, [echo], pool, CpuTimer(), Log(), Noting())
    expected = [(batch + 1).tolist() for batch in pool.asked(calls=2, rounds=2)]
    assert [tokens.tolist() for tokens in answers.replies[0]] == expected


def test_answers_are_judged_after_each_round_and_forgotten_where_that_was_enough() -> None:
    seen: list[dict[int, int]] = []

    def judged(given: Mapping[int, list[Any]]) -> bool:
        seen.append({variant: len(answers) for variant, answers in given.items()})
        return len(seen) != 2

    answers = run_rounds(
        [[0, 1]] * 4, 2, [echo, fails_after(3 + 1)], source(), CpuTimer(), Log(), Noting(), judged=judged
    )
    assert seen == [{0: 3, 1: 3}, {0: 3}, {0: 6}, {0: 3}], "what was not judged in the second round stays"
    assert answers.replies == {0: []}


@pytest.mark.parametrize(("megabytes", "calls"), [(0, 9), (1, 9), (400, 5), (1500, 1), (9000, 1)])
def test_large_answers_make_turns_shorter_and_never_empty(megabytes: int, calls: int) -> None:
    assert calls_held(9, megabytes * 1_000_000) == calls


def test_samples_are_of_each_call_of_each_turn_the_first_untimed() -> None:
    _, log = play([echo, None, echo], [[2, 0], [0, 2]])
    assert log.rows == [
        (variant, TIMED if call else REFRESH, number, position, call)
        for number, order in enumerate([[2, 0], [0, 2]])
        for position, variant in enumerate(order)
        for call in range(3)
    ]


def test_a_variant_that_raises_in_a_round_is_left_out_from_then_on_and_the_rounds_go_on() -> None:
    watch = Noting()
    answers, log = play([echo, fails_after(4)], [[0, 1]] * 3, watch=watch)
    assert answers.broken == {1: "could not answer: NotImplementedError: no such"}
    assert answers.replies.keys() == {0}
    assert len(answers.replies[0]) == 9
    assert [row[2] for row in log.rows if row[0] == 1] == [0, 0, 0, 1]
    assert len(answers.readings) == 4


def test_nothing_is_collected_while_it_is_timed_and_afterwards_again() -> None:
    states: list[bool] = []

    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        states.append(gc.isenabled())
        return batch

    assert gc.isenabled()
    play([reply], [[0]] * 2)
    assert states == [False] * 6
    assert gc.isenabled()


def test_a_watch_that_breaks_leaves_the_collector_on() -> None:
    class Broken:
        def read(self) -> Counters:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        run_rounds([[0]], 2, [echo], source(), CpuTimer(), Log(), Broken())
    assert gc.isenabled()
