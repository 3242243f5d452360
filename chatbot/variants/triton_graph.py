"""The whole search as some 60 Triton kernels in one CUDA graph: a GRU's cell, attention with the layer after it, and
the output layer with the choice of the word are one kernel each.

Never run on a GPU so far: its replies are held to eager's under Triton's interpreter, and it compiles for one. Source:
https://triton-lang.org/main/python-api/triton.language.html
"""

from typing import Any

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.cuda_graph import Captured
from chatbot.variants.inductor import require_compiler
from chatbot.vocabulary import PAD, SOS

INDEX = 0x7FFFFFFF  # less a word, the low half of its key
LEAST = -(2**63)  # a key below all others
ROWS, WORDS = (
    4,
    16,
)  # of a matrix that one program takes: about as many programs as an H100 has multiprocessors, or more
MOST_COLUMNS = 512  # that it reads at a time


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiles the kernels and captures the search for the workload's shapes."""
    require_compiler(workload.device)  # Triton compiles its launchers
    if chatbot.config.attention == "concat":
        raise UnavailableError("it has no kernel for concat attention")
    with torch.no_grad():
        return Captured(TritonGreedy(chatbot, workload).eval(), workload)


class TritonGreedy(nn.Module):
    """The search in the workload's shapes: (B, T) tokens -> (B, S). Its buffers are overwritten by each call."""

    def __init__(self, chatbot: Chatbot, workload: Workload, rows: int = ROWS, words: int = WORDS) -> None:
        super().__init__()
        config, decoder = chatbot.config, chatbot.decoder
        self.embedding, self.concat, self.out = decoder.embedding, decoder.concat, decoder.out
        self.attn, self.hidden, self.workload = decoder.attn, config.hidden, workload
        ways = ("", "_reverse")
        self.encoder = nn.ModuleList(Stacked(chatbot.encoder.gru, n, ways) for n in range(config.encoder_layers))
        self.decoder = nn.ModuleList(Stacked(decoder.gru, n, ("",)) for n in range(config.decoder_layers))
        self.rows, self.words = rows, words

    def forward(self, prompts: Tensor) -> Tensor:
        outputs, states = self._encode(prompts)
        targets = self.attn.attn(outputs) if self.attn.method == "general" else outputs
        batch, steps = self.workload.batch, self.workload.reply_tokens
        keys = torch.full((steps + 1, batch), LEAST, device=prompts.device)
        keys[0].fill_(INDEX - SOS)
        for step in range(steps):
            states = self._decode(keys[step], states)
            self._choose(states[-1], targets, outputs, prompts, keys[step + 1])
        return INDEX - (keys[1:].t() & INDEX)

    def _encode(self, prompts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs (T, B, H), and the decoder's first states (1, B, H)."""
        batch, tokens = self.workload.batch, self.workload.prompt_tokens
        source, finals = self.embedding.weight, []
        for number, layer in enumerate(self.encoder):
            outputs = source.new_empty(tokens, batch, 2 * self.hidden)
            state = source.new_empty(2, batch, self.hidden)  # of the first step, which does not read it
            for step in range(tokens):
                after = torch.empty_like(state)
                self._cell(layer, source, prompts, (state, after), outputs, step, indexed=number == 0)
                state = after
            source = outputs
            finals += [state[:1], state[1:]]
        forth, back = outputs.chunk(2, -1)
        return forth + back, finals[: len(self.decoder)]

    def _decode(self, keys: Tensor, states: list[Tensor]) -> list[Tensor]:
        """The states (1, B, H) after the word that keys (B,) tell."""
        source, found = self.embedding.weight, []
        for number, (layer, before) in enumerate(zip(self.decoder, states, strict=True)):
            after = torch.empty_like(before)
            self._cell(layer, source, keys.unsqueeze(1), (before, after), None, 0, indexed=number == 0)
            source = after
            found.append(after)
        return found

    def _cell(
        self,
        layer: Any,
        source: Tensor,
        index: Tensor,
        states: tuple[Tensor, Tensor],
        outputs: Tensor | None,
        step: int,
        indexed: bool,
    ) -> None:
        from chatbot.variants import triton_kernels

        masked, ways = outputs is not None, len(states[0])
        triton_kernels.cell[(-(-self.hidden // self.rows), self.workload.batch, ways)](
            source,
            index,
            *(layer.of_input, layer.of_state, layer.bias_in, layer.bias_of),
            *states,
            states[1] if outputs is None else outputs,
            *(step, index.size(1), self.workload.batch, layer.of_input.size(-1), self.hidden),
            KEYS=not masked,
            INDEXED=indexed,
            FIRST=masked and step == 0,
            MASKED=masked,
            PAD=PAD,
            INDEX=INDEX,
            ROWS=self.rows,
            COLUMNS=self._columns,
        )

    def _choose(self, state: Tensor, targets: Tensor, outputs: Tensor, prompts: Tensor, keys: Tensor) -> None:
        """Writes the keys (B,) of the next words."""
        from chatbot.variants import triton_kernels

        batch, tokens = prompts.shape
        joined = torch.empty_like(state)
        triton_kernels.attend[(-(-self.hidden // self.rows), batch)](
            *(state, targets, outputs, prompts, self.concat.weight, self.concat.bias, joined),
            *(tokens, batch, self.hidden),
            PAD=PAD,
            TOKENS=_power_of_two(tokens),
            ROWS=self.rows,
            COLUMNS=self._columns,
        )
        triton_kernels.choose[(-(-self.out.out_features // self.words), batch)](
            *(joined, self.out.weight, self.out.bias, keys, self.hidden, self.out.out_features),
            INDEX=INDEX,
            ROWS=self.words,
            COLUMNS=self._columns,
        )

    @property
    def _columns(self) -> int:
        return min(MOST_COLUMNS, _power_of_two(self.hidden))


class Stacked(nn.Module):
    """The weights of a GRU's layer: (D, 3H, I), (D, 3H, H) and two of (D, 3H), D directions."""

    def __init__(self, gru: nn.GRU, layer: int, ways: tuple[str, ...]) -> None:
        super().__init__()

        def stacked(kind: str) -> nn.Buffer:
            return nn.Buffer(torch.stack([getattr(gru, f"{kind}_l{layer}{way}").detach() for way in ways]))

        self.of_input, self.of_state = stacked("weight_ih"), stacked("weight_hh")
        self.bias_in, self.bias_of = stacked("bias_ih"), stacked("bias_hh")


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
