"""Compiles the engine once for this machine, and loads it.

The library is cached under a key of everything it was built from: sources, compiler, flags and CPU.
"""

import ctypes
import hashlib
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chatbot import compiler
from chatbot.cache import CACHE, CacheError, folder, forget, used
from chatbot.compiler import CompilerError, cpu, version
from chatbot.files import put_in_place

SOURCES = Path(__file__).parent
ENTRY = "engine.cpp"
# -fwrapv: sums of integers wrap at 32 bits, as the machine's instructions do.
FLAGS = ("-std=c++17", "-O3", "-fwrapv", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared", "-pthread")
NATIVE = ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)
BUILDING = ".building-"  # the prefix of folders to compile in
FORGET_S = 3600.0  # after this, what a killed build left is removed, and a compiler that was too slow is tried again


class BuildError(Exception):
    """The engine can't be built here; the message says what is missing and what would help."""


@dataclass(frozen=True)
class Library:
    """The loaded engine, and the hash of everything it was built from."""

    functions: ctypes.CDLL
    identity: str


@cache
def library(machine: tuple[str, ...] = NATIVE) -> Library:
    """Loads the engine, compiling it if the cache lacks it. ``machine``: the flags that choose instructions.

    Raises:
        BuildError: there is no compiler, it rejects the sources or is too slow, or the cache can't be used.
    """
    try:
        command, flags = compiler.command(compiler.COMPILERS), (*FLAGS, *machine)
        identity = _identity(command, flags)
        return Library(_loaded(folder() / f"engine-{identity}.so", command, flags), identity)
    except (CompilerError, CacheError) as error:
        raise BuildError(str(error)) from None


def _identity(command: Sequence[str], flags: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join([version(command), *command[1:], *flags, cpu()]).encode())
    for source in sorted([*SOURCES.glob("*.h"), SOURCES / ENTRY]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _loaded(path: Path, command: Sequence[str], flags: Sequence[str]) -> ctypes.CDLL:
    """The library; one that can't be loaded (half a file, after a power cut) is built once more."""
    if path.is_file():
        used(path)
        with suppress(OSError):
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    _compile(command, flags, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled engine can't be loaded: {error}") from None


def _compile(command: Sequence[str], flags: Sequence[str], path: Path) -> None:
    """Compiles to a private file and renames it, so that concurrent builds replace each other with the same library."""
    name, slow = shlex.join(command), path.with_suffix(".slow")
    try:
        _forget(path.parent)
        forget()
        patience_s = compiler.patience_s()
        if slow.exists() and (tried_s := float(slow.read_text() or 0)) >= patience_s:
            raise BuildError(f"{name} did not compile the engine in {tried_s:.0f} s")
        with tempfile.TemporaryDirectory(prefix=BUILDING, dir=path.parent) as place:
            made = Path(place) / path.name
            done = compiler.run([*command, *flags, str(SOURCES / ENTRY), "-o", str(made)], patience_s)
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), "it said nothing")
                raise BuildError(f"{name} can't compile the engine: {said.removeprefix(str(SOURCES) + '/')}")
            put_in_place(made, path)
    except subprocess.TimeoutExpired:
        with suppress(OSError):
            slow.write_text(f"{patience_s:.1f}")  # so that not every launch waits for it
        raise BuildError(f"{name} did not compile the engine in {patience_s:.0f} s") from None
    except OSError as error:
        raise BuildError(f"the engine can't be compiled into {path.parent}: {error}; set {CACHE}") from None


def _forget(place: Path) -> None:
    """Removes old files of killed builds, and old notes of compilers that were too slow."""
    for left in [*place.glob(f"{BUILDING}*"), *place.glob("*.slow")]:
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - FORGET_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
