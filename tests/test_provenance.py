"""Where a run comes from: a change of any source is another program, and a stranger's commit is not ours."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chatbot
import ray_jobs
from chatbot.variants import VARIANTS, variant_named
from ray_jobs.driver.inputs import identity_of
from ray_jobs.measure.trial import Inputs, Preset
from ray_jobs.provenance import (
    NEEDED,
    PACKAGES,
    SOURCES,
    changed,
    command_line,
    git_commit,
    own_source,
    programs_of,
    source_hash,
    station_facts,
)
from ray_jobs.spec import Spec

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


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the own variants of ``ways.fast`` import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ways").mkdir()
    for name, text in {"__init__": "", "helper": "SPEED = 1\n", "fast": "from ways import helper\n"}.items():
        (tmp_path / "ways" / f"{name}.py").write_text(text)
    for name in ("ways", "ways.fast", "ways.helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("ways.fast")
    return tmp_path / "ways" / "helper.py"


def test_a_file_that_an_own_variant_imports_is_part_of_its_program(helper: Path) -> None:
    before = own_source("ways.fast:NAME")
    assert own_source("ways.fast:OTHER") == before
    helper.write_text("SPEED = 2\n")
    assert own_source("ways.fast:NAME") != before


def test_the_sources_of_own_variants_are_part_of_a_runs_identity(helper: Path) -> None:
    """Else a run would be gone on with in other programs of the same names."""
    spec = Spec().model_copy(update={"variants": ("eager", "eager-again", "ways.fast:NAME")})
    inputs = Inputs(Preset("tiny"), {})
    before = identity_of(inputs, spec)
    helper.write_text("SPEED = 2\n")
    after = identity_of(inputs, spec)
    assert [part for part in before if after[part] != before[part]] == ["variants"]


def test_the_programs_of_a_run_are_those_that_its_variants_use() -> None:
    assert programs_of([variant_named("eager")]) == ("torch", "numpy")
    assert {"onnxruntime", "onnx"} < {*programs_of([variant_named("onnx-int8")])}
    assert programs_of([variant_named("native"), variant_named("export-aoti")]) == ("torch", "numpy", "compiler")
    assert all(set(NEEDED) >= {*variant.needs} for variant in VARIANTS.values())


def test_the_version_of_every_program_that_a_variant_uses_is_recorded() -> None:
    assert {name for names in NEEDED.values() for name in names} - {"compiler"} <= set(PACKAGES)


def test_only_programs_that_a_run_uses_and_both_tell_differ() -> None:
    then = {"packages": {"torch": "1", "onnxruntime": "1", "openvino": None}, "compiler": "g++ 12"}
    now = {"packages": {"torch": "1", "onnxruntime": "2", "openvino": "3"}, "compiler": "g++ 13"}
    assert changed(then, now, ["torch", "onnxruntime", "openvino"]) == [("onnxruntime", "1", "2")]
    assert changed(then, now, ["compiler"]) == [("compiler", "g++ 12", "g++ 13")]
    assert changed({"packages": {}}, now, ["torch", "compiler"]) == []


@pytest.mark.process
def test_the_compiler_is_told_by_its_version_whatever_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env echo 12.2.0")
    assert station_facts()["compiler"] == "12.2.0 --version"
    for nothing in ("/nowhere/c++", "'", "false"):
        monkeypatch.setenv("CXX", nothing)
        assert station_facts()["compiler"] is None


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
