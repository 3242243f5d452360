"""What else the machine did: read from made-up counters, and which rounds it costs."""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from launches import made_launch
from profiles import examples

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.measure import watch
from ray_jobs.measure.interference import (
    ABSENT,
    COUNTERS,
    WARN_SHARE,
    Interference,
    complaint,
    disturbed,
    kept,
    per_round,
    severity,
    unwatched,
)
from ray_jobs.measure.watch import (
    REPEATS,
    TICK_NS,
    Counters,
    HelpedWatch,
    MachineWatch,
    cpu_ns_of,
    sentinel_ns,
    watch_for,
)

SECOND = 10**9
STAT = """cpu  100 10 20 5000 300 3 7 90 0 0
cpu0 60 5 10 2500 150 1 3 50 0 0
cpu1 30 3 6 1500 100 1 2 30 0 0
cpu2 10 2 4 1000 50 1 2 10 0 0
intr 123 4 5
ctxt 99
"""
PRESSURE = "some avg10=1.50 avg60=0.20 avg300=0.01 total=4321\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"
VERSION_2 = "usage_usec 5000\nuser_usec 4000\nsystem_usec 1000\nnr_periods 9\nnr_throttled 2\nthrottled_usec 700\n"
VERSION_1 = "nr_periods 9\nnr_throttled 2\nthrottled_time 123456\n"


def untold(rounds: int) -> Interference:
    """The interference of a launch that was not watched."""
    return Interference(**{name: np.full(rounds, ABSENT, dtype=np.int64) for name in COUNTERS})


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


PROC = {
    "stat": STAT,
    "pressure/cpu": PRESSURE,
    "self/task/11/schedstat": "900 30 5\n",
    "self/task/12/schedstat": "800 12 4\n",
}


CGROUP = "sys/fs/cgroup"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return write(tmp_path / "proc", PROC)


def read(proc: Path, *, cores: tuple[int, ...] = (1, 2)) -> Counters:
    return MachineWatch(cores, root=proc.parent).read()


# The counters


def test_waiting_for_a_core_is_summed_over_the_threads(proc: Path) -> None:
    assert read(proc).run_delay_ns == 30 + 12


def test_waiting_for_a_core_counts_the_threads_of_every_side(proc: Path) -> None:
    write(proc, {f"{os.getpid()}/task/9/schedstat": "1 5 1"})
    assert MachineWatch((1,), root=proc.parent, sides=(os.getpid(),)).read().run_delay_ns == 30 + 12 + 5


