"""What a trial does outside of its launches fits into its share of the budget, on a clock that it alone advances."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import made_trial
from numpy.typing import NDArray
from profiles import examples

from chatbot.variants import BASELINE, COMPILER, CONTROL, VARIANTS
from ray_jobs.measure.launch import Alone, _answers
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.result import Limits, Memory, VariantFacts
from ray_jobs.measure.trial import compiling_s, untimed_s
from ray_jobs.process.server import Loss, LossKind
from ray_jobs.process.untimed import BUILDS, LIMITS_S, Alive, Part, allowance_of, compiled, limits, memory

NAMES = (BASELINE, CONTROL, "compile", "export-aoti", "bf16")
LATE = Loss(LossKind.LATE, "it did not finish in its time and was ended")


@dataclass
class Machine:
    """Runs variants alone: how many seconds each needs in all, what processes that were ended leave to later ones."""

    needs: Mapping[str, float]
    launch_timeout_s: float = 60.0
    rate: float = 100.0  # replies a second, of the 500 that are compared at most
    died: str = ""  # a variant that takes its process with it
    now: float = 500.0
    done: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def alone(self, name: str, timeout_s: float, compare_s: float) -> Alone | Loss:
        assert timeout_s > 0
        self.asked.append(name)
        if name == self.died:
            return Loss(LossKind.DIED, "it was killed by SIGSEGV")
        room = min(timeout_s, self.launch_timeout_s)
        missing = self.needs.get(name, 1.0) - self.done.get(name, 0.0)
        if missing > room + 1e-6:  # sums of rounded numbers
            self.now += room
            self.done[name] = self.done.get(name, 0.0) + room
            return LATE
        self.done[name] = self.needs.get(name, 1.0)
        count = min(LEAST_COMPARED, int(min(room - missing, compare_s) * self.rate))
        self.now += missing + count / self.rate
        return Alone(100.0, np.ones((count, 3), dtype=np.int64) if count else None)


def compiling(machine: Machine, budget_s: float) -> tuple[list[Alive], Mapping[str, VariantFacts]]:
    """What is said, and what launches leave out."""
    work, said = compiled(made_trial(variants=NAMES, budget_s=budget_s), machine.alone, machine.clock), []
    while True:
        try:
            said.append(next(work))
        except StopIteration as end:
            return said, end.value


SECONDS = st.floats(0.1, 2000)
BUDGETS = st.floats(1, 1000)


@examples(50)
@given(SECONDS, SECONDS, BUDGETS, st.floats(60, 300))
def test_compiling_takes_no_longer_than_the_budget_again(
    first: float, second: float, budget_s: float, launch_timeout_s: float
) -> None:
    machine = Machine({"compile": first, "export-aoti": second}, launch_timeout_s)
    said, left_out = compiling(machine, budget_s)
    assert machine.now - 500 <= compiling_s(budget_s) * (1 + 1e-9)
    assert said == [Alive(Part.COMPILING, "compile"), Alive(Part.COMPILING, "export-aoti")]
    finished = {name for name in ("compile", "export-aoti") if machine.done.get(name) == machine.needs[name]}
    assert set(left_out) == {"compile", "export-aoti"} - finished


def test_a_variant_that_is_not_compiled_in_its_time_is_skipped_with_the_reason() -> None:
    _, left_out = compiling(Machine({"compile": 5.0, "export-aoti": 200.0}), budget_s=90)
    why = "the 90 s that a budget of 90 s leaves for compiling were over; give a larger --budget"
    assert left_out == {"export-aoti": VariantFacts(skipped=why)}


def test_what_a_compiler_makes_is_made_before_the_launches() -> None:
    """In a launch a slow one would cost the time of all its variants."""
    compiled_ones = [one for one in VARIANTS.values() if COMPILER in one.needs]
    assert compiled_ones
    assert all(one.cached for one in compiled_ones)


def test_what_another_device_runs_is_not_compiled() -> None:
    machine = Machine({})
    work = compiled(made_trial(variants=(*NAMES, "compile-cudagraph")), machine.alone, machine.clock)
    assert [one.variant for one in work] == machine.asked == ["compile", "export-aoti"]


def test_a_variant_that_takes_its_process_with_it_costs_itself_alone() -> None:
    machine = Machine({}, died="compile")
    _, left_out = compiling(machine, budget_s=90)
    assert left_out == {"compile": VariantFacts(failed="ended its process: it was killed by SIGSEGV")}
    assert machine.asked == ["compile", "export-aoti"]


def test_compiling_goes_on_in_another_process_but_not_for_ever() -> None:
    assert compiling(Machine({"compile": 400.0}), budget_s=1000)[1] == {}
    machine = Machine({"compile": 1e9})
    assert set(compiling(machine, budget_s=1e6)[1]) == {"compile"}
    assert machine.asked.count("compile") == BUILDS


def after(machine: Machine, budget_s: float) -> tuple[list[Alive], Memory, Limits]:
    """What follows the launches, of which the limits take two seconds."""
    trial = made_trial(variants=NAMES, budget_s=budget_s)
    allowance = allowance_of(trial, machine.clock)

    def ask_limits(timeout_s: float) -> Limits | Loss:
        assert timeout_s >= LIMITS_S
        machine.now += 2.0
        return Limits()

    said = [*memory(trial, list(NAMES), machine.alone, allowance), *limits(ask_limits, allowance)]
    (found,) = (one for one in said if isinstance(one, Memory))
    (last,) = (one for one in said if isinstance(one, Limits))
    return [one for one in said if isinstance(one, Alive)], found, last


@examples(50)
@given(st.lists(SECONDS, min_size=5, max_size=5), BUDGETS, st.floats(0.1, 1e4))
def test_what_follows_the_launches_takes_half_the_budget_at_most(
    needs: list[float], budget_s: float, rate: float
) -> None:
    machine = Machine(dict(zip(NAMES, needs, strict=True)), rate=rate)
    said, found, _ = after(machine, budget_s)
    assert machine.now - 500 <= untimed_s(budget_s) * (1 + 1e-9)
    assert [one.part for one in said] == [*[Part.MEMORY] * 5, Part.LIMITS]
    assert set(found.peak_mb) | set(found.lost) == set(NAMES), "each is known, or why not"
    assert not set(found.peak_mb) & set(found.lost)


def test_a_variant_whose_memory_did_not_fit_says_so_and_those_before_it_are_known() -> None:
    _, found, _ = after(Machine({"compile": 400.0}), budget_s=100)
    assert list(found.peak_mb) == [BASELINE, CONTROL]
    why = "the 60 s that a budget of 100 s leaves for memory and replies were over; give a larger --budget"
    assert found.lost == dict.fromkeys(("compile", "export-aoti", "bf16"), why)


def test_a_slow_baseline_leaves_time_to_the_others_and_fewer_replies_are_compared() -> None:
    _, found, _ = after(Machine({}, rate=1.0), budget_s=100)
    assert set(found.peak_mb) == set(NAMES)
    assert 0 < found.compared["bf16"].replies < 20


def test_variants_that_compare_nothing_take_no_time_for_it_from_those_that_do() -> None:
    """At 25 ms a reply, as of the tutorial's model; the exact variants are held to their promise in the launches."""
    _, found, _ = after(Machine({}, rate=40.0), budget_s=100)
    assert {name: one.replies for name, one in found.compared.items()} == {"bf16": LEAST_COMPARED}


class Ticks:
    """Each reply takes a second."""

    now = 0.0

    def reply(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.now += 1.0
        return batch


@pytest.mark.parametrize(("seconds", "count"), [(0.5, 1), (3.0, 3), (2.5, 3), (100.0, 10)])
def test_replies_are_collected_while_there_is_time(seconds: float, count: int) -> None:
    ticks, batches = Ticks(), [torch.ones(2, 3)] * 10
    found: Iterator[NDArray[np.int64]] = _answers(ticks.reply, batches, torch.ones(2), seconds, lambda: ticks.now)
    assert len(list(found)) == count
