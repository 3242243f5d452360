"""The sides of a comparison: environments that variants run in, as ``--against`` names them.

``base`` is the environment that this program runs in, ``base-again`` its control: the same in a process of its own.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from chatbot.errors import UsageError, one_of
from chatbot.safe_text import keyless
from ray_jobs import machine

BASE, AGAIN = "base", "base-again"
FORMS = ("env=NAME=VALUE", "python=PATH")
PART = re.compile(r",(?=(?:env|python|pip|rev)=)")  # any other comma belongs to a value
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What a launch sets or removes: a side that asked for it would not get it.
GIVEN = (*machine.AFFINITY, *machine.THREADS, "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHOME", "LATENCY_MATRIX_MARK")
LEAST_PYTHON = (3, 11)  # as pyproject.toml has it
TELL_VERSION, TELL_S = "import sys; print('%d.%d' % sys.version_info[:2])", 10.0  # in any Python there is
LONGEST = 40  # characters of a value in a name
SYSTEMS = ("usr", "local", "")  # folders of interpreters that are nobody's environment


@dataclass(frozen=True)
class Side:
    """An environment: an interpreter and environment variables beside those of this program."""

    name: str
    python: str | None = None  # the path of its interpreter; None: the one that this program runs in
    variables: tuple[tuple[str, str], ...] = ()


def label_of(side: str | None, variant: str) -> str:
    """The name of a variant of a side, unique in its trial: of ``base`` the variant's own."""
    return variant if side in (None, BASE) else f"{side}: {variant}"


def sides_of(asked: Sequence[str]) -> tuple[Side, ...]:
    """The sides of a comparison, ``base`` and its control first; none where none is asked for. Raises UsageError."""
    if not asked:
        return ()
    found = [_side(one) for one in asked]
    for one in found:
        if found.count(one) > 1:
            raise UsageError(f"--against names {one.name!r} twice: leave one out, {AGAIN} is measured anyway")
    return Side(BASE), Side(AGAIN), *_named(found)


def names_of(asked: Sequence[str]) -> list[str]:
    """The names of the sides of a run that may be a compacted one: without folders two may be asked for alike."""
    return [BASE, AGAIN, *(side.name for side in _named(list(map(_side, asked))))] if asked else []


def interpreter_fault(side: Side) -> str | None:
    """Why a side can't start on this machine; None if it can."""
    if side.python is None or (os.path.isfile(side.python) and os.access(side.python, os.X_OK)):
        return None
    return f"--against python={side.python}: no interpreter is there; give the path of one"


def version_fault(python: str) -> str | None:
    """Why an interpreter that starts can't run this program; None where it can, or does not say what it is."""
    try:
        asked = [python, "-c", TELL_VERSION]
        told = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TELL_S).stdout
        version = tuple(map(int, told.split(".")))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    shown, least = (".".join(map(str, one)) for one in (version, LEAST_PYTHON))
    return None if version >= LEAST_PYTHON else f"its Python is {shown}, at least {least} is needed"


def require_interpreters(sides: Sequence[Side]) -> None:
    """Raises UsageError for a side whose interpreter is not there."""
    for fault in filter(None, map(interpreter_fault, sides)):
        raise UsageError(fault)


def _side(asked: str) -> Side:
    if keyless(asked) != asked:
        raise UsageError(f"--against {asked!r} holds a key, which would be recorded: set it where this program starts")
    python: str | None = None
    variables: dict[str, str] = {}
    for part in PART.split(asked.strip()):
        word, equals, value = part.partition("=")
        if not equals or word not in ("env", "python"):
            raise one_of("part of --against", part, FORMS)
        if word == "env":
            variables |= _variable(part, value, variables)
        elif python is not None:
            raise UsageError(f"--against {asked!r} names two interpreters: give each an --against of its own")
        else:
            python = _interpreter(part, value)
    return Side(_short(python, variables), python, tuple(sorted(variables.items())))


def _variable(part: str, asked: str, known: dict[str, str]) -> dict[str, str]:
    name, _, value = asked.partition("=")
    if not NAME.fullmatch(name) or not value:
        raise UsageError(f"--against {part!r} gives no variable a value: give {FORMS[0]}")
    if name in GIVEN:
        raise UsageError(f"--against {part!r}: launches set or remove {name} themselves; leave it out")
    if name in known:
        raise UsageError(f"--against {part!r} gives {name} a second value: leave one out")
    return {name: value}


def _interpreter(part: str, path: str) -> str:
    """An absolute path; links are not followed, as a virtual environment's interpreter is one."""
    if not path:
        raise UsageError(f"--against {part!r} names no interpreter: give {FORMS[1]}")
    found = path if "/" in path else shutil.which(path) or path
    return os.path.abspath(os.path.expanduser(found))


def _short(python: str | None, variables: dict[str, str]) -> str:
    """``python venv-2.14, env LD_PRELOAD=libjemalloc.so.2``: of paths the last part."""
    parts = [f"env {name}={machine.shown(value)[:LONGEST]}" for name, value in sorted(variables.items())]
    if python is not None:
        parts.insert(0, f"python {_environment_of(python)}")
    return ", ".join(parts)


def _environment_of(python: str) -> str:
    """The folder of a virtual environment; of any other interpreter the file's name."""
    path = PurePath(python)
    home = path.parent.parent.name if path.parent.name == "bin" else ""
    return path.name if home in SYSTEMS else home


def plain(asked: str) -> str:
    """A side as it is asked for, without folders: it keeps its name."""
    side = _side(asked)
    parts = [] if side.python is None else [f"python={_environment_of(side.python)}"]
    return ",".join([*parts, *(f"env={name}={machine.shown(value)}" for name, value in side.variables)])


def _named(found: Sequence[Side]) -> Iterator[Side]:
    """Those of one name are numbered."""
    seen: Counter[str] = Counter()
    for side in found:
        seen[side.name] += 1
        number = f" #{seen[side.name]}" if seen[side.name] > 1 else ""
        yield Side(f"{side.name}{number}", side.python, side.variables)
