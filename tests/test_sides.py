"""Sides: how they are asked for, what their environments must be, and what launches of them mean."""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from launches import made_launch, made_trial
from reports import LONG_SIDE, NO_TORCH, sided_view
from rich.console import Console
from typer.testing import CliRunner

import chatbot
from chatbot.errors import UsageError
from chatbot.safe_text import keyless
from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs import provenance
from ray_jobs.cli.options import flags_of
from ray_jobs.matrix.rows import Row, Status, base_first, compared_sides, rows_of
from ray_jobs.measure.environment import environment, faults, variables_of
from ray_jobs.measure.result import LaunchResult, VariantFacts
from ray_jobs.measure.trial import Place
from ray_jobs.process.trial import Committed
from ray_jobs.report import text
from ray_jobs.report.anonymous import Anonymous
from ray_jobs.report.environments import HEADS, environments_of
from ray_jobs.report.heatmap import heatmap_of
from ray_jobs.report.page import page
from ray_jobs.report.summary import summarize
from ray_jobs.report.tables import as_csv, markdown
from ray_jobs.report.terminal import print_matrix
from ray_jobs.report.view import RunView
from ray_jobs.results.samples import to_result, to_table
from ray_jobs.sides import (
    AGAIN,
    BASE,
    PART,
    Side,
    interpreter_fault,
    label_of,
    plain,
    require_files,
    require_interpreters,
    sides_of,
)
from ray_jobs.spec import Spec, read_spec
from ray_jobs.statistics import Verdict
from ray_jobs.wandb_sink.content import AGAINST_BASE, against_base, summary_of

ASKED = "env=MALLOC_ARENA_MAX=1"
OTHER = sides_of([ASKED])[-1]
SCRIPTED = "torchscript"


# How a side is asked for


def test_without_a_side_there_is_nothing_but_base() -> None:
    assert sides_of(()) == ()
    assert [pair.label for pair in made_trial().pairs] == [BASELINE, CONTROL, SCRIPTED]


def test_base_and_its_control_come_first_and_sides_are_named_by_what_they_are() -> None:
    asked = ("env=LD_PRELOAD=/usr/lib/libjemalloc.so.2", "python=/x/venv-2.14/bin/python", "python=/usr/bin/python3.12")
    names = [side.name for side in sides_of(asked)]
    assert names == [BASE, AGAIN, "env LD_PRELOAD=libjemalloc.so.2", "python venv-2.14", "python python3.12"]


def test_parts_combine_and_any_other_comma_belongs_to_a_value() -> None:
    (side,) = sides_of(["python=/x/v/bin/python,env=A=1,2,env=B=x,y=z"])[2:]
    assert side.python == "/x/v/bin/python"
    assert dict(side.variables) == {"A": "1,2", "B": "x,y=z"}


VALUES = {
    "env": st.tuples(
        st.from_regex(r"[A-Z]{3,6}", fullmatch=True), st.from_regex(r"[a-z0-9,=: ]{1,9}x", fullmatch=True)
    ),
    "python": st.from_regex(r"/[a-z,=]{1,8}/bin/python", fullmatch=True),
    "pip": st.lists(st.from_regex(r"[a-z]{1,8}(>=[1-9],<9|==[1-9])?", fullmatch=True), min_size=1, max_size=3),
    "rev": st.from_regex(r"[a-z][a-z0-9,=~^/]{0,9}", fullmatch=True),
}


@given(
    st.sampled_from(["python", "pip"]).flatmap(
        lambda one: st.fixed_dictionaries({word: VALUES[word] for word in ("rev", "env", one)})
    ),
    st.permutations(range(3)),
)
def test_parts_in_any_order_give_back_what_was_asked(asked: dict[str, Any], order: list[int]) -> None:
    texts = {"env": "=".join, "pip": " ".join}
    given_parts = [f"{word}={texts.get(word, str)(value)}" for word, value in asked.items()]
    parts = [given_parts[i] for i in order]
    assume(keyless(",".join(parts)) == ",".join(parts) and not any(map(PART.search, parts)))
    (side,) = sides_of([",".join(parts)])[2:]
    assert side.python == asked.get("python")
    assert list(side.packages) == asked.get("pip", [])
    assert side.revision == asked.get("rev")
    assert list(side.variables) == [asked["env"]]


