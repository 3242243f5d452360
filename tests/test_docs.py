"""The snippets of the documents run as they stand, one after the other, in a fresh process."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
SLOW = "<!-- slow -->\n"
TORCHSCRIPT = ROOT / "docs" / "torchscript.md"


def snippets(path: Path, slow: bool) -> str:
    """All Python of a document, at its own line numbers; what is marked slow only where asked."""
    text = path.read_text(encoding="utf-8")
    program = [""] * (text.count("\n") + 1)
    for found in re.finditer(rf"({re.escape(SLOW)})?```python\n(.*?)```", text, re.DOTALL):
        if slow or not found[1]:
            first = text.count("\n", 0, found.start(2))
            lines = found[2].splitlines()
            program[first : first + len(lines)] = lines
    return "\n".join(program)


def run(program: str) -> subprocess.CompletedProcess[str]:
    # From a file: scripting reads the source of what it compiles.
    return subprocess.run([sys.executable, program], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def written(folder: Path, program: str) -> str:
    path = folder / "snippets.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + program, encoding="utf-8")
    return str(path)


def test_the_snippets_on_torchscript_run(tmp_path: Path) -> None:
    program = snippets(TORCHSCRIPT, slow=False)
    assert "aoti" not in program
    done = run(written(tmp_path, program))
    assert done.returncode == 0, done.stderr


def test_a_snippet_that_is_wrong_is_found_at_its_line(tmp_path: Path) -> None:
    program = snippets(TORCHSCRIPT, slow=False).replace("== 16.0", "== 1.0")
    done = run(written(tmp_path, program.split("class Repeat")[0]))
    (line,) = [i for i, text in enumerate(TORCHSCRIPT.read_text().splitlines(), 1) if "== 16.0" in text]
    assert done.returncode == 1
    assert f"line {line}" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_slow_snippets_run_too(tmp_path: Path) -> None:
    program = snippets(TORCHSCRIPT, slow=True)
    assert "aoti" in program
    done = run(written(tmp_path, program))
    assert done.returncode == 0, done.stderr


def test_the_figures_are_those_of_the_committed_runs() -> None:
    for name, model in (("seed", "tutorial"), ("make-matrix", "small")):
        rows = json.loads((ROOT / "results" / name / "matrix.json").read_text())
        (row,) = [r for r in rows if r["variant"] == "torchscript" and r["status"] == "done" and r["device"] == "cpu"]
        assert row["model"] == model
        figures = f"{row['speedup']:.3f} ({row['speedup_low']:.3f} to {row['speedup_high']:.3f})"
        assert f"[results/{name}](../results/{name}/run.json) | {figures} |" in TORCHSCRIPT.read_text()
