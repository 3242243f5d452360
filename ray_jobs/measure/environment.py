"""What the environment and the sources of a side are, as its process finds them; whether they are what was asked."""

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import chatbot
from chatbot.errors import imported
from chatbot.variants import Workload
from ray_jobs import provenance
from ray_jobs.sides import AGAIN, BASE, Side

HOME = re.compile(r"^(/root|/(?:home|Users)/[^/]+)(?=/|$)")
CAPABILITY = "ATEN_CPU_CAPABILITY"
PRELOAD = "LD_PRELOAD"
PINNED = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?==(\d+(?:\.\d+)*(?:\+[\w.]+)?)")  # a requirement of one plain version
INSTALLED = ("site-packages", "dist-packages")  # folders
PLACES = ("interpreter", "sources_in")  # what tells no environment from another

Found = Mapping[str, Any]


def environment(asked: Sequence[str], code_of: Workload | None = None, listed: bool = False) -> dict[str, Any]:
    """The environment of this process.

    Args:
        asked: the variables that some side asks for.
        code_of: a workload; also tells the sources of its model, or of the chatbot, and where they lie.
        listed: also lists every package that is installed.

    Raises:
        UsageError: the workload's model can't be imported.
    """
    found = {
        "interpreter": _homeless(sys.executable),
        "binary": _homeless(os.path.realpath(sys.executable)),
        "python": platform.python_version(),
        "prefix": _homeless(os.path.realpath(sys.prefix)),
        "torch": torch.__version__,
        "torch_in": _homeless(os.path.realpath(Path(torch.__file__).parent)),
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "preloaded": _preloaded(os.environ.get(PRELOAD, "")),
        "variables": {name: os.environ.get(name) for name in sorted(asked)},
    }
    if code_of is not None:
        found |= _sources(code_of)
    return {**found, "installed": _installed()} if listed else found


def _sources(workload: Workload) -> dict[str, Any]:
    """A hash of what is measured, wherever it lies, and its folder."""
    if not workload.own_model:
        folder = Path(chatbot.__path__[0]).resolve()
        return {"sources": provenance.source_hash([folder]), "sources_in": _homeless(str(folder))}
    name = workload.model.partition("#")[0]
    imported("model", name)
    module = sys.modules[name.partition(":")[0]]
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
    return {"sources": provenance.own_code(name), "sources_in": _homeless(str(Path(file).resolve().parent))}


def _installed() -> dict[str, str]:
    """The versions of all packages by their names in the form of indices; the first of a name is imported.

    Ray adds a folder of packages of its own to what its workers search, which is no interpreter's.
    """
    found: dict[str, str] = {}
    for one in metadata.distributions(path=[place for place in sys.path if Path(place).name in INSTALLED]):
        found.setdefault(_normal(one.name or ""), one.version)
    return dict(sorted(found.items()))


def _normal(name: str) -> str:
    """A package's name as https://packaging.python.org/en/latest/specifications/name-normalization/ has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def variables_of(sides: Sequence[Side]) -> tuple[str, ...]:
    """The variables that any of these asks for."""
    return tuple(sorted({name for side in sides for name, _ in side.variables}))


def faults(sides: Sequence[Side], found: Mapping[str, Found]) -> dict[str, str]:
    """Why a side is not what it was asked to be: it lacks something, or is the environment of another one.

    ``base`` and its control are declared to be one.
    """
    told: dict[str, str] = {}
    for place, side in enumerate(sides):
        if side.name in (BASE, AGAIN) or side.name not in found:
            continue
        mine, others = found[side.name], [one for one in sides[:place] if one.name in found]
        same = (one.name for one in others if one.name != AGAIN and _same(found[one.name], mine))
        if (other := next(same, None)) is not None:
            equal = "interpreter, packages and variables are equal"
            commit = ", and so is the commit" * (side.commit is not None)
            told[side.name] = f"it is the same environment as {other}: {equal}{commit}"
        elif (lacking := next(_lacking(side, mine), None)) is not None:
            told[side.name] = lacking
    return told


def _same(one: Found, other: Found) -> bool:
    """Wherever it lies, and whatever path its interpreter is called by: links to it make no other one."""
    first, second = ({name: told for name, told in each.items() if name not in PLACES} for each in (one, other))
    return first == second


def _lacking(side: Side, found: Found) -> Iterator[str]:
    """What a side does not have although it was asked for."""
    asked = dict(side.variables)
    for name in map(_name, _paths(asked.get(PRELOAD, ""))):
        if name not in found["preloaded"]:
            yield f"{PRELOAD} names {name}, which its process has not loaded"
    if CAPABILITY in asked and asked[CAPABILITY].lower() != str(found["cpu_capability"]).lower():
        yield f"{CAPABILITY} asks for {asked[CAPABILITY]}, and it computes with {found['cpu_capability']}"
    for name, value in asked.items():
        if found["variables"].get(name) != value:
            yield f"{name} has another value in its process"
    for package in side.packages:
        yield from _other_version(package, found)
    if side.sources is not None:
        revision = _homeless(os.path.realpath(side.sources))
        if not Path(found["sources_in"]).is_relative_to(revision):
            yield f"it runs the code in {found['sources_in']}, and not that of {side.revision}"


def _other_version(package: str, found: Found) -> Iterator[str]:
    """Where a requirement of one version is not met by what the process imports."""
    if (pinned := PINNED.fullmatch(package)) is None:
        return
    name, asked = _normal(pinned[1]), pinned[2]
    has = {**found["installed"], "torch": found["torch"], "numpy": found["numpy"]}.get(name)
    if has is None or not _meets(has, asked):
        yield f"{package} is asked for, and its process has {f'{name} {has}' if has else 'none'}"


def _meets(version: str, asked: str) -> bool:
    """Whether a version is the one asked for: trailing zeros do not count, nor a build that is not asked for."""
    if "+" not in asked:
        version = version.partition("+")[0]
    (numbers, _, build), (wanted, _, build_wanted) = version.partition("+"), asked.partition("+")
    return (re.sub(r"(\.0)+$", "", numbers), build) == (re.sub(r"(\.0)+$", "", wanted), build_wanted)


def _paths(preload: str) -> list[str]:
    """The files that the dynamic linker is asked to load first, see ld.so(8)."""
    return preload.replace(":", " ").split()


def _preloaded(asked: str) -> list[str]:
    """Those of the files asked for that are mapped into this process, which knows them by what links lead to."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(errors="replace").splitlines()]
    mapped = {parts[5] for parts in lines if len(parts) == 6}
    stems = {_stem(path) for path in mapped}
    return sorted(_name(path) for path in _paths(asked) if os.path.realpath(path) in mapped or _stem(path) in stems)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _stem(path: str) -> str:
    """``libm`` of ``/usr/lib/libm.so.6``: which version a name without a folder leads to is the linker's choice."""
    return _name(path).partition(".so")[0]


def _homeless(path: str) -> str:
    """A path without whose home folder it is in."""
    return HOME.sub("~", path)
