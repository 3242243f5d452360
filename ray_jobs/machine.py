"""The machine and the settings that a speed depends on: the CPU's model, an id that tells machines apart, quotas.

Each reads files below a root that tests replace. What the machine does not tell is empty or None.
"""

import hashlib
import hmac
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")
# Of x86, the strongest first: https://www.kernel.org/doc/html/latest/arch/x86/cpuinfo.html; then of ARM, hwcaps.
LEVELS = {
    "amx_tile": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX2 VNNI",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse4_2": "SSE4.2",
    "sve2": "SVE2",
    "sve": "SVE",
    "asimd": "NEON",
}
IDS = {"dmi": "sys/class/dmi/id/product_uuid", "machine_id": "etc/machine-id"}  # the first needs root
SALT = b"latency-matrix: knows a machine again, and tells nobody which it is"  # as machine-id(5) asks for

# Variables that change how fast a program runs, and none that would hold a secret. Counts of threads are set for each
# launch and so are none of them.
SETTINGS = (
    *("LD_PRELOAD", "LD_BIND_NOW", "GLIBC_TUNABLES", "CXX", "PYTHONMALLOC", "PYTHONDEVMODE", "PYTHONOPTIMIZE"),
    *("ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_COMPILE_DISABLE"),
    *("CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG"),
    *("PYTORCH_JIT", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
)
FAMILIES = (
    *("ONEDNN_", "DNNL_", "MKL_", "OPENBLAS_", "BLIS_", "OMP_", "KMP_", "GOMP_", "MALLOC_", "TCMALLOC_", "MIMALLOC_"),
    *("TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_CUDNN_", "CUDNN_", "TRITON_", "ORT_", "OPENVINO_"),
)
FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # change no speed
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# They bind threads to cores that a launch is not pinned to: they are taken out of launches.
AFFINITY = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
LONGEST = 100


def cpu_facts(root: Path = ROOT) -> dict[str, Any]:
    """``cpu``: its marketing name, which many share; ``cpu_model``: what tells those apart, None if that is not told.

    Such as ``25.1.1, AVX2, 32 MB L3``: family, model and stepping (on ARM implementer, part and variant), instructions,
    and the last level of the caches.
    """
    blocks = [_fields(block) for block in read_text(root / "proc/cpuinfo").split("\n\n") if block.strip()]
    first = blocks[0] if blocks else {}
    numbers = dict.fromkeys(filter(None, map(_number, blocks)))  # of big.LITTLE several
    flags = (first.get("flags") or first.get("Features") or "").split()
    level = next((name for flag, name in LEVELS.items() if flag in flags), "")
    parts = ["+".join(numbers), level, _last_cache(root / "sys/devices/system/cpu/cpu0/cache")]
    return {"cpu": first.get("model name") or platform.machine(), "cpu_model": ", ".join(filter(None, parts)) or None}


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _number(block: Mapping[str, str]) -> str:
    for names in (("cpu family", "model", "stepping"), ("CPU implementer", "CPU part", "CPU variant")):
        if names[0] in block:
            return ".".join(block.get(name, "").removeprefix("0x") for name in names)
    return ""


def _last_cache(folder: Path) -> str:
    levels = {read_text(index / "level"): read_text(index / "size") for index in folder.glob("index*")}
    level = max(filter(str.isdecimal, levels), default="1")
    size = levels.get(level, "").removesuffix("K")
    return f"{int(size) / 1024:g} MB L{level}" if level > "1" and size.isdecimal() else ""


def machine_ids(root: Path = ROOT) -> dict[str, str | None]:
    """Salted hashes of what tells this machine from others, by source; None where that is not told."""
    return {source: _hashed(read_text(root / path).lower()) for source, path in IDS.items()}


def _hashed(name: str) -> str | None:
    """None of what names no machine: an empty file, an image's ``uninitialized``, a board's zeros."""
    if len(set(name)) < 4 or name == "uninitialized":
        return None
    return hmac.new(SALT, name.encode(), hashlib.sha256).hexdigest()[:16]


def another_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two stations' facts are of different machines; not, where either does not tell.

    The first source that both tell decides: a container may have a machine-id of its own, but not another board.
    """
    first, second = one.get("machine_ids") or {}, other.get("machine_ids") or {}
    told = [(first[source], second[source]) for source in IDS if first.get(source) and second.get(source)]
    return bool(told) and told[0][0] != told[0][1]


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``SETTINGS`` and ``FAMILIES`` that are set; of paths the file's name, of addresses nothing."""
    left_out = (*THREADS, *FOLDERS, *AFFINITY)
    mine = (name for name in sorted(environment) if name in SETTINGS or name.startswith(FAMILIES))
    return {name: shown(environment[name]) for name in mine if name not in left_out}


def shown(value: str) -> str:
    """A variable's value as it is recorded: of paths the files' names, of addresses nothing."""
    if "://" in value or "@" in value:
        return "(an address)"
    words = value.replace(":", " ").split() if "/" in value else [value]
    return " ".join(word.rpartition("/")[2] for word in words)[:LONGEST]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, before, after) of the settings in which two stations' facts differ.

    None where either was recorded before settings were.
    """
    before, after = then.get("settings"), now.get("settings")
    if before is None or after is None:
        return []
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return [(name, before.get(name, "unset"), after.get(name, "unset")) for name in names]


def groups(root: Path = ROOT) -> Iterator[tuple[Path, int]]:
    """(folder, version) of each control group that may limit this process's CPU: its own and all above it, each once.

    ``cpu`` is often a link to ``cpu,cpuacct``.
    """
    own: dict[str, str] = {}
    found: dict[Path, tuple[Path, int]] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        own |= dict.fromkeys(controllers.split(","), group.strip("/"))
    for mount, controller, version in (("", "", 2), ("unified", "", 2), ("cpu", "cpu", 1), ("cpu,cpuacct", "cpu", 1)):
        place = root / "sys/fs/cgroup" / mount
        path = Path(own.get(controller, ""))
        for folder in (place / part for part in (path, *path.parents)):
            if (folder / "cpu.stat").is_file():
                found.setdefault(folder.resolve(), (folder, version))
    yield from found.values()


def quota_cpus(root: Path = ROOT) -> float | None:
    """The CPUs' worth of time that the tightest quota of this process's control groups grants; None: no quota."""
    found = (_quota(folder, version) for folder, version in groups(root))
    return min((quota for quota in found if quota is not None), default=None)


def _quota(folder: Path, version: int) -> float | None:
    if version == 2:
        words = read_text(folder / "cpu.max").split()
    else:
        words = [read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):  # max, or -1
        return None
    return int(words[0]) / int(words[1])


def read_text(path: Path) -> str:
    """The text of a file without white space around it; empty if it can't be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def station() -> dict[str, Any]:
    """What a station's facts say of its machine and its settings."""
    ids = {"machine_ids": machine_ids(), "quota_cpus": quota_cpus(), "settings": settings(os.environ)}
    return {**cpu_facts(), **ids}
