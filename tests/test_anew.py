"""A memory of answers that outlives a process is found by asking what nobody has asked before, on a made-up clock."""

from itertools import chain, repeat
from typing import Any

import pytest
import torch
from launches import WORKLOAD, prompts
from torch import Tensor

from chatbot.config import PRESETS
from chatbot.variants import Reply, Workload
from chatbot.vocabulary import EOS, FIRST_WORD
from ray_jobs.measure.anew import CALLS, DRAWS, memory_fault
from ray_jobs.measure.subject import UNASKED, subject_of
from ray_jobs.measure.timing import Reading
from ray_jobs.measure.trial import Factory, Preset

MS = 1_000_000
TIMED = [9 * MS, 1 * MS, 9 * MS, 9 * MS, 1 * MS]  # two of five were remembered


class Made:
    """A timer on which calls take these ms, and nothing is called."""

    def __init__(self, first: list[float], then: float) -> None:
        self.calls, self._ms = 0, chain(first, repeat(then))

    def call(self, reply: Reply, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        self.calls += 1
        return prompts, Reading(0, int(next(self._ms) * MS), None, 0, 0)


def unasked() -> tuple[Any, Tensor]:
    return torch.empty(0), torch.empty(0)


def fault(timer: Made, timed: list[int]) -> str | None:
    return memory_fault(lambda prompts, _: prompts, timed, unasked, timer)


def test_who_needs_longer_for_anything_new_has_a_memory() -> None:
    timer = Made([], 9.0)
    assert fault(timer, TIMED) == (
        "it answers from a memory: a quarter of its timed calls took at most 1 ms, "
        "each of 30 answers to what nobody had asked before at least 9 ms"
    )
    assert timer.calls == DRAWS * CALLS


@pytest.mark.parametrize("slow", [0, 5, DRAWS * CALLS - 1])
def test_one_answer_that_is_as_quick_clears_it_however_many_were_slow(slow: int) -> None:
    timer = Made([900.0] * slow, 3.0)
    assert fault(timer, TIMED) is None
    assert timer.calls == slow + 1


def test_what_was_remembered_less_often_than_once_in_four_calls_changes_no_median() -> None:
    assert fault(Made([], 9.0), [*TIMED, *[9 * MS] * 5]) is None


def test_new_prompts_are_like_those_that_are_timed_and_others_each_time() -> None:
    subject = subject_of(Preset("tiny"), prompts(200), WORKLOAD)
    timed, lengths = subject.questions.next()
    first, again = subject.unasked(), subject.unasked()
    for found, told in (first, again):
        assert (found.shape, found.dtype, told.tolist()) == (timed.shape, timed.dtype, lengths.tolist())
        assert (found[:, -1] == EOS).all()
        assert (found[:, :-1] >= FIRST_WORD).all()
        assert (found < PRESETS["tiny"].vocabulary).all()
    assert not torch.equal(first[0], again[0]), "by chance once in a hundred thousand times"


def test_new_inputs_of_an_own_model_have_numbers_that_no_launch_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(Factory("quirks:adding"), prompts(0), Workload(model="quirks:adding"), launch=9)
    numbers: list[int] = []
    monkeypatch.setattr(
        "ray_jobs.measure.custom_model.inputs_of", lambda _model, number, _workload: numbers.append(number)
    )
    for _ in range(2):
        subject.unasked()
    assert all(UNASKED <= number < 2 * UNASKED for number in numbers)
    assert numbers[0] != numbers[1]
