"""The sides of a comparison: environments and sources that variants run in, as ``--against`` names them.

``base`` is the environment that this program runs in, ``base-again`` its control: the same in a process of its own.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from chatbot.errors import UsageError, one_of
from chatbot.safe_text import keyless
from ray_jobs import machine

BASE, AGAIN = "base", "base-again"
FORMS = ("env=NAME=VALUE", "python=PATH", "pip=REQUIREMENT", "rev=REVISION")
ONCE = {"python": "interpreters", "pip": "lists of packages", "rev": "revisions"}  # what two of a part would be
PART = re.compile(r",(?=(?:env|python|pip|rev)=)")  # any other comma belongs to a value
FILES = (".whl", ".tar.gz", ".zip")  # that pip installs from
NAMED_URL = re.compile(r"[\w.-]+(\[[^\]]*\])?@")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What a launch sets or removes: a side that asked for it would not get it.
GIVEN = (*machine.AFFINITY, *machine.THREADS, "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHOME", "LATENCY_MATRIX_MARK")
LEAST_PYTHON = (3, 11)  # as pyproject.toml has it
TELL_VERSION, TELL_S = "import sys; print('%d.%d' % sys.version_info[:2])", 10.0  # in any Python there is
LONGEST = 40  # characters of a value in a name
SYSTEMS = ("usr", "local", "")  # folders of interpreters that are nobody's environment


@dataclass(frozen=True)
class Side:
    """An interpreter, packages, a revision and environment variables beside those of this program."""

    name: str
    python: str | None = None  # the path of its interpreter; None: the one that this program runs in
    variables: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()  # requirements that pip installs beside what this program's interpreter has
    revision: str | None = None  # of a git repository, as asked
    commit: str | None = None  # that it names; of ``base`` what it stands at, with ``+`` where files differ from it
    roots: tuple[str, ...] = ()  # folders within the repository that a model of the user's own is found in
    sources: str | None = None  # the folder of the commit's files on a node
    fault: str | None = None  # why it could not be built on a node

    @property
    def is_built(self) -> bool:
        """Whether each node has to build something for it."""
        return bool(self.packages or self.revision)


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
    if side.fault is not None:
        return side.fault
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


def require_files(sides: Sequence[Side]) -> None:
    """Raises UsageError for a side that names a file to install from which is none."""
    for path in (one for side in sides for one in side.packages if one.startswith("/")):
        if os.path.isdir(path):
            way_out = "build a wheel of it (pip wheel), or name a revision of it with rev="
            raise UsageError(f"--against pip={path} is a folder, which may change unseen: {way_out}")
        if not os.path.isfile(path):
            raise UsageError(f"--against pip={path}: no file is there; give a requirement or the path of a wheel")


def code_in(asked: Sequence[str]) -> list[str]:
    """What of it names programs from elsewhere, which would be run: interpreters, packages, and variables.

    ``LD_PRELOAD`` names a library, ``CXX`` a command that compiles: which variables do not is known of none.
    """
    return [one for one in asked if (side := _side(one)).python or side.packages or side.variables]


def _side(asked: str) -> Side:
    if keyless(asked) != asked:
        where = "set it where this program starts, a key of pip's in PIP_INDEX_URL"
        raise UsageError(f"--against {asked!r} holds a key, which would be recorded: {where}")
    given: dict[str, list[str]] = {}
    for part in PART.split(asked.strip()):
        word, equals, value = part.partition("=")
        if not equals or word not in ("env", *ONCE):
            raise one_of("part of --against", part, FORMS)
        given.setdefault(word, []).append(value)
    for word, kind in ONCE.items():
        if len(given.get(word, ())) > 1:
            way_out = "put spaces between requirements" if word == "pip" else "give each an --against of its own"
            raise UsageError(f"--against {asked!r} names two {kind}: {way_out}")
    if "pip" in given and "python" in given:
        builds = "pip= builds an interpreter of its own from the one that this program runs in"
        raise UsageError(f"--against {asked!r} names both an interpreter and packages: {builds}; leave one out")
    variables: dict[str, str] = {}
    for value in given.get("env", ()):
        variables |= _variable(f"env={value}", value, variables)
    python = next((_interpreter(f"python={value}", value) for value in given.get("python", ())), None)
    packages = next((_packages(value) for value in given.get("pip", ())), ())
    revision = next((_revision(value) for value in given.get("rev", ())), None)
    side = Side("", python, tuple(sorted(variables.items())), packages, revision)
    return replace(side, name=_short(side))


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


def _packages(asked: str) -> tuple[str, ...]:
    """Requirements, of files their absolute paths."""
    words = asked.split()
    if not words:
        raise UsageError(f"--against 'pip={asked}' names no package: give pip=torch==2.14.1, several with spaces")
    for word in words:
        if word.startswith("-"):
            way_out = "pip reads them from its variables, PIP_INDEX_URL and PIP_PRE say"
            raise UsageError(f"--against 'pip={asked}' holds an option, {word}: {way_out}")
    return tuple(map(_package, words))


def _package(word: str) -> str:
    is_path = word.startswith((".", "~")) or "/" in word or word.endswith(FILES)
    return os.path.abspath(os.path.expanduser(word)) if is_path and "@" not in word and "://" not in word else word


def _revision(asked: str) -> str:
    if not asked.strip() or asked.startswith("-"):
        raise UsageError(f"--against 'rev={asked}' names no revision: give a commit, a branch or a tag")
    return asked


def _short(side: Side) -> str:
    """``python venv-2.14, env LD_PRELOAD=libjemalloc.so.2``: of paths the last part."""
    return ", ".join(f"{word} {name}{value[:LONGEST]}" for word, name, value in _parts(side))


def _parts(side: Side) -> Iterator[tuple[str, str, str]]:
    """What it was asked for by: the word of each part, of a variable its name and ``=``, and the value."""
    if side.python is not None:
        yield "python", "", _environment_of(side.python)
    if side.packages:
        yield "pip", "", " ".join(map(_short_package, side.packages))
    if side.revision is not None:
        yield "rev", "", side.revision
    yield from (("env", f"{name}=", machine.shown(value)) for name, value in side.variables)


def _short_package(word: str) -> str:
    """Of a file or an address the last part, after the name that is asked for from there."""
    named = NAMED_URL.match(word)
    return f"{named[0] if named else ''}{word.rpartition('/')[2]}" if "/" in word else word


def _environment_of(python: str) -> str:
    """The folder of a virtual environment; of any other interpreter the file's name."""
    path = PurePath(python)
    home = path.parent.parent.name if path.parent.name == "bin" else ""
    return path.name if home in SYSTEMS else home


def plain(asked: str) -> str:
    """A side as it is asked for, without folders: it keeps its name."""
    return ",".join(f"{word}={name}{value}" for word, name, value in _parts(_side(asked)))


def _named(found: Sequence[Side]) -> Iterator[Side]:
    """Those of one name are numbered."""
    seen: Counter[str] = Counter()
    for side in found:
        seen[side.name] += 1
        yield replace(side, name=f"{side.name} #{seen[side.name]}") if seen[side.name] > 1 else side