def test_packages_and_a_revision_name_their_side_without_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    asked = "pip=torch==2.14.1 home/me/x-1.0.whl y@https://host/way/y-2.0.whl,rev=feature/x,env=A=1"
    (side,) = sides_of([asked])[2:]
    assert side.name == "pip torch==2.14.1 x-1.0.whl y@y-2.0.whl, rev feature/x, env A=1"
    assert side.packages[1:] == ("/home/me/x-1.0.whl", "y@https://host/way/y-2.0.whl")
    assert sides_of([plain(asked)])[-1].name == side.name
    assert "home" not in plain(asked)


@pytest.mark.parametrize("key", ["pip=x@https://me:secret@host/x.whl", "pip=x@https://host/x.whl?token=abcdefgh"])
def test_a_key_in_what_pip_is_to_install_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="a key of pip's in PIP_INDEX_URL") as caught:
        sides_of([key])
    assert "secret" not in str(caught.value)
    assert "abcdefgh" not in str(caught.value)


def test_a_file_to_install_from_must_be_there_and_not_a_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1.0.whl"
    with pytest.raises(UsageError, match="no file is there; give a requirement or the path of a wheel"):
        require_files(sides_of([f"pip={wheel}"]))
    with pytest.raises(UsageError, match="is a folder, which may change unseen: build a wheel of it"):
        require_files(sides_of([f"pip=numpy {tmp_path}"]))
    wheel.touch()
    require_files(sides_of([f"pip=numpy {wheel}"]))


def test_sides_of_one_name_are_numbered() -> None:
    first, second = sides_of(["python=/one/v/bin/python", "python=/two/v/bin/python"])[2:]
    assert (first.name, second.name) == ("python v", "python v #2")


