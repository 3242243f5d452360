"""The table of commands: what a fresh process loads for help and refusals, and a flag for every key of a spec."""

import json
import subprocess
import sys
from typing import Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from ray_jobs.cli.app import COMMANDS, loaded
from ray_jobs.cli.matrix import matrix
from ray_jobs.cli.options import flags_of
from ray_jobs.spec import Spec

HEAVY = {"torch", "ray", "pyarrow", "scipy", "numpy", "wandb"}
# Each command line of the list on its input is run by a fork, which has loaded the table of commands and nothing else.
WATCHED = """
import json, os, sys
from ray_jobs.cli.app import main
for number, arguments in enumerate(json.load(sys.stdin)):
    if os.fork():
        os.wait()
        continue
    said = open(f"{number}.txt", "wb")
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.argv = ["latency-matrix", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(json.dumps([ended.code, sorted({name.split(".")[0] for name in sys.modules})]), flush=True)
    os._exit(0)
"""
REFUSED = {
    "--budget": ("matrix", "--budget", "x"),
    "unknown variant 'nosuch'": ("matrix", "--variants", "nosuch"),
    "unknown wandb mode 'maybe'": ("matrix", "--wandb", "maybe"),
    "--wait-for 'cpu' is not understood": ("matrix", "--wait-for", "cpu"),
    "leave out --batch": ("matrix", "--resume", "nowhere", "--batch", "2"),
    "leave out --in-process": ("matrix", "--resume", "nowhere", "--in-process"),
    "launches set or remove OMP_NUM_THREADS": ("matrix", "--against", "env=OMP_NUM_THREADS=2"),
    "each side has its own: leave out --against": ("matrix", "--in-process", "--against", "env=A=1"),
    "--gate asks whether a side is slower: add --against": ("matrix", "--gate", "3%"),
    "--gate '3' is not a share": ("matrix", "--gate", "3", "--against", "env=A=1"),
    "--gate-out holds what a gate found: add --gate 3%": ("matrix", "--gate-out", "x.md"),
    "keeps no numbers to ask about: leave out --gate": ("matrix", "--in-process", "--gate", "3%"),
    "--timeline-only needs a run": ("trace", "--timeline-only"),
    "no run at nowhere": ("report", "nowhere"),
    "unknown format 'pdf'": ("report", "nowhere", "--format", "pdf"),
    "--gate 'much' is not a share": ("compare", "a", "b", "--gate", "much"),
    "no run at a": ("compare", "a", "b"),
    "no run at there": ("publish", "there", "--wandb", "offline"),
    "no run at here": ("compact", "here", "--run-id", "small"),
    "give the dashboard's address": ("fetch", "job", "--address", "nowhere"),
    "unknown size 'huge'": ("sweep", "--size", "huge"),
    "leave out --space": ("sweep", "--resume", "a", "--space", "b"),
    "iterations is 0": ("sweep-trial", "--iterations", "0"),
    "unknown load 'x'": ("audit", "aa", "--load", "x"),
    "choose from: 1, 2, 5": ("audit", "effect", "--percent", "3"),
    "budget is -1.0": ("audit", "faults", "--budget", "-1"),
    "make cluster-table": ("audit", "cluster"),
    "Did you mean 'matrix'": ("matrx",),
}
HELPS = [("--help",), *((name, "--help") for name in COMMANDS)]

Line = tuple[str, ...]
Fresh = dict[Line, tuple[int, set[str], str]]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """(exit code, packages loaded, what it said) of each command line in a process of its own."""
    lines, folder = [*HELPS, *REFUSED.values()], tmp_path_factory.mktemp("fresh")
    command = [sys.executable, "-c", WATCHED]
    subprocess.run(command, input=json.dumps(lines), cwd=folder, text=True, timeout=120, check=True)
    found = {}
    for number, line in enumerate(lines):
        said = (folder / f"{number}.txt").read_text()
        code, packages = json.loads(said.splitlines()[-1])
        found[line] = code, set(packages), said
    return found


@pytest.mark.process
@pytest.mark.parametrize("line", HELPS, ids=" ".join)
def test_help_loads_nothing_heavy(line: Line, fresh: Fresh) -> None:
    code, packages, said = fresh[line]
    assert (code, packages & HEAVY) == (0, set())
    assert "Usage: latency-matrix" in said


@pytest.mark.process
@pytest.mark.parametrize("message", REFUSED)
def test_a_refusal_loads_nothing_heavy(message: str, fresh: Fresh) -> None:
    code, packages, said = fresh[REFUSED[message]]
    assert (code, packages & HEAVY) == (2, set())
    assert message in said


def test_every_command_of_the_table_is_there() -> None:
    assert all(loaded(name).get_help for name in COMMANDS)


def test_every_key_of_a_spec_is_a_flag_of_the_matrix() -> None:
    alone = typer.Typer()
    alone.command()(matrix)
    flags = {flag for option in typer.main.get_command(alone).params for flag in option.opts}
    assert {f"--{key.replace('_', '-')}" for key in Spec.model_fields} <= flags


class Longer(Spec):
    """A spec with one more line."""

    cool_down: float = Field(default=1.5, description="Seconds between launches")


def test_a_new_key_is_one_line_and_has_its_flag_and_help() -> None:
    seen: list[dict[str, Any]] = []
    alone = typer.Typer(rich_markup_mode=None)

    @alone.command()
    @flags_of(Longer, Longer.model_fields)
    def command(flags: dict[str, Any]) -> None:
        seen.append(flags)

    told = " ".join(CliRunner().invoke(alone, ["--help"]).output.split())
    assert "--cool-down" in told
    assert "Seconds between launches. [default: 1.5]" in told
    assert CliRunner().invoke(alone, ["--cool-down", "3", "--batch", "1,2"]).exit_code == 0
    assert CliRunner().invoke(alone, []).exit_code == 0
    assert seen == [{"batch": "1,2", "cool_down": 3.0}, {}]
    assert Longer.model_validate(seen[0]).cool_down == 3.0
    assert CliRunner().invoke(alone, ["--cool-down", "soon"]).exit_code == 2
