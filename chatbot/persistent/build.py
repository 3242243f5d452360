"""Compiles the kernel once for a kind of GPU, and keeps it under a key of everything it was built from."""

import hashlib
import os
from pathlib import Path

from chatbot.cache import CACHE, CacheError, folder, forget, used
from chatbot.files import put_in_place
from chatbot.persistent import nvrtc
from chatbot.persistent.plan import THREADS

ENTRY, HEADERS = "reply.cu", ("device.h",)
FLAGS = ("--std=c++17", f"-DTHREADS={THREADS}", "--ptxas-options=-v")  # the last: the log has registers and spills
SOURCES = Path(__file__).parent


def identity(capability: tuple[int, int]) -> str:
    """A hash of the sources, the compiler's version, its flags and the GPU's kind. Raises NvrtcError."""
    digest = hashlib.sha256("\n".join([nvrtc.version(), *FLAGS, str(capability)]).encode())
    for name in (ENTRY, *HEADERS):
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()[:16]


def built(capability: tuple[int, int]) -> nvrtc.Cubin:
    """Compiles the kernel, which takes some seconds. Raises NvrtcError."""
    texts = {name: (SOURCES / name).read_text(encoding="utf-8") for name in (ENTRY, *HEADERS)}
    return nvrtc.compiled(texts.pop(ENTRY), texts, capability, FLAGS)


def cubin(capability: tuple[int, int]) -> bytes:
    """The kernel's machine code, compiled if the cache lacks it.

    Raises:
        NvrtcError: it can't be compiled.
        CacheError: what was compiled can't be kept.
    """
    path = folder() / f"persistent-{identity(capability)}.cubin"
    if path.is_file():
        used(path)
        return path.read_bytes()
    code = built(capability).code
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        forget()
        made.write_bytes(code)
        put_in_place(made, path)
    except OSError as error:
        raise CacheError(f"the kernel can't be kept in {path.parent}: {error}; set {CACHE}") from None
    return code
