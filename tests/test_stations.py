"""What the nodes of a cluster are, which of them a run asks for, and which can't measure; without a cluster."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.cluster import stations
from ray_jobs.cluster.events import Station
from ray_jobs.cluster.stations import SAME_EVERYWHERE, choose_stations, fault_of, find_stations
from ray_jobs.cluster.tasks import share_of_cores
from ray_jobs.process.server import TrialError

PACKAGES = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "scipy": "1.18.0", "pyarrow": "26.0.1", "ray": "2.60.0"}
HERE = {"packages": PACKAGES, "source_hash": "abc"}


def facts(host: str = "host", cores: Sequence[int] = (0, 1, 2, 3), cpu: str = "EPYC", **more: Any) -> dict[str, Any]:
    return {"host": host, "cpu": cpu, "affinity": list(cores), **HERE, **more}


def node(
    node_id: str = "id",
    hostname: str = "host",
    resources: Mapping[str, float] | None = None,
    address: str = "192.0.2.7",
) -> dict[str, Any]:
    """As ``ray.nodes()`` describes it."""
    return {
        "NodeID": node_id,
        "Alive": True,
        "NodeManagerAddress": address,
        "NodeManagerHostname": hostname,
        "NodeManagerPort": 40123,
        "Resources": {"CPU": 4.0, "memory": 1e9, f"node:{address}": 1.0, **(resources or {})},
        "Labels": {"ray.io/node-id": node_id, "zone": "a"},
    }


def gpus(count: float, kind: str | None = "A100", cpus: float = 16.0) -> dict[str, float]:
    return {"GPU": count, "CPU": cpus} | ({} if kind is None else {f"accelerator_type:{kind}": 1.0})


def found(
    nodes: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    devices: Sequence[str] = ("cpu",),
    by_device: bool = False,
    cores_per_gpu: int | None = None,
) -> dict[str, list[Station]]:
    """The stations of nodes that answer so."""
    answers = {one["NodeID"]: answer for one, answer in nodes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.nodes", lambda: [one for one, _ in nodes])
        patch.setattr(stations, "_ask", lambda asked: {one["NodeID"]: answers[one["NodeID"]] for one in asked})
        patch.setattr(stations, "_facts_here", lambda: HERE)
        return find_stations(devices, by_device, cores_per_gpu)


def names(places: Sequence[Station]) -> list[str]:
    return [place.name for place in places]


# What a node is


def test_a_node_is_a_station_with_all_that_is_known_of_it() -> None:
    (only,) = found([(node(), facts(memory_gb=8.0))])["cpu"]
    assert only == Station(
        name="host:cpu",
        host="host",
        device="cpu",
        device_name="EPYC",
        node_id="id",
        cpus=4.0,
        cores=(0, 1, 2, 3),
        alone=True,
        address=("192.0.2.7", 40123),
        facts=facts(memory_gb=8.0),
        labels={"ray.io/node-id": "id", "zone": "a"},
        fault=None,
    )
    assert only.hardware == "EPYC, 4 cores"


def test_a_class_tells_the_model_of_its_cpu_where_that_is_told() -> None:
    milan, genoa = (facts("host", cpu_model=model) for model in ("25.1.1, AVX2", "25.17.1, AVX-512"))
    (one,), (other,) = found([(node(), milan)])["cpu"], found([(node(), genoa)])["cpu"]
    assert (one.device_name, one.hardware) == ("EPYC", "EPYC [25.1.1, AVX2], 4 cores")
    assert other.hardware != one.hardware


def test_one_core_is_one_core() -> None:
    (only,) = found([(node(resources={"CPU": 1.0}), facts(cores=[5]))])["cpu"]
    assert only.hardware == "EPYC, 1 core"
    assert only.cores == (5,)


def test_each_device_kind_has_its_own_stations() -> None:
    both = found([(node("a", "a"), facts("a")), (node("b", "b", resources=gpus(1)), facts("b"))], ["cuda", "cpu"])
    assert list(both) == ["cuda", "cpu"]
    assert names(both["cpu"]) == ["a:cpu", "b:cpu"]
    (gpu,) = both["cuda"]
    assert (gpu.name, gpu.device, gpu.device_name, gpu.hardware) == ("b:cuda", "cuda", "A100", "A100")


@pytest.mark.parametrize("by_device", [False, True])
def test_a_kind_that_no_node_has_is_there_and_empty(by_device: bool) -> None:
    assert found([(node(), facts())], ["cpu", "cuda"], by_device)["cuda"] == []
    assert found([], ["cpu", "cuda"], by_device) == {"cpu": [], "cuda": []}


def test_what_is_dead_or_has_no_cpus_is_no_station() -> None:
    dead, head = {**node("dead", "dead"), "Alive": False}, node("head", "head")
    del head["Resources"]["CPU"]
    nothing = {key: value for key, value in node("new", "new").items() if key != "Resources"}
    nodes = [(dead, facts("dead")), (head, facts("head")), (nothing, facts("new")), (node("ok", "ok"), facts("ok"))]
    assert names(found(nodes)["cpu"]) == ["ok:cpu"]
    assert found([(node(resources={"CPU": 0.0}), facts())])["cpu"] == []


def test_a_gpu_of_unknown_kind_is_a_gpu() -> None:
    (gpu,) = found([(node(resources=gpus(1, kind=None)), facts())], ["cuda"])["cuda"]
    assert gpu.device_name == "GPU"


def test_a_node_of_several_gpus_is_one_station_where_nodes_are_isolated() -> None:
    (gpu,) = found([(node(resources=gpus(4)), facts(cores=range(16)))], ["cuda"])["cuda"]
    assert (gpu.name, gpu.alone, gpu.cpus, gpu.cores) == ("host:cuda", True, 16.0, tuple(range(16)))


def test_each_gpu_is_a_station_with_its_share_where_devices_are_isolated() -> None:
    several = found([(node(resources=gpus(4)), facts(cores=range(16)))], ["cuda"], by_device=True)["cuda"]
    assert names(several) == ["host:cuda0", "host:cuda1", "host:cuda2", "host:cuda3"]
    assert {(gpu.alone, gpu.cpus, len(gpu.cores), gpu.node_id) for gpu in several} == {(False, 4.0, 4, "id")}


def test_the_only_gpu_of_a_node_has_no_number() -> None:
    (gpu,) = found([(node(resources=gpus(1, cpus=6.0)), facts(cores=range(6)))], ["cuda"], by_device=True)["cuda"]
    assert (gpu.name, gpu.alone, gpu.cpus, gpu.cores) == ("host:cuda", False, 6.0, tuple(range(6)))


def test_the_cpu_is_a_whole_node_even_where_devices_are_isolated() -> None:
    (cpu,) = found([(node(resources=gpus(4)), facts(cores=range(16)))], ["cpu"], by_device=True)["cpu"]
    assert (cpu.name, cpu.alone, cpu.cpus) == ("host:cpu", True, 16.0)


@pytest.mark.parametrize(
    ("cpus", "count", "asked", "share"), [(16, 4, None, 4), (16, 3, None, 5), (2, 4, None, 1), (16, 4, 2, 2)]
)
def test_a_gpus_share_is_equal_or_as_asked(cpus: float, count: float, asked: int | None, share: int) -> None:
    nodes = [(node(resources=gpus(count, cpus=cpus)), facts(cores=range(int(cpus))))]
    several = found(nodes, ["cuda"], by_device=True, cores_per_gpu=asked)["cuda"]
    assert len(several) == count
    assert {gpu.cpus for gpu in several} == {float(share)}
    assert {len(gpu.cores) for gpu in several} == {share}


# Their names


def test_nodes_of_one_host_are_numbered_by_their_cores() -> None:
    nodes = [(node("x", address="192.0.2.9"), facts(cores=[6, 7])), (node("z"), facts(cores=[4, 5]))]
    nodes += [(node("y"), facts(cores=[10, 11])), (node("other", "alpha"), facts("alpha"))]
    by_name = {place.name: place.cores for place in found(nodes)["cpu"]}
    assert by_name == {"alpha:cpu": (0, 1, 2, 3), "host:cpu": (4, 5), "host#2:cpu": (10, 11), "host#3:cpu": (6, 7)}
    assert list(by_name) == ["alpha:cpu", "host:cpu", "host#2:cpu", "host#3:cpu"]


@pytest.mark.parametrize(
    ("visible", "named"),
    [
        (None, ("0", "1")),
        ("2,3", ("2", "3")),
        ("GPU-8a1b, GPU-77cd", ("GPU-8a1b", "GPU-77cd")),
        ("", ("0", "1")),
        ("5", ("0", "1")),  # fewer than Ray was told of: Ray numbers them itself
    ],
)
def test_a_share_goes_by_a_gpus_place_among_those_that_its_node_was_given(
    visible: str | None, named: tuple[str, ...]
) -> None:
    nodes = [(node(resources=gpus(2)), facts(cores=range(16), visible_gpus=visible))]
    several = found(nodes, ["cuda"], by_device=True)["cuda"]
    assert {gpu.gpus for gpu in several} == {named}
    assert [gpu.gpus for gpu in found(nodes, ["cuda", "cpu"])["cuda"]] == [()], "a whole node's GPUs need no shares"


def test_the_gpus_of_a_hosts_second_node_have_its_number() -> None:
    nodes = [(node(i, resources=gpus(2)), facts(cores=[c])) for i, c in (("b", 0), ("a", 1))]
    both = found(nodes, ["cuda", "cpu"], by_device=True)
    assert names(both["cuda"]) == ["host:cuda0", "host:cuda1", "host#2:cuda0", "host#2:cuda1"]
    assert names(both["cpu"]) == ["host:cpu", "host#2:cpu"]


@given(st.permutations(range(6)), st.permutations("abcdef"))
def test_names_do_not_depend_on_rays_order_or_ids(order: Sequence[int], ids: Sequence[str]) -> None:
    nodes = [(node(i, f"h{k % 3}"), facts(f"h{k % 3}", cores=[k])) for k, i in enumerate(ids)]
    named = {place.name: place.cores for place in found([nodes[k] for k in order])["cpu"]}
    expected = {"h0:cpu": (0,), "h0#2:cpu": (3,), "h1:cpu": (1,), "h1#2:cpu": (4,), "h2:cpu": (2,), "h2#2:cpu": (5,)}
    assert list(named.items()) == list(expected.items())


def test_one_that_does_not_answer_stands_in_its_place_and_says_why() -> None:
    silent = {"fault": "it did not answer within 60 s"}
    nodes = [(node("c", "c"), facts("c")), (node("b", "b", resources=gpus(1)), silent), (node("a", "a"), facts("a"))]
    both = found(nodes, ["cpu", "cuda"])
    assert [(place.name, place.fault) for place in both["cpu"]] == [
        ("a:cpu", None),
        ("b:cpu", "it did not answer within 60 s"),
        ("c:cpu", None),
    ]
    (gpu,) = both["cuda"]
    assert (gpu.name, gpu.host, gpu.cores) == ("b:cuda", "b", ())
    assert gpu.fault is not None
    assert both["cpu"][1].device_name == "an unknown CPU"


# What is wrong with them


def but(**packages: str | None) -> dict[str, Any]:
    return facts(packages={**PACKAGES, **packages})


def test_one_that_is_set_up_like_the_driver_can_measure() -> None:
    assert fault_of(facts(), HERE) is None


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu", "2.13.0+cu126"])
def test_another_build_of_the_same_version_can_measure(version: str) -> None:
    assert fault_of(but(torch=version), HERE) is None


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
@pytest.mark.parametrize("version", ["1.0", "2.13", "2.13.0.post1", "2.13.01", "12.13.0"])
def test_another_version_of_what_a_launch_computes_with_is_a_fault(name: str, version: str) -> None:
    expected = f"it has {name} {version}, the driver {PACKAGES[name]}; install the same everywhere"
    assert fault_of(but(**{name: version}), HERE) == expected


def test_every_package_that_a_launch_computes_with_is_compared() -> None:
    assert set(SAME_EVERYWHERE) == {"torch", "numpy", "scipy", "pyarrow"}
    assert set(PACKAGES) >= set(SAME_EVERYWHERE)


def test_another_version_of_anything_else_is_no_fault() -> None:
    assert fault_of(but(ray="2.61.0", wandb=None), HERE) is None


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_a_package_that_it_lacks_is_named(name: str) -> None:
    assert fault_of(but(**{name: None}), HERE) == f"it lacks {name}; install there what the driver has"


def test_all_packages_that_it_lacks_are_named_at_once() -> None:
    assert fault_of(facts(packages={}), HERE) == (
        "it lacks torch, numpy, scipy, pyarrow; install there what the driver has"
    )


def test_other_sources_are_a_fault() -> None:
    said = fault_of(facts(source_hash="def"), HERE)
    assert said == (
        "it runs other sources of ray_jobs than the driver; submit them with --working-dir, or install the same"
    )


def test_one_that_did_not_answer_says_what_happened() -> None:
    assert fault_of({"fault": "it did not answer within 60 s"}, HERE) == "it did not answer within 60 s"


# Which of them are asked for


def place(
    name: str, kind: str = "EPYC", cores: int = 4, fault: str | None = None, device: str = "cpu", **labels: str
) -> Station:
    return Station(f"{name}:{device}", name, device, kind, name, 4.0, tuple(range(cores)), labels=labels, fault=fault)


def test_all_are_all() -> None:
    places = [place("a"), place("b", fault="it lacks torch"), place("c")]
    assert choose_stations(places, "all") == places
    assert choose_stations(places, "all") is not places
    assert choose_stations([], "all") == []


def test_one_of_each_hardware_is_the_first_that_can_measure() -> None:
    places = [
        place("a", "EPYC", fault="it lacks torch"),
        place("b", "Xeon"),
        place("c", "EPYC"),
        place("d", "EPYC"),
        place("e", "EPYC", cores=8),
        place("f", "Xeon", fault="it lacks torch"),
    ]
    assert names(choose_stations(places, "one-per-hardware")) == ["b:cpu", "c:cpu", "e:cpu"]


def test_where_none_of_a_hardware_can_measure_the_first_says_why() -> None:
    places = [place("a", fault="it lacks torch"), place("b", fault="it lacks numpy")]
    (chosen,) = choose_stations(places, "one-per-hardware")
    assert chosen is places[0]


def test_gpus_of_one_kind_are_one_hardware_whatever_their_cores() -> None:
    places = [place(name, "A100", cores, device="cuda") for name, cores in (("a", 4), ("b", 8))]
    assert names(choose_stations(places, "one-per-hardware")) == ["a:cuda"]


PLACES = st.lists(st.tuples(st.sampled_from(["EPYC", "Xeon"]), st.integers(1, 2), st.booleans()), max_size=8).map(
    lambda told: [place(f"s{i}", kind, cores, "broken" if bad else None) for i, (kind, cores, bad) in enumerate(told)]
)


@given(PLACES)
def test_each_hardware_is_chosen_once_soundly_and_in_order(places: list[Station]) -> None:
    chosen = choose_stations(places, "one-per-hardware")
    assert sorted(station.hardware for station in chosen) == sorted({station.hardware for station in places})
    assert chosen == sorted(chosen, key=places.index)
    for one in chosen:
        alike = [station for station in places if station.hardware == one.hardware]
        assert one == next((station for station in alike if station.fault is None), alike[0])


@given(PLACES, st.randoms(use_true_random=False))
def test_the_choice_of_sound_ones_does_not_change_when_broken_ones_come_and_go(
    places: list[Station], rng: random.Random
) -> None:
    sound = [station for station in choose_stations(places, "one-per-hardware") if station.fault is None]
    fewer = [station for station in places if station.fault is None or rng.random() < 0.5]
    assert [station for station in choose_stations(fewer, "one-per-hardware") if station.fault is None] == sound


def test_labels_choose_those_that_have_all_of_them() -> None:
    places = [place("a", zone="1", disk="ssd"), place("b", zone="1"), place("c", disk="ssd", zone="2"), place("d")]
    assert names(choose_stations(places, "zone=1")) == ["a:cpu", "b:cpu"]
    assert names(choose_stations(places, "zone=1,disk=ssd")) == ["a:cpu"]
    assert names(choose_stations(places, "disk=ssd")) == ["a:cpu", "c:cpu"]
    assert choose_stations(places, "zone=3") == choose_stations(places, "rack=1") == []
    assert choose_stations(places, "zone=1,zone=2") == choose_stations(places, "zone=2,zone=1") == [], "none is in both"


def test_a_labels_value_may_hold_what_parts_it_from_its_name() -> None:
    assert names(choose_stations([place("a", kind_of="x=y"), place("b", kind_of="x")], "kind_of=x=y")) == ["a:cpu"]


def test_one_that_cant_measure_is_chosen_by_its_labels_too_and_says_why() -> None:
    assert names(choose_stations([place("a", fault="it lacks torch", zone="1")], "zone=1")) == ["a:cpu"]


# A GPU's share of the cores


@given(st.sets(st.integers(0, 63), min_size=1).map(sorted), st.integers(1, 8))
def test_shares_of_cores_are_whole_apart_and_of_the_nodes_own(cores: list[int], count: int) -> None:
    shares = [share_of_cores(cores, count, place) for place in range(len(cores) // count)]
    assert all(len(share) == count for share in shares)
    together = [core for share in shares for core in share]
    assert together == cores[: len(together)]
    with pytest.raises(TrialError):
        share_of_cores(cores, count, len(shares))


def test_a_share_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(TrialError) as refused:
        share_of_cores([0, 1, 2], 2, 1)
    assert str(refused.value) == "GPU 1 has no 2 cores left of 3; ask for fewer with --cores-per-gpu"
