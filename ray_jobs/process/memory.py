"""Whether the kernel killed a process for want of memory: a plain SIGKILL does not tell."""

from contextlib import suppress
from pathlib import Path


def kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel has killed so: of this control group where it tells, else of the whole machine."""
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
