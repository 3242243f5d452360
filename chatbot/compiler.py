"""The compiler's version and the target CPU, on which compiled code depends besides its sources and flags."""

import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def version(compiler: str) -> str:
    """Returns the version that a C++ compiler prints."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


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
