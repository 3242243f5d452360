"""The compiled engine over a chatbot's weights: ``Engine(chatbot, ...)(prompts, lengths)`` is one call of C++."""

import ctypes
import weakref
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p

import torch
from torch import Tensor, nn

from chatbot.config import ATTENTIONS
from chatbot.model import Chatbot, Decoder, Encoder
from chatbot.native import build, pack, rounding
from chatbot.native.pack import Arena, Packed
from chatbot.vocabulary import EOS, PAD, SOS

BYTES = "qint8"  # what PyTorch calls weights in 8 bits
GOES_ON = -1  # in place of EOS; as in network.h
Pack = Callable[[Arena, str, Tensor, Tensor | None], Packed]  # the second is the name of the weights


def _whole(_: Chatbot) -> Pack:
    return lambda arena, name, weight, bias: pack.pack(arena, weight, bias)


def _rounded(chatbot: Chatbot) -> Pack:
    """Rounds the GRUs to 8 bits, the others to 16: in 8 bits those change one reply in 200 (docs/performance.md)."""
    inputs = rounding.inputs_of(chatbot)

    def of(arena: Arena, name: str, weight: Tensor, bias: Tensor | None) -> Packed:
        if name in inputs:
            return pack.pack_bytes(arena, *rounding.round_for(weight, inputs[name]), bias)
        return pack.pack_words(arena, weight, bias)

    return of


PRECISIONS: dict[str, Callable[[Chatbot], Pack]] = {"float32": _whole, BYTES: _rounded}


