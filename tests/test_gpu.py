"""The GPU of a launch, with stand-ins for NVML and for CUDA: what is watched, recorded and locked."""

import dataclasses
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from launches import prompts

from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs.measure import gpu, steps
from ray_jobs.measure import launch as measure
from ray_jobs.measure.gpu import device_of, gpu_facts, lock_names, own_device, pci_address
from ray_jobs.measure.interference import ABSENT
from ray_jobs.measure.result import Launch
from ray_jobs.measure.speeds import SIZES, slopes
from ray_jobs.measure.trial import Preset
from ray_jobs.measure.watch import watch_for
from ray_jobs.process import trial
from ray_jobs.process.cores import near

WHOLE, SLICE = "GPU-7", "MIG-8"
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 MIG 1g.10gb", uuid="7", multi_processor_count=14, total_memory=10e9, major=9, minor=0
)


class FakeNvml(ModuleType):
    """As much of pynvml as is asked; ``lost`` are the questions that it answers with an error."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, clock: int = 1980, reasons: int = 0, pids: tuple[int, ...] = (41,), lost: str = "") -> None:
        super().__init__("pynvml")
        self.clock, self.reasons, self.pids, self.lost = clock, reasons, pids, lost.split()
        self.devices = [WHOLE]

    def _answer(self, question: str, value: Any) -> Any:
        if question in self.lost:
            raise self.NVMLError(question)
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer("init", None)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in (*self.devices, SLICE):
            raise self.NVMLError(uuid)
        return f"handle of {uuid}"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self.devices[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        assert handle == f"handle of {SLICE}"
        return f"handle of {WHOLE}"

    def nvmlDeviceGetClockInfo(self, card: str, kind: int) -> int:  # noqa: N802
        assert (card, kind) == (f"handle of {WHOLE}", self.NVML_CLOCK_SM)
        return int(self._answer("clock", self.clock))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: str) -> int:  # noqa: N802
        assert card == f"handle of {WHOLE}"
        return int(self._answer("reasons", self.reasons))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        processes: list[Any] = self._answer("processes", [SimpleNamespace(pid=pid) for pid in self.pids])
        return processes

    def nvmlDeviceGetPciInfo(self, card: str) -> SimpleNamespace:  # noqa: N802
        assert card == f"handle of {WHOLE}"
        return SimpleNamespace(busId=b"00000000:3B:00.0")

    def nvmlDeviceGetEnforcedPowerLimit(self, card: str) -> int:  # noqa: N802
        return int(self._answer("power", 699_600))

    def nvmlDeviceGetPersistenceMode(self, card: str) -> int:  # noqa: N802
        return 1


def state(nvml: FakeNvml) -> gpu.State:
    return device_of(nvml, "7").state()


def test_a_gpus_clock_is_read_each_time() -> None:
    nvml = FakeNvml(clock=1980)
    device = device_of(nvml, "7")
    assert device.state() == (1980, 0, 0)
    nvml.clock = 1200
    assert device.state() == (1200, 0, 0)


@pytest.mark.parametrize(("pids", "foreign"), [((41, 1, 2), 2), ((41,), 0), ((), None)])
def test_this_process_is_no_stranger_and_where_it_is_not_seen_no_stranger_would_be(
    pids: tuple[int, ...], foreign: int | None
) -> None:
    """Whatever its number is: a container does not know it, and NVML may see no process of a container at all."""
    assert state(FakeNvml(pids=pids))[2] == foreign


@pytest.mark.parametrize("reason", [0x4, 0x8, 0x20, 0x40, 0x80])
def test_reasons_that_cost_speed_are_kept(reason: int) -> None:
    assert state(FakeNvml(reasons=reason | 0x1))[1] == reason


@pytest.mark.parametrize("reason", [0x1, 0x2, 0x10, 0x100])  # idle, asked-for clocks, sync boost, display
def test_reasons_that_are_no_disturbance_are_not(reason: int) -> None:
    assert state(FakeNvml(reasons=reason))[1] == 0


def test_reasons_are_asked_for_under_their_present_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may no longer know the one before."""
    nvml = FakeNvml(lost="reasons")
    monkeypatch.setattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda card: 0x40, raising=False)
    assert state(nvml)[1] == 0x40


@pytest.mark.parametrize(
    ("lost", "told"),
    [("clock", (None, 0, 0)), ("reasons", (1980, None, 0)), ("processes", (1980, 0, None))],
)
def test_what_a_gpu_does_not_tell_is_none_and_the_rest_is_told(lost: str, told: gpu.State) -> None:
    assert state(FakeNvml(lost=lost)) == told


def test_a_slice_has_processes_of_its_own_and_its_cards_clock() -> None:
    """PyTorch tells a MIG slice's own UUID, which NVML calls MIG-...; clocks are known of whole cards only."""
    nvml = FakeNvml(clock=1500, pids=(41, 5))
    device = device_of(nvml, "8")
    assert device.handle == f"handle of {SLICE}"
    assert device.state() == (1500, 0, 1)
    assert device.facts()["mig"] is True


@pytest.fixture
def _on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: PROPERTIES)


@pytest.mark.usefixtures("_on_cuda")
def test_a_watch_on_cuda_reads_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(clock=1500, reasons=0x4, pids=(1, 2)))
    found = watch_for(own_device()).read()
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_foreign) == (1500, 0x4, 1)


def test_the_gpu_is_asked_before_the_time_is_read() -> None:
    """Its driver may take milliseconds, which else would count as the next round's and thin its shares."""
    told: list[int] = []

    def slow() -> gpu.State:
        told.append(time.perf_counter_ns())
        return 1, 0, 0

    assert dataclasses.replace(watch_for(), gpu=slow).read().wall_ns > told[0]


