"""What watches over the tests: a skip that is not listed fails a run, and so does a process in a quick one."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.process  # pytest in a process of its own

pytest_plugins = ["pytester"]
CONFTEST = """
import sys
sys.path[:0] = [{support!r}]
from pathlib import Path
import profiles, pytest
from skips import SkipList

def pytest_configure(config):
    config.pluginmanager.register(SkipList(Path("skips.txt")))

@pytest.fixture(scope="session", autouse=True)
def guard():
    if profiles.QUICK:
        profiles.forbid_processes()
"""
TESTS = """
import subprocess, sys
import pytest

def test_skipped():
    pytest.skip("no GPU here")

def test_starts():
    try:
        subprocess.run([sys.executable, "--version"], check=True)
    except Exception:
        pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.format(support=str(ROOT / "tests" / "support")))
    pytester.makepyfile(test_it=TESTS)
    return pytester


def run(suite: pytest.Pytester, allowed: str) -> pytest.RunResult:
    (suite.path / "skips.txt").write_text(allowed)
    return suite.runpytest_subprocess("-p", "no:cacheprovider")


def test_a_listed_skip_passes(suite: pytest.Pytester) -> None:
    assert run(suite, "# why\ntest_it.py: no GPU *\n").ret == 0


@pytest.mark.parametrize("allowed", ["", "test_it.py: no g++\n", "test_other.py: no GPU *\n"])
def test_a_skip_that_is_not_listed_fails_the_run_and_is_named(suite: pytest.Pytester, allowed: str) -> None:
    done = run(suite, allowed)
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*skips that are not on the list*", "test_it.py: no GPU here"])


def test_in_a_quick_run_a_process_fails_its_test_even_where_errors_are_caught(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PROFILE", "quick")
    done = run(suite, "test_it.py: *\n")
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*Failed: This test starts a process (subprocess.Popen): mark it pytest.mark.process*"])