def test_an_interpreter_is_found_as_a_shell_finds_it_and_links_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.chdir("/")
    asked = sides_of(["python=~/v/bin/python", "python=v/bin/python", "python=sh"])[2:]
    assert [side.python for side in asked[:2]] == ["/somebody/v/bin/python", "/v/bin/python"]
    assert os.path.basename(str(asked[2].python)) == "sh"
    assert interpreter_fault(asked[2]) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ["conda=torch"],
            "unknown part of --against 'conda=torch'; choose from: env=NAME=VALUE, python=PATH, pip=REQUIREMENT, rev=",
        ),
        (["jemalloc"], "unknown part of --against 'jemalloc'"),
        ([""], "unknown part of --against ''"),
        (["env=A"], "'env=A' gives no variable a value: give env=NAME=VALUE"),
        (["env=A="], "'env=A=' gives no variable a value"),
        (["env=A=1,env=A=2"], "gives A a second value"),
        (["env=OMP_NUM_THREADS=4"], "launches set or remove OMP_NUM_THREADS themselves; leave it out"),
        (["env=OMP_PROC_BIND=true"], "launches set or remove OMP_PROC_BIND"),
        (["env=CUDA_VISIBLE_DEVICES=1"], "launches set or remove CUDA_VISIBLE_DEVICES"),
        (["env=PYTHONPATH=/x"], "launches set or remove PYTHONPATH"),
        (["python="], "names no interpreter: give python=PATH"),
        (["python=/a,python=/b"], "names two interpreters"),
        ([ASKED, ASKED], "twice: leave one out, base-again is measured anyway"),
        (["env=HF_TOKEN=abcdefgh"], "holds a key, which would be recorded"),
        (["pip="], "names no package: give pip=torch==2.14.1, several with spaces"),
        (["pip=a,pip=b"], "names two lists of packages: put spaces between requirements"),
        (["pip=a --index-url=x"], "holds an option, --index-url=x: pip reads them from its variables, PIP_INDEX_URL"),
        (["pip=a,python=/b"], "names both an interpreter and packages: pip= builds an interpreter of its own"),
        (["rev="], "names no revision: give a commit, a branch or a tag"),
        (["rev=--output=x"], "names no revision"),
        (["rev=a,rev=b"], "names two revisions"),
    ],
)
def test_what_can_not_be_a_side_is_refused_in_one_line(asked: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_spec(None, {"against": asked})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interpreter_that_is_not_there_is_refused_but_a_run_that_names_it_can_be_read(tmp_path: Path) -> None:
    absent = tmp_path / "python"
    spec = Spec(against=(f"python={absent}",))
    with pytest.raises(UsageError, match="no interpreter is there; give the path of one"):
        require_interpreters(sides_of(spec.against))
    absent.write_text("")
    with pytest.raises(UsageError, match="no interpreter is there"):
        require_interpreters(sides_of(spec.against))
    absent.chmod(0o755)
    require_interpreters(sides_of(spec.against))


def test_a_spec_file_and_a_flag_given_twice_ask_for_the_same(tmp_path: Path) -> None:
    both = ("env=A=1,2", "env=B=3")
    (tmp_path / "spec.toml").write_text(f"against = {json.dumps(both)}")
    assert read_spec(tmp_path / "spec.toml", {}).against == both
    (tmp_path / "spec.toml").write_text('against = "env=A=1,2"')
    assert read_spec(tmp_path / "spec.toml", {}).against == both[:1]
    seen: list[dict[str, Any]] = []
    command = typer.Typer()

    @command.command()
    @flags_of(Spec, ["against"])
    def told(flags: dict[str, Any]) -> None:
        seen.append(flags)

    assert CliRunner().invoke(command, [word for one in both for word in ("--against", one)]).exit_code == 0
    assert CliRunner().invoke(command, []).exit_code == 0
    assert seen == [{"against": list(both)}, {}]
    assert read_spec(None, seen[0]).against == both


def test_a_side_without_folders_keeps_its_name() -> None:
    asked = "python=/home/me/venv-2.14/bin/python,env=LD_PRELOAD=/home/me/lib.so"
    assert plain(asked) == "python=venv-2.14,env=LD_PRELOAD=lib.so"
    assert sides_of([plain(asked)])[-1].name == sides_of([asked])[-1].name


# What an environment is

IS_BASE = "it is the same environment as base: interpreter, packages and variables are equal"


def found(**differing: Any) -> dict[str, Any]:
    return {
        "interpreter": "python",
        "torch": "2",
        "cpu_capability": "AVX2",
        "preloaded": [],
        "variables": {},
        **differing,
    }


def test_two_sides_that_are_one_environment_are_named_and_the_control_is_not() -> None:
    sides = sides_of(["python=/a/bin/python", "python=/b/bin/python"])
    told = {side.name: found() for side in sides[:3]} | {sides[3].name: found(torch="3")}
    assert faults(sides, told) == {"python a": IS_BASE}
    told["python a"] = found(torch="3")
    assert list(faults(sides, told)) == ["python b"]
    assert "the same environment as python a" in faults(sides, told)["python b"]


def test_the_path_that_an_interpreter_is_called_by_makes_no_other_environment() -> None:
    sides = sides_of(["python=/a/bin/python"])
    assert list(faults(sides, {BASE: found(), sides[-1].name: found(interpreter="/a/bin/python")})) == ["python a"]
    assert faults(sides, {BASE: found(), sides[-1].name: found(prefix="/a")}) == {}


@pytest.mark.parametrize(
    ("asked", "has", "said"),
    [
        (
            "env=LD_PRELOAD=/x/libodd.so",
            {"preloaded": []},
            "LD_PRELOAD names libodd.so, which its process has not loaded",
        ),
        ("env=ATEN_CPU_CAPABILITY=avx512", {}, "asks for avx512, and it computes with AVX2"),
        ("env=A=1", {}, "A has another value in its process"),
    ],
)
def test_a_side_that_lacks_what_was_asked_for_is_named(asked: str, has: Mapping[str, Any], said: str) -> None:
    sides = sides_of([asked])
    variables = {} if "another value" in said else dict(sides[-1].variables)
    told = {BASE: found(torch="3"), AGAIN: found(torch="3"), sides[-1].name: found(variables=variables, **has)}
    assert said in faults(sides, told)[sides[-1].name]


SHA, OTHER_SHA = "a" * 40, "b" * 40


def revised(commit: str, base: str | None, sources: str) -> tuple[list[Side], dict[str, Any]]:
    """Base and the side of a revision, and what they are found to be."""
    side = Side("rev x", revision="x", commit=commit, sources="/cache/x/content")
    told = {BASE: found(commit=base, sources="1", sources_in="/work/chatbot")}
    told[side.name] = found(commit=commit, sources=sources, sources_in="/cache/x/content/chatbot")
    return [Side(BASE, commit=base), side], told


@pytest.mark.parametrize(
    ("base", "sources", "same"),
    [(SHA, "1", True), (f"{SHA}+", "1", False), (OTHER_SHA, "1", False), (None, "1", False), (SHA, "2", False)],
    ids=["clean", "changed", "of equal sources", "no checkout", "other sources"],
)
def test_a_revision_is_base_where_that_stands_at_its_commit(base: str | None, sources: str, same: bool) -> None:
    told = faults(*revised(SHA, base, sources))
    assert told == ({"rev x": f"{IS_BASE}, and so is the commit"} if same else {})


def test_a_revision_whose_process_runs_other_code_is_named() -> None:
    sides, told = revised(SHA, OTHER_SHA, "2")
    told["rev x"]["sources_in"] = "/work/chatbot"
    assert faults(sides, told) == {"rev x": "it runs the code in /work/chatbot, and not that of x"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("torch==2.14", None),
        ("torch==2.14.0", None),
        ("torch==2.14.0+cpu", None),
        ("torch==2.14.0+cu130", "torch==2.14.0+cu130 is asked for, and its process has torch 2.14.0+cpu"),
        ("torch==2.14.1", "torch==2.14.1 is asked for, and its process has torch 2.14.0+cpu"),
        ("My_Package[extra]==1.0", None),
        ("absent==1", "absent==1 is asked for, and its process has none"),
        ("absent>=1", None),
        ("torch==2.*", None),
    ],
)
def test_packages_that_a_process_does_not_have_are_named(asked: str, said: str | None) -> None:
    side = Side("pip", python="/x/bin/python", packages=(asked,))
    has = found(torch="2.14.0+cpu", numpy="2.0", installed={"torch": "2.13.0", "my-package": "1.0"})
    assert faults([Side(BASE), side], {BASE: found(), "pip": has}) == ({} if said is None else {"pip": said})


