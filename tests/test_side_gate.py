"""The gate of sides: how often it is wrong, what it finds, what it says, and how ``matrix --gate`` ends."""

import json
import math
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from launches import made_launch
from runs import finished_run, trial_at
from test_compare import GATE, simulated
from typer.testing import CliRunner, Result

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.cli.app import app
from ray_jobs.compare.gate import ChangeVerdict, Exit, compare_cells
from ray_jobs.compare.match import cells_of, match
from ray_jobs.compare.side_text import SidePage
from ray_jobs.compare.sides import SideCell, SideGate, gate_sides
from ray_jobs.matrix.rows import Row
from ray_jobs.measure.result import LaunchResult, VariantFacts
from ray_jobs.report import text
from ray_jobs.results.filesystem import StoreError
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.sides import AGAIN, BASE, label_of, sides_of
from ray_jobs.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent
ASKED = "env=MALLOC_ARENA_MAX=1"
SIDE = sides_of([ASKED])[-1].name
SCRIPTED = "torchscript"
ABSENT = VariantFacts(skipped="it needs a package that is not here")

# How often it is wrong, and what it finds: simulated trials under the rule for stopping


def cell(side: str, log: float, rng: np.random.Generator) -> SideCell:
    """A variant that takes exp(``log``) times as long in a side, measured with luck."""
    row = Row("r", "t", "s", "h", "cpu", "d", "m", 1, 4, 5, 1, SCRIPTED, BASELINE, True, side=side)
    return SideCell(replace(row, side=BASE), row, simulated(rng, -log))


def gates(slower: float, cells: int, runs: int, side: str = SIDE, margin: float = 0.02) -> list[SideGate]:
    """Of many runs of that many cells, all slower by that share."""
    rng = np.random.default_rng(11)
    log = math.log(1 + slower)
    return [gate_sides([cell(side, log, rng) for _ in range(cells)], GATE, margin) for _ in range(runs)]


def test_a_side_that_is_not_slower_passes_however_many_cells() -> None:
    found = [one.exit for one in gates(0.0, cells=8, runs=150)]
    assert found.count(Exit.BEYOND) == 0
    assert found.count(Exit.WITHIN) > 140


