"""What the variants that Inductor compiles share: its compiler, its caches, and the loop around compiled steps."""

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from chatbot.variants.search import filled
from chatbot.variants.workload import Reply, UnavailableError, Workload
from chatbot.vocabulary import EOS, SOS

CACHE = "LATENCY_MATRIX_CACHE"  # the environment variable that names the folder of compiled artefacts


def cache_folder(name: str) -> Path:
    """A folder for compiled artefacts, made where it is missing; in the temporary one where home is read-only."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latency-matrix"
    folder = Path(os.environ.get(CACHE) or home) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"latency-matrix-{os.getuid()}" / name
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_compiler(device: str) -> None:
    """Raises UnavailableError where Inductor lacks what it compiles with."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UnavailableError(f"there is no C++ compiler {compiler}: apt install g++, or let CXX name one")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UnavailableError("Python's headers are missing: apt install python3-dev")
    if device == "cuda" and find_spec("triton") is None:
        raise UnavailableError("triton is not installed: pip install triton")


@contextmanager
def compiling() -> Iterator[None]:
    """Inductor compiles in this process, on its cores, and finds what earlier launches compiled.

    Its pool of compiling processes would go on beside the measurement.
    """
    from torch._inductor import config

    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = before or str(cache_folder("inductor"))
    try:
        with config.patch(compile_threads=1, fx_graph_cache=True):
            yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]


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
