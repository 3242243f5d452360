"""A command that ends with who started it, and everything that it has started with it.

``python -m ray_jobs.process.supervised SECONDS COMMAND...`` runs it until its standard input ends. Its exit code is the
command's, or ``LATE``.
"""

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ray_jobs.process import fork

LATE = 124  # that of timeout(1)
LEAVE_S = fork.PATIENCE_S + 10.0  # for it to end what it has started
NOT_ITS_OWN = ("PYTHONPATH", "PYTHONHOME")  # of a command that runs another Python
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    said: str


def output_of(command: Sequence[str], timeout_s: float) -> Ended:
    """Runs a command without this program's Python path. Its code is ``LATE`` where it was ended at its deadline."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    this = [sys.executable, "-P", "-m", "ray_jobs.process.supervised", str(timeout_s), *command]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            this,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdin is not None
        try:
            code = process.wait(timeout_s + LEAVE_S)
        except subprocess.TimeoutExpired:
            code = LATE
        finally:
            process.stdin.close()
            _leave(process)
        said.seek(0)
        return Ended(code, said.read().decode(errors="replace"))


def _leave(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(timeout_s: float, command: Sequence[str]) -> int:
    """Runs the command; returns its exit code, once nothing is left of what it has started."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_ITS_OWN}
    fork.adopt()
    dies_with_this = partial(fork.die_with, os.getpid())  # even where this one can't end it: it was killed itself
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, preexec_fn=dies_with_this
    )
    try:
        waiting = select.poll()
        for descriptor in (ended := os.pidfd_open(process.pid), sys.stdin.fileno()):
            waiting.register(descriptor, select.POLLIN)
        if ended not in dict(waiting.poll(timeout_s * 1000)):
            return LATE
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        return found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
    finally:
        fork.end(process.pid)


if __name__ == "__main__":
    code = main(float(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(code)