@pytest.mark.parametrize("cells", [1, 8])
def test_a_slowdown_of_just_the_gate_fails_in_few_runs_however_many_cells(cells: int) -> None:
    """A false alarm is one of a cell at the gate; each run has them in 2.5% at most, by its one side."""
    failed = sum(one.exit == Exit.BEYOND for one in gates(GATE, cells, runs=1000 // cells))
    assert failed <= {1: 37, 8: 7}[cells]  # of 1000 and 125, which 2.5% do not exceed with 99%


def test_a_slowdown_of_just_the_gate_seldom_passes() -> None:
    assert sum(one.exit == Exit.WITHIN for one in gates(GATE, cells=1, runs=1000)) <= 37


def test_a_slowdown_of_five_percent_is_found_and_never_passes() -> None:
    found = [one.exit for one in gates(0.05, cells=4, runs=100)]
    assert found.count(Exit.BEYOND) > 90
    assert Exit.WITHIN not in found


def test_a_control_seldom_speaks_against_a_sound_trial_and_always_against_an_unsound_one() -> None:
    """Of a run of eight controls, of which each alone would in 5% if there were no margin."""
    sound = gates(0.0, cells=8, runs=250, side=AGAIN, margin=1e-6)
    assert sum(bool(one.differing) for one in sound) <= 22  # 5%, with 99%
    assert all(one.differing for one in gates(0.05, cells=8, runs=20, side=AGAIN))


# What it finds in the launches of a run


def launch(
    index: int, walls_ms: Mapping[str, float], facts: Mapping[str, VariantFacts], scatter: float
) -> LaunchResult:
    """A launch of base, its control and a side, at 10 ms unless told, each with luck of its own but base."""
    trial, _ = trial_of()
    rng = np.random.default_rng(index)
    luck = {pair.label: math.exp(scatter * rng.standard_normal()) for pair in trial.pairs}
    walls = {label: walls_ms.get(label, 10.0) * (x if ":" in label else 1.0) for label, x in luck.items()}
    sides = tuple(pair.side for pair in trial.pairs)
    return made_launch(walls, index, rounds=4, facts=facts, sides=sides)


def trial_of(name: str = "run") -> Any:
    trial, place = trial_at(name, (BASELINE, "eager-again", SCRIPTED))
    return replace(trial, sides=sides_of([ASKED])), place


def make(
    directory: RunDirectory,
    walls_ms: Mapping[str, float] | None = None,
    facts: Mapping[str, VariantFacts] | None = None,
    scatter: float = 0.002,
    commit: str | None = None,
) -> list[Row]:
    """A finished run of a side in the directory."""
    launches = [launch(index, walls_ms or {}, facts or {}, scatter) for index in range(12)]
    rows = finished_run(directory, [(trial_of(directory.run_id), launches)])
    path = Path(directory.shown) / "run.json"
    content = json.loads(path.read_text())
    content["environment"]["driver"]["git_commit"] = commit
    path.write_text(json.dumps(content))
    return rows


def page(folder: Path, **given: Any) -> SidePage:
    directory = RunDirectory.named(str(folder), "run")
    make(directory, **given)
    return SidePage.of(directory, GATE)


def of_side(variant: str, side: str = SIDE) -> str:
    return label_of(side, variant)


EVERY = {label_of(side, SCRIPTED): ABSENT for side in (BASE, AGAIN, SIDE)}
FAILED = {of_side(name): VariantFacts(failed="No module named 'torch'") for name in (BASELINE, CONTROL, SCRIPTED)}
BROKEN = VariantFacts(prepare_s=0.5, replies=12, identical=12, invalid="its replies differ")
FEWER = VariantFacts(prepare_s=0.5, replies=12, identical=11)
SLOW, WIDE = {of_side(SCRIPTED): 10.5}, {of_side(SCRIPTED): 10.3}


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({}, Exit.WITHIN, "is not slower than base in 2 cells"),
        ({"walls_ms": {of_side(SCRIPTED): 8.0}}, Exit.WITHIN, "is not slower than base in 2 cells"),
        ({"walls_ms": {of_side(BASELINE): 10.5}}, Exit.BEYOND, "is slower than base in eager: 1.0"),
        ({"walls_ms": SLOW}, Exit.BEYOND, "in torchscript: 1.0"),
        ({"walls_ms": WIDE}, Exit.UNDECIDED, "may or may not be slower than base in torchscript: 1.0"),
        ({"scatter": 0.1}, Exit.UNDECIDED, "; measure longer (--budget), or on a quieter machine"),
        ({"facts": FAILED}, Exit.BEYOND, "is broken in all 2 cells: failed: No module named 'torch'"),
        ({"facts": {of_side(SCRIPTED): BROKEN}}, Exit.BEYOND, "is broken in torchscript: invalid: its replies differ"),
        ({"facts": {of_side(BASELINE): BROKEN}}, Exit.BEYOND, "is broken in eager: invalid: its replies differ"),
        ({"facts": {of_side(SCRIPTED): FEWER}}, Exit.BEYOND, "replies changed: 100.0% are those of the baseline in "),
        ({"facts": {SCRIPTED: BROKEN}, "walls_ms": SLOW}, Exit.UNDECIDED, "base itself is not sound: invalid: its rep"),
        ({"facts": {SCRIPTED: BROKEN}, "walls_ms": {of_side(BASELINE): 10.5}}, Exit.BEYOND, "is slower than base in e"),
        ({"facts": EVERY}, Exit.WITHIN, "is not slower than base in 1 cell"),
        ({"facts": {SCRIPTED: ABSENT}}, Exit.WITHIN, "is not slower than base in 1 cell"),
        ({"facts": {of_side(SCRIPTED): ABSENT}}, Exit.UNDECIDED, "base in torchscript: it needs a package that is not"),
        ({"walls_ms": {of_side(SCRIPTED, AGAIN): 10.5}}, Exit.WITHIN, "is not slower than base in 2 cells"),
    ],
)
def test_the_gate_ends_with_what_it_found(given: dict[str, Any], code: Exit, said: str, tmp_path: Path) -> None:
    found = page(tmp_path, **given)
    assert (found.gate.exit, found.content()["exit_code"]) == (code, code)
    (first, *others) = found.lines()
    assert first.startswith(f"gate 3%: {SIDE} ")
    assert said in first
    assert bool(others) == (of_side(SCRIPTED, AGAIN) in given.get("walls_ms", ()))


