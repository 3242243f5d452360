"""The cores to measure on: one thread per physical core, the fastest kind, one node, with empty siblings.

Read from sysfs: https://docs.kernel.org/admin-guide/cputopology.html; kinds of cores from the PMUs of Intel's hybrids
(``cpu_core``, ``cpu_atom``), else ``cpu_capacity`` (ARM), else the highest frequency.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from ray_jobs.machine import read_text

DEVICES = Path("/sys/devices")
PCI_DEVICES = Path("/sys/bus/pci/devices")
SLOW_PMUS = ("cpu_atom", "cpu_lowpower")  # of Intel's efficiency cores
ONE_KIND = 0.9  # cores whose rates differ by less are of one kind: favoured cores boost some percent higher


@dataclass(frozen=True)
class Topology:
    """The known properties of each logical CPU; those that the machine does not report are missing."""

    siblings: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # it and those that share its core
    kinds: Mapping[int, int] = field(default_factory=dict)  # 0 is the fastest
    nodes: Mapping[int, int] = field(default_factory=dict)  # NUMA

    def core(self, cpu: int) -> int:
        """The physical core, named by the first of its logical CPUs."""
        return min(self.siblings.get(cpu, (cpu,)))

    def by_core(self, cpus: Iterable[int]) -> list[int]:
        """The logical CPUs in such an order that those of one core, and of one node, stand together."""
        return sorted(cpus, key=lambda cpu: (self.nodes.get(cpu, 0), self.core(cpu), cpu))


@dataclass(frozen=True)
class CoreChoice:
    """The logical CPUs of a trial's launches, and what surrounds them."""

    cpus: tuple[int, ...]
    empty: tuple[int, ...] = ()  # share a core with those and run nothing
    others: tuple[int, ...] = ()  # for everything else
    text: str = ""
    warnings: tuple[str, ...] = ()  # what could not be as wished


def topology(devices: Path = DEVICES) -> Topology:
    """Reads the topology of this machine's logical CPUs from sysfs."""
    cpus = [int(path.name[3:]) for path in devices.glob("system/cpu/cpu[0-9]*") if path.name[3:].isdecimal()]

    def told(name: str) -> dict[int, str]:
        found = {cpu: read_text(devices / f"system/cpu/cpu{cpu}/{name}") for cpu in cpus}
        return {cpu: text for cpu, text in found.items() if text}

    siblings = told("topology/thread_siblings_list")
    cpus = list(siblings) or cpus  # those that are offline tell of no siblings, nor of their rate
    nodes = {cpu: path for cpu in cpus for path in devices.glob(f"system/cpu/cpu{cpu}/node[0-9]*")}
    return Topology(
        {cpu: tuple(cpu_list(text)) for cpu, text in siblings.items()},
        _kinds(devices, cpus, told),
        {cpu: int(path.name[4:]) for cpu, path in nodes.items()},
    )


def _kinds(devices: Path, cpus: Sequence[int], told: Callable[[str], dict[int, str]]) -> dict[int, int]:
    slow = [cpu for pmu in SLOW_PMUS for cpu in cpu_list(read_text(devices / f"{pmu}/cpus"))]
    if slow:
        return {cpu: int(cpu in slow) for cpu in cpus}
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        rates = {cpu: int(text) for cpu, text in told(name).items() if text.isdecimal()}
        if len(rates) == len(cpus):
            return _ranked(rates)
    return {}


def _ranked(rates: Mapping[int, int]) -> dict[int, int]:
    """The rank of each CPU's kind, the fastest first; a kind ends where a core is clearly slower than its first."""
    kinds: dict[int, int] = {}
    first, kind = max(rates.values(), default=0), 0
    for cpu in sorted(rates, key=lambda cpu: -rates[cpu]):
        if rates[cpu] < ONE_KIND * first:
            first, kind = rates[cpu], kind + 1
        kinds[cpu] = kind
    return kinds


def cpu_list(text: str) -> list[int]:
    """Parses a list of CPUs such as ``0-2,5``, as the kernel writes it; empty for anything else."""
    found: list[int] = []
    with suppress(ValueError):
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


