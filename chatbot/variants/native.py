"""Our own kernels: the whole reply is one call of C++ compiled for this CPU (``chatbot/native``)."""

import hashlib
from typing import Protocol

from torch import Tensor

from chatbot.model import Chatbot
from chatbot.native.build import BuildError
from chatbot.native.engine import BYTES, Engine
from chatbot.variants.base import Compiled, Reply, UnavailableError, Workload


class Packed(Protocol):
    """An engine over weights of its own."""

    @property
    def dtypes(self) -> frozenset[str]: ...
    @property
    def tensors(self) -> tuple[Tensor, ...]: ...


def compiled_of(kind: str, engine: Packed, identity: str) -> Compiled:
    """What an engine executes, read from its weights; ``identity`` is that of its code."""
    made = " ".join([identity, *sorted(engine.dtypes)])
    return Compiled(
        kind=kind,
        devices=frozenset(tensor.device.type for tensor in engine.tensors),
        dtypes=engine.dtypes,
        identity=hashlib.sha256(made.encode()).hexdigest()[:16],
        weights=frozenset(tensor.data_ptr() for tensor in engine.tensors),
    )


class NativeReply:
    """An engine, and what it executes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.compiled = compiled_of("native", engine, engine.identity)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens and (B,) lengths -> tokens (B, S)."""
        return self.engine(prompts, lengths)


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Weights in 32 bits; the likeliest token is found by a proved screen in 8 bits and decided in 32."""
    return _prepare(chatbot, workload, "float32")


def prepare_int8(chatbot: Chatbot, workload: Workload) -> Reply:
    """The GRUs' weights in 8 bits, the others in 16, states in 15; the likeliest token decided in 32."""
    return _prepare(chatbot, workload, BYTES)


def _prepare(chatbot: Chatbot, workload: Workload, precision: str) -> Reply:
    try:
        return NativeReply(Engine(chatbot, precision, workload.reply_tokens, workload.threads, workload.stop_at_eos))
    except BuildError as error:
        raise UnavailableError(str(error)) from None