def test_waiting_for_threads_and_processes_of_ours_is_no_disturbance(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica's process used 100 ns, 40 of them in the thread that computes, and a helper 7: 67 are explained."""
    used = {51: 100, 52: 7}
    monkeypatch.setattr(watch, "cpu_ns_of", used.__getitem__)
    write(proc, {"51/task/53/schedstat": "40 90 1", "51/task/54/schedstat": "60 1000 1"})
    helped = HelpedWatch((1,), root=proc.parent, sides=(51,), beside=(52,), itself=False, computing=((51, 53),))
    assert helped.read().run_delay_ns == 90 - (100 - 40) - 7


def test_the_time_of_another_process_is_told_by_its_own_clock() -> None:
    before = time.process_time_ns()
    assert before <= cpu_ns_of(os.getpid()) <= time.process_time_ns()


def test_processes_of_ours_are_not_foreign(proc: Path) -> None:
    """Here this process stands for both."""
    watch = MachineWatch((1,), root=proc.parent, sides=(os.getpid(),), beside=(os.getpid(),))
    before = time.process_time_ns()
    assert 3 * before <= watch.read().cpu_ns <= 3 * time.process_time_ns()


def test_the_processes_of_sides_on_the_gpu_are_not_foreign(proc: Path) -> None:
    watch = MachineWatch((1,), lambda: (1000, 0, 3), proc.parent, sides=(os.getpid(), os.getpid()))
    assert watch.read().gpu_foreign == 1


def test_stolen_time_is_of_the_measured_cores_alone(proc: Path) -> None:
    assert read(proc, cores=(1, 2)).steal_ns == (30 + 10) * TICK_NS
    assert read(proc, cores=(0,)).steal_ns == 50 * TICK_NS


def test_core_1_is_not_core_11(tmp_path: Path) -> None:
    stat = "cpu  9 0 0 0 0 0 0 9 0 0\ncpu1 9 0 0 0 0 0 0 2 0 0\ncpu11 9 0 0 0 0 0 0 7 0 0\n"
    assert read(write(tmp_path / "proc", {"stat": stat}), cores=(1,)).steal_ns == 2 * TICK_NS


def test_busy_is_all_cores_work_without_idling_waiting_for_disks_and_stolen_time(proc: Path) -> None:
    assert read(proc).busy_ns == (100 + 10 + 20 + 3 + 7) * TICK_NS


def test_where_others_have_the_other_cores_only_the_stations_own_count(proc: Path) -> None:
    """Two trials on the GPUs of one node would else declare each other disturbed, round after round."""
    found = MachineWatch((1,), root=proc.parent, counted=(1, 2)).read()
    assert found.busy_ns == (30 + 3 + 6 + 1 + 2 + 10 + 2 + 4 + 1 + 2) * TICK_NS


def test_pressure_is_that_of_some_task_in_ns(proc: Path) -> None:
    assert read(proc).pressure_ns == 4321 * 1000


def test_control_groups_of_version_2_count_microseconds(proc: Path, tmp_path: Path) -> None:
    write(tmp_path / CGROUP, {"cpu.stat": VERSION_2})
    assert read(proc).throttled_ns == 700_000


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_control_groups_of_version_1_count_ns(mount: str, proc: Path, tmp_path: Path) -> None:
    write(tmp_path / CGROUP, {f"{mount}/cpu.stat": VERSION_1})
    assert read(proc).throttled_ns == 123_456


def test_a_control_group_with_two_names_counts_once(proc: Path, tmp_path: Path) -> None:
    """Distributions with version 1 link ``cpu`` to ``cpu,cpuacct``."""
    write(proc, {"self/cgroup": "4:cpu,cpuacct:/job\n"})
    write(tmp_path / CGROUP, {"cpu,cpuacct/job/cpu.stat": VERSION_1})
    (tmp_path / CGROUP / "cpu").symlink_to("cpu,cpuacct")
    assert read(proc).throttled_ns == 123_456


def test_a_root_control_group_without_a_quota_leaves_it_to_version_1(proc: Path, tmp_path: Path) -> None:
    write(tmp_path / CGROUP, {"cpu.stat": "usage_usec 5\n", "cpu/cpu.stat": VERSION_1})
    assert read(proc).throttled_ns == 123_456


def test_throttling_by_the_quota_of_a_group_above_counts(proc: Path, tmp_path: Path) -> None:
    write(proc, {"self/cgroup": "0::/user.slice/pod/app\n"})
    files = {f"user.slice/{group}/cpu.stat": "usage_usec 9\nthrottled_usec 0\n" for group in ("pod/app", "pod")}
    write(tmp_path / CGROUP, {**files, "cpu.stat": "usage_usec 5\n"})
    write(tmp_path / CGROUP, {"user.slice/cpu.stat": VERSION_2})
    assert read(proc).throttled_ns == 700_000
    write(tmp_path / CGROUP, {"user.slice/pod/app/cpu.stat": VERSION_2})
    assert read(proc).throttled_ns == 1_400_000


def test_a_group_that_can_have_no_quota_was_never_throttled(proc: Path, tmp_path: Path) -> None:
    write(tmp_path / CGROUP, {"cpu.stat": "usage_usec 5\nuser_usec 4\n"})
    assert read(proc).throttled_ns == 0


def test_a_sandboxs_zeros_tell_nothing(proc: Path) -> None:
    write(proc, {"stat": "cpu  0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n"})
    assert (read(proc).steal_ns, read(proc).busy_ns) == (None, None)


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("stat", {"steal_ns", "busy_ns"}),
        ("pressure/cpu", {"pressure_ns"}),
        ("self/task/12/schedstat", {"run_delay_ns"}),
    ],
)
@pytest.mark.parametrize("instead", [None, "cpu\n", "cpu many total=\n"])
def test_what_the_machine_does_not_tell_is_none_and_the_rest_is_told(
    missing: str, unknown: set[str], instead: str | None, proc: Path, tmp_path: Path
) -> None:
    (proc / missing).unlink()
    if instead is not None:
        (proc / missing).write_text(instead)
    write(tmp_path / CGROUP, {"cpu.stat": VERSION_2})
    found = read(proc)._asdict()
    told = {"run_delay_ns", "steal_ns", "throttled_ns", "pressure_ns", "busy_ns"}
    assert {name for name in told if found[name] is None} == unknown


