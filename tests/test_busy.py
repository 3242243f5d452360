"""A variant that ends its process: it is named, and costs itself."""

import os

import pytest
from launches import ALL, WORKLOAD, enter, prompts
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, CONTROL, Reply, Workload, torchscript
from ray_jobs.measure import busy
from ray_jobs.measure import launch as measure
from ray_jobs.measure.result import Launch, VariantFacts
from ray_jobs.measure.trial import Preset
from ray_jobs.process.server import Loss, LossKind
from ray_jobs.process.trial import Crashes

SHORT = Launch(index=1, seed=7, rounds=6, calls=3)
CRASH = Loss(LossKind.DIED, "it was killed by SIGSEGV in torchscript", "torchscript")


@pytest.mark.process
def test_what_a_forked_process_was_busy_with_is_known_after_its_end() -> None:
    busy.enter(["none of these"])
    child = os.fork()
    if child == 0:
        busy.enter([BASELINE, "package.module:MINE \N{SNOWMAN}"])
        busy.at(1)
        os._exit(0)
    os.waitpid(child, 0)
    assert busy.last() == "package.module:MINE \N{SNOWMAN}"
    busy.at(None)
    assert busy.last() is None


def test_more_names_than_the_memory_holds_are_no_error() -> None:
    busy.enter([f"variant{i}" * 20 for i in range(200)])
    busy.at(199)
    assert busy.last() is None
    busy.on("not one of them")
    assert busy.last() is None


@pytest.mark.parametrize("when", ["prepared", "warmed up", "timed", "probed"])
def test_a_launch_says_which_variant_it_is_busy_with(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from within the calls of the variant itself, and that nobody is blamed between them."""
    seen: list[str | None] = []

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        reply = torchscript.prepare(chatbot, workload)
        seen.append(busy.last())

        def answer(batch: Tensor, lengths: Tensor) -> Tensor:
            seen.append(busy.last())
            return reply(batch, lengths)

        return answer

    enter(monkeypatch, "torchscript", prepare, like="torchscript")
    result = measure.measure(WORKLOAD, ALL, Preset("tiny"), prompts(200), SHORT)
    warmed = int(((result.samples.variant == ALL.index("torchscript")) & (result.samples.phase == 0)).sum())
    part = {
        "prepared": seen[:1],
        "warmed up": seen[1 : 1 + warmed],
        "timed": seen[1 + warmed : -1],
        "probed": seen[-1:],
    }
    assert set(part[when]) == {"torchscript"}
    assert busy.last() is None


def test_a_variant_that_is_left_out_has_failed_and_the_others_are_measured() -> None:
    left_out = {"torchscript": VariantFacts(failed="ended its process: it was killed by SIGSEGV in torchscript")}
    result = measure.measure(WORKLOAD, ALL, Preset("tiny"), prompts(200), SHORT, left_out=left_out)
    assert result.facts["torchscript"] == left_out["torchscript"]
    assert [result.facts[name].failed for name in (BASELINE, CONTROL)] == [None, None]
    assert result.log_speedups().keys() == {CONTROL}


def test_a_variant_that_crashes_a_launch_twice_is_left_out_of_the_next() -> None:
    crashes = Crashes()
    crashes.add(SHORT, CRASH)
    assert crashes.left_out == {}, "once may be chance"
    crashes.add(SHORT, CRASH)
    why = "ended its process: it was killed by SIGSEGV in torchscript"
    assert crashes.left_out == {"torchscript": VariantFacts(failed=why)}


@pytest.mark.parametrize(
    "loss",
    [
        Loss(LossKind.DIED, "it was killed by SIGSEGV in eager", BASELINE),
        Loss(LossKind.DIED, "it was killed by SIGKILL"),
        Loss(LossKind.LATE, "it did not finish in its time and was ended in torchscript", "torchscript"),
        Loss(LossKind.RAISED, "KeyError: 1"),
    ],
)
def test_nothing_else_is_left_out(loss: Loss) -> None:
    crashes = Crashes()
    for _ in range(3):
        crashes.add(SHORT, loss)
    assert crashes.left_out == {}


def test_a_variant_that_leaves_its_cores_is_left_out_at_once_and_with_the_baseline_goes_its_side() -> None:
    crashes, why = Crashes(), "it ended on cores [1] with 1 threads, not as pinned"
    crashes.add(SHORT, Loss(LossKind.MOVED, why, "torchscript"), "other", ["other: eager", "other: torchscript"])
    assert crashes.left_out == {"other: torchscript": VariantFacts(failed=why)}
    crashes.add(SHORT, Loss(LossKind.MOVED, why, BASELINE), "other", ["other: eager", "other: torchscript"])
    assert set(crashes.left_out) == {"other: eager", "other: torchscript"}


def test_crashes_of_two_launches_are_not_added_up() -> None:
    crashes = Crashes()
    for index in range(3):
        crashes.add(Launch(index, seed=7), CRASH)
    assert crashes.left_out == {}
