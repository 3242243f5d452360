"""The provenance of a run: sources, commit, packages."""

import hashlib
import os
import platform
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import chatbot
import ray_jobs
from chatbot import compiler
from chatbot.safe_text import redacted
from chatbot.variants.base import Variant
from ray_jobs import machine

PACKAGES = (
    *("torch", "ray", "pyarrow", "numpy", "scipy", "wandb", "chitchat-dataset"),
    *("onnxruntime", "onnx", "onnxscript", "openvino", "triton", "nvidia-cuda-nvrtc"),
)
# What a variant is run by, beside these, by what its table entry says it needs.
ALWAYS = ("torch", "numpy")
NEEDED = {
    "latency-matrix[onnx]": ("onnxruntime", "onnx", "onnxscript"),
    "latency-matrix[openvino]": ("openvino", "onnx"),
    "a C++ compiler": ("compiler",),
    "triton": ("triton",),
    "NVRTC": ("nvidia-cuda-nvrtc",),
}
ROOT = Path(__file__).resolve().parent.parent
SOURCES = (".py", ".h", ".cpp", ".cu")  # what a launch may compute with; the C++ engine is compiled from its own
# Ray keeps each package that it brings to a node in a folder of its own.
PACKAGE_FOLDERS = tuple(Path(package.__path__[0]).resolve() for package in (chatbot, ray_jobs))


def driver_facts() -> dict[str, Any]:
    """The facts that identify this run's program."""
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "git_commit": git_commit(),
        "source_hash": source_hash(),
    }


def station_facts() -> dict[str, Any]:
    """The machine that this process may use, and its program. Imports the standard library only."""
    cores = sorted(os.sched_getaffinity(0))
    return {
        "host": platform.node(),
        **machine.station(),
        "cores": len(cores),
        "affinity": cores,
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "compiler": _compiler(),
        "source_hash": source_hash(),
    }


def programs_of(variants: Iterable[Variant]) -> tuple[str, ...]:
    """The packages, and ``compiler``, on whose version the speed of these variants depends."""
    needed = (name for one in variants for need in one.needs for name in NEEDED.get(need, ()))
    return tuple(dict.fromkeys([*ALWAYS, *needed]))


def changed(
    then: Mapping[str, Any], now: Mapping[str, Any], programs: Iterable[str]
) -> list[tuple[str, str, str | None]]:
    """(name, before, after) of the programs and settings in which two stations' facts differ, where both tell."""
    before, after = ({"compiler": facts.get("compiler"), **(facts.get("packages") or {})} for facts in (then, now))
    names = [name for name in programs if before.get(name) and name in after and before[name] != after[name]]
    return [*((name, before[name], after[name]) for name in names), *machine.differences(then, now)]


def command_line() -> list[str]:
    """The words that started this process: the command, or a program or notebook that called ``ray_jobs.run``.

    They are recorded and published, so they hold no keys.
    """
    installed = Path(sys.argv[0]).name == "latency-matrix"  # wherever it is installed
    words = ["latency-matrix", *sys.argv[1:]] if installed else ["python", *sys.orig_argv[1:]]
    return [redacted(word) for word in words]


def typed() -> str:
    """How this program was called, for the hints that it gives."""
    first = command_line()[0]
    return first if first == "latency-matrix" else "python -m ray_jobs"


def python_path() -> str:
    """PYTHONPATH for a process of this program that starts with ``-P``, without the folder that one stands in."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def new_run_id(kind: str = "") -> str:
    """A name for a new directory: what it is of, if that is not a matrix, the moment, and a little chance."""
    return f"{kind and f'{kind}-'}{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def package_versions() -> dict[str, str | None]:
    """The installed version of each package that a number may depend on; None where it is missing."""
    return {name: _version(name) for name in PACKAGES}


def source_hash(folders: Sequence[Path] = PACKAGE_FOLDERS) -> str:
    """A hash of every source file of both packages, C++ included: a submitted working directory has no ``.git``."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
            name = path.relative_to(folder.parent).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def own_source(name: str) -> str:
    """A hash of the package, or of the one file, that defines the ``package.module:NAME`` which was imported here."""
    top = sys.modules.get(name.partition(":")[0].partition(".")[0])
    if folders := [Path(place) for place in getattr(top, "__path__", ())]:
        return source_hash(folders)
    file = getattr(top, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file and Path(file).is_file() else b"").hexdigest()[:16]


def own_code(name: str) -> str:
    """A hash of what ``own_source`` does, and of each module that was imported from beside it (its helpers)."""
    top = sys.modules.get(name.partition(":")[0].partition(".")[0])
    file = getattr(top, "__file__", None)
    places = [Path(place).resolve().parent for place in getattr(top, "__path__", ())] or [
        Path(str(file)).resolve().parent
    ]
    loaded = {Path(found).resolve() for one in list(sys.modules.values()) if (found := getattr(one, "__file__", None))}
    beside = [path for path in sorted(loaded) if any(map(path.is_relative_to, places)) and not _elsewhere(path)]
    digest = hashlib.sha256(own_source(name).encode())
    for path in beside:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _elsewhere(path: Path) -> bool:
    """Tells whether a module is Python's, installed, or this program's, whose versions and hash are kept anyway."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    known = (*PACKAGE_FOLDERS, Path(sysconfig.get_path("stdlib")).resolve())
    return bool(installed) or not path.is_file() or any(map(path.is_relative_to, known))


def git_commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out, with ``+`` where the tree differs from it; None outside this repository.

    An installed package may lie in a virtual environment inside somebody else's repository, whose commit says nothing.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    return f"{commit}+" if commit and _git(root, "status", "--porcelain", "--untracked-files=no") else commit


def _compiler() -> str | None:
    """The first line of the C++ compiler's own version; None where there is no compiler."""
    try:
        said = _said([*compiler.command(compiler.COMPILERS), "--version"])
    except compiler.CompilerError:
        return None
    return said and said.splitlines()[0]


def _git(root: Path, *arguments: str) -> str | None:
    return _said(["git", *arguments], root)


def _said(command: Sequence[str], folder: Path | None = None) -> str | None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
