"""The compiler's version and the target CPU, on which compiled code depends besides its sources and flags."""

import platform
import subprocess
from pathlib import Path


def version(compiler: str) -> str:
    """Returns the version that a C++ compiler prints."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def cpu() -> str:
    """Returns whatever distinguishes this CPU's instructions and tuning from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        line for line in lines if line.startswith(("flags", "Features", "model", "cpu family", "CPU part"))
    )
