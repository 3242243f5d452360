"""``--allowed-skips FILE``: a run fails on a skip that is not on the list, so that none goes unseen."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest


class SkipList:
    """A plugin. Each line of the list is ``FILE: REASON``, both as patterns of a shell; ``#`` begins a comment."""

    def __init__(self, path: Path) -> None:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        self.allowed = [line for line in lines if line and not line.startswith("#")]
        self.unlisted: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            skip = f"{report.nodeid.split('::')[0]}: {report.longrepr[2].removeprefix('Skipped: ')}"
            if not any(fnmatchcase(skip, pattern) for pattern in self.allowed):
                self.unlisted.add(skip)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("skips that are not on the list")
            for skip in sorted(self.unlisted):
                terminalreporter.line(skip)
