"""What tells machines apart, which settings count, and which quotas: read from made-up files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot.variants import Workload
from ray_jobs.machine import another_machine, cpu_facts, differences, machine_ids, quota_cpus, settings
from ray_jobs.process.server import LaunchServer
from ray_jobs.provenance import station_facts

MILAN = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse4_2 avx avx2 sha_ni

processor\t: 1
cpu family\t: 25
model\t\t: 1
stepping\t: 1
"""
GENOA = MILAN.replace("model\t\t: 1", "model\t\t: 17").replace("avx2", "avx2 avx512f avx512_vnni")
GRAVITON = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd atomics sve
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
LITTLE = GRAVITON.replace("0xd40", "0xd05").replace("sve", "dcpop")
BIG = GRAVITON.replace("0xd40", "0xd0b").replace("sve", "dcpop")
ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
BOARD = "EC2AF3B1-8D2C-4E5F-9A6B-7C8D9E0F1A2B"


def machine(root: Path, cpuinfo: str | None = None, **files: str) -> Path:
    """A root folder; ``files``: by their paths with ``__`` for a slash."""
    named = {name.replace("__", "/"): text for name, text in files.items()}
    for name, text in (named if cpuinfo is None else {"proc/cpuinfo": cpuinfo, **named}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def caches(root: Path, **sizes: str) -> Path:
    folder = "sys/devices/system/cpu/cpu0/cache"
    for number, (level, size) in enumerate(sizes.items()):
        machine(root, **{f"{folder}/index{number}/level": f"{level[1]}\n", f"{folder}/index{number}/size": f"{size}\n"})
    return root


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        (MILAN, "25.1.1, AVX2"),
        (GENOA, "25.17.1, AVX-512 VNNI"),
        (GENOA.replace("avx512f", "avx512f amx_tile"), "25.17.1, AMX"),
        (MILAN.replace("avx2", "avx2 avx_vnni"), "25.1.1, AVX2 VNNI"),
        (GRAVITON, "41.d40.1, SVE"),
        (f"{LITTLE}\n{LITTLE}\n{BIG}", "41.d05.1+41.d0b.1, NEON"),
        ("", None),
    ],
)
def test_cpus_of_one_name_are_told_apart_by_model_and_instructions(
    cpuinfo: str, model: str | None, tmp_path: Path
) -> None:
    assert cpu_facts(machine(tmp_path, cpuinfo))["cpu_model"] == model


def test_the_name_stays_the_marketing_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert cpu_facts(machine(tmp_path / "x86", MILAN))["cpu"] == "AMD EPYC"
    assert cpu_facts(machine(tmp_path / "arm", GRAVITON))["cpu"] == "aarch64"
    assert cpu_facts(tmp_path / "nowhere") == {"cpu": "aarch64", "cpu_model": None}


def test_the_last_cache_is_part_of_the_model(tmp_path: Path) -> None:
    whole = caches(machine(tmp_path / "a", MILAN), l1="32K", l2="512K", l3="32768K")
    assert cpu_facts(whole)["cpu_model"] == "25.1.1, AVX2, 32 MB L3"
    assert cpu_facts(caches(machine(tmp_path / "b", MILAN), l1="32K", l2="512K"))["cpu_model"] == (
        "25.1.1, AVX2, 0.5 MB L2"
    )
    assert cpu_facts(caches(machine(tmp_path / "c", MILAN), l1="32K"))["cpu_model"] == "25.1.1, AVX2"


# The same machine


def ids(root: Path, machine_id: str = "", board: str = "") -> dict[str, object]:
    files = {"etc__machine-id": machine_id, "sys__class__dmi__id__product_uuid": board}
    return {"machine_ids": machine_ids(machine(root, **files))}


def test_ids_are_hashes_and_the_same_each_time(tmp_path: Path) -> None:
    found = ids(tmp_path / "a", f"{ID}\n", f"{BOARD}\n")
    assert found == ids(tmp_path / "b", ID, BOARD.lower())
    assert not any(name.lower() in str(found).lower() for name in (ID, BOARD, ID[:8], BOARD[:8]))


@pytest.mark.parametrize("nothing", ["", "uninitialized\n", "00000000-0000-0000-0000-000000000000", "\n"])
def test_what_names_no_machine_is_none(nothing: str, tmp_path: Path) -> None:
    assert ids(tmp_path, nothing, nothing) == {"machine_ids": {"dmi": None, "machine_id": None}}


def test_machines_differ_where_both_tell_and_the_board_goes_first(tmp_path: Path) -> None:
    here, other = ids(tmp_path / "a", ID), ids(tmp_path / "b", ID[::-1])
    silent, root = ids(tmp_path / "c"), ids(tmp_path / "d", ID, BOARD)
    container = ids(tmp_path / "e", ID[::-1], BOARD)  # on the same board
    assert another_machine(here, other)
    assert not another_machine(here, here)
    assert not another_machine(here, silent)
    assert not another_machine({}, here), "from before machines were told"
    assert not another_machine(root, here), "root can read more"
    assert not another_machine(root, container)
    assert another_machine(root, ids(tmp_path / "f", ID, BOARD[::-1])), "cloned with its machine-id"