def choose_cores(allowed: Iterable[int], threads: int, machine: Topology) -> CoreChoice:
    """The logical CPUs to measure on; the first core is left to everything else where there is a choice.

    Raises:
        ValueError: fewer are allowed than threads are asked for.
    """
    free = sorted(allowed)
    if threads > len(free):
        raise ValueError(f"{threads} threads asked for, but the station has {len(free)} cores")
    cpus = tuple(sorted(_one_per_core(free, threads, machine) or _shared(free, threads, machine)))
    cores = {machine.core(cpu) for cpu in cpus}
    mates = {mate for cpu in cpus for mate in machine.siblings.get(cpu, ())} - set(cpus)
    others = tuple(cpu for cpu in free if machine.core(cpu) not in cores)
    left = () if others else tuple(sorted(mates & set(free)))  # a core's sibling, where there is nothing else
    choice = CoreChoice(cpus, tuple(sorted(mates - set(left))), others or left)
    return replace(choice, text=_described(choice, free, machine), warnings=tuple(_doubts(choice, free, machine)))


def _one_per_core(free: Sequence[int], threads: int, machine: Topology) -> list[int]:
    """The last of the cores that are as fast, as near to each other and as far from the first one as there are enough.

    In this order: a slower kind is worse than two nodes, and these than the first core. None where cores are too few.
    Of the first core it is the last CPU: the first one is where interrupts go, and everything else.
    """
    first = {machine.core(cpu): cpu for cpu in reversed(free)}  # of each core its first CPU
    cpus = sorted(first.values())
    kinds = sorted({machine.kinds.get(cpu, 0) for cpu in cpus})
    nodes = sorted({machine.nodes.get(cpu, 0) for cpu in cpus}, reverse=True)
    pools = [{node} for node in nodes] + [set(nodes)] * (len(nodes) > 1)
    for slowest, (whole, among) in product(kinds, [(whole, pool) for pool in pools for whole in (False, True)]):
        fit = [cpu for cpu in cpus if machine.kinds.get(cpu, 0) <= slowest and machine.nodes.get(cpu, 0) in among]
        fit = fit if whole else [cpu for cpu in fit if cpu != cpus[0]]
        if len(fit) >= threads:
            found = sorted(fit, key=lambda cpu: (machine.kinds.get(cpu, 0), -cpu))[:threads]
            last = max(cpu for cpu in free if machine.core(cpu) == machine.core(cpus[0]))
            return [last if cpu == cpus[0] else cpu for cpu in found]
    return []


def _shared(free: Sequence[int], threads: int, machine: Topology) -> list[int]:
    """Every core's first CPU, then the last cores' others: threads have to share."""
    firsts = {machine.core(cpu): cpu for cpu in reversed(free)}.values()
    return sorted(free, key=lambda cpu: (cpu not in firsts, machine.kinds.get(cpu, 0), -cpu))[:threads]


def _described(choice: CoreChoice, free: Sequence[int], machine: Topology) -> str:
    nodes = {machine.nodes.get(cpu, 0) for cpu in free}
    parts = [f"{_named(choice.empty)} left empty"] if choice.empty else []
    parts += [f"node {_named({machine.nodes.get(cpu, 0) for cpu in choice.cpus})}"] if len(nodes) > 1 else []
    parts += [] if machine.siblings else ["which of them share a core is unknown"]
    return _named(choice.cpus) + (f" ({'; '.join(parts)})" if parts else "")


def _doubts(choice: CoreChoice, free: Sequence[int], machine: Topology) -> Iterator[str]:
    cores = Counter(machine.core(cpu) for cpu in choice.cpus)
    kinds = {machine.kinds.get(cpu, 0) for cpu in choice.cpus}
    nodes = {machine.nodes.get(cpu, 0) for cpu in choice.cpus}
    if crowded := [count for count in cores.values() if count > 1]:
        yield f"{sum(crowded)} threads share {'one core' if len(crowded) == 1 else f'{len(crowded)} cores'}"
    if max(kinds) > 0:
        yield f"{'some of ' if min(kinds) == 0 else ''}its threads run on slower cores than the machine's fastest"
    if len(nodes) > 1:
        yield f"its threads run on NUMA nodes {_named(nodes)}, each with memory of its own"
    if beside := [cpu for cpu in choice.others if machine.core(cpu) in cores]:
        yield f"CPU {_named(beside)}, where everything else runs, shares a core with a measured one"
    if strange := [cpu for cpu in choice.empty if cpu not in free]:
        yield f"CPU {_named(strange)} shares a core with a measured one, and others may use it"


def near(pci_address: str | None, bus: Path = PCI_DEVICES) -> list[int]:
    """The logical CPUs of the NUMA node that a PCI device is on; empty if that is unknown."""
    return cpu_list(read_text(bus / pci_address / "local_cpulist")) if pci_address else []


def _named(cpus: Iterable[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
