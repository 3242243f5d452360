"""``python -m ray_jobs`` in a process of its own, on a Ray of its own; what starts no Ray also within this process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_jobs.cli import app

Arguments = tuple[str | Path, ...]
DROPPED = ("WANDB_API_KEY", "WANDB_MODE", "RAY_ADDRESS")


def environment(home: Path) -> dict[str, str]:
    """No key and no server of W&B, no other cluster, no telemetry; temporary folders of its own."""
    kept = {key: value for key, value in os.environ.items() if key not in DROPPED}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "WANDB_ERROR_REPORTING": "false", "RAY_AUTH_MODE": "disabled"}
    temporary = home.with_name(f"{home.name}-temporary")  # beside it: some tests count what a command leaves
    temporary.mkdir(exist_ok=True)
    return {**kept, **quiet, "TMPDIR": str(temporary), "NETRC": str(home / "no-netrc"), "COLUMNS": "100"}


def start(home: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ray_jobs", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
        cwd=home,
        preexec_fn=_interruptible,
    )


def _interruptible() -> None:
    """A shell's background jobs, this test run among them, ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupting(process: "subprocess.Popen[str]") -> Iterator[Callable[[], str]]:
    """Gives what interrupts a command and returns its errors: it and all that it started must be gone soon after.

    Whatever happens within the block, none of them is left behind it.
    """
    family: list[psutil.Process] = []

    def gather() -> None:
        with suppress(psutil.NoSuchProcess):
            family.extend(psutil.Process(process.pid).children(recursive=True))

    def interrupt() -> str:
        gather()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        assert process.returncode == 130, errors
        return errors

    try:
        yield interrupt
    finally:
        gather()
        everyone: list[subprocess.Popen[str] | psutil.Process] = [process, *family]
        for left in everyone:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                left.kill()


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return content


def run(home: Path, *arguments: str | Path) -> Done:
    process = start(home, *arguments)
    out, err = process.communicate(timeout=240)
    return Done(process.returncode, out, err)


def run_here(home: Path, *arguments: str | Path, main: Callable[[], None] = app.main) -> Done:
    """The same within this process, which spares the imports of torch and Ray."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in DROPPED:
            patch.delenv(name, raising=False)
        patch.chdir(home)
        patch.setattr(sys, "argv", ["ray_jobs", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # Typer replaces it
        with pytest.raises(SystemExit) as left:
            main()
    return Done(int(left.value.code or 0), out.getvalue(), err.getvalue())
