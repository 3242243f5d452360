"""Environments of a side: what pip installs is found first, why it fails is told, a killed build leaves no process."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from repositories import wheel
from test_trial import wait_until

from chatbot.cache import CACHE
from ray_jobs.process import kept, packages, supervised
from ray_jobs.process.packages import PYTHON, BuildError, build, key_of, reason_in
from ray_jobs.process.supervised import LATE, output_of

NAP = f"{300 + os.getpid() / 1e8:.8f}"  # seconds, that no other test run sleeps


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no index."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "ERROR: Could not find a version that satisfies the requirement torch==99 (from versions: 2.14)\n"
            "ERROR: No matching distribution found for torch==99\n\n[notice] A new release of pip is available\n",
            "No matching distribution found for torch==99",
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for torch\n",
            "No matching distribution found for torch (its index could not be reached)",
        ),
        ("Traceback:\nModuleNotFoundError: No module named 'pip'\n", "ModuleNotFoundError: No module named 'pip'"),
        ("ERROR: HTTP error 401 for https://me:secret@host/simple", "HTTP error 401 for https://***@host/simple"),
        (
            "ERROR: Cannot install torch==99\n\nThe conflict is caused by:\n    The user requested torch==99\n"
            "    The user requested (constraint) torch<=2.14.1\n\nTo fix this you could try to:\n1. loosen\n\n"
            "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/\n",
            "they conflict: The user requested torch==99; The user requested (constraint) torch<=2.14.1",
        ),
        ("", "pip said nothing"),
    ],
)
def test_the_reason_is_pips_last_error_without_keys(said: str, reason: str) -> None:
    assert reason_in(said) == reason


def test_an_environment_is_known_by_what_it_is_made_of_and_by_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = wheel(tmp_path)
    known = {key_of(asked) for asked in (["a==1"], ["a==2"], ["a==1", "b"], [str(file)])}
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@host/simple")
    with_key = key_of(["a==1"])
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:other@host/simple")
    assert key_of(["a==1"]) == with_key
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:other@elsewhere/simple")
    known |= {with_key, key_of(["a==1"])}
    monkeypatch.delenv("PIP_INDEX_URL")
    wheel(tmp_path, code="VERSION = 'built again'")
    assert len(known | {key_of([str(file)])}) == 7


@pytest.mark.process
def test_what_pip_installs_is_found_first_and_all_else_is_that_of_base(tmp_path: Path) -> None:
    """Of a package that base has another version of, too; one that satisfies pip is not installed again."""
    files = [wheel(tmp_path, needs="numpy>=2"), wheel(tmp_path, "six", "99.0")]
    build(tmp_path / "made", [str(file) for file in files])
    program = "import tinywheel, six, numpy, importlib.metadata as m; "
    program += "print(tinywheel.VERSION, six.VERSION, m.version('six'), numpy.__file__)"
    said = subprocess.check_output([tmp_path / "made" / PYTHON, "-I", "-c", program], text=True)
    assert said.split() == ["1.0", "99.0", "99.0", np.__file__]
    assert not list((tmp_path / "made").rglob("numpy"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("nosuchpackage==99", "No matching distribution found for nosuchpackage==99"),
        ("numpy", "this program's own environment satisfies it"),
        ("/nowhere/x-1.0-py3-none-any.whl", "/nowhere/x-1.0-py3-none-any.whl"),
    ],
)
def test_what_can_not_be_installed_says_why_in_one_line(asked: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as failed:
        build(tmp_path / "made", [asked])
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.process
def test_pip_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "BUILD_S", 0.0)
    with pytest.raises(BuildError, match="pip had not ended after 0 minutes"):
        build(tmp_path / "made", [str(wheel(tmp_path))])


@pytest.mark.process
def test_a_command_tells_how_it_ended_and_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/odd")
    told = output_of(["sh", "-c", "echo one; echo two${PYTHONPATH} >&2; exit 3"], 30.0)
    assert (told.code, told.said) == (3, "one\ntwo\n")
    assert output_of(["sh", "-c", "kill -9 $$"], 30.0).code == 128 + 9


@pytest.mark.process
def test_a_command_is_ended_at_its_deadline_with_what_it_started() -> None:
    start = time.monotonic()
    assert output_of(["sh", "-c", f"setsid sleep {NAP} & sleep {NAP}"], 0.5).code == LATE
    assert time.monotonic() - start < supervised.LEAVE_S
    assert sleeping() == 0


CALLER = f"""
from ray_jobs.process import kept, supervised
def build(place):
    place.mkdir()
    supervised.output_of(["sh", "-c", "setsid sleep {NAP} & sleep {NAP}"], 300.0)
kept.hold(kept.ENVIRONMENTS, "a", "pip x", build)
"""


@pytest.mark.process
def test_a_killed_build_leaves_no_process_and_is_built_anew(tmp_path: Path) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        wait_until(lambda: sleeping() == 2)
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: sleeping() == 0)
    (left,) = kept.found()
    assert left.name is None
    os.close(kept.hold(kept.ENVIRONMENTS, "a", "pip x", Path.mkdir).lock)
    assert [one.name for one in kept.found()] == ["pip x"]


def sleeping() -> int:
    """How many processes of ``sleep NAP`` there are."""
    count = 0
    for one in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            count += one.cmdline() == ["sleep", NAP] and one.status() != psutil.STATUS_ZOMBIE
    return count
