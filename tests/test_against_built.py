"""Revisions and packages through the command line, on a real local Ray: built, measured, refused and removed."""

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Arguments
from repositories import commit, git, wheel
from test_trial import wait_until

import chatbot
from chatbot.cache import CACHE
from ray_jobs.measure.result import LaunchResult
from ray_jobs.results.samples import to_result
from ray_jobs.results.store import RunDirectory
from ray_jobs.sides import AGAIN, BASE, label_of

pytestmark = pytest.mark.process

PIP = "pip tinywheel-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with the chatbot in it: first as it is but for a comment, then without a name that is measured by.

    There are a cache of its own and no index of packages.
    """
    here = tmp_path_factory.mktemp("project")
    sources = Path(chatbot.__path__[0])
    shutil.copytree(sources, here / "chatbot", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    text = (here / "chatbot" / "config.py").read_text()
    commit(here, {"chatbot/config.py": f"{text}# a comment\n"})
    for path in (here / "chatbot").rglob("*.py"):
        path.write_text(path.read_text().replace("variant_named", "variant_called"))
    commit(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache") / "own"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield here


@dataclass(frozen=True)
class Cut:
    """A run that was interrupted after its first launches: what it said, run.json, a launch."""

    errors: str
    run: dict[str, Any]
    launch: LaunchResult


@pytest.fixture(scope="module")
def cut(home: Path, asking_toy: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """One run that the tests below look at; launches that start four interpreters each need not all be waited for."""
    file, results = wheel(tmp_path_factory.mktemp("wheels")), tmp_path_factory.mktemp("results")
    against = [word for side in ("rev=HEAD~1", "rev=main", f"pip={file}") for word in ("--against", side)]
    out = ("--out", results, "--run-id", "r", "--wandb", "off")
    process = commands.start(home, "matrix", *asking_toy, "--variants", "eager", *against, *out)
    with commands.interrupting(process) as interrupt:
        wait_until(lambda: process.poll() is not None or any((results / "r" / "samples").glob("*.parquet")), 200)
        errors = interrupt()
    directory = RunDirectory.existing(str(results / "r"))
    told = json.loads(directory.read("run.json"))
    (trial,) = told["trials"]
    return Cut(errors, told, to_result(directory.launch(trial, 0)))


def test_a_revision_and_packages_are_measured(cut: Cut) -> None:
    for side in (BASE, AGAIN, "rev HEAD~1", PIP):
        facts = cut.launch.facts[label_of(side, "eager")]
        assert (facts.failed, facts.skipped, facts.invalid) == (None, None, None)
        assert facts.identical == facts.replies > 0
    assert cut.launch.log_side_speedups().keys() == {label_of(side, "eager") for side in (AGAIN, "rev HEAD~1", PIP)}


def test_a_revision_that_does_not_fit_fails_with_the_missing_name(cut: Cut) -> None:
    assert "cannot import name 'variant_named'" in str(cut.launch.facts["rev main: eager"].failed)


def test_what_was_built_is_told_and_recorded(cut: Cut, home: Path) -> None:
    commits = {name: git(home, "rev-parse", name) for name in ("HEAD~1", "main")}
    assert {name: one["commit"] for name, one in cut.run["sides"].items()} == {
        "rev HEAD~1": commits["HEAD~1"],
        "rev main": commits["main"],
        PIP: None,
    }
    for name, one in cut.run["sides"].items():
        (seconds,) = one["built_s"].values()
        assert f"built {name} in {seconds:.0f} s" in cut.errors
    (trial,) = cut.run["trials"].values()
    found = trial["environments"]
    assert found[PIP]["installed"] == {**found["base"]["installed"], "tinywheel": "1.0"}
    assert "installed" not in found["rev HEAD~1"]
    assert found["rev HEAD~1"]["sources"] != found["base"]["sources"] == found[PIP]["sources"]
    assert found["rev HEAD~1"]["commit"] == commits["HEAD~1"]
    assert isinstance(cut.launch.machine["environments"][PIP]["installed"], str), "a hash"


def test_the_work_tree_and_git_are_left_alone(cut: Cut, home: Path) -> None:
    assert git(home, "status", "--porcelain") == ""
    assert len(git(home, "worktree", "list").splitlines()) == 1


@pytest.mark.slow
def test_what_pip_can_not_install_is_one_line_before_any_launch(
    cut: Cut, home: Path, asking_toy: Arguments, tmp_path: Path
) -> None:
    against = ("--against", "pip=nosuchpackage==99", "--out", str(tmp_path / "results"), "--wandb", "off")
    refused = commands.run(home, "matrix", *asking_toy, *against)
    assert refused.code == 2
    reason = "No matching distribution found for nosuchpackage==99"
    assert refused.err.endswith(f": --against 'pip nosuchpackage==99' can't be built: {reason}\n")
    assert not (tmp_path / "results").exists()


def test_what_was_built_stays_until_it_is_cleaned_away(cut: Cut, home: Path) -> None:
    lines = commands.run_here(home, "clean").out.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(", removed") for line in lines[:-1])
    assert lines[-1].startswith("3 removed, ")


def test_an_interrupt_ends_pip_too(home: Path, asking_toy: Arguments, tmp_path: Path) -> None:
    """While it waits for an answer. That the next run begins anew is shown in ``test_packages``."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        address = f"x@http://127.0.0.1:{silent.getsockname()[1]}/x-1.0-py3-none-any.whl"
        against = ("--against", f"pip={address}", "--out", str(tmp_path / "results"), "--wandb", "off")
        process = commands.start(home, "matrix", *asking_toy, *against)
        with commands.interrupting(process) as interrupt:
            asked, _ = silent.accept()
            errors = interrupt()
            asked.close()
    assert "getting ready: pip x@x-1.0-py3-none-any.whl" in errors
    assert "nothing was measured yet" in errors
    first, last = commands.run_here(home, "clean").out.splitlines()
    assert "never finished: " in first
    assert last.startswith("1 removed, ")


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ("rev=nosuch", "has no such revision; give a commit, a branch or a tag"),
        ("pip=/nowhere/x.whl", "no file is there"),
        ("python=/nowhere/python", "no interpreter is there"),
    ],
)
def test_what_is_not_there_is_refused_at_once(home: Path, asking_toy: Arguments, against: str, said: str) -> None:
    refused = commands.run_here(home, "matrix", *asking_toy, "--against", against, "--out", str(home / "results"))
    assert refused.code == 2
    (line,) = refused.err.strip().splitlines()
    assert said in line
    assert not (home / "results").exists()