# Settings


@pytest.mark.parametrize(
    "name",
    "ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS MALLOC_ARENA_MAX TORCHINDUCTOR_MAX_AUTOTUNE "
    "CUDA_LAUNCH_BLOCKING PYTORCH_JIT OMP_WAIT_POLICY KMP_BLOCKTIME GOMP_SPINCOUNT NVIDIA_TF32_OVERRIDE "
    "PYTHONMALLOC PYTHONDEVMODE".split(),
)
def test_variables_that_change_speed_are_recorded(name: str) -> None:
    assert settings({name: "1", "HOME": "/root", "AWS_SECRET_ACCESS_KEY": "x"}) == {name: "1"}


def test_what_each_launch_is_given_and_what_is_taken_from_it_is_no_setting() -> None:
    set_by_us = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR", "OMP_PLACES"), "1")
    assert settings(set_by_us) == {}


def test_launches_do_not_inherit_where_threads_should_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    class Started:
        pid, returncode = -1, 0

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            given.append(env)

        def kill(self) -> None: ...
        def wait(self, *_: float) -> None: ...

    monkeypatch.setattr("subprocess.Popen", Started)
    for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "1")
    with LaunchServer(Workload()):
        pass
    bound = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
    assert "OMP_WAIT_POLICY" in given[0]
    assert [name for name in bound if name in given[0]] == []


@pytest.mark.process
def test_openmp_does_not_bind_whoever_loads_pytorch_with_us() -> None:
    look = "import os, ray_jobs, torch; print(sorted(os.sched_getaffinity(0)))"
    bound = {**os.environ, "OMP_PROC_BIND": "true", "OMP_PLACES": f"{{{min(os.sched_getaffinity(0))}}}"}
    found = subprocess.run([sys.executable, "-c", look], env=bound, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(sorted(os.sched_getaffinity(0)))


def test_of_paths_only_names_are_recorded_and_of_addresses_nothing() -> None:
    found = settings(
        {
            "LD_PRELOAD": "/home/alice/lib/libjemalloc.so.2:/opt/secret/libiomp5.so",
            "TORCHINDUCTOR_REDIS": "redis://user:password@host/0",
            "CXX": "ccache /usr/bin/g++-12",
        }
    )
    assert found == {
        "LD_PRELOAD": "libjemalloc.so.2 libiomp5.so",
        "TORCHINDUCTOR_REDIS": "(an address)",
        "CXX": "ccache g++-12",
    }


def test_settings_differ_by_name_and_not_from_runs_that_recorded_none() -> None:
    then = {"settings": {"MKL_CBWR": "AVX2", "OMP_WAIT_POLICY": "active"}}
    now = {"settings": {"ATEN_CPU_CAPABILITY": "default", "OMP_WAIT_POLICY": "active"}}
    assert differences(then, now) == [("ATEN_CPU_CAPABILITY", "unset", "default"), ("MKL_CBWR", "AVX2", "unset")]
    assert differences({}, now) == differences(now, {}) == differences(now, now) == []


def test_a_stations_facts_tell_its_machine_its_settings_and_its_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")  # whose version is asked for
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    facts = station_facts()
    assert facts["settings"]["ATEN_CPU_CAPABILITY"] == "default"
    assert facts["machine_ids"] == machine_ids()
    assert (facts["quota_cpus"], facts["cpu_model"]) == (quota_cpus(), cpu_facts()["cpu_model"])


# Quotas

STAT = "usage_usec 5000\n"


def test_the_tightest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__user.slice__pod__app"
    files = {f"{place}__cpu.stat": STAT for place in (group, "sys__fs__cgroup__user.slice__pod", "sys__fs__cgroup")}
    quotas = {f"{group}__cpu.max": "400000 100000\n", "sys__fs__cgroup__user.slice__pod__cpu.max": "50000 100000\n"}
    root = machine(tmp_path, proc__self__cgroup="0::/user.slice/pod/app\n", **files, **quotas)
    assert quota_cpus(root) == 0.5
    machine(root, **{"sys__fs__cgroup__user.slice__pod__cpu.max": "max 100000\n"})
    assert quota_cpus(root) == 4
    machine(root, **{f"{group}__cpu.max": "max 100000\n"})
    assert quota_cpus(root) is None


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("path", ["/docker/abc", "/"])
def test_quotas_of_version_1_count_where_the_container_sees_its_own_group_only(
    mount: str, path: str, tmp_path: Path
) -> None:
    place = f"sys__fs__cgroup__{mount}"
    files = {"cpu.stat": "nr_periods 9\n", "cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"}
    root = machine(tmp_path, proc__self__cgroup=f"4:cpu,cpuacct:{path}\n0::/\n")
    machine(root, **{f"{place}__{name}": text for name, text in files.items()})
    assert quota_cpus(root) == 1.5
    machine(root, **{f"{place}__cpu.cfs_quota_us": "-1\n"})
    assert quota_cpus(root) is None


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert quota_cpus(tmp_path) is None