def test_a_process_lists_its_packages_and_tells_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rays = tmp_path / "thirdparty_files"
    (rays / "odd-1.0.dist-info").mkdir(parents=True)
    (rays / "odd-1.0.dist-info" / "METADATA").write_text("Name: odd\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(rays))
    told = environment((), Workload(model="tiny"), True)
    assert told["installed"]["torch"] == told["torch"]
    assert "odd" not in told["installed"]
    assert told["sources"] == provenance.source_hash([Path(chatbot.__path__[0]).resolve()])
    own = environment((), Workload(model="side_quirks:weighted"))
    assert own["sources"] == provenance.own_code("side_quirks:weighted")
    assert own["sources_in"].endswith("tests/support")
    assert "installed" not in own


def test_a_process_tells_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    told = environment(variables_of([*sides_of([ASKED]), Side("odd", None, (("NOT_SET_HERE", "1"),))]))
    assert told["variables"] == {"MALLOC_ARENA_MAX": "1", "NOT_SET_HERE": None}
    assert told["preloaded"] == []
    assert told["python"] == sys.version.split()[0]
    assert json.loads(json.dumps(told)) == told
    assert not any(str(value).startswith(("/root", "/home")) for value in told.values())


def test_a_library_counts_as_preloaded_where_it_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line)
    monkeypatch.setenv("LD_PRELOAD", f"{mapped}:/nowhere/libodd.so libodder.so")
    assert environment(())["preloaded"] == [os.path.basename(mapped)]


