"""The stations of a Ray cluster: its live nodes, and the choice of those that a run uses."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs import provenance
from ray_jobs.cluster.events import Station
from ray_jobs.measure.result import one_line

PROBE_TIMEOUT_S = 60.0
SAME_EVERYWHERE = ("torch", "numpy", "scipy", "pyarrow")  # what a launch computes with, or is sent home with

Node = Mapping[str, Any]  # as ray.nodes() describes it
NodeFacts = Mapping[str, Any]


def find_stations(devices: Iterable[str], by_device: bool, cores_per_gpu: int | None) -> dict[str, list[Station]]:
    """The live stations of each device kind, ordered by name; one that can't measure has the reason.

    Args:
        devices: cpu, cuda.
        by_device: make each GPU a station with a share of its node's cores, instead of each node.
        cores_per_gpu: that share; None for an equal one.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node.get("Resources", {}).get("CPU")]
    answers = _ask(nodes)
    here = _facts_here()
    found = [(node, answers[node["NodeID"]]) for node in nodes]
    found.sort(key=_order)
    names: Counter[str] = Counter()
    stations: dict[str, list[Station]] = {device: [] for device in devices}
    for node, facts in found:
        host = facts.get("host", node["NodeManagerHostname"])
        names[host] += 1
        name = host if names[host] == 1 else f"{host}#{names[host]}"
        for device, mine in stations.items():
            mine += _of_node(node, facts, here, name, device, by_device, cores_per_gpu)
    return stations


def _order(found: tuple[Node, NodeFacts]) -> tuple[Any, ...]:
    """One host's nodes keep their numbers when Ray is started again, which gives them new ids."""
    node, facts = found
    host = facts.get("host", node["NodeManagerHostname"])
    return host, node["NodeManagerAddress"], facts.get("affinity", []), node["NodeID"]


def _of_node(
    node: Node, facts: NodeFacts, here: NodeFacts, name: str, device: str, by_device: bool, cores_per_gpu: int | None
) -> list[Station]:
    """A node's station of a device kind, or one for each GPU; none if it has no such device."""
    resources = node["Resources"]
    gpus = int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        return []
    kind = facts.get("cpu", "an unknown CPU") if device == "cpu" else _gpu_name(resources)
    whole = Station(
        name=f"{name}:{device}",
        host=facts.get("host", node["NodeManagerHostname"]),
        device=device,
        device_name=kind,
        node_id=node["NodeID"],
        cpus=float(resources["CPU"]),
        cores=tuple(facts.get("affinity", ())),
        address=(node["NodeManagerAddress"], int(node["NodeManagerPort"])),
        facts=dict(facts),
        labels=dict(node.get("Labels", {})),
        fault=fault_of(facts, here),
    )
    if device == "cpu" or not by_device:
        return [whole]
    share = cores_per_gpu or max(1, int(resources["CPU"]) // gpus)
    several = [whole.name] if gpus == 1 else [f"{name}:{device}{number}" for number in range(gpus)]
    shared = replace(whole, cpus=float(share), cores=whole.cores[:share], alone=False, gpus=_gpu_names(facts, gpus))
    return [replace(shared, name=name) for name in several]


def _gpu_names(facts: NodeFacts, count: int) -> tuple[str, ...]:
    """The GPUs' names in a Ray task: from the node's ``CUDA_VISIBLE_DEVICES``, else their numbers."""
    visible = [name.strip() for name in (facts.get("visible_gpus") or "").split(",") if name.strip()]
    return tuple(visible if len(visible) >= count else map(str, range(count)))


def fault_of(facts: NodeFacts, here: NodeFacts) -> str | None:
    """The reason why a station can't measure for this driver: no answer, or another setup; None if it can."""
    if "fault" in facts:
        return str(facts["fault"])
    packages = facts["packages"]
    lacking = [name for name in SAME_EVERYWHERE if packages.get(name) is None]
    if lacking:
        return f"it lacks {', '.join(lacking)}; install there what the driver has"
    for name in SAME_EVERYWHERE:
        there, ours = packages[name], here["packages"][name]
        if _public(there) != _public(ours):
            return f"it has {name} {there}, the driver {ours}; install the same everywhere"
    if facts["source_hash"] != here["source_hash"]:
        return "it runs other sources of ray_jobs than the driver; submit them with --working-dir, or install the same"
    return None


def _public(version: str) -> str:
    """A version without its build, which differs between GPU and CPU nodes."""
    return version.split("+")[0]


def choose_stations(stations: Sequence[Station], asked: str) -> list[Station]:
    """The stations named by ``all``, ``one-per-hardware`` or ``label=value[,label=value]``."""
    if asked == "all":
        return list(stations)
    if asked == "one-per-hardware":
        sound_first = sorted(stations, key=lambda station: station.fault is not None)
        first = {station.hardware: station for station in reversed(sound_first)}
        return [station for station in stations if first[station.hardware] is station]
    wanted = [part.partition("=") for part in asked.split(",")]
    return [s for s in stations if all(s.labels.get(label) == value for label, _, value in wanted)]


def _ask(nodes: Sequence[Node]) -> dict[str, NodeFacts]:
    """Asks all nodes for their facts in parallel; a node that has none gives the reason under ``fault``."""
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe())
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in nodes
    }
    if asked:
        ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_TIMEOUT_S)
    answers: dict[str, NodeFacts] = {}
    for reference, node in asked.items():
        try:
            answers[node["NodeID"]] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            answers[node["NodeID"]] = {"fault": f"it did not answer within {PROBE_TIMEOUT_S:.0f} s"}
        except ray.exceptions.RayError as error:
            answers[node["NodeID"]] = {"fault": one_line(error)}
    return answers


def _probe() -> Callable[[], dict[str, Any]]:
    """A function sent by value, so that a node that lacks a package can still say which."""

    def probe() -> dict[str, Any]:
        try:
            import importlib

            facts: dict[str, Any] = importlib.import_module("ray_jobs.provenance").station_facts()
        except (ImportError, AttributeError) as error:
            facts = {"fault": f"it lacks this ray_jobs ({error}); submit it with --working-dir, or install it"}
        return facts

    return probe


def _facts_here() -> NodeFacts:
    return {"packages": provenance.package_versions(), "source_hash": provenance.source_hash()}


def _gpu_name(resources: Mapping[str, float]) -> str:
    kinds = [key.split(":", 1)[1] for key in resources if key.startswith("accelerator_type:")]
    return kinds[0] if kinds else "GPU"
