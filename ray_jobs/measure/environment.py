"""What the environment of a side is, as its process finds it; and whether it is what was asked for."""

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_jobs.sides import AGAIN, BASE, Side

HOME = re.compile(r"^(/root|/(?:home|Users)/[^/]+)(?=/|$)")
CAPABILITY = "ATEN_CPU_CAPABILITY"
PRELOAD = "LD_PRELOAD"

Found = Mapping[str, Any]


def environment(asked: Sequence[str]) -> dict[str, Any]:
    """The environment of this process; ``asked`` are the variables that some side asks for."""
    return {
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
        mine, others = _apart_from_names(found[side.name]), [one for one in sides[:place] if one.name in found]
        same = (one.name for one in others if one.name != AGAIN and _apart_from_names(found[one.name]) == mine)
        if (other := next(same, None)) is not None:
            told[side.name] = f"it is the same environment as {other}: interpreter, packages and variables are equal"
        elif (lacking := next(_lacking(dict(side.variables), found[side.name]), None)) is not None:
            told[side.name] = lacking
    return told


def _apart_from_names(found: Found) -> Found:
    """What an environment is, whatever path its interpreter is called by: links to it make no other one."""
    return {name: what for name, what in found.items() if name != "interpreter"}


def _lacking(asked: Mapping[str, str], found: Found) -> Iterator[str]:
    """What a side does not have although it was asked for."""
    for name in map(_name, _paths(asked.get(PRELOAD, ""))):
        if name not in found["preloaded"]:
            yield f"{PRELOAD} names {name}, which its process has not loaded"
    if CAPABILITY in asked and asked[CAPABILITY].lower() != str(found["cpu_capability"]).lower():
        yield f"{CAPABILITY} asks for {asked[CAPABILITY]}, and it computes with {found['cpu_capability']}"
    for name, value in asked.items():
        if found["variables"].get(name) != value:
            yield f"{name} has another value in its process"


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
