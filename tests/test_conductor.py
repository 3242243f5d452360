"""Launches of several sides: real processes, of which one works at a time, and mistakes that are caught by name."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launches import made_trial, prompts, tiny
from test_trial import children, gone, wait_until

from chatbot import checkpoint
from chatbot.variants import BASELINE, CONTROL, Workload
from chatbot.vocabulary import Vocabulary
from ray_jobs.audit import side_mistakes
from ray_jobs.audit.detection import FAULTS, Fault
from ray_jobs.audit.station import Measured
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure.result import TIMED, WARMUP, LaunchResult
from ray_jobs.measure.trial import CheckpointBytes, Factory, Inputs, Place, Trial
from ray_jobs.process.player import Player
from ray_jobs.process.resting import awake
from ray_jobs.process.trial import Failure, TrialOutcome, run_trial
from ray_jobs.process.untimed import Alive
from ray_jobs.sides import AGAIN, BASE, label_of, sides_of
from ray_jobs.statistics import Verdict

pytestmark = pytest.mark.process

WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
CAPABILITY = "env ATEN_CPU_CAPABILITY=default"
ODD = "side_quirks:ODD"

Told = tuple[Trial, list[TrialOutcome]]
Asked = tuple[int, str, str]  # (pid of a launch server, its side, what its process was asked to do)


def toy(count: int = 4000) -> Inputs:
    words = Vocabulary(tuple(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(47)))
    model = CheckpointBytes(checkpoint.to_bytes(checkpoint.Trained("toy", tiny(), words)))
    return Inputs(model, {4: prompts(count)})


def asked_trial(asked: Sequence[str], variants: tuple[str, ...] = (BASELINE, CONTROL)) -> Trial:
    return made_trial(workload=WORKLOAD, variants=variants, memory=False, sides=sides_of(asked))


def outcomes(trial: Trial, inputs: Inputs, most: int = 99) -> list[TrialOutcome]:
    """What a trial tells whose least number of launches is one block, until it had ``most`` launches."""
    found: list[TrialOutcome] = []
    running = run_trial(trial, inputs)
    assert isinstance(running, Generator)
    with pytest.MonkeyPatch.context() as patch, closing(running) as told:
        patch.setattr("ray_jobs.process.trial.LEAST_LAUNCHES", 1)
        while sum(isinstance(one, LaunchResult) for one in found) < most and (one := next(told, None)) is not None:
            found.append(one)
    return [one for one in found if not isinstance(one, Alive)]


def rows(trial: Trial, found: Sequence[TrialOutcome]) -> dict[str, Row]:
    launches = [one for one in found if isinstance(one, LaunchResult)]
    return {row.name: row for row in rows_of(trial, Place(), Status.DONE, None, launches)}


def wrapper(place: Path, name: str, *options: str) -> str:
    """An interpreter that is this one, with options."""
    path = place / name / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(options)} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """What the processes of ``sound`` were asked, in order."""
    return []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, asked: list[Asked]) -> Told:
    """A trial of a side that computes otherwise, one that is base itself, and one without PyTorch."""
    whole = Player.ask_all

    def noted(player: Player, do: str, *given: Any, **more: Any) -> Any:
        asked.append((player._server.pid, player.side, do))
        return whole(player, do, *given, **more)

    place = tmp_path_factory.mktemp("interpreters")
    sides = ["env=ATEN_CPU_CAPABILITY=default"]
    sides += [f"python={wrapper(place, 'same')}", f"python={wrapper(place, 'bare', '-S')}"]
    trial = asked_trial(sides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "ask_all", noted)
        return trial, outcomes(trial, toy())


def launches(sound: Told) -> list[LaunchResult]:
    found = [one for one in sound[1] if isinstance(one, LaunchResult)]
    assert len(found) == 6, sound[1]
    return found


def test_a_side_has_the_environment_that_it_was_asked_to_have(sound: Told) -> None:
    for launch in launches(sound):
        told = launch.machine["environments"]
        assert told[CAPABILITY]["cpu_capability"] == "DEFAULT"
        assert told[CAPABILITY]["variables"] == {"ATEN_CPU_CAPABILITY": "default"}
        assert told[BASE] == told[AGAIN]
        assert told[BASE]["cpu_capability"] != "DEFAULT" or os.environ.get("ATEN_CPU_CAPABILITY")


def test_exactly_one_process_works_at_any_moment(sound: Told) -> None:
    for launch in launches(sound):
        starts, walls = launch.samples.start_ns, launch.samples.wall_ns
        assert (starts[1:] >= starts[:-1] + walls[:-1]).all()
        assert launch.machine["waits"]["count"] > launch.rounds * len(launch.variants)


def test_each_launch_starts_every_side_anew(sound: Told, asked: list[Asked]) -> None:
    """The forks of one server share its addresses: a trial's launches would all have the same luck with them."""
    pids = {side: {pid for pid, mine, _ in asked if mine == side} for side in (BASE, AGAIN, CAPABILITY)}
    assert {side: len(found) for side, found in pids.items()} == dict.fromkeys(pids, len(launches(sound)))
    assert len(set.union(*pids.values())) == 3 * len(launches(sound))


