"""Which cores launches are pinned to, on machines that are folders of made-up files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.process.cores import CoreChoice, Topology, choose_cores, cpu_list, topology

Files = Mapping[str, str]


def machine(
    root: Path,
    siblings: Sequence[Sequence[int]],
    nodes: Sequence[Sequence[int]] = (),
    each: Callable[[int], Files] = lambda _: {},
    more: Files | None = None,
) -> Topology:
    """What is read of a machine with these cores (their logical CPUs), nodes, files of each CPU, and other files."""
    files = dict(more or {})
    for core in siblings:
        for cpu in core:
            place = f"system/cpu/cpu{cpu}"
            files[f"{place}/topology/thread_siblings_list"] = ",".join(map(str, core)) + "\n"
            files |= {f"{place}/{name}": text for name, text in each(cpu).items()}
            files |= {f"{place}/node{number}/meminfo": "" for number, held in enumerate(nodes) if cpu in held}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return topology(root)


def frequency(of: Callable[[int], int]) -> Callable[[int], Files]:
    return lambda cpu: {"cpufreq/cpuinfo_max_freq": f"{of(cpu)}\n"}


PAIRS = [(2 * core, 2 * core + 1) for core in range(4)]
HALVES = [(core, core + 4) for core in range(4)]
I7_12700 = [*[(2 * core, 2 * core + 1) for core in range(8)], *[(cpu,) for cpu in range(16, 20)]]


@pytest.mark.parametrize(
    ("each", "more"),
    [
        (frequency(lambda cpu: 3600000 if cpu >= 16 else 4900000 if cpu in (8, 9) else 4800000), None),
        (lambda _: {}, {"cpu_core/cpus": "0-15\n", "cpu_atom/cpus": "16-19\n"}),
        (lambda cpu: {"cpu_capacity": "1024\n" if cpu < 16 else "623\n"}, None),
    ],
    ids=["frequencies", "PMUs", "capacities"],
)
def test_a_hybrids_efficiency_cores_come_last_though_their_ids_do_too(
    each: Callable[[int], Files], more: Files | None, tmp_path: Path
) -> None:
    hybrid = machine(tmp_path, I7_12700, each=each, more=more)
    one = choose_cores(range(20), 1, hybrid)
    assert (one.cpus, one.empty, one.warnings) == ((14,), (15,), ())
    assert one.others == (*range(14), *range(16, 20))
    assert one.text == "14 (15 left empty)"
    assert choose_cores(range(20), 7, hybrid).cpus == (2, 4, 6, 8, 10, 12, 14)
    eight = choose_cores(range(20), 8, hybrid)
    assert eight.cpus == (1, 2, 4, 6, 8, 10, 12, 14)  # the first core too, rather than a slower one
    assert eight.others == (16, 17, 18, 19)
    nine = choose_cores(range(20), 9, hybrid)
    assert nine.cpus == (2, 4, 6, 8, 10, 12, 14, 18, 19)
    assert nine.warnings == ("some of its threads run on slower cores than the machine's fastest",)
    slow = choose_cores(range(16, 20), 1, hybrid)
    assert slow.warnings == ("its threads run on slower cores than the machine's fastest",)


@pytest.mark.parametrize(("cores", "two"), [(PAIRS, (4, 6)), (HALVES, (2, 3))], ids=["2n, 2n+1", "n, n+N"])
def test_one_thread_per_physical_core_however_siblings_are_numbered(
    cores: Sequence[Sequence[int]], two: tuple[int, ...], tmp_path: Path
) -> None:
    found = choose_cores(range(8), 2, machine(tmp_path, cores))
    assert found.cpus == two
    assert found.empty == tuple(mate for core in cores for mate in core[1:] if core[0] in two)
    assert set(found.others) == set(range(8)) - set(found.cpus) - set(found.empty)
    assert found.warnings == ()


def test_siblings_that_are_switched_off_hide_no_efficiency_core(tmp_path: Path) -> None:
    write = frequency(lambda cpu: 3600000 if cpu >= 4 else 4900000)
    (tmp_path / "system/cpu/cpu1").mkdir(parents=True)  # nosmt: no topology, no rate
    hybrid = machine(tmp_path, [(0,), (2,), (4,), (5,)], each=write)
    assert choose_cores((0, 2, 4, 5), 1, hybrid).cpus == (2,)


def test_threads_that_have_to_share_a_core_are_told(tmp_path: Path) -> None:
    pairs = machine(tmp_path, PAIRS)
    five = choose_cores(range(8), 5, pairs)
    assert five.cpus == (0, 2, 4, 6, 7)
    assert five.warnings[0] == "2 threads share one core"
    assert choose_cores(range(8), 8, pairs).warnings == ("8 threads share 4 cores",)
    assert choose_cores(range(8), 8, pairs).others == ()


def test_the_only_cores_sibling_runs_everything_else_and_that_is_told(tmp_path: Path) -> None:
    found = choose_cores((0, 1), 1, machine(tmp_path, [(0, 1)]))
    told = "CPU 0, where everything else runs, shares a core with a measured one"
    assert found == CoreChoice((1,), (), (0,), "1", (told,))


@pytest.mark.parametrize("cores", [[(0, 1), (2, 3)], [(0, 2), (1, 3)]], ids=["2n, 2n+1", "n, n+N"])
def test_interrupts_go_to_a_cpu_that_is_not_measured_though_its_core_is(
    cores: Sequence[Sequence[int]], tmp_path: Path
) -> None:
    found = choose_cores(range(4), 2, machine(tmp_path, cores))
    assert 0 not in found.cpus
    assert 0 in found.others
    assert not any("share one core" in warning for warning in found.warnings)


def test_a_sibling_that_is_not_ours_is_held_and_told(tmp_path: Path) -> None:
    """A container's cpuset may end within a core."""
    found = choose_cores((0, 1, 2), 1, machine(tmp_path, [(0, 1), (2, 3)]))
    assert (found.cpus, found.empty, found.others) == ((2,), (3,), (0, 1))
    assert found.warnings == ("CPU 3 shares a core with a measured one, and others may use it",)


