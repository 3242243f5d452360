"""Names, reasons and words from elsewhere are shown as they are: no terminal, markup or spreadsheet obeys."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from launches import ALL, made_launch
from rich.console import Console
from runs import finished_run, trial_at

from chatbot.talk import readable
from ray_jobs.cli.report import _seen_from
from ray_jobs.matrix.rows import rows_of
from ray_jobs.process.profile.profiler import Operator, Traced
from ray_jobs.report import tables
from ray_jobs.report.terminal import Reporter, print_matrix
from ray_jobs.report.view import Trace, load
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.trace.page import _operators_table

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m [bold]x[/clone] :fire:"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\u202e\x9b31m [bold]x[/clone] :fire:"
LAUNCHES = [made_launch(dict.fromkeys(ALL, 9.0), index) for index in range(2)]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose file was written by somebody else."""
    directory = RunDirectory.named(str(tmp_path), "run")
    finished_run(directory, [(trial_at("run", ALL), LAUNCHES)])
    rows = json.loads(directory.read("matrix.json"))
    directory.write_json("matrix.json", [{**row, "reason": HOSTILE, "station": HOSTILE} for row in rows])
    return directory


def test_what_a_run_directory_holds_is_escaped_where_it_is_read(run: RunDirectory) -> None:
    rows = FinishedRun.within(run).rows
    assert {row.reason for row in rows} == {row.station for row in rows} == {SHOWN}


@pytest.mark.parametrize("width", [40, 200])
def test_the_matrix_in_a_terminal(width: int) -> None:
    screen = io.StringIO()
    trial, place = trial_at("run", ALL, host=HOSTILE)
    rows = [
        replace(row, variant=f"{row.variant}{HOSTILE}") for row in rows_of(trial, place, "failed", HOSTILE, LAUNCHES)
    ]
    print_matrix(rows, 0.02, Console(file=screen, width=width, force_terminal=True, color_system=None))
    said = screen.getvalue()
    assert not set(said) & set("\x1b\x07\x9b\u202e")
    unbroken = "".join(said.split())
    assert "".join(f"torchscript{SHOWN}".split()) in unbroken
    assert "".join(f"failed: {SHOWN}".split()) in unbroken


def test_a_line_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(1.0, 0.01).say(f"a: worker 1 lost: {HOSTILE}")
    assert capsys.readouterr().err == f"a: worker 1 lost: {SHOWN}\n"


@pytest.mark.parametrize("name", ["[memory]", "f<[lambda(int)]>", "x [/clone]", HOSTILE])
def test_an_operator_of_a_trace(name: str) -> None:
    traced = Traced("torchscript", b"", replies=1, operators=(Operator(name, "kernel", 1, 9, 9, None, 0),))
    screen = io.StringIO()
    Console(file=screen, width=300).print(_operators_table(replace(traced, variant="eager"), traced))
    assert name.replace(HOSTILE, SHOWN)[:30] in screen.getvalue()


@pytest.mark.parametrize("reason", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)"])
def test_a_cell_of_csv_is_no_formula(reason: str, run: RunDirectory) -> None:
    view = load(run)
    row = replace(view.rows[0], reason=reason, sentinel_drift=-0.5)
    (read,) = csv.DictReader(io.StringIO(tables.as_csv([replace(view, rows=(row,))]), newline=""))
    assert read["reason"] == f"'{reason}"
    assert read["sentinel_drift"] == "-0.5"


def test_a_folders_name_is_no_scheme_of_a_link(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "run").rename(tmp_path / "javascript:alert(1)")
    directory = RunDirectory.existing(str(tmp_path / "javascript:alert(1)"))
    view = replace(load(directory), traces=(Trace("traces/t.json.gz", "t", "", "eager", "trace"),))
    (trace,) = _seen_from(tmp_path / "page.html", directory, view).traces
    assert trace.href == "javascript%3Aalert%281%29/traces/t.json.gz"


def test_a_word_of_a_checkpoints_vocabulary() -> None:
    assert readable(f"i like {HOSTILE} !") == f"i like {SHOWN}!"