# What launches mean


def launch(index: int, facts: Mapping[str, VariantFacts] | None = None, **walls_ms: float) -> LaunchResult:
    """A launch of base, its control and a side, at 10 ms unless told (``side_torchscript=5``)."""
    trial = asked_trial()
    given = {f"{OTHER.name}: {name.removeprefix('side_')}": ms for name, ms in walls_ms.items()}
    walls = {pair.label: given.get(pair.label, 10.0) for pair in trial.pairs}
    made = made_launch(walls, index, rounds=4, facts=facts)
    return replace(made, sides=tuple(pair.side for pair in trial.pairs))


def asked_trial() -> Any:
    return made_trial(sides=sides_of([ASKED]))


def rows(made: list[LaunchResult]) -> dict[str, Row]:
    return {row.name: row for row in rows_of(asked_trial(), Place(), Status.DONE, None, made)}


def side(variant: str = BASELINE) -> str:
    return label_of(OTHER.name, variant)


def test_every_side_has_every_variant() -> None:
    """Also the control: a turn that follows one of its own process is faster, and whoever has more has more of them."""
    labels = [label_of(name, one) for name in (BASE, AGAIN, OTHER.name) for one in (BASELINE, CONTROL, SCRIPTED)]
    assert [pair.label for pair in asked_trial().pairs] == labels


def test_a_control_is_compared_with_the_baseline_of_its_side_alone() -> None:
    told = rows([launch(i, side_eager=20.0) for i in range(10)])
    control = told[side(CONTROL)]
    assert (control.verdict, control.side_verdict) == (Verdict.FASTER, None)
    assert "the control differs from the baseline" in control.warnings[0]
    assert side(CONTROL) not in {row.name for row in compared_sides(told.values())}
    assert side(CONTROL) in {row.name for row in base_first(list(told.values()))}


def test_a_variant_is_compared_with_the_baseline_of_its_side_and_with_itself_in_base() -> None:
    made = [launch(i, side_eager=20.0, side_torchscript=5.0) for i in range(10)]
    told = rows(made)
    row = told[side(SCRIPTED)]
    assert (row.side, row.variant, row.baseline) == (OTHER.name, SCRIPTED, BASELINE)
    assert row.speedup == pytest.approx(4.0)
    assert row.side_speedup == pytest.approx(2.0), "base over side: above 1 is faster than base"
    assert (row.verdict, row.side_verdict) == (Verdict.FASTER, Verdict.FASTER)
    assert told[side()].side_speedup == pytest.approx(0.5)
    assert (told[side()].verdict, told[side()].side_verdict) == (Verdict.BASELINE, Verdict.SLOWER)
    assert told["base-again: eager"].side_verdict == Verdict.SAME
    assert told[BASELINE].side == BASE
    assert told[BASELINE].side_verdict is None
    assert told[SCRIPTED].side_speedup is None


def test_without_sides_a_row_has_none() -> None:
    made = [made_launch(dict.fromkeys((BASELINE, CONTROL, SCRIPTED), 10.0), i) for i in range(2)]
    for row in rows_of(made_trial(), Place(), Status.DONE, None, made):
        assert {row.side, row.side_speedup, row.side_speedup_low, row.side_speedup_high, row.side_verdict} == {None}
        assert row.name == row.variant