def test_every_side_does_the_same_equally_often(sound: Told, asked: list[Asked]) -> None:
    """What one process did more than another would show in its speed."""
    done = {side: Counter(do for _, mine, do in asked if mine == side) for side in (BASE, AGAIN, CAPABILITY)}
    assert done[BASE] == done[AGAIN] == done[CAPABILITY]
    first = Counter(mine for before, (_, mine, do) in zip([None, *asked], asked, strict=False) if begins(before, do))
    assert min(first.values()) > 0.15 * first.total()


def begins(before: Asked | None, do: str) -> bool:
    """Whether a round begins here."""
    return do == "round" and before is not None and before[2] != "round"


def test_turns_and_building_are_balanced_over_sides_and_variants(sound: Told) -> None:
    made = launches(sound)
    running = [label_of(side, name) for side in (BASE, AGAIN, CAPABILITY) for name in (BASELINE, CONTROL)]
    for launch in made:
        samples = launch.samples
        first = (samples.phase == TIMED) & (samples.call == 1)
        counts = np.zeros((len(launch.variants), len(running)), dtype=int)
        np.add.at(counts, (samples.variant[first], samples.position[first]), 1)
        mine = [launch.variants.index(label) for label in running]
        assert (counts[mine] == launch.rounds // len(running)).all()
    for place in range(len(running)):
        assert sorted(launch.built[place] for launch in made) == sorted(running)


def test_every_side_is_asked_the_same_and_its_replies_are_held_against_those_of_base(
    sound: Told,
) -> None:
    for launch in launches(sound):
        facts = launch.facts[f"{CAPABILITY}: eager"]
        assert (facts.failed, facts.invalid, facts.skipped) == (None, None, None)
        assert facts.replies == launch.facts[BASELINE].replies == launch.rounds * (1 + launch.calls)
        assert facts.program == launch.facts[BASELINE].program
        assert (launch.samples.phase == WARMUP).any()


def test_a_side_has_a_row_for_each_variant_with_its_speedup_over_base(sound: Told) -> None:
    told = rows(*sound)
    row = told[f"{CAPABILITY}: eager"]
    assert (row.status, row.verdict) == (Status.DONE, Verdict.BASELINE)
    for one in (row, told[f"{AGAIN}: eager"]):
        assert None not in (one.side_speedup, one.side_speedup_low, one.side_speedup_high)
    assert told[CONTROL].interval is not None


def test_a_side_that_is_base_itself_is_named(sound: Told) -> None:
    row = rows(*sound)["python same: eager"]
    assert (row.status, row.side_verdict) == (Status.FAILED, None)
    assert str(row.reason).startswith("it is the same environment as base")


def test_a_side_that_can_not_start_fails_with_its_last_words(sound: Told) -> None:
    row = rows(*sound)["python bare: eager"]
    assert row.status == Status.FAILED
    assert "No module named 'torch'" in str(row.reason)


@pytest.fixture(scope="module")
def mistaken() -> Told:
    """A trial of sides in each of which a variant does something else that it must not."""
    quirks = ("threads", "restless", "dies", "tokens")
    trial = asked_trial([f"env=SIDE_QUIRK={quirk}" for quirk in quirks], (BASELINE, CONTROL, ODD))
    return trial, outcomes(trial, toy(), 1)


@pytest.mark.parametrize(
    ("quirk", "status", "reason"),
    [
        ("threads", Status.FAILED, "it ended on cores .* with 2 threads, not as pinned"),
        ("restless", Status.FAILED, "it went on computing for 1 s after its turn"),
        ("dies", Status.FAILED, "ended its process: it was killed by SIGKILL in side_quirks:ODD"),
        ("tokens", Status.DONE, "it promises the baseline's replies but one differs at step 1"),
    ],
)
def test_a_mistake_in_a_side_is_caught_by_name_and_the_rest_goes_on(
    mistaken: Told, quirk: str, status: str, reason: str
) -> None:
    told = rows(*mistaken)
    row = told[f"env SIDE_QUIRK={quirk}: {ODD}"]
    assert row.status == status
    assert re.search(reason, str(row.reason)), row.reason
    for name in (BASELINE, CONTROL, ODD, f"{AGAIN}: {ODD}"):
        assert (told[name].status, told[name].reason) == (Status.DONE, None)
    if quirk != "threads":  # of which no variant is to blame
        assert told[f"env SIDE_QUIRK={quirk}: eager"].reason is None, "it costs its own row"


def test_a_lost_launch_is_told_until_its_cause_is_left_out(mistaken: Told) -> None:
    lost = [one.reason for one in mistaken[1] if isinstance(one, Failure)]
    assert all(reason.startswith("env SIDE_QUIRK=") for reason in lost)
    assert sorted(reason.partition(":")[0] for reason in lost) == ["env SIDE_QUIRK=dies", "env SIDE_QUIRK=restless"]


def test_a_side_with_other_weights_is_named() -> None:
    trial = made_trial(
        workload=Workload(model="side_quirks:weighted"),
        variants=(BASELINE, CONTROL),
        memory=False,
        sides=sides_of(["env=SIDE_WEIGHTS=1", "env=SIDE_QUIRK=none"]),
    )
    inputs = Inputs(Factory("side_quirks:weighted"), {8: np.zeros((0, 8), dtype=np.int64)})
    told = rows(trial, outcomes(trial, inputs, 1))
    assert str(told["env SIDE_WEIGHTS=1: eager"].reason).startswith("its weights are not those of base")
    assert told["env SIDE_QUIRK=none: eager"].status == Status.DONE
    assert told["env SIDE_QUIRK=none: eager"].identical_replies == 1


# The others lose launches, each of which starts every side anew: tests/test_player.py tests what finds most of them.
PLANTED = [fault for fault in FAULTS if fault.against in (side_mistakes.asked_by_link, side_mistakes.asked_for_cache)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A trial of mistakes that the audit plants in a side; of so few prompts launches ask many again."""
    asked = [fault.against(tmp_path_factory.mktemp("kept")) for fault in PLANTED if fault.against]
    trial = asked_trial(asked, (BASELINE, side_mistakes.NAME))
    trial = replace(trial, sides=tuple(side for side in trial.sides if side.name != AGAIN))
    return trial, outcomes(trial, toy(150), 3)


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: str(fault.name))
def test_what_the_audit_plants_in_a_side_is_caught_by_name(planted: Told, fault: Fault) -> None:
    trial, found = planted
    one = replace(trial, sides=(trial.sides[0], trial.sides[1 + PLANTED.index(fault)]))
    told = rows(one, found)
    assert fault.judge(Measured(one, Place(), status=Status.DONE, rows=list(told.values()))), told


CALLER = """
from test_conductor import asked_trial, toy
from ray_jobs.process.trial import run_trial
list(run_trial(asked_trial(["env=SIDE_QUIRK=none"]), toy()))
"""


def test_nothing_of_any_side_survives_a_caller_that_is_killed() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    caller = subprocess.Popen([sys.executable, "-c", CALLER], env=env)
    try:
        # Of each side a server for the whole trial, and one with a child for this launch.
        wait_until(lambda: sum(bool(children(server)) for server in children(caller.pid)) == 3)
        pids = [*children(caller.pid), *(pid for server in children(caller.pid) for pid in children(server))]
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: all(map(gone, pids)))


def test_a_process_that_has_ended_is_awake_no_more() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert awake(ended.pid) == []
    assert awake(os.getpid()) != []
