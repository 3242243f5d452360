"""Where a run comes from: a change of any source is another program, and a stranger's commit is not ours."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chatbot
import ray_jobs
from ray_jobs.provenance import SOURCES, command_line, git_commit, source_hash

FOLDERS = [Path(package.__path__[0]) for package in (chatbot, ray_jobs)]


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    without = shutil.ignore_patterns("__pycache__", "*.pt")
    return [Path(shutil.copytree(folder, tmp_path / folder.name, ignore=without)) for folder in FOLDERS]


def test_a_copy_has_the_hash_of_what_it_was_copied_from(copies: list[Path]) -> None:
    assert source_hash(copies) == source_hash()


@pytest.mark.parametrize("suffix", [".py", ".h", ".cpp"])
def test_a_changed_source_of_any_kind_is_another_program(suffix: str, copies: list[Path]) -> None:
    before = source_hash(copies)
    source = next(path for folder in copies for path in sorted(folder.rglob(f"*{suffix}")) if path.stat().st_size)
    source.write_bytes(source.read_bytes() + b"\n")
    assert source_hash(copies) != before


def test_every_source_that_is_compiled_is_among_those_hashed() -> None:
    compiled = {path.suffix for folder in FOLDERS for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu")}
    assert compiled
    assert compiled <= set(SOURCES)


def repository(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("content")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"]
    for arguments in (["init", "--quiet"], ["add", "file"], [*who, "commit", "--quiet", "-m", "one"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.process
def test_the_commit_is_told_with_a_mark_where_the_tree_differs(tmp_path: Path) -> None:
    commit = repository(tmp_path / "ours")
    assert git_commit(tmp_path / "ours") == commit
    (tmp_path / "ours" / "file").write_text("changed")
    assert git_commit(tmp_path / "ours") == f"{commit}+"


@pytest.mark.process
def test_a_repository_that_the_environment_happens_to_lie_in_is_not_ours(tmp_path: Path) -> None:
    repository(tmp_path / "theirs")
    installed = tmp_path / "theirs" / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    assert git_commit(installed) is None
    assert git_commit(tmp_path) is None


@pytest.mark.parametrize(
    ("argv", "original", "said"),
    [
        (
            ["/x/ray_jobs/__main__.py", "report"],
            ["/bin/python3", "-m", "ray_jobs", "report"],
            "python -m ray_jobs report",
        ),
        (
            ["/v/bin/latency-matrix", "report"],
            ["/v/python", "/v/bin/latency-matrix", "report"],
            "latency-matrix report",
        ),
        (["mine.py", "7"], ["/bin/python3", "mine.py", "7"], "python mine.py 7"),
    ],
)
def test_the_words_that_started_a_process_start_it_again(
    argv: list[str], original: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert " ".join(command_line()) == said