def test_a_control_of_the_sides_that_differs_says_that_the_trial_is_not_to_be_trusted() -> None:
    trial = asked_trial()
    made = []
    for i in range(10):
        walls = {pair.label: 9.0 if pair.side == AGAIN else 10.0 for pair in trial.pairs}
        made.append(replace(made_launch(walls, i), sides=tuple(pair.side for pair in trial.pairs)))
    assert any("distrust this trial" in one for one in rows(made)["base-again: eager"].warnings)


def test_a_side_that_failed_costs_its_own_rows() -> None:
    gone = {side(name): VariantFacts(failed="No module named 'torch'") for name in (BASELINE, CONTROL, SCRIPTED)}
    told = rows([launch(i, gone) for i in range(10)])
    assert {row.status for name, row in told.items() if name in gone} == {Status.FAILED}
    assert told[side()].reason == "No module named 'torch'"
    assert {row.status for name, row in told.items() if name not in gone} == {Status.DONE}


def test_an_invalid_variant_of_base_makes_its_comparison_invalid() -> None:
    told = rows([launch(i, {SCRIPTED: VariantFacts(invalid="other replies")}) for i in range(10)])
    assert told[side(SCRIPTED)].side_verdict == Verdict.INVALID
    assert told[side()].side_verdict == Verdict.SAME


def test_launches_stop_by_the_precision_of_sides_too() -> None:
    known = Committed.of(launch(0, side_torchscript=5.0))
    assert known.log_speedups[f"{side(SCRIPTED)} against base"] == pytest.approx(np.log(2))
    assert known.log_speedups[side(SCRIPTED)] == pytest.approx(np.log(2))
    assert len(known.log_speedups) == 2 + 2 + 2 + 4


def test_a_side_that_is_another_environment_than_before_is_another_program() -> None:
    before, after = (
        replace(launch(i), machine={"environments": {BASE: found(), OTHER.name: found(torch=version)}})
        for i, version in enumerate("23")
    )
    one, other = Committed.of(before).programs, Committed.of(after).programs
    assert one[side()] != other[side()]
    assert one[BASELINE] == other[BASELINE]


def test_a_file_keeps_whose_each_variant_is() -> None:
    made = launch(3, side_eager=20.0)
    kept = to_result(to_table("trial", made))
    assert (kept.sides, kept.variants) == (made.sides, made.variants)
    assert kept.log_side_speedups() == pytest.approx(made.log_side_speedups())


def test_terminal_and_markdown_show_the_comparison_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = tuple(rows([launch(i, side_eager=20.0) for i in range(10)]).values())
    print_matrix(found, 0.02)
    shown = capsys.readouterr().out
    assert shown.index("base / side") < shown.index("speedup (95%)")
    assert shown.index(OTHER.name) < shown.index(AGAIN), "what was asked for stands before its control"
    told = markdown([RunView("run", {}, found, 0.02, ())])
    assert told.index("base / side") < told.index("speedup (95%)")
    assert f"eager with {OTHER.name} is slower: 0.500 (0.500 to 0.500) times as fast as with base" in told.replace(
        "\\", ""
    )


# The tail, and every view


TAILS = tuple(f"side_{name}_speedup{end}" for name in ("p90", "p99") for end in ("", "_low", "_high"))


def doubled(index: int, rounds: int) -> LaunchResult:
    """A launch of any latencies, of which each call of the side took exactly twice as long as that of base."""
    trial, random = asked_trial(), np.random.default_rng(index)
    own = {variant: random.integers(1, 10**6, (rounds, 3)) / 1e4 for variant in (BASELINE, CONTROL, SCRIPTED)}
    walls = {pair.label: own[pair.variant] * (2 if pair.side == OTHER.name else 1) for pair in trial.pairs}
    return replace(made_launch(walls, index, rounds), sides=tuple(pair.side for pair in trial.pairs))


