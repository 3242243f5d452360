"""The C++ compiler, run within a time; and the CPU, on which compiled code depends besides its sources and flags."""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")  # of C++
CPUINFO = Path("/proc/cpuinfo")
PATIENCE_S = 120.0  # where nothing else has a deadline
SHARE = 0.8  # of the time to the deadline, that compiling may take
VERSION_S = 10.0

_end: float | None = None


class CompilerError(Exception):
    """There is no compiler, or it does not work; one line says what would help."""


def must_end_by(moment: float | None) -> None:
    """Sets this process's deadline, on the clock of ``time.monotonic()``."""
    global _end
    _end = moment


def patience_s() -> float:
    """Returns how long a compiler may run now, so that the process still meets its deadline."""
    return PATIENCE_S if _end is None else max(0.0, SHARE * (_end - time.monotonic()))


def command(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of a compiler's command: ``$CXX``, such as ``ccache g++``, or the first of ``names`` found.

    Raises:
        CompilerError: there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    try:
        asked = [shlex.split(chosen)] if chosen else [[name] for name in names]
    except ValueError as error:
        raise CompilerError(f"CXX={chosen} can't be read: {error}") from None
    for words in asked:
        if (found := shutil.which(words[0])) is not None:
            return found, *words[1:]
    raise CompilerError(f"no C++ compiler ({', '.join(words[0] for words in asked)}): install g++ or clang, or set CXX")


def run(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Runs a command, its messages in English; its whole process group is killed when its time is over.

    Raises:
        CompilerError: it can't be started.
        subprocess.TimeoutExpired: its time was over.
    """
    pipe, env = subprocess.PIPE, {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", env=env,
            process_group=0,
        )  # fmt: skip
    except OSError as error:
        raise CompilerError(f"{command[0]} can't be started: {error.strerror}") from None
    with process:
        try:
            said, complained = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def version(command: Sequence[str]) -> str:
    """Returns the version that a compiler prints. Raises CompilerError."""
    try:
        return run([*command, "--version"], VERSION_S).stdout
    except subprocess.TimeoutExpired:
        raise CompilerError(f"{shlex.join(command)} did not tell its version in {VERSION_S:.0f} s") from None


def cpu() -> str:
    """Returns whatever distinguishes this CPU's instructions and tuning from another's."""
    lines = _first_cpu()
    if not lines:
        return platform.processor()
    return "\n".join(
        line for line in lines if line.startswith(("flags", "Features", "model", "cpu family", "CPU part"))
    )


def cpu_flags() -> frozenset[str]:
    """Returns the instruction sets of this CPU as Linux names them, on x86 and ARM; empty if it does not tell."""
    found = [line.partition(":")[2].split() for line in _first_cpu() if line.startswith(("flags", "Features"))]
    return frozenset(found[0]) if found else frozenset()


def _first_cpu() -> list[str]:
    try:
        return CPUINFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return []