def test_a_slower_side_is_told_with_its_interval_and_its_base(tmp_path: Path) -> None:
    found = page(tmp_path, walls_ms=SLOW, commit=f"{'1234567890' * 4}+")
    (line,) = found.lines()
    (change,) = [change for change in found.gate.changes if change.cell.row.variant == SCRIPTED]
    assert change.speedup is not None
    assert change.shared is not None
    assert change.speedup.value == pytest.approx(1 / 1.05, rel=0.005), "base over side: below 1 the side is slower"
    assert change.shared.low < change.speedup.low < change.speedup.high < change.shared.high
    long = Interval(*(1 / value for value in (change.shared.value, change.shared.high, change.shared.low)))
    times, _, limits = text.ratio_of(long).partition(" ")
    assert line == (
        f"gate 3%: {SIDE} is slower than base (1234567+) in torchscript: {times} times as long "
        f"{limits}, certain for all 2 cells together; it is not slower in 1 cell"
    )


def test_a_control_that_differs_is_not_to_be_trusted_and_fails_nothing(tmp_path: Path) -> None:
    found = page(tmp_path, walls_ms={of_side(BASELINE, AGAIN): 10.5})
    assert found.gate.exit == Exit.WITHIN
    assert "base-again, the same as base, differs in eager: 1.0" in found.lines()[1]
    assert "distrust this comparison" in found.lines()[1]
    lost = {of_side(SCRIPTED, AGAIN): VariantFacts(failed="killed")}
    assert "differs in torchscript: failed: killed" in page(tmp_path / "lost", facts=lost).lines()[1]


def test_what_base_again_has_gates_no_comparison_of_two_runs(tmp_path: Path) -> None:
    again, directories = of_side(SCRIPTED, AGAIN), [RunDirectory.named(str(tmp_path), name) for name in "ab"]
    for directory, walls_ms in zip(directories, ({}, {again: 12.0}), strict=True):
        make(directory, walls_ms=walls_ms)
    cells = [cells_of(FinishedRun.within(directory)) for directory in directories]
    found = compare_cells(match(*cells), cells[1], GATE)
    changes = {change.new.row.name: change for change in found.changes}
    assert (changes[again].verdict, changes[again].gates) == (ChangeVerdict.SLOWER, False)
    assert found.exit == Exit.WITHIN
    assert {name for name, change in changes.items() if change.gates} == {SCRIPTED, of_side(SCRIPTED)}


def test_a_gate_that_nothing_went_through_is_undecided() -> None:
    found = SidePage(gate_sides([], GATE, 0.02), BASE)
    assert found.gate.exit == Exit.UNDECIDED
    assert found.lines() == ["gate 3%: can't tell whether a side is slower than base: nothing was measured in both"]
    assert found.markdown().startswith("### Latency: gate 3%: can't tell")


