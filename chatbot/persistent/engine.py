"""The kernel over a chatbot's weights: ``Engine(chatbot, ...)(prompts, lengths)`` is one launch.

The C++ engine of ``chatbot/native`` has the same interface; both look up the first layers' input projections.
"""

from collections.abc import Callable, Iterator, Sequence
from ctypes import Structure, c_int, c_void_p

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from chatbot.model import Chatbot
from chatbot.native import pack
from chatbot.persistent.plan import GATES, Plan
from chatbot.vocabulary import EOS, PAD, SOS

GOES_ON = -1  # in place of EOS, as in reply.cu
WAYS = ("", "_reverse")


SIZES = ("hidden", "gates", "words", "encoder_layers", "decoder_layers", "general", "steps", "pad", "sos", "eos")
PLANNED = (
    *("columns", "batch", "tokens", "slots", "sums", "decoder_floats", "encoder_floats"),
    *("encoder_at", "concat_at", "out_at", "x_at", "sums_at", "scores_at", "best_at"),
)
PLACES = (
    *("decoder", "encoder", "inputs", "of_keys", "prompts", "replies"),
    *("encoded", "read", "projected", "outputs", "targets", "states", "contexts", "mixed", "keys", "arrived"),
)


class Task(Structure):
    """``Task`` of reply.cu."""

    _fields_ = (
        *((name, c_int) for name in (*SIZES, *PLANNED)),
        ("tables", c_void_p * 3),
        *((name, c_void_p) for name in PLACES),
    )


Launch = Callable[[Task, Plan], None]  # runs the kernel: on a GPU, or emulated


class Tensors(pack.Arena):
    """Memory of a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros."""
        self.tensors.append(torch.zeros(*shape, dtype=dtype, device=self._device))
        return self.tensors[-1]