class LinearFields(Structure):
    """``Linear`` of linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("weights", "fine", "scales", "bias")),
        *((name, c_int32) for name in ("rows", "columns", "inputs")),
    )


class GruFields(Structure):
    """``Gru`` of network.h."""

    _fields_ = (("input", LinearFields), ("hidden", LinearFields), ("table", c_void_p))


class ScreenFields(Structure):
    """``Screen`` of screen.h."""

    _fields_ = (
        ("coarse", LinearFields),
        *((name, c_void_p) for name in ("radii", "rows", "bias")),
        ("slack", c_float),
        ("vocabulary", c_int32),
    )


class NetworkFields(Structure):
    """``Network`` of network.h."""

    _fields_ = (
        *((name, c_int32) for name in ("hidden", "encoder_layers", "decoder_layers", "attention", "pad", "sos")),
        ("encoder", POINTER(GruFields)),
        ("decoder", POINTER(GruFields)),
        ("keys", LinearFields),
        ("query", LinearFields),
        ("value", c_void_p),
        ("concat", LinearFields),
        ("out", ScreenFields),
    )


class Engine:
    """A chatbot's replies from C++.

    Args:
        chatbot: its weights are copied.
        precision: a key of ``PRECISIONS``, for all weights but the output layer's.
        steps: tokens per reply.
        threads: threads per call, including the caller's.
        stop_at_eos: a call ends when all its replies have; PAD follows each EOS.
        machine: compiler flags that choose the instructions.

    Raises:
        BuildError: there is no compiler, or it fails.
    """

    def __init__(
        self,
        chatbot: Chatbot,
        precision: str,
        steps: int,
        threads: int = 1,
        stop_at_eos: bool = False,
        machine: tuple[str, ...] = build.NATIVE,
    ) -> None:
        library = build.library(machine)
        self._functions = _declared(library.functions)
        self._steps, self._eos = steps, EOS if stop_at_eos else GOES_ON
        self._arena = Arena(words=bool(self._functions.engine_words()))
        self._layers: list[Packed] = []
        with torch.no_grad():
            self._pack = PRECISIONS[precision](chatbot)
            self._fields = self._network(chatbot)  # the engine reads its arrays of layers
        self._engine = c_void_p(self._functions.engine_new(byref(self._fields), threads))
        weakref.finalize(self, self._functions.engine_free, self._engine)
        self.identity = library.identity

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens and (B,) lengths on the CPU -> tokens (B, S).

        Raises:
            ValueError: a length is not within 1 and T, or a token not within the vocabulary.
        """
        prompts, lengths = prompts.contiguous(), lengths.contiguous()
        batch, length = prompts.shape
        replies = torch.empty(batch, self._steps, dtype=torch.long)
        places = prompts.data_ptr(), lengths.data_ptr(), batch, length, self._steps, self._eos, replies.data_ptr()
        if self._functions.engine_reply(self._engine, *places):
            raise ValueError(f"a length is not within 1 and {length}, or a token not within the vocabulary")
        return replies

    def likeliest(self, inputs: Tensor) -> Tensor:
        """The output layer alone: (N, H) -> the likeliest token of each (N,)."""
        inputs = inputs.contiguous()
        tokens = torch.empty(len(inputs), dtype=torch.long)
        places = inputs.data_ptr(), inputs.size(1), len(inputs), tokens.data_ptr()
        self._functions.engine_likeliest(self._engine, *places)
        return tokens

    @property
    def dtypes(self) -> frozenset[str]:
        """The types it computes in, read from the weights: the output layer screens in 8 bits, decides in 32."""
        return frozenset({"float32", BYTES, *map(_dtype, self._layers)})

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All memory that it reads."""
        return tuple(self._arena.tensors)

    @property
    def recomputed(self) -> int:
        """The number of logits computed in 32 bits so far; all others were ruled out in 8."""
        return int(self._functions.engine_recomputed(self._engine))

    @property
    def instructions(self) -> str:
        """The instructions of the 8-bit products: avx512-vnni, avx512, avx2 or plain."""
        return str(self._functions.engine_instructions().decode())

    def _network(self, chatbot: Chatbot) -> NetworkFields:
        config, decoder = chatbot.config, chatbot.decoder
        attention = decoder.attn
        keys = query = LinearFields()
        if attention.method == "general":
            keys = self._linear("keys", attention.attn.weight, attention.attn.bias)
        elif attention.method == "concat":
            of_state, of_outputs = torch.split(attention.attn.weight, config.hidden, dim=1)
            keys = self._linear("keys", of_outputs, attention.attn.bias)
            query = self._linear("query", of_state, None)
        return NetworkFields(
            hidden=config.hidden,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            attention=ATTENTIONS.index(attention.method),
            pad=PAD,
            sos=SOS,
            encoder=self._grus("encoder", chatbot.encoder, ("", "_reverse")),
            decoder=self._grus("decoder", decoder, ("",)),
            keys=keys,
            query=query,
            value=self._arena.keep(attention.v).data_ptr() if attention.method == "concat" else None,
            concat=self._linear("concat", decoder.concat.weight, decoder.concat.bias),
            out=self._screen(decoder.out),
        )

    def _grus(self, name: str, part: Encoder | Decoder, directions: tuple[str, ...]) -> "ctypes.Array[GruFields]":
        """(layers x directions)."""
        suffixes = [f"_l{layer}{way}" for layer in range(part.gru.num_layers) for way in directions]
        made = [self._gru(name, part, suffix) for suffix in suffixes]
        return (GruFields * len(made))(*made)

    def _gru(self, name: str, part: Encoder | Decoder, suffix: str) -> GruFields:
        def of(kind: str) -> tuple[Tensor, Tensor]:
            return getattr(part.gru, f"weight_{kind}{suffix}"), getattr(part.gru, f"bias_{kind}{suffix}")

        fields = GruFields(hidden=self._linear(f"{name}.gru.weight_hh{suffix}", *of("hh")))
        if suffix.startswith("_l0"):
            fields.table = pack.table(self._arena, part.embedding.weight, *of("ih")).data_ptr()
        else:
            fields.input = self._linear(f"{name}.gru.weight_ih{suffix}", *of("ih"))
        return fields

    def _linear(self, name: str, weight: Tensor, bias: Tensor | None) -> LinearFields:
        packed = self._pack(self._arena, name, weight, bias)
        self._layers.append(packed)
        return _fields(packed)

    def _screen(self, layer: nn.Linear) -> ScreenFields:
        screen = pack.screen(self._arena, layer.weight, layer.bias)
        return ScreenFields(
            coarse=_fields(screen.coarse),
            radii=screen.radii.data_ptr(),
            rows=screen.rows.data_ptr(),
            bias=screen.bias.data_ptr(),
            slack=screen.slack,
            vocabulary=len(screen.bias),
        )


def _dtype(layer: Packed) -> str:
    if layer.weights.dtype == torch.uint8:
        return BYTES if layer.fine is None else "int16"
    return str(layer.weights.dtype).removeprefix("torch.")


def _fields(packed: Packed) -> LinearFields:
    rows = len(packed.bias)
    return LinearFields(
        weights=packed.weights.data_ptr(),
        fine=None if packed.fine is None else packed.fine.data_ptr(),
        scales=None if packed.scales is None else packed.scales.data_ptr(),
        bias=packed.bias.data_ptr(),
        rows=rows,
        columns=packed.weights.numel() // rows,
        inputs=packed.inputs,
    )


def _declared(functions: ctypes.CDLL) -> ctypes.CDLL:
    functions.engine_new.argtypes, functions.engine_new.restype = [POINTER(NetworkFields), c_int], c_void_p
    functions.engine_free.argtypes, functions.engine_free.restype = [c_void_p], None
    functions.engine_reply.argtypes = [c_void_p, c_void_p, c_void_p, c_int, c_int, c_int, c_int64, c_void_p]
    functions.engine_likeliest.argtypes = [c_void_p, c_void_p, c_int64, c_int, c_void_p]
    functions.engine_likeliest.restype = None
    functions.engine_recomputed.argtypes, functions.engine_recomputed.restype = [c_void_p], c_int64
    functions.engine_words.argtypes, functions.engine_words.restype = [], c_int
    functions.engine_instructions.argtypes, functions.engine_instructions.restype = [], c_char_p
    return functions
