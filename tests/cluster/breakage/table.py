"""Every fault, and the table of what came of them."""

import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from testbed import TestbedError

from breakage import jobs
from breakage.bench import NOTHING, Bench, Fault, Seen
from breakage.drivers import busy, busy_elsewhere, driver, head_gone, other_sources, two_drivers
from breakage.stations import late_node, no_cuda, other_torch, skipped
from breakage.stores import UNREACHABLE, disk_fills_up, full_disk, refused
from breakage.trials import hanging_variant, node_gone, partition, signalled
from chatbot.errors import UsageError
from ray_jobs.report import tables

FAULTS = (
    Fault("no GPU in the cluster", skipped("no station of kind cuda", "--device", "cuda")),
    Fault("a label that nobody has", skipped("has zone=nowhere", "--stations", "zone=nowhere")),
    Fault(
        "a GPU that never comes",
        skipped("waited 3 s; only", "--device", "cuda", "--wait-for", "gpu=1", "--wait", "3"),
    ),
    Fault("a node that joins late", late_node),
    Fault("a station with another torch", other_torch),
    Fault("a GPU that PyTorch does not see", no_cuda),
    signalled("a launch is killed", lambda b: b.launch_of("node-2"), signal.SIGKILL, "was killed by SIGKILL"),
    signalled(
        "a launch hangs",
        lambda b: b.launch_of("node-2"),
        signal.SIGSTOP,
        "did not finish in its time",
        "--launch-timeout",
        "10",
    ),
    Fault("a variant that loops for ever", hanging_variant),
    signalled("a worker is killed", lambda b: b.worker_of("node-2"), signal.SIGKILL, "worker 1 lost", "--budget", "2"),
    Fault("a raylet is killed", node_gone),
    Fault("the network of a node is cut", partition, hosts=True),
    driver("the driver is killed", signal.SIGKILL, "no such words", -9),
    driver("Ctrl-C", signal.SIGINT, "interrupted", 130),
    driver("SIGTERM", signal.SIGTERM, "terminated", 143),
    Fault("the head is killed", head_gone),
    Fault("ray job stop", jobs.stopped, jobs=True),
    Fault("the station is busy with another run of this cluster", busy),
    Fault("the station is busy with a run of another cluster", busy_elsewhere),
    Fault("two drivers on one run", two_drivers),
    Fault("resumed with other sources", other_sources),
    Fault("an output that can't be written", refused("can't be kept", "--out", "/proc/results")),
    Fault("an output that can't be reached", refused("can't be", "--out", UNREACHABLE)),
    Fault("a full disk", full_disk, hosts=True),
    Fault("a disk that fills up", disk_fills_up, hosts=True),
)


def inject(bench: Bench, fault: Fault) -> Seen:
    """Makes the cluster whole, injects one fault, and says what came of it."""
    try:
        bench.begin(fault.jobs)
        shows, seconds, lost = fault.inject(bench)
    except (TestbedError, OSError, subprocess.SubprocessError) as error:
        return Seen(fault.name, str(error), None, "not seen")
    shows = shows.replace(str(bench.bed.folder), "/testbed")
    return Seen(fault.name, shows, None if seconds is None else round(seconds, 1), lost)


def sound(seen: Seen) -> bool:
    """Whether it was said, and nothing was lost."""
    return bool(seen.shows) and seen.lost == NOTHING


COLUMNS = ("fault", "what the user sees", "after s", "lost")
HEAD = tables.table(COLUMNS, [])[0]


def table(found: Sequence[Seen]) -> str:
    """In Markdown."""
    cells = [(f.fault, f.shows, "" if f.seconds is None else f"{f.seconds:.1f}", f.lost) for f in found]
    return "\n".join(tables.table(COLUMNS, cells))


def summary(content: Mapping[str, Any], found: Sequence[Seen]) -> str:
    """The page of a whole table: what it was measured on, and what the settings were."""
    settings = ", ".join(f"`{name}={value}`" for name, value in content["settings"].items())
    where = f"{content['date']}, {content['cores']} cores of {content['cpu']}, Ray {content['packages']['ray']}"
    about = f"{where}, every node on this one machine, with {settings}."
    return f"# What a cluster does to a run\n\n{about}\n\n{table(found)}\n"


def with_table(page: str, found: Sequence[Seen]) -> str:
    """A Markdown page with this table in place of the one that stands there. Raises UsageError where none does."""
    lines = page.splitlines()
    if HEAD not in lines:
        raise UsageError(f"there is no table of faults to replace: no line is {HEAD!r}")
    start = lines.index(HEAD)
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join([*lines[:start], table(found), *lines[end:]]) + "\n"


def facts(found: Sequence[Seen]) -> list[dict[str, Any]]:
    """For JSON."""
    return [vars(seen) for seen in found]