@pytest.mark.parametrize("text", [None, "", "nr_periods 9\n", "throttled_usec\n", "throttled_usec many\n"])
def test_a_control_group_that_does_not_tell_is_none(text: str | None, proc: Path, tmp_path: Path) -> None:
    files = {} if text is None else {"cpu.stat": text, "cpu/cpu.stat": text}
    write(tmp_path / CGROUP, files)
    assert read(proc).throttled_ns is None


def test_a_machine_that_tells_nothing_still_has_wall_and_cpu_time() -> None:
    before = time.perf_counter_ns(), time.process_time_ns()
    found = read(Path("/nowhere/proc"))
    assert before[0] <= found.wall_ns <= time.perf_counter_ns()
    assert before[1] <= found.cpu_ns <= time.process_time_ns()
    assert found[2:] == (None,) * 8


def test_the_watch_of_this_machine_counts_up() -> None:
    watch = watch_for()
    assert watch.cores == tuple(sorted(os.sched_getaffinity(0)))
    first = watch.read()
    sum(range(300_000))
    second = watch.read()
    assert (first.gpu_clock_mhz, first.gpu_throttle, first.gpu_foreign) == (None, None, None)
    assert second.wall_ns > first.wall_ns
    assert second.cpu_ns > first.cpu_ns


# Rounds from readings

TOTALS = ("run_delay_ns", "steal_ns", "throttled_ns", "pressure_ns")
STATES = ("gpu_clock_mhz", "gpu_throttle", "gpu_foreign")
MAYBE = st.none() | st.integers(0, 10**12)
READINGS = st.lists(
    st.builds(Counters, st.integers(0, 10**15), st.integers(0, 10**15), *[MAYBE] * 8), min_size=1, max_size=8
)


@given(READINGS)
def test_a_round_is_what_passed_between_its_two_readings(readings: list[Counters]) -> None:
    found = per_round(readings)
    for i, (before, after) in enumerate(itertools.pairwise(readings)):
        assert found.round_ns[i] == max(0, after.wall_ns - before.wall_ns)
        for name in TOTALS:
            a, b = getattr(before, name), getattr(after, name)
            assert getattr(found, name)[i] == (ABSENT if a is None or b is None else max(0, b - a))
        for name in STATES:
            b = getattr(after, name)
            assert getattr(found, name)[i] == (ABSENT if b is None else b)
    assert {len(getattr(found, name)) for name in COUNTERS} == {len(readings) - 1}


@pytest.mark.parametrize(
    ("busy", "own", "foreign"),
    [((100, 900), (0, 300), 500), ((100, 300), (0, 300), 0), ((None, 900), (0, 300), ABSENT)],
)
def test_others_use_of_the_cores_is_all_use_but_this_processs(
    busy: tuple[int | None, int], own: tuple[int, int], foreign: int
) -> None:
    readings = [Counters(i, cpu, busy_ns=all_) for i, (cpu, all_) in enumerate(zip(own, busy, strict=True))]
    assert per_round(readings).foreign_cpu_ns.tolist() == [foreign]


# Which rounds are kept


def rounds(count: int = 10, /, **columns: list[int]) -> Interference:
    """Rounds of a second each, on a quiet machine that tells everything; or as is given for the first ones."""
    quiet = Interference(**{name: np.zeros(count, dtype=np.int64) for name in COUNTERS})
    quiet.round_ns[:] = SECOND
    for name, values in columns.items():
        getattr(quiet, name)[: len(values)] = values
    return quiet


