"""The audit's arithmetic, its promises and its page; its planted variants in one launch, without Ray."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from launches import made_launch, made_trial, stolen

from chatbot.checkpoint import Trained
from chatbot.errors import UsageError
from chatbot.variants import BASELINE, CONTROL, Workload, variant_named
from ray_jobs.audit import page, parts
from ray_jobs.audit.cost import LAUNCH_SERVER, Cost, null_sample, processes
from ray_jobs.audit.detection import FAULTS
from ray_jobs.audit.folder import new_audit
from ray_jobs.audit.load import timetable
from ray_jobs.audit.mistakes import named
from ray_jobs.audit.parts import worst
from ray_jobs.audit.plan import DELAYED, SPUN, Plan
from ray_jobs.audit.rates import (
    EXIT,
    Comparison,
    Promise,
    aa_promise,
    effect_promise,
    effects_found,
    false_verdicts,
    share_interval,
)
from ray_jobs.audit.station import Measured
from ray_jobs.cluster.signals import Terminated
from ray_jobs.matrix.rows import Status, rows_of
from ray_jobs.measure import launch as measure
from ray_jobs.measure.result import Launch, LaunchResult
from ray_jobs.measure.trial import Checkpoint, Place

alone = pytest.mark.alone

# What the plants of a launch must be found out by; the same words as the audit looks for.
FOUND_IN_A_LAUNCH = {
    "ANOTHER_DEVICE": "holds weights on",
    "NOT_SYNCHRONISED": "promises the baseline's replies",
    "NEVER_COMPUTED": "replies are on meta",
    "SAME_REPLY": "promises the baseline's replies",
    "HALF": "shape",
    "NOTHING": "promises the baseline's replies",
    "DROPOUT": "training mode",
    "GRADIENTS": "records gradients",
    "TOKENISES": "handles text",
}


def comparison(number: int = 0, speedup: float | None = 1.0, half: float = 0.01, **given: Any) -> Comparison:
    """A trial whose interval reaches ``half`` to either side."""
    known = {} if speedup is None else {"speedup_low": speedup - half, "speedup_high": speedup + half}
    content = {"beside_load": False, "variant": CONTROL, "truth": 1.0, "status": "done", "verdict": "same"}
    return Comparison(number, speedup=speedup, **{**content, **known, "seconds": 4.0, **given})


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_exact_interval_of_a_share_holds_it_and_nothing_impossible(count: tuple[int, int]) -> None:
    low, high = share_interval(*count)
    assert 0 <= low <= count[0] / count[1] <= high <= 1


def test_the_exact_interval_is_the_known_one() -> None:
    """Rule of three and its exact form: of 36 without one, at most 1 - 0.025 ** (1 / 36)."""
    assert share_interval(0, 36) == pytest.approx((0.0, 1 - 0.025 ** (1 / 36)))
    assert share_interval(36, 36) == pytest.approx((0.025 ** (1 / 36), 1.0))
    assert share_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("wrong", "of", "promise"),
    [
        (0, 40, Promise.KEPT),
        (0, 30, Promise.TOO_FEW),
        (10, 200, Promise.KEPT),
        (12, 200, Promise.TOO_FEW),
        (30, 200, Promise.BROKEN),
        (0, 0, Promise.TOO_FEW),
        (3, 3, Promise.BROKEN),
    ],
)
def test_the_promise_on_identical_programs(wrong: int, of: int, promise: Promise) -> None:
    assert aa_promise(wrong, of) == promise


def test_intervals_that_miss_too_often_break_the_promise_though_the_margin_hides_them() -> None:
    assert aa_promise(0, 200, missing=10) == Promise.KEPT
    assert aa_promise(0, 200, missing=30) == Promise.BROKEN


def test_trials_that_failed_are_held_against_the_promise() -> None:
    assert aa_promise(0, 190, failed=10) == Promise.KEPT
    assert aa_promise(0, 190, failed=11) == Promise.TOO_FEW


@pytest.mark.parametrize(
    ("percent", "found", "of", "bias", "promise"),
    [
        (2, 38, 40, (-0.001, 0.001), Promise.KEPT),
        (2, 36, 40, (-0.001, 0.001), Promise.KEPT),
        (2, 33, 40, (-0.001, 0.001), Promise.TOO_FEW),
        (2, 20, 40, (-0.001, 0.001), Promise.BROKEN),
        (1, 0, 40, (-0.001, 0.001), Promise.NONE),
        (1, 0, 40, (0.006, 0.008), Promise.BROKEN),
        (2, 40, 40, (None, None), Promise.TOO_FEW),
        (5, 5, 5, (-0.001, 0.001), Promise.TOO_FEW),
        (5, 40, 40, (0.006, 0.008), Promise.BROKEN),
        (5, 40, 40, (-0.009, -0.006), Promise.BROKEN),
        (5, 40, 40, (0.004, 0.008), Promise.TOO_FEW),
        (5, 40, 40, (-0.006, 0.001), Promise.TOO_FEW),
    ],
)
def test_the_promise_on_a_known_slowdown(
    percent: int, found: int, of: int, bias: tuple[float | None, float | None], promise: Promise
) -> None:
    assert effect_promise(percent, found, of, *bias) == promise


def test_false_verdicts_are_those_that_name_a_difference() -> None:
    done = [comparison(0), comparison(1, 1.03, verdict="faster"), comparison(2, 0.97, verdict="slower")]
    done += [comparison(3, 1.01, 0.02, verdict="inconclusive"), comparison(4, None, status="failed")]
    found = false_verdicts(done, 0.02)
    assert (found["comparisons"], found["false_verdicts"], found["failed"], found["same"]) == (4, 2, 1, 1)
    assert (found["rate_low"], found["rate_high"]) == share_interval(2, 4)
    assert found["intervals_missing_1"] == 2
    assert found["seconds"] == 20.0
    assert found["promise"] == Promise.BROKEN


def test_a_sound_program_called_invalid_is_a_false_verdict_too() -> None:
    found = false_verdicts([comparison(0), comparison(1, None, verdict="invalid")], 0.02)
    assert (found["comparisons"], found["false_verdicts"], found["failed"]) == (2, 1, 0)


def test_a_trial_that_failed_tells_nothing_though_it_left_an_interval() -> None:
    found = false_verdicts([comparison(0, 1.2, status="failed", verdict="faster")], 0.02)
    assert (found["comparisons"], found["false_verdicts"], found["failed"]) == (0, 0, 1)
    assert found["promise"] == Promise.TOO_FEW


def test_verdicts_and_figures_beyond_the_margin_are_counted_apart() -> None:
    done = [comparison(0, 1.03, 0.05, verdict="inconclusive"), comparison(1, lost_launches=2)]
    found = false_verdicts(done, 0.02)
    assert (found["inconclusive"], found["same"], found["beyond_margin"], found["lost_launches"]) == (1, 1, 1, 2)


def test_an_interval_within_the_margin_misses_1_without_a_false_verdict() -> None:
    found = false_verdicts([comparison(0, 1.01, 0.005, verdict="same")], 0.02)
    assert (found["false_verdicts"], found["intervals_missing_1"]) == (0, 1)


def test_a_peer_is_wrong_where_it_shows_more_than_the_margin() -> None:
    shown = [1.0, 1.019, 1.03, 1 / 1.03, None]
    done = [comparison(i, torch_benchmark=ratio, torch_benchmark_s=1.0) for i, ratio in enumerate(shown)]
    peer = false_verdicts(done, 0.02)["peers"]["torch_benchmark"]
    assert (peer["comparisons"], peer["false_verdicts"]) == (4, 2)
    assert peer["worst_error"] == pytest.approx(0.03)
    assert false_verdicts(done, 0.02)["peers"]["mean_of_100"]["comparisons"] == 0


def test_an_effect_is_found_where_the_whole_interval_is_below_1() -> None:
    truth = 1 / 1.02
    done = [comparison(i, truth, 0.01, truth=truth) for i in range(8)]
    done += [comparison(8, truth, 0.03, truth=truth), comparison(9, 1.05, 0.01, truth=truth)]
    done += [comparison(10, truth, 0.01, truth=truth, status="failed")]
    found = effects_found(done, 2)
    assert (found["found"], found["comparisons"], found["failed"]) == (8, 11, 1)
    assert found["bias"] == pytest.approx(math.log(1.05 / truth) / 10)
    assert found["intervals_missing_truth"] == 1  # 1.05 within 1% is not 1 / 1.02


def test_what_is_found_need_not_be_called_slower() -> None:
    """Half a percent beyond doubt is the same within a margin of two."""
    done = [comparison(0, 0.995, 0.002, verdict="same"), comparison(1, 0.95, verdict="slower")]
    found = effects_found(done, 1)
    assert (found["found"], found["called_slower"]) == (2, 1)


def test_the_worst_part_decides_the_exit_code() -> None:
    assert [worst([0, 0]), worst([0, 3]), worst([3, 1, 0])] == [0, 3, 1]
    assert EXIT == {Promise.KEPT: 0, Promise.BROKEN: 1, Promise.TOO_FEW: 3, Promise.NONE: 0}


def test_the_load_is_the_same_every_time_and_as_heavy_as_asked() -> None:
    first, again = (list(islice(timetable(5, 0.2), 2000)) for _ in range(2))
    assert first == again != list(islice(timetable(6, 0.2), 2000))
    busy, idle = (sum(column) for column in zip(*first, strict=True))
    assert 0.18 < busy / (busy + idle) < 0.22


def test_a_page_says_what_each_part_found() -> None:
    spec = {"model": "small", "budget": 5.0, "margin": 0.02, "precision": 0.01}
    faults = [
        {"fault": "a|b", "caught": False, "by": "nothing; a | b"},
        {"fault": "c", "caught": True, "by": "impossible by construction: so it is"},
    ]
    cost = Cost(0.45, 0.45, 0.9, 9.0, 0.1, 40.0, 0.01, None, 50, 10)
    parts = [
        {"part": "aa", "spec": spec, **false_verdicts([comparison(i) for i in range(50)], 0.02)},
        {"part": "effect-2", "spec": spec, **effects_found([comparison(0, 0.98)], 2)},
        {"part": "faults", "spec": spec, "faults": faults},
        {"part": "cost", "spec": spec, **asdict(cost), "missed": ["sample"]},
    ]
    environment = {"driver": {"python": "3.11", "source_hash": "ab", "packages": {"torch": "2"}}}
    audit = {"run_id": "x", "started": "now", "seconds": 60.0, "command": ["audit"], "environment": environment}
    text = page.render({**audit, "parts": parts})
    assert "0 of 50 | 0.0% (0.0% to 7.1%)" in text
    assert f"**{Promise.KEPT}**" in text
    assert "| 1 of 1 | 100% (" in text
    assert "1 of 2 caught, 1 of them impossible by construction" in text
    assert "| a\\|b | NO | nothing; a \\| b |" in text
    assert "9.0 us" in text
    assert "Missed: sample." in text
    assert "None" not in text


def measured(counter: str, disturbed_from: int) -> Measured:
    """Ten launches of the baseline and its control; from one of them on a counter moves in every round."""
    launches = []
    for index in range(10):
        watched = stolen(20, [])
        getattr(watched, counter)[:] = 15 * 10**8 if index >= disturbed_from else 0
        launches.append(made_launch({BASELINE: 10.0, CONTROL: 10.0}, index, interference=watched))
    trial, place = made_trial(variants=(BASELINE, CONTROL)), Place()
    return Measured(trial, place, status="done", rows=rows_of(trial, place, "done", None, launches), launches=launches)


@pytest.mark.parametrize(
    ("counter", "disturbed_from", "noticed"),
    [
        ("foreign_cpu_ns", 5, True),
        ("run_delay_ns", 5, True),
        ("steal_ns", 5, False),  # another machine's doing
        ("foreign_cpu_ns", 0, False),  # no more after its start than before
        ("foreign_cpu_ns", 10, False),
    ],
)
def test_a_background_process_is_noticed_by_the_counters_it_moves(
    counter: str, disturbed_from: int, noticed: bool
) -> None:
    (fault,) = [one for one in FAULTS if one.half_way]
    state = measured(counter, disturbed_from)
    assert (fault.judge(state) is not None) == noticed
    unwarned = replace(state, rows=[replace(row, warnings=()) for row in state.rows])
    assert fault.judge(unwarned) is None


def test_costs_beyond_the_targets_are_named() -> None:
    assert Cost(0.43, 0.43, 0.86, 4.0, 0.1, 40.0, 0.01, 0.03, 50.0, 10).broken == []
    assert len(Cost(0.4, 0.4, 0.84, 6.0, 0.1, 40.0, 0.03, 0.03, 50.0, 10).broken) == 3
    assert all("unknown" in words for words in Cost(None, None, None, None, None, None, None, None, 50.0, 0).broken)


@alone
def test_a_sample_of_nothing_costs_little_and_its_inside_less() -> None:
    sample, inside, between = null_sample()
    assert 0 < inside < sample < between


@alone
def test_the_census_tells_a_launch_server_and_its_launch_from_other_children() -> None:
    """A launch server with one launch, by their command lines, below this process and beside another child."""
    server = "import os, sys; os.fork(); print(flush=True); sys.stdin.read()"
    asked = [[sys.executable, "-c", server, LAUNCH_SERVER], [sys.executable, "-c", "print(flush=True); input()"]]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for command in asked]
    try:
        for child, lines in zip(children, (2, 1), strict=True):
            assert child.stdout is not None
            for _ in range(lines):
                child.stdout.readline()
        roles = processes()
        found = [roles[pid][0] for pid in (os.getpid(), *(child.pid for child in children))]
        assert found == ["driver", "server", "ray"]
        assert [role for role, _ in roles.values()].count("launch") == 1
        assert all(seconds >= 0 for _, seconds in roles.values())
    finally:
        for child in children:
            child.communicate()


def test_what_is_slower_by_a_known_share_may_be_the_baselines_program(launched: "Launcher") -> None:
    """In ``base``, where nothing spins, it is that program: called a fault, no comparison would have a speedup."""
    facts = launched(SPUN).facts
    assert {name: facts[name].invalid for name in (BASELINE, SPUN)} == {BASELINE: None, SPUN: None}


def test_plants_are_named_and_found_like_any_variant() -> None:
    for name in (*DELAYED.values(), *map(named, FOUND_IN_A_LAUNCH)):
        assert variant_named(name).prepare is not None
    with pytest.raises(UsageError, match="NOWHERE"):
        variant_named(named("NOWHERE"))
    with pytest.raises(UsageError, match="not a chatbot"):
        variant_named(named("CALLS_BEFORE_DEATH"))


Launcher = Callable[..., LaunchResult]


@pytest.fixture(scope="module")
def launched(toy_checkpoint: Path, toy: Trained) -> Launcher:
    """Runs one launch of the baseline and some plants on the toy chatbot, in this process."""
    words = toy.vocabulary
    rng = np.random.default_rng(0)
    pool = rng.integers(3, len(words), (400, 5))
    pool = np.unique(np.concatenate([pool[:, :4], np.full((400, 1), 2)], axis=1), axis=0)
    pool = rng.permutation(pool)

    def run(*names: str) -> LaunchResult:
        workload = Workload(prompt_tokens=5, reply_tokens=10, model="toy")
        launch = Launch(0, seed=1, rounds=4, calls=2)
        try:
            return measure.measure(workload, (BASELINE, *names), Checkpoint(str(toy_checkpoint)), pool, launch)
        finally:
            torch.set_grad_enabled(True)

    return run


@alone
@pytest.mark.parametrize("plant", FOUND_IN_A_LAUNCH)
def test_a_planted_mistake_is_named(launched: Launcher, plant: str) -> None:
    facts = launched(named(plant)).facts
    assert FOUND_IN_A_LAUNCH[plant] in (facts[named(plant)].invalid or ""), facts[named(plant)]
    assert facts[BASELINE].invalid is None


@alone
def test_the_same_program_under_two_names_is_named(launched: Launcher) -> None:
    facts = launched("torchscript", named("SAME_PROGRAM")).facts
    assert facts[named("SAME_PROGRAM")].invalid == "it is the same program as torchscript"


@alone
def test_a_memory_of_prompts_has_nothing_to_remember(launched: Launcher) -> None:
    facts = launched(named("MEMORY")).facts[named("MEMORY")]
    assert (facts.failed, facts.invalid) == (None, None)


@alone
@pytest.mark.parametrize("percent", DELAYED)
def test_a_delayed_variant_is_sound_and_slower(launched: Launcher, percent: int) -> None:
    result = launched(DELAYED[percent])
    assert (result.facts[DELAYED[percent]].failed, result.facts[DELAYED[percent]].invalid) == (None, None)


def test_a_delay_is_a_share_of_the_call_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that a call moves by 1000 and each look by 1, 5% more is 1050 and the looks."""
    now = [0]

    def clock() -> int:
        now[0] += 1
        return now[0]

    def inner(_chatbot: object, _workload: object) -> Callable[[Any, Any], Any]:
        def reply(prompts: Any, _lengths: Any) -> Any:
            now[0] += 1000
            return prompts

        return reply

    monkeypatch.setattr("time.perf_counter_ns", clock)
    monkeypatch.setattr("chatbot.variants.eager.prepare", inner)
    reply = variant_named(DELAYED[5]).prepare(None, None)  # type: ignore[arg-type]
    reply(torch.zeros(1), torch.zeros(1))
    assert 1050 <= now[0] <= 1060


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (Terminated(signal.SIGTERM), 143, "terminated")],
)
def test_an_audit_that_is_ended_says_by_what(
    error: BaseException, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, new_audit("aa", str(tmp_path), "a1"):
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"ray_jobs: {said}; what was found is in {tmp_path}/a1\n"
    assert (tmp_path / "a1" / "summary.md").is_file()


ASKED = {"kind": "aa", "spec": {"seed": 1}}


def interrupted(folder: Path, *done: Comparison) -> None:
    def begin() -> None:
        with new_audit("aa", str(folder), "a1", ASKED) as audit:
            for comparison in done:
                audit.keep("aa", comparison, [])
            raise KeyboardInterrupt

    with pytest.raises(typer.Exit):
        begin()


def test_an_audit_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = [Comparison(number, False, CONTROL, 1.0, Status.DONE, speedup=1.0 + number) for number in range(5)]
    interrupted(tmp_path, *done[:2])
    asked: list[int] = []

    def run_plan(here: object, plan: Plan, first: int) -> Iterator[tuple[Comparison, Measured]]:
        asked.append(first)
        for comparison in done[first:]:
            yield comparison, Measured(made_trial(), Place())

    monkeypatch.setattr(parts, "run_plan", run_plan)
    with new_audit("aa", str(tmp_path), "a1", ASKED, resume=True) as audit:
        found = parts._compared(audit, None, Plan(5))  # type: ignore[arg-type]
    assert asked == [2]
    assert [(one.number, one.speedup) for one in found] == [(one.number, one.speedup) for one in done]
    kept = json.loads((tmp_path / "a1" / "audit.json").read_text())
    assert len(kept["resumed"]) == 1


def test_one_that_was_interrupted_before_its_first_comparison_begins_anew(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with new_audit("aa", str(tmp_path), "a1", ASKED, resume=True) as audit:
        assert audit.earlier("aa") == []


def test_an_audit_that_was_asked_otherwise_does_not_go_on(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with pytest.raises(UsageError, match="asked otherwise"), new_audit("aa", str(tmp_path), "a1", {}, resume=True):
        pass
    with pytest.raises(UsageError, match="give its name as --run-id"), new_audit("aa", str(tmp_path), None, {}, True):
        pass
