"""The GPU of a launch: its identity, the arithmetic that it may use, and other activity on it.

Sources: https://pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices,
https://docs.nvidia.com/deploy/nvml-api/.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

SLOWING = 0x8 | 0x20 | 0x40 | 0x80 | 0x4  # NVML: hardware, software thermal, hardware thermal, power brake, power cap
WIDTH, REPEATS = 4096, 5  # of the sentinel's product: about 2 ms on an H100

State = tuple[int | None, int | None, int | None]


def require_float32() -> None:
    """Makes cuDNN compute GRUs in IEEE float32, as matrix products do, for the life of this process.

    PyTorch lets cuDNN round their inputs to TF32's 10-bit mantissas unless told otherwise, and only theirs: variants
    that write a GRU out as products would compute something else under the same label. The older of PyTorch's two
    switches, as setting both makes it refuse to read either.
    """
    torch.backends.cudnn.allow_tf32 = False


@dataclass(frozen=True)
class Device:
    """A GPU as NVML sees it; ``card`` is ``handle`` but for a MIG slice, whose clocks and limits are its card's."""

    nvml: Any
    handle: Any
    card: Any

    def told(self, ask: Callable[[], Any]) -> Any:
        """The answer; None if this GPU or its driver does not report it."""
        try:
            return ask()
        except self.nvml.NVMLError:
            return None

    def state(self) -> State:
        """(SM clock in MHz, reasons that slow it, other processes on it)."""
        nvml = self.nvml
        clock = self.told(lambda: int(nvml.nvmlDeviceGetClockInfo(self.card, nvml.NVML_CLOCK_SM)))
        return clock, self.told(self._reasons), self.told(self._foreign)

    def _reasons(self) -> int:
        """Under the name that NVML gave them in 2023, which a driver may know alone, or the one before."""
        nvml = self.nvml
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        return int((ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(self.card)) & SLOWING

    def _foreign(self) -> int | None:
        """This process is one of them, under a number that a container does not know.

        None if there are none at all: then NVML does not see this process either, let alone those of other containers.
        """
        found = len(self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        return found - 1 if found else None

    def facts(self) -> dict[str, Any]:
        """Driver, power limit in W, persistence mode and MIG mode."""
        nvml, card = self.nvml, self.card
        watts = self.told(lambda: round(nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000))
        return {
            "driver": self.told(nvml.nvmlSystemGetDriverVersion),
            "power_limit_w": watts,
            "persistence": self.told(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(card))),
            "mig": self.handle is not card,
        }


def device_of(nvml: Any, uuid: str) -> Device:
    """The GPU, or the slice of one, with this UUID, as PyTorch or as NVML writes it. Raises NVMLError for others."""
    nvml.nvmlInit()
    uuid = uuid.removeprefix("GPU-").removeprefix("MIG-")
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        handle = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
        return Device(nvml, handle, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))
    return Device(nvml, handle, handle)


def own_device() -> Device | str:
    """The GPU of this process, by its UUID: its first need not be the machine's. Else the reason why NVML is silent."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        return device_of(nvml, str(torch.cuda.get_device_properties(0).uuid))
    except Exception as error:  # no driver library, no permission, a UUID that it does not know
        return f"NVML: {type(error).__name__}: {error}"


def gpu_facts(device: Device | str) -> dict[str, Any]:
    """The GPU and the libraries that a launch computed with; nothing that identifies the machine."""
    gpu = torch.cuda.get_device_properties(0)
    found = {
        "name": gpu.name,
        "multiprocessors": gpu.multi_processor_count,
        "memory_mb": round(gpu.total_memory / 1e6),
        "capability": f"{gpu.major}.{gpu.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    return found | ({"not_watched": device} if isinstance(device, str) else device.facts())


def sentinel_ns() -> int:
    """The device's median time for a fixed float32 product, unrelated to any variant: a slower GPU shows in it."""
    square = torch.ones((WIDTH, WIDTH), device="cuda")
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    times: list[float] = []
    for _ in range(1 + REPEATS):
        first.record()
        square @ square
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) * 1e6)
    del square
    torch.cuda.empty_cache()
    return round(median(times[1:]))


def lock_names(gpus: Sequence[str]) -> tuple[str, ...]:
    """Names of this host's GPUs that are the same in every container: UUIDs, or as they are where NVML is silent.

    In a pod each GPU is number 0, whichever it is.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return tuple(_uuid(nvml, gpu) if gpu.isdigit() else gpu for gpu in gpus)
    except Exception:  # no package, driver or permission
        return tuple(gpus)


def _uuid(nvml: Any, number: str) -> str:
    uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(int(number)))
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)


def pci_address(gpu: str) -> str | None:
    """The place of a GPU, known by its UUID, on the PCI bus as sysfs writes it (``0000:3b:00.0``); None if unknown."""
    try:
        device = device_of(importlib.import_module("pynvml"), gpu)
        address = device.nvml.nvmlDeviceGetPciInfo(device.card).busId
    except Exception:  # no package, driver or permission, or a number in place of a UUID
        return None
    return (address.decode() if isinstance(address, bytes) else str(address))[-len("0000:3b:00.0") :].lower()
