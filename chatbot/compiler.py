"""What compiled code depends on besides its sources and flags: the compiler's version, and the CPU it is made for."""

import platform
import subprocess
from pathlib import Path


def version(compiler: str) -> str:
    """What a C++ compiler says of itself."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def cpu() -> str:
    """What tells this CPU's instructions and tuning from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        line for line in lines if line.startswith(("flags", "Features", "model", "cpu family", "CPU part"))
    )
