"""Compiles the engine once for this machine, and loads it.

The library is cached under a key of everything it was built from: sources, compiler, flags and CPU.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chatbot.compiler import cpu, version

SOURCES = Path(__file__).parent
ENTRY = "engine.cpp"
COMPILERS = ("c++", "g++", "clang++")
# -fwrapv: sums of integers wrap at 32 bits, as the machine's instructions do.
FLAGS = ("-std=c++17", "-O3", "-fwrapv", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared", "-pthread")
NATIVE = ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)
CACHE = "LATENCY_MATRIX_CACHE"  # a folder, in place of the user's cache
PATIENCE_S = 120


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
        BuildError: there is no compiler, it rejects the sources, or the cache can't be written.
    """
    compiler = _compiler()
    flags = (*FLAGS, *machine)
    identity = _identity(compiler, flags)
    path = _cache_folder() / f"engine-{identity}.so"
    if not path.is_file():
        _compile(compiler, flags, path)
    return Library(ctypes.CDLL(str(path)), identity)


def _compiler() -> str:
    """The path of a C++ compiler: ``$CXX``, or the first one found."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else list(COMPILERS)
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise BuildError(f"no C++ compiler ({', '.join(names)}): install g++ or clang, or set CXX")
    return found


def _identity(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\n".join([version(compiler), *flags, cpu()]).encode())
    for source in sorted([*SOURCES.glob("*.h"), SOURCES / ENTRY]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    chosen = os.environ.get(CACHE)
    base = (
        Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latency-matrix"
    )
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"the compiled engine can't be stored: {error}; set {CACHE} to a writable folder") from None
    return base


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compiles to a private file and renames it, so that concurrent builds replace each other with the same library."""
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *flags, str(SOURCES / ENTRY), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), "it said nothing")
                raise BuildError(f"{compiler} can't compile the engine: {said.removeprefix(str(SOURCES) + '/')}")
            os.replace(made, path)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{compiler} did not compile the engine in {PATIENCE_S} s") from None
    except OSError as error:
        raise BuildError(f"the engine can't be compiled into {path.parent}: {error}; set {CACHE}") from None
