"""Shared by the variants that Inductor compiles: its compiler, its caches, and the loop around compiled steps."""

import hashlib
import os
import shlex
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatbot import cache, compiler
from chatbot.cache import CacheError
from chatbot.compiler import CompilerError
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.search import filled
from chatbot.vocabulary import EOS, SOS

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # the one that names Inductor's own


def cache_folder(name: str) -> Path:
    """A folder for compiled artefacts, created if missing. Raises UnavailableError."""
    try:
        return cache.folder(name)
    except CacheError as error:
        raise UnavailableError(str(error)) from None


def require_compiler(device: str) -> None:
    """Raises UnavailableError if Inductor lacks its compiler, or a place for what it compiles."""
    _compiler()
    cache_folder("")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UnavailableError("Python's headers are missing: apt install python3-dev")
    if device == "cuda" and find_spec("triton") is None:
        raise UnavailableError("triton is not installed: pip install triton")


def _compiler() -> tuple[str, ...]:
    """The words of the command of the compiler that Inductor chooses."""
    try:
        return compiler.command(("g++",))
    except CompilerError:
        name = os.environ.get("CXX", "").strip() or "g++"
        raise UnavailableError(f"there is no C++ compiler {name}: apt install g++, or let CXX name one") from None


def machine() -> str:
    """A hash of the compiler's version and the CPU: Inductor compiles for this CPU, which its cache keys lack."""
    command = _compiler()
    try:
        parts = [compiler.version(command), *command[1:], compiler.cpu()]
    except CompilerError as error:
        raise UnavailableError(str(error)) from None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _tree() -> Path:
    """Inductor's folder for this machine; what nobody has used for long goes."""
    tree = cache_folder(f"inductor-{machine()}")
    cache.used(tree)
    cache.forget()
    return tree


def _as_one_file(command: Sequence[str]) -> str:
    """A compiler of one word, which is all that Inductor takes: of ``ccache g++`` a script that calls it."""
    if len(command) == 1:
        return command[0]
    text = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
    words = [Path(word).name for word in command if not word.startswith("-")]  # Inductor reads the kind from its name
    place = cache_folder("compilers") / "-".join([hashlib.sha256(text.encode()).hexdigest()[:16], *words])
    if not place.is_file():
        made = place.with_name(f".{place.name}.{os.getpid()}")
        made.write_text(text)
        made.chmod(0o700)
        os.replace(made, place)
    return str(place)


@contextmanager
def compiling(workload: Workload) -> Iterator[None]:
    """Makes Inductor compile in this process, on its cores, and reuse what earlier launches compiled for this machine.

    Its pool of compiler processes would keep running during the measurement. It compiles the number of threads into
    the code; set here, that number becomes part of every cache key.
    """
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # not public

    before = os.environ.get(FOLDER)
    if before == default_cache_dir():  # torch puts it there itself, as soon as it is asked to compile
        before = None
    os.environ[FOLDER] = before or str(_tree())
    try:
        chosen = {"cpp.cxx": (None, _as_one_file(_compiler())), "cpp.threads": workload.threads}
        with config.patch({"compile_threads": 1, "fx_graph_cache": True, **chosen}):
            yield
    finally:
        if before is None:
            del os.environ[FOLDER]


def settings(workload: Workload) -> dict[str, Any]:
    """All settings that decide how Inductor compiles a graph while ``compiling``."""
    from torch._inductor import config

    environment = {name: value for name, value in os.environ.items() if name.startswith("TORCHINDUCTOR_")}
    environment.pop(FOLDER, None)
    with compiling(workload):
        chosen = config.save_config_portable()  # not public; the keys of Inductor's own caches are made of it
    return {"environment": environment, "config": chosen}


def example(workload: Workload) -> tuple[Tensor, Tensor]:
    """Prompts (B, T) and lengths of the workload's size."""
    prompts = torch.full((workload.batch, workload.prompt_tokens), EOS, device=workload.device)
    return prompts, torch.full((workload.batch,), workload.prompt_tokens)


def require_shape(prompts: Tensor, workload: Workload) -> None:
    """Raises ValueError for prompts of another size than the program was compiled for."""
    if prompts.size(0) != workload.batch or prompts.size(1) != workload.prompt_tokens:
        asked = f"{workload.batch} prompts of {workload.prompt_tokens} tokens"
        raise ValueError(f"compiled for {asked}, not for {prompts.size(0)} of {prompts.size(1)}")


Encode = Callable[[Tensor], Sequence[Tensor]]
Take = Callable[[Tensor, Tensor, Tensor, Tensor], Sequence[Tensor]]


def stepping(encode: Encode, take: Take, layers: int, workload: Workload) -> Reply:
    """A loop in Python around a compiled ``MaskedEncoder`` and a compiled ``Step``."""
    steps, stop = workload.reply_tokens, workload.stop_at_eos

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        require_shape(prompts, workload)
        outputs, hidden, blocked = encode(prompts)
        hidden = hidden[:layers]
        token = torch.full((prompts.size(0),), SOS, dtype=torch.long, device=prompts.device)
        ended = token == EOS
        tokens: list[Tensor] = []
        for _ in range(steps):
            token, hidden = take(token, hidden, outputs, blocked)
            tokens.append(token)
            if stop:
                ended = ended | (token == EOS)
                if bool(ended.all()):
                    break
        written = torch.stack(tokens, 1)
        return filled(written, steps) if stop else written

    return reply