# A little and much of each disturbance in a round of a second, and what is said of much.
CAUSES = {
    "foreign_cpu_ns": (SECOND // 2 + TICK_NS, 3 * SECOND // 2 + 2 * TICK_NS, "other processes used 1.5 cores"),
    "run_delay_ns": (SECOND // 100, SECOND // 4, "the launch waited 25% of the time for its cores"),
    "steal_ns": (SECOND // 100, SECOND // 4, "the hypervisor took 25% of the time away"),
    "throttled_ns": (SECOND // 2000, SECOND // 4, "the cgroup's quota stopped the launch for 25% of the time"),
    "gpu_throttle": (0, 0x40, "the GPU was slowed down (NVML's bit mask of reasons: 64)"),
    "gpu_foreign": (0, 3, "3 other processes used the GPU"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_round_with_much_of_one_disturbance_is_left_out(cause: str) -> None:
    _, much, _ = CAUSES[cause]
    watched = rounds(**{cause: [0, much, 0, much]})
    assert disturbed(watched) == 2
    assert kept(watched).tolist() == [True, False, True, False] + [True] * 6


@pytest.mark.parametrize("cause", CAUSES)
def test_a_little_of_a_disturbance_is_borne(cause: str) -> None:
    watched = rounds(**{cause: [CAUSES[cause][0]] * 10})
    assert disturbed(watched) == 0
    assert kept(watched).all()


@pytest.mark.parametrize("column", ["gpu_clock_mhz", "pressure_ns"])
def test_what_is_only_recorded_costs_no_round(column: str) -> None:
    assert disturbed(rounds(**{column: [SECOND] * 10})) == 0


def test_a_disturbance_is_a_share_of_its_launchs_median_round() -> None:
    """Not of its own: the same wait would otherwise cost a quick round, and not a slow one."""
    for typical, found in ((1, True), (100, False)):
        watched = rounds(3, round_ns=[typical * SECOND] * 2 + [50 * SECOND], run_delay_ns=[SECOND // 4] * 3)
        assert (severity(watched) > 1).tolist() == [found] * 3


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_machine_that_tells_nothing_costs_no_round(count: int) -> None:
    assert kept(untold(count)).tolist() == [True] * count
    assert disturbed(untold(count)) == 0


@st.composite
def watches(draw: st.DrawFn) -> Interference:
    """Anything that a machine may have told of a launch's rounds."""
    count = draw(st.integers(0, 12))
    limits = {"gpu_throttle": 255, "gpu_foreign": 4}

    def column(name: str) -> Any:
        small, large = st.integers(-1, limits.get(name, 30_000_000)), st.integers(-1, limits.get(name, 2 * SECOND))
        elements = st.one_of(st.sampled_from([ABSENT, 0]), small, large)
        return draw(hnp.arrays(np.int64, count, elements=elements))

    return Interference(**{name: column(name) for name in COUNTERS})


@given(watches())
def test_no_more_than_half_of_the_rounds_are_left_out_and_those_the_most_disturbed(watched: Interference) -> None:
    scores, believed = severity(watched), kept(watched)
    half = (len(scores) + 1) // 2
    assert believed.sum() == max(half, len(scores) - disturbed(watched))
    if not believed.all():
        assert scores[believed].max(initial=0) <= scores[~believed].min()
        assert scores[~believed].min() > 1


@given(watches(), st.data())
@examples(40)
def test_which_rounds_are_kept_does_not_depend_on_how_long_the_calls_took(
    watched: Interference, data: st.DataObject
) -> None:
    count = len(watched.round_ns)
    if not count:
        return
    times = data.draw(hnp.arrays(float, (2, 2, count, 1), elements=st.floats(0.1, 1000)))
    first, second = (
        dataclasses.replace(made_launch({BASELINE: a, CONTROL: b}, rounds=count, calls=1), interference=watched)
        for a, b in times
    )
    assert first.kept_rounds.tolist() == second.kept_rounds.tolist() == kept(watched).tolist()


def test_a_launch_that_was_not_watched_keeps_all_its_rounds() -> None:
    assert made_launch({BASELINE: 1.0}, rounds=4).kept_rounds.tolist() == [True] * 4


# What is said of it


@pytest.mark.parametrize("cause", CAUSES)
def test_a_complaint_names_the_cause_with_its_amount_and_the_share_of_the_rounds(cause: str) -> None:
    _, much, sentence = CAUSES[cause]
    launches = [rounds(), rounds(**{cause: [much] * 5})]
    said = f"25% of the rounds were disturbed: {sentence}; make the machine quiet and run it again"
    assert complaint(launches) == said


def test_up_to_a_fifth_of_disturbed_rounds_nothing_is_said() -> None:
    assert WARN_SHARE == 0.2
    assert complaint([rounds(steal_ns=[SECOND] * 2)]) is None
    assert complaint([rounds(steal_ns=[SECOND] * 3)]) is not None
    assert complaint([rounds(), rounds(), rounds(steal_ns=[SECOND] * 6)]) is None


@pytest.mark.parametrize("launches", [[], [untold(5)], [untold(0)]])
def test_where_nothing_is_told_nothing_is_said(launches: list[Interference]) -> None:
    assert complaint(launches) is None


def test_what_the_machine_does_not_tell_of_is_named() -> None:
    assert unwatched([rounds()], "cuda") is None
    assert unwatched([], "cpu") is None
    silent = rounds(steal_ns=[ABSENT] * 10, throttled_ns=[ABSENT] * 10, gpu_throttle=[ABSENT] * 10)
    assert unwatched([silent], "cpu") == "not watched here: steal, throttling"
    assert unwatched([silent], "cuda") == "not watched here: steal, throttling, the GPU's clocks"
    assert unwatched([silent, rounds()], "cpu") is None
    everything = "other processes, waiting for cores, steal, throttling"
    assert unwatched([untold(3)], "cpu") == f"not watched here: {everything}"


def test_a_complaint_names_the_two_commonest_causes_the_commonest_first() -> None:
    watched = rounds(gpu_foreign=[3] * 2, steal_ns=[SECOND // 4] * 6, run_delay_ns=[0, SECOND // 4] * 2 + [SECOND // 4])
    said = complaint([watched])
    assert said is not None
    assert "60% of the rounds were disturbed: the hypervisor took 25%" in said
    assert "away, the launch waited 25% of the time for its cores;" in said
    assert "GPU" not in said


def test_the_amount_is_the_typical_one_of_the_disturbed_rounds_alone() -> None:
    watched = rounds(run_delay_ns=[SECOND // 10, SECOND // 5, SECOND // 2, SECOND // 1000, SECOND // 1000])
    assert "waited 20% of the time" in (complaint([watched]) or "")


def test_a_complaint_of_a_slowed_gpu_names_reasons_that_were_given() -> None:
    said = complaint([rounds(gpu_throttle=[0x4, 0x4, 0x40, 0x40])]) or ""
    assert "reasons: 68)" in said


# The sentinel: what is timed, and which of its times is told


def ticking(walls_ns: list[int]) -> Callable[[], int]:
    """A clock on which each repetition takes one of these times, and what lies between them a second."""
    times: list[int] = []
    now = 0
    for wall in walls_ns:
        times += [now, now + wall]
        now += wall + 10**9
    said = iter(times)
    return lambda: next(said)


@given(st.lists(st.integers(1, 10**9), min_size=REPEATS, max_size=REPEATS))
@examples(20)
def test_the_sentinels_time_is_the_median_of_its_repetitions(walls_ns: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "LOOPS", 1)
        patch.setattr(watch, "FLOATS", 1)
        assert sentinel_ns(ticking(walls_ns)) == sorted(walls_ns)[REPEATS // 2]


def test_one_disturbed_repetition_does_not_move_it() -> None:
    assert sentinel_ns(ticking([100, 100, 10**9, 100, 100])) == 100


def test_the_same_work_and_nothing_else_stands_between_the_readings() -> None:
    """The memory is made before the first of them."""
    ran: list[str] = []

    def clock() -> int:
        return 0

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event == "call" and frame.f_code is clock.__code__:
            ran.append("clock")
        elif event == "c_call" and frame.f_code is sentinel_ns.__code__:
            ran.append(called.__name__)
        elif event == "call" and frame.f_back is not None and frame.f_back.f_code is sentinel_ns.__code__:
            ran.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        sentinel_ns(clock)
    finally:
        sys.setprofile(None)
    first = ran.index("clock")
    inside = [name for name in ran[first:] if name in ("clock", "sum", "ones")]
    assert inside == ["clock", "sum", "sum", "sum", "clock"] * REPEATS
    assert "ones" in ran[:first]


def test_on_the_real_clock_it_takes_the_time_of_its_computation() -> None:
    """Its median is no longer than what passes in all, and no shorter than half of the interpreter's part alone."""
    start = time.perf_counter_ns()
    found = sentinel_ns()
    passed = time.perf_counter_ns() - start
    assert found * (REPEATS // 2 + 1) <= passed
    assert found > min(loop_ns() for _ in range(20)) / 2


def loop_ns() -> int:
    start, total = time.perf_counter_ns(), 0
    for i in range(watch.LOOPS):
        total += i
    return time.perf_counter_ns() - start