# The command


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``matrix`` with these arguments, of a run whose torchscript is slower in the side, or that ends otherwise."""

    def command(*arguments: str, error: Exception | None = None, **given: Any) -> Result:
        def run(spec: Any, name: str, directory: RunDirectory, *_: Any) -> list[Row]:
            if error is not None:
                raise error
            return make(directory, **given)

        monkeypatch.setattr("ray_jobs.driver.run.run", run)
        fixed = ["matrix", "--out", str(tmp_path / "results"), "--wandb", "off"]
        return CliRunner().invoke(app, [*fixed, *arguments])

    return command


ASKING = ("--against", ASKED, "--gate", "3%")


def test_the_command_says_it_below_the_matrix_and_in_the_files_that_a_ci_reads(measured: Any, tmp_path: Path) -> None:
    out = tmp_path / "summary.md"
    done = measured(*ASKING, "--gate-out", str(out), "--json", walls_ms=SLOW)
    assert done.exit_code == Exit.BEYOND
    sentence = f"{SIDE} is slower than base in torchscript: 1.0"
    assert done.stdout.index("base / side") < done.stdout.index(f"\ngate 3%: {sentence}")
    told = json.loads(done.stdout.splitlines()[-1])["gate"]
    assert (told["share"], told["exit_code"], told["base"]) == (0.03, 1, BASE)
    assert told["sentences"][0].startswith(sentence)
    assert [(one["variant"], one["verdict"]) for one in told["cells"]] == [(BASELINE, "same"), (SCRIPTED, "slower")]
    assert told["cells"][1]["side_speedup"] == pytest.approx(1 / 1.05, rel=0.005)
    lines = out.read_text().splitlines()
    assert lines[0].startswith("### Latency: gate 3%: env MALLOC_ARENA_MAX=1 is slower than base in torchscript: 1.0")
    table = [line for line in lines if line.startswith("|")]
    assert [line.split(" | ")[-1].strip("| ") for line in table[2:]] == [
        *("same", "slower", "the control: no gate", "the control: no gate")
    ]


@pytest.mark.parametrize("gated", [True, False])
def test_a_run_that_does_not_come_to_its_end_is_never_called_slower(gated: bool, measured: Any) -> None:
    asked = ASKING if gated else ASKING[:2]
    done = measured(*asked, error=StoreError("samples/x can't be written: No space left on device"))
    assert done.exit_code == (70 if gated else 1)
    assert measured(*asked, error=RuntimeError("a mistake of ours")).exit_code == 70


def test_without_a_gate_the_exit_code_is_what_it_was(measured: Any) -> None:
    assert measured(*ASKING[:2], walls_ms=SLOW).exit_code == 0
    done = measured(*ASKING[:2], "--json", facts=FAILED)
    assert done.exit_code == 1
    assert "gate" not in json.loads(done.stdout.splitlines()[-1])


def test_a_gate_is_asked_of_sides_only(measured: Any, tmp_path: Path) -> None:
    make(RunDirectory.named(str(tmp_path / "results"), "earlier"))
    for arguments, said in {
        ("--resume", "earlier", "--gate", "3%"): "--gate asks whether a side is slower: add --against",
        (*ASKING, "--gate-out", str(tmp_path)): "can't be written: give a file in a folder that is there",
    }.items():
        done = measured(*arguments)
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


# The example for a CI


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load((ROOT / "examples" / "ci-gate.yml").read_text())
    return content


def step(workflow: dict[Any, Any], words: str) -> dict[str, Any]:
    """The one step of the gate that uses or runs something of these words."""
    steps = workflow["jobs"]["gate"]["steps"]
    (found,) = [one for one in steps if words in one.get("uses", "") + one.get("run", "")]
    return dict(found)


def test_the_example_workflow_measures_both_commits_in_one_run_that_stands_on_base(workflow: dict[Any, Any]) -> None:
    assert "pull_request" in workflow[True]  # YAML 1.1 reads a bare ``on`` so
    steps = workflow["jobs"]["gate"]["steps"]
    assert all(("uses" in one) != ("run" in one) for one in steps)
    assert step(workflow, "actions/checkout")["with"]["fetch-depth"] == 0
    moved, measured = step(workflow, "git checkout"), step(workflow, "--gate 3%")
    assert steps.index(moved) < steps.index(step(workflow, "make .venv/installed")) < steps.index(measured)
    assert '--against "rev=$HEAD_SHA"' in measured["run"]
    assert moved["env"]["HEAD_SHA"] == measured["env"]["HEAD_SHA"] == "${{ github.event.pull_request.head.sha }}"


def test_the_example_workflow_gives_the_measured_code_no_write_access_and_no_secret(workflow: dict[Any, Any]) -> None:
    gate, comment = workflow["jobs"]["gate"], workflow["jobs"]["comment"]
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in gate
    assert step(workflow, "actions/checkout")["with"]["persist-credentials"] is False
    assert not any(word in json.dumps(gate) for word in ("secrets.", "github.token", "GH_TOKEN"))
    writers = [name for name, job in workflow["jobs"].items() if "write" in str(job.get("permissions", ""))]
    assert writers == ["comment"]
    assert [one.get("uses", "").partition("@")[0] for one in comment["steps"]] == ["actions/download-artifact", ""]
    for job in (gate, comment):  # what somebody else may name is never pasted into a shell
        assert not any("${{" in one.get("run", "") for one in job["steps"])


BISECTING = """
git init -q . && git config user.email a@b && git config user.name a
for n in 1 2 3 4 5 6 7 8; do echo $n > n; git add n; git commit -qm "commit $n"; git tag c$n; done
"""
TELLS = """#!/bin/sh
[ "$PWD" -ef {fast} ] || exit 70
n=$(git show ${{3#rev=}}:n)
[ "$*" = "matrix --against $3 --gate 3%" ] || exit 2
{ends}
[ "$n" -ge 6 ] && exit 1
[ "$n" -ne 4 ] || exit 3
"""


@pytest.mark.process
@pytest.mark.parametrize("ends", ["", "exit 70"])
def test_the_documented_bisection_finds_the_slow_commit_skips_what_is_undecided_and_stops_at_a_crash(
    ends: str, tmp_path: Path
) -> None:
    (documented,) = re.findall(r"```sh\n(git worktree.*?)```", (ROOT / "docs" / "against.md").read_text(), re.DOTALL)
    here, fast = tmp_path / "here", tmp_path / "fast"
    here.mkdir()
    program = fast / ".venv" / "bin" / "latency-matrix"
    made = f"mkdir -p {program.parent} && cp ../tells {program}"
    lines = documented.replace("GOOD", "c1").replace("BAD", "c8").replace("make -C ../fast .venv/installed", made)
    (tmp_path / "tells").write_text(TELLS.format(fast=fast, ends=ends))
    (tmp_path / "tells").chmod(0o755)
    done = subprocess.run(["sh", "-c", BISECTING + lines], cwd=here, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    slow = subprocess.run(["git", "rev-parse", "c6"], cwd=here, capture_output=True, text=True, check=True).stdout
    assert (f"{slow.strip()} is the first bad commit" in said) == (not ends), said
    assert (done.returncode == 0) == (not ends), said


STAND_IN = """#!/bin/bash
echo "${@:1:11}" > "$0.asked"
for word; do [ "$before" = --gate-out ] && [ "$WRITES" ] && echo found > "$word"; before=$word; done
exit $CODE
"""


@pytest.mark.process
@pytest.mark.parametrize(("code", "job"), [(0, 0), (1, 1), (2, 2), (3, 0), (70, 70)])
def test_the_example_workflow_fails_when_it_should(code: int, job: int, workflow: Any, tmp_path: Path) -> None:
    program, shown = tmp_path / ".venv" / "bin" / "latency-matrix", tmp_path / "shown"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o755)
    told = {"RUNNER_TEMP": "t", "SUMMARY": "summary.md", "GITHUB_STEP_SUMMARY": str(shown), "HEAD_SHA": "abc"}
    env = {**os.environ, **told, **workflow["env"], "CODE": str(code), "WRITES": "yes" * (code in (0, 1, 3))}
    script = step(workflow, "--gate 3%")["run"]
    assert subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=env, check=False).returncode == job
    asked = f"matrix {workflow['env']['SPEC']} --against rev=abc --gate 3%"
    assert Path(f"{program}.asked").read_text().startswith(asked)
    assert shown.read_text().startswith("found" if env["WRITES"] else "The latency gate came to no end")
