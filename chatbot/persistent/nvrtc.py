"""Compiles CUDA C++ with NVRTC, which PyTorch's CUDA build brings along: no CUDA toolkit, and no GPU, is needed.

Source: https://docs.nvidia.com/cuda/nvrtc/
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
MISSING = "no NVRTC (libnvrtc.so): pip install nvidia-cuda-nvrtc, or PyTorch for CUDA, which brings it"


class NvrtcError(Exception):
    """There is no compiler, or it rejects the source; one line says which."""


@dataclass(frozen=True)
class Cubin:
    """Machine code of a GPU, and what the assembler said of it."""

    code: bytes
    log: str


@cache
def library() -> ctypes.CDLL:
    """NVRTC itself: the installed wheel's, or the system's. Raises NvrtcError."""
    for name in [*_installed(), *NAMES]:
        try:
            return _declared(ctypes.CDLL(name))
        except OSError:
            continue
    raise NvrtcError(MISSING)


def version() -> str:
    """Of NVRTC: ``13.0``. Raises NvrtcError."""
    major, minor = c_int(), c_int()
    _check(library().nvrtcVersion(byref(major), byref(minor)), "version")
    return f"{major.value}.{minor.value}"


def compiled(source: str, headers: Mapping[str, str], capability: tuple[int, int], flags: Sequence[str]) -> Cubin:
    """Compiles a source, which includes ``headers`` by their names, for GPUs of a compute capability.

    Raises:
        NvrtcError: there is no NVRTC, or it says that the source is wrong or the capability unknown to it.
    """
    functions, program = library(), c_void_p()
    texts = (c_char_p * len(headers))(*(text.encode() for text in headers.values()))
    names = (c_char_p * len(headers))(*(name.encode() for name in headers))
    made = functions.nvrtcCreateProgram(byref(program), source.encode(), b"reply.cu", len(headers), texts, names)
    _check(made, "the program can't be made")
    try:
        options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", *flags]
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        failed = functions.nvrtcCompileProgram(program, len(options), given)
        log = _bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if failed:
            _check(failed, next((line for line in log.splitlines() if "error" in line), "it said nothing"))
        return Cubin(_bytes(program, "CUBIN"), log)
    finally:
        functions.nvrtcDestroyProgram(byref(program))


def _bytes(program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    _check(getattr(library(), f"nvrtcGet{what}Size")(program, byref(size)), what)
    held = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f"nvrtcGet{what}")(program, held), what)
    return held.raw


def _check(code: int, about: str) -> None:
    if code:
        raise NvrtcError(f"NVRTC: {library().nvrtcGetErrorString(code).decode()}: {about}")


def _installed() -> Iterator[str]:
    """The libraries of NVIDIA's packages, that of PyTorch's release of CUDA first, then the newest."""
    spec, own = find_spec("nvidia"), (torch.version.cuda or "").split(".")[0]
    folders = [] if spec is None else spec.submodule_search_locations or []
    paths = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.[0-9]*")]
    return iter(map(str, sorted(paths, key=lambda path: (path.suffix == f".{own}", path.suffix), reverse=True)))


def _declared(functions: ctypes.CDLL) -> ctypes.CDLL:
    functions.nvrtcGetErrorString.argtypes, functions.nvrtcGetErrorString.restype = [c_int], c_char_p
    functions.nvrtcCompileProgram.argtypes = [c_void_p, c_int, c_void_p]
    functions.nvrtcDestroyProgram.argtypes = [c_void_p]
    functions.nvrtcCreateProgram.argtypes = [c_void_p, c_char_p, c_char_p, c_int, c_void_p, c_void_p]
    for what in ("ProgramLog", "CUBIN"):
        getattr(functions, f"nvrtcGet{what}Size").argtypes = [c_void_p, c_void_p]
        getattr(functions, f"nvrtcGet{what}").argtypes = [c_void_p, c_void_p]
    return functions