class Engine:
    """A chatbot's replies from the kernel.

    Args:
        chatbot: its weights are copied, on their device.
        plan: of its sizes, and of those of a call.
        launch: runs the kernel.
        steps: tokens per reply.
        stop_at_eos: a call ends when all its replies have; PAD follows each EOS.
    """

    def __init__(self, chatbot: Chatbot, plan: Plan, launch: Launch, steps: int, stop_at_eos: bool = False) -> None:
        self.plan, self._launch, self._steps = plan, launch, steps
        self._device = chatbot.decoder.out.weight.device
        self._weights, self._work = Tensors(self._device), Tensors(self._device)
        with torch.no_grad():
            self._task = self._filled(chatbot, EOS if stop_at_eos else GOES_ON)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens on the device -> tokens (B, S); where prompts end is read from their padding."""
        prompts = prompts.contiguous()
        replies = torch.empty(self.plan.batch, self._steps, dtype=torch.long, device=self._device)
        self._task.prompts, self._task.replies = prompts.data_ptr(), replies.data_ptr()
        self._launch(self._task, self.plan)
        return replies

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All weights that it reads."""
        return tuple(self._weights.tensors)

    @property
    def dtypes(self) -> frozenset[str]:
        """The types it computes in, read from the weights."""
        return frozenset(str(one.dtype).removeprefix("torch.") for one in self.tensors)

    def _filled(self, chatbot: Chatbot, eos: int) -> Task:
        config = chatbot.config
        own = {name: getattr(self.plan, name) for name in PLANNED}
        tables = list(self._tables(chatbot))
        task = Task(
            **own,
            hidden=config.hidden,
            gates=tables[0].size(1),
            words=config.vocabulary,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            general=config.attention == "general",
            steps=self._steps,
            pad=PAD,
            sos=SOS,
            eos=eos,
            decoder=self._kept(self._shares(self._decoder(chatbot), self.plan.decoder_floats)),
            encoder=self._kept(self._shares(self._recurrent(chatbot), self.plan.encoder_floats)),
            inputs=self._kept(*self._inputs(chatbot)),
            of_keys=self._kept(*self._keys(chatbot)),
            keys=self._work.zeros((self._steps, self.plan.batch), torch.long).data_ptr(),
            arrived=self._work.zeros((1,), torch.int32).data_ptr(),
        )
        task.tables[:] = [table.data_ptr() for table in tables]
        for name, vectors in self._vectors(chatbot).items():
            setattr(task, name, self._work.zeros((vectors, self.plan.columns), torch.float32).data_ptr())
        if not task.general:
            task.targets = task.outputs
        return task

    def _vectors(self, chatbot: Chatbot) -> dict[str, int]:
        """What a call writes: how many vectors of each."""
        config, batch, tokens = chatbot.config, self.plan.batch, self.plan.tokens
        return {
            "encoded": config.encoder_layers * 2 * 2 * batch,
            "read": 2 * tokens * batch * 2,
            "projected": 2 * GATES * tokens * batch,
            "outputs": tokens * batch,
            "targets": tokens * batch,
            "states": 2 * config.decoder_layers * batch,
            "contexts": batch,
            "mixed": batch,
        }

    def _tables(self, chatbot: Chatbot) -> Iterator[Tensor]:
        """Of the encoder's two ways and of the decoder: (V, gates)."""
        grus = [(chatbot.encoder.gru, way) for way in WAYS] + [(chatbot.decoder.gru, "")]
        for gru, way in grus:
            weight, bias = getattr(gru, f"weight_ih_l0{way}"), getattr(gru, f"bias_ih_l0{way}")
            yield pack.table(self._weights, chatbot.encoder.embedding.weight, weight, bias)

    def _decoder(self, chatbot: Chatbot) -> Iterator[Tensor]:
        """Records (N, ...) of what is divided among the blocks: GRU units, rows of concat, words."""
        decoder = chatbot.decoder
        for layer in range(chatbot.config.decoder_layers):
            of_state = self._units(decoder.gru, "hh", f"l{layer}")
            of_input = [self._units(decoder.gru, "ih", f"l{layer}")] if layer > 0 else []
            weights, biases = (torch.cat(parts, 1) for parts in zip(*of_input, of_state, strict=True))
            yield self._records(weights, biases)
        yield self._records(*_rows(decoder.concat, 2))
        yield self._records(*_rows(decoder.out, 1))

    def _recurrent(self, chatbot: Chatbot) -> Iterator[Tensor]:
        for layer in range(chatbot.config.encoder_layers):
            yield self._both_ways(chatbot.encoder.gru, "hh", layer)

    def _inputs(self, chatbot: Chatbot) -> Iterator[Tensor]:
        for layer in range(1, chatbot.config.encoder_layers):
            yield self._both_ways(chatbot.encoder.gru, "ih", layer)

    def _keys(self, chatbot: Chatbot) -> Iterator[Tensor]:
        if chatbot.config.attention == "general":
            yield self._records(*_rows(chatbot.decoder.attn.attn, 1))

    def _both_ways(self, gru: nn.GRU, kind: str, layer: int) -> Tensor:
        return torch.cat([self._records(*self._units(gru, kind, f"l{layer}{way}")) for way in WAYS])

    def _units(self, gru: nn.GRU, kind: str, place: str) -> tuple[Tensor, Tensor]:
        """(H, GATES, vectors of a row, H) weights and (H, GATES) biases of each unit."""
        weight, bias = getattr(gru, f"weight_{kind}_{place}"), getattr(gru, f"bias_{kind}_{place}")
        hidden = gru.hidden_size
        return weight.view(GATES, hidden, -1, hidden).transpose(0, 1), bias.view(GATES, hidden).t()

    def _records(self, weights: Tensor, biases: Tensor) -> Tensor:
        """(N, rows, vectors of a row, H) and (N, rows) -> (N, floats of a record)."""
        padded = pad(weights, (0, self.plan.columns - weights.size(-1))).flatten(1)
        return torch.cat([padded, pad(biases, (0, -biases.size(1) % 4))], 1)

    def _shares(self, parts: Iterator[Tensor], floats: int) -> Tensor:
        """(blocks, floats): of each part the share of each block, which is as large as the largest."""
        blocks = self.plan.blocks
        shares = []
        for records in parts:
            count = len(records)
            first = torch.arange(blocks, device=self._device) * count // blocks
            own = first.unsqueeze(1) + torch.arange(-(-count // blocks), device=self._device)
            shares.append(records[own.clamp_max(count - 1)].flatten(1))
        image = torch.cat(shares, 1)
        assert image.size(1) == floats, (image.shape, floats)
        return image

    def _kept(self, *parts: Tensor) -> int | None:
        """The place of the parts one after the other."""
        return self._weights.keep(torch.cat(parts)).data_ptr() if parts else None


def _rows(layer: nn.Linear, vectors: int) -> tuple[Tensor, Tensor]:
    """(rows, 1, vectors of a row, H) weights and (rows, 1) biases."""
    rows = layer.out_features
    return layer.weight.view(rows, 1, vectors, -1), layer.bias.view(rows, 1)
