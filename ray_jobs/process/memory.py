"""Tells whether the kernel killed a process for want of memory, which a plain SIGKILL does not show."""

from contextlib import suppress
from pathlib import Path


def kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Counts processes killed for want of memory: in this control group if it reports them, else on the machine."""
    for place in [*_groups(proc, cgroups), proc / "vmstat"]:
        with suppress(OSError):
            for line in place.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    """Files that count for this process's group: version 2's, and version 1's where it has its own hierarchy."""
    places = []
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                places.append(cgroups / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                places.append(cgroups / "memory" / path.lstrip("/") / "memory.oom_control")
    # A container sees its own group as the root of the tree, whatever the path says.
    return [*places, cgroups / "memory.events", cgroups / "memory/memory.oom_control"]
