"""What a program imports: that it waits for nothing, shows itself, and uses the Ray that is there."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import commands
import pytest
from reports import MARGIN, Case
from test_docs import snippets
from test_imports import loaded_by

import ray_jobs
from chatbot.errors import UsageError
from ray_jobs import Matrix
from ray_jobs.matrix.rows import COLUMNS

ROOT = Path(__file__).resolve().parent.parent

UNDER_RAY = """
import signal, sys, threading
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
node = ray.get_runtime_context().get_node_id()
failed = []
threading.excepthook = lambda given: failed.append(given.exc_value)
thread = threading.Thread(target=exec, args=(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), shared := {}))
thread.start()
thread.join()
assert not failed, failed
assert ray.is_initialized() and ray.get_runtime_context().get_node_id() == node
assert before == {name: signal.getsignal(name) for name in before}
rows = shared["rows"]
assert rows.to_pandas().shape == (len(rows), rows.to_arrow().num_columns)
assert {row.run_id for row in rows} == {rows.place.rpartition("/")[2]}
print(repr(rows))
"""


@pytest.mark.process
def test_the_package_itself_loads_nothing_that_takes_time() -> None:
    assert loaded_by(["ray_jobs"]).isdisjoint(
        {"torch", "ray", "pydantic", "pyarrow", "numpy", "wandb", "rich", "chatbot"}
    )


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(ray_jobs, name).__name__ == name for name in ray_jobs.__all__)
    assert {"run", "Spec", "Variant", "OwnModel", "open_run"} <= set(ray_jobs.__all__) <= set(dir(ray_jobs))
    with pytest.raises(AttributeError, match="'ray_jobs' has no attribute 'walk'"):
        _ = ray_jobs.walk


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    case = Case()
    return Matrix(tuple(case.rows("made", 0, case.launches())), MARGIN, "results/made")


def test_rows_are_a_sequence_that_shows_the_terminals_table(matrix: Matrix) -> None:
    assert [row.variant for row in matrix] == ["eager", "eager-again", "torchscript"]
    assert (len(matrix), matrix[-1].speedup, matrix[:1]) == (3, matrix.rows[2].speedup, matrix.rows[:1])
    text, page = repr(matrix), matrix._repr_html_()
    assert all(head in shown for shown in (text, page) for head in ("p50 ms (95%)", "speedup (95%)", "verdict"))
    assert "torchscript" in text
    assert "<" not in text
    assert page.startswith("<pre")


def test_a_name_that_looks_like_html_is_shown_as_it_is(matrix: Matrix) -> None:
    hostile = Matrix((replace(matrix[0], variant="<script>"),), MARGIN, "")
    assert "&lt;script&gt;" in hostile._repr_html_()
    assert "<script" not in hostile._repr_html_()


def test_rows_give_arrow_and_pandas(matrix: Matrix) -> None:
    assert tuple(matrix.to_arrow().column_names) == tuple(COLUMNS)
    assert matrix.to_pandas()["variant"].tolist() == ["eager", "eager-again", "torchscript"]


def test_where_pandas_is_missing_one_line_says_so(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pandas is not installed: pip install pandas"):
        matrix.to_pandas()


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The notebook's own Ray goes to a folder with a path short enough for its sockets, which is taken away."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.process
@pytest.mark.usefixtures("ray_folder")
def test_a_notebook_measures_under_its_own_ray_outside_of_the_main_thread(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    example = snippets(ROOT / "docs" / "api.md", slow=False)
    assert "budget=5)" in example
    (home / "example.py").write_text(example.replace("budget=5)", "budget=1)"))  # the least launches in either
    env = {**commands.environment(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", UNDER_RAY, "example.py"]
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "eager-again" in done.stdout
    assert len(list((home / "results").iterdir())) == 1