@pytest.mark.parametrize(("rounds", "known"), [(9, 0), (10, 3), (100, 6)])
def test_the_tail_of_a_side_that_takes_twice_as_long_is_half(rounds: int, known: int) -> None:
    told = rows([doubled(i, rounds) for i in range(10)])
    expected = [0.5] * known + [None] * (6 - known)
    for variant in (BASELINE, SCRIPTED):
        found = [getattr(told[side(variant)], name) for name in TAILS]
        assert found == [value and pytest.approx(value, rel=1e-12) for value in expected], f"{3 * rounds} calls"
    again = [getattr(told[label_of(AGAIN, SCRIPTED)], name) for name in TAILS]
    assert again == [value and pytest.approx(1.0, rel=1e-12) for value in expected]
    assert {getattr(told[SCRIPTED], name) for name in TAILS} == {None}
    assert (told[SCRIPTED].p90_speedup is None) == (known == 0)


def test_a_launch_in_which_base_lost_a_variant_has_no_part_in_its_tail() -> None:
    made = [doubled(i, 10) for i in range(10)]
    made[9] = replace(made[9], facts={**made[9].facts, SCRIPTED: VariantFacts(failed="it crashed")})
    made[9].samples.wall_ns[:] = 1
    row = rows(made)[side(SCRIPTED)]
    assert row.side_p90_speedup == pytest.approx(0.5)
    assert row.side_speedup == pytest.approx(0.5)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_of_80_columns_has_room_for_both_tables_however_long_a_side_is_called(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_matrix(sided_view().rows, 0.02, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert sum(line.startswith("variant ") for line in lines) == 2, "two tables, no row of which became lines"
    assert lines.count(LONG_SIDE) == 2
    first, second = (lines.index(title) for title in (text.AGAINST_TITLE, text.ALONE_TITLE))
    headings = (OTHER.name, LONG_SIDE, text.side_title(AGAIN), BASE)
    places = [lines.index(heading) for heading in headings]
    assert first < places[0] < places[1] < places[2] < second < places[3], "the question, its control, then base"
    slower = next(line for line in lines[places[0] : places[1]] if SCRIPTED in line)
    assert "0.54 (" in slower
    assert (slower.count("(") == 3) == (width > 100), "the ratio of p90 where there is room for it"
    assert f"  {LONG_SIDE}: failed: {NO_TORCH}" in lines, "once for all of the side's variants"


def test_the_headline_is_what_was_decided_and_a_side_that_failed_is_one_sentence() -> None:
    told = summarize([sided_view()])
    assert told.headline.startswith(f"On cpu a CPU, torchscript with {OTHER.name} is slower: 0.54 (")
    assert told.sentences[:2] == (
        f"eager with {OTHER.name} is as fast as with base, within 2%: "
        "1.000 (1.000 to 1.000) times as fast as with base; all replies the same.",
        f"{LONG_SIDE} can't be compared: {NO_TORCH}.",
    )
    assert not any("precision not reached" in sentence for sentence in told.sentences)
    facts = {fact.question: (fact.answer, fact.alarming) for fact in told.facts}
    assert list(facts)[:2] == ["Against base", "Base in another process"], "the comparison and its control come first"
    assert facts["Against base"][0] == "1 the same, 1 slower"
    assert facts["Base in another process"] == ("1.000 (1.000 to 1.000)", False)
    assert facts["Failed, skipped, invalid"][0] == "1 side failed"


def test_more_comparisons_than_sentences_are_counted_side_by_side() -> None:
    view = sided_view()
    trials = [replace(row, trial_id=f"{row.trial_id}{n}") for n in range(4) for row in view.rows]
    told = summarize([replace(view, rows=tuple(trials))])
    assert told.headline == (
        f"{OTHER.name} is the same as base in 4 of 8 comparisons, slower in 4 (0.54x); all replies the same."
    )


def test_the_page_shows_the_comparison_first_its_tail_and_what_the_sides_are() -> None:
    view = sided_view()
    shown = page([view])
    heat = heatmap_of([view])
    assert [line.head for line in heat.rows] == [OTHER.name, LONG_SIDE, AGAIN, BASE]
    assert [name for name, *_ in heat.variants] == [BASELINE, CONTROL, SCRIPTED], "a side is no column"
    assert heat.rows[0].cells[2] is not None
    assert heat.rows[0].cells[2].big == "0.54x"
    assert shown.index(text.AGAINST_TITLE) < shown.index("What the sides are") < shown.index(text.ALONE_TITLE)
    assert shown.index("Sides over base, cpu") < shown.index("Base over its baseline, cpu")
    seen = re.sub(r' style="[^"]*"', "", shown)  # which repeats the heads of columns, for the lists of a phone
    slow, _ = seen[seen.index("The slow calls") :].split("Speedup of p90")
    assert slow.count("Base / side of p90") == 1
    assert slow.count("0.54 (0.51 to 0.58)") == 1
    assert slow.count("1.000 (1.000 to 1.000)") == 3, "eager too has one, which has none over itself"
    assert NO_TORCH in shown.replace("&#39;", "'")
    first, again, other = environments_of(view, view.rows)
    assert (first.side, other.side) == (BASE, text.side_title(AGAIN))
    assert [fact for fact, differs in again.facts if differs] == ["MALLOC_ARENA_MAX=1"]
    assert [fact for fact, _ in first.facts] == ["3.12.1", "2.13.0", "-", "-", "-", "AVX2", "-", "-"]


def test_the_page_names_what_a_side_has_installed_and_its_commit() -> None:
    view = sided_view()
    trial = view.run["trials"][view.rows[0].trial_id]
    base = trial["environments"][BASE]
    base |= {"installed": {"numpy": "2.4.6", "torch": "2.13.0", "triton": "3.4.0", "wheel": "1.0"}, "commit": "a" * 40}
    others = {f"nvidia-{n}": "13.0" for n in range(8)}
    theirs = {**base, "torch": "2.14.1", "commit": "b" * 40}
    theirs["installed"] = {**others, "numpy": "2.4.6", "torch": "2.14.1", "triton": "3.5.0"}
    trial["environments"] |= {OTHER.name: theirs}
    found = {one.side: dict(zip(HEADS, one.facts, strict=True)) for one in environments_of(view, view.rows)}
    assert found[BASE]["Other packages"] == ("-", False)
    assert found[BASE]["Commit"] == ("a" * 12, False)
    assert found[OTHER.name]["Commit"] == ("b" * 12, True)
    first = ", ".join(f"nvidia-{n} 13.0" for n in range(6))
    assert found[OTHER.name]["Other packages"] == (f"{first} and 3 more", True)


def test_every_other_form_has_the_failed_side_with_its_reason_after_the_comparison() -> None:
    view = sided_view()
    told = markdown([view]).replace("\\", "")
    assert told.index("| side |") < told.index(f"| {LONG_SIDE} | torchscript | - |")
    assert f"- {LONG_SIDE}: failed: {NO_TORCH}" in told
    assert f"| {text.side_title(AGAIN)} | eager | 1.000" in told
    written = list(csv.DictReader(io.StringIO(as_csv([view]))))
    assert {one["reason"] for one in written if one["side"] == LONG_SIDE} == {NO_TORCH}
    sent = [dict(zip(AGAINST_BASE, row, strict=True)) for row in against_base(view.rows)]
    assert list(dict.fromkeys(one["side"] for one in sent)) == [OTHER.name, LONG_SIDE, AGAIN]
    assert {one["reason"] for one in sent if one["side"] == LONG_SIDE} == {NO_TORCH}
    assert f"{view.rows[0].trial_id}/{side()}/side_speedup" in summary_of(view.rows)


def test_a_compacted_run_keeps_the_verdicts_on_sides() -> None:
    assert Anonymous().value({"side_verdict": "faster"}) == {"side_verdict": "faster"}