def test_threads_stay_on_one_of_two_sockets(tmp_path: Path) -> None:
    sockets = machine(tmp_path, [(cpu,) for cpu in range(8)], [range(0, 8, 2), range(1, 8, 2)])
    four = choose_cores(range(8), 4, sockets)
    assert (four.cpus, four.text, four.warnings) == ((1, 3, 5, 7), "1,3,5,7 (node 1)", ())
    five = choose_cores(range(8), 5, sockets)
    assert five.cpus == (3, 4, 5, 6, 7)
    assert five.warnings == ("its threads run on NUMA nodes 0,1, each with memory of its own",)
    assert choose_cores((0, 2, 4, 6, 7), 4, sockets).cpus == (0, 2, 4, 6)  # rather with the first than on both


def test_the_big_cores_of_an_arm_are_taken(tmp_path: Path) -> None:
    arm = machine(
        tmp_path,
        [(cpu,) for cpu in range(8)],
        each=lambda cpu: {"cpu_capacity": f"{1024 if cpu == 7 else 870 if cpu >= 4 else 250}\n"},
    )
    assert choose_cores(range(8), 1, arm).cpus == (7,)
    assert choose_cores(range(8), 2, arm).cpus == (6, 7)
    big_first = machine(
        tmp_path / "other",
        [(cpu,) for cpu in range(4)],
        each=lambda cpu: {"cpu_capacity": f"{1024 if cpu < 2 else 400}\n"},
    )
    assert choose_cores(range(4), 1, big_first).cpus == (1,)


def test_without_a_topology_the_last_cores_are_taken_and_that_it_was_not_told_is_said(tmp_path: Path) -> None:
    assert topology(tmp_path / "nowhere") == Topology()
    found = choose_cores((0, 1, 2), 2, Topology())
    assert found == CoreChoice((1, 2), (), (0,), "1,2 (which of them share a core is unknown)")
    assert choose_cores((3,), 1, Topology()).cpus == (3,)
    with pytest.raises(ValueError, match="3 threads asked for, but the station has 2 cores"):
        choose_cores((0, 1), 3, Topology())


def test_two_plain_cores_leave_the_first_one_to_everything_else(tmp_path: Path) -> None:
    two = machine(tmp_path, [(0,), (1,)], [(0, 1)], lambda _: {"cpu_capacity": "1024\n"})
    assert choose_cores((0, 1), 1, two) == CoreChoice((1,), (), (0,), "1")
    assert choose_cores((0, 1), 2, two) == CoreChoice((0, 1), (), (), "0,1")


@pytest.mark.parametrize(("text", "found"), [("0-2,5", [0, 1, 2, 5]), ("3", [3]), ("", []), ("all of them", [])])
def test_lists_of_cpus_are_read_as_the_kernel_writes_them(text: str, found: list[int]) -> None:
    assert cpu_list(text) == found


def test_a_share_of_the_cores_keeps_siblings_together(tmp_path: Path) -> None:
    assert machine(tmp_path, HALVES).by_core(range(8)) == [0, 4, 1, 5, 2, 6, 3, 7]


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    count = draw(st.integers(1, 12))
    cores = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    siblings = {cpu: tuple(other for other in range(count) if cores[other] == cores[cpu]) for cpu in range(count)}
    rank = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=6, max_size=6))
    return Topology(siblings, *({cpu: rank[cores[cpu]][i] for cpu in range(count)} for i in (0, 1)))


@given(machines(), st.data())
def test_whatever_the_machine_threads_share_no_core_while_there_are_enough(here: Topology, data: st.DataObject) -> None:
    allowed = data.draw(st.lists(st.sampled_from(sorted(here.siblings)), min_size=1, unique=True))
    threads = data.draw(st.integers(1, len(allowed)))
    found = choose_cores(allowed, threads, here)
    cores = [here.core(cpu) for cpu in found.cpus]
    assert len(found.cpus) == threads
    assert set(found.cpus) <= set(allowed)
    assert not {*found.cpus} & {*found.empty, *found.others}
    assert len(set(cores)) == min(threads, len({here.core(cpu) for cpu in allowed}))
    assert (len(set(cores)) < threads) == any("share" in warning and "threads" in warning for warning in found.warnings)