@pytest.mark.usefixtures("_on_cuda")
@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (None, "nvidia-ml-py is not installed"),
        (FakeNvml(lost="init"), "NVML: NVMLError: init"),
        (ModuleType("pynvml"), "NVML: AttributeError: module 'pynvml' has no attribute 'nvmlInit'"),
    ],
)
def test_where_nvml_is_silent_the_rest_is_watched_and_the_launch_says_why(
    nvml: ModuleType | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    device = own_device()
    found = watch_for(device).read()
    assert (found.gpu_clock_mhz, found.gpu_throttle, found.gpu_foreign) == (None, None, None)
    assert found.wall_ns > 0
    assert gpu_facts(device)["not_watched"] == reason


@pytest.mark.usefixtures("_on_cuda")
def test_facts_name_the_slice_its_size_and_the_driver_and_not_the_machine() -> None:
    facts = gpu_facts(device_of(FakeNvml(lost="power"), "8"))
    assert (facts["name"], facts["multiprocessors"], facts["memory_mb"]) == ("NVIDIA H100 MIG 1g.10gb", 14, 10_000)
    assert (facts["driver"], facts["power_limit_w"], facts["mig"]) == ("580.1", None, True)
    assert gpu_facts(device_of(FakeNvml(), "7"))["power_limit_w"] == 700
    assert not {"7", "8", WHOLE, SLICE} & {str(value) for value in facts.values()}


def test_a_launch_on_a_gpu_records_it_and_runs_its_sentinel_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2_000_000, 2_200_000])
    monkeypatch.setattr(gpu, "sentinel_ns", lambda: next(times))
    monkeypatch.setattr(gpu, "own_device", lambda: "not here")
    monkeypatch.setattr(gpu, "gpu_facts", lambda device: {"name": "H100", "not_watched": device})
    workload = Workload(device="cuda", prompt_tokens=4, reply_tokens=3, model="tiny")
    found = steps.gpu_facts(gpu.own_device(), [steps.sentinels(workload)[1] for _ in range(2)])
    assert found == {"gpu": {"name": "H100", "not_watched": "not here", "sentinel_ns": [2_000_000, 2_200_000]}}


def test_a_launch_on_a_cpu_has_no_gpu_and_tells_what_timing_adds() -> None:
    workload = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
    launch = Launch(0, 1, rounds=2, calls=1)
    result = measure.measure(workload, (BASELINE, CONTROL), Preset("tiny"), prompts(200), launch)
    assert "gpu" not in result.machine
    assert 0 < result.machine["timing_floor_ns"] < 1_000_000
    assert result.interference is not None
    assert (result.interference.gpu_foreign == ABSENT).all()


def test_the_same_gpu_has_the_same_lock_in_every_container(monkeypatch: pytest.MonkeyPatch) -> None:
    pod, host = FakeNvml(), FakeNvml()
    pod.devices, host.devices = ["GPU-d"], ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    monkeypatch.setitem(sys.modules, "pynvml", pod)
    assert lock_names(["0"]) == ("GPU-d",)
    monkeypatch.setitem(sys.modules, "pynvml", host)
    assert lock_names(["3", "0"]) == ("GPU-d", "GPU-a")
    assert lock_names(["GPU-d", "MIG-x"]) == ("GPU-d", "MIG-x")


@pytest.mark.parametrize("nvml", [None, FakeNvml(lost="init")], ids=["no package", "no driver"])
def test_without_nvml_locks_have_the_numbers_of_their_gpus(
    nvml: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert lock_names(["0", "GPU-d"]) == ("0", "GPU-d")


@pytest.mark.parametrize("name", [WHOLE, SLICE])
def test_a_gpus_place_on_the_bus_is_written_as_sysfs_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert pci_address(name) == "0000:3b:00.0"
    assert pci_address("0") is None


def test_a_trial_runs_on_the_gpus_own_socket_where_it_has_enough_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that is bound by launches feels every hop between the sockets."""
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0/local_cpulist").write_text("0-3,8\n")
    assert near("0000:3b:00.0", tmp_path) == [0, 1, 2, 3, 8]
    assert near("0000:af:00.0", tmp_path) == near(None, tmp_path) == []
    monkeypatch.setattr(trial, "pci_address", lambda gpu: "0000:3b:00.0" if gpu == WHOLE else None)
    monkeypatch.setattr(trial, "near", lambda address: near(address, tmp_path))
    allowed = [2, 3, 4, 5, 8]
    assert trial.beside_gpu(allowed, 2, [WHOLE]) == [2, 3, 8]
    assert trial.beside_gpu(allowed, 3, [WHOLE]) == allowed  # none would be left for everything else
    assert trial.beside_gpu(allowed, 1, ["GPU-9"]) == trial.beside_gpu(allowed, 1, []) == allowed


def test_the_bandwidth_of_a_gpu_is_free_of_what_starting_a_read_costs() -> None:
    """At 4 TB/s from the cache and 3 from memory, with 2.5 us a read: its plain rate at 2 MB would be half of that."""
    rates = {size: 4e12 if size < 40e6 else 3e12 for size in SIZES}
    found = dict(slopes({size: 2.5e-6 + size / rates[size] for size in SIZES}))
    assert tuple(found) == SIZES
    for size in SIZES:
        assert found[size] == pytest.approx(rates[size] / 1e9, rel=0.02)


def test_a_read_that_took_no_longer_than_the_smallest_has_the_rate_of_a_larger_one() -> None:
    found = dict(slopes({100: 2e-6, 1000: 1.9e-6, 10_000: 3e-6, 100_000: 12e-6}))
    assert found[100] == found[1000] == found[10_000] == pytest.approx(9900 / 1e-6 / 1e9)
    assert dict(slopes({100: 2e-6, 1000: 2e-6})) == {100: 0.5, 1000: 0.5}
