"""The greedy search in fixed shapes and in as few kernels as PyTorch has, to be captured as a CUDA graph.

A GRU's gates are one fused kernel, that of ``torch.gru_cell``; both directions of the encoder are one batched product
and one cell; what depends on the prompt alone is computed once. At 8 and 10 tokens and two layers each that is some 250
kernels, where ``masked.Greedy`` has 838. On a CPU it computes the same from the formulas.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from chatbot.model import Attention, Chatbot, Decoder, Encoder
from chatbot.variants.masked import gated
from chatbot.vocabulary import PAD, SOS


def cell(inputs: Tensor, states: Tensor, before: Tensor) -> Tensor:
    """A GRU's next state (N, H) from its weighted inputs and states (N, 3H each), with their biases, and the last."""
    if before.is_cuda:
        state: Tensor = torch.ops.aten._thnn_fused_gru_cell(inputs, states, before)[0]
        return state
    return gated(inputs, states, before)


class Layer(nn.Module):
    """Both directions of an encoder's layer, their weights stacked."""

    def __init__(self, gru: nn.GRU, layer: int) -> None:
        super().__init__()
        ways = [f"l{layer}", f"l{layer}_reverse"]
        of_input, bias_in, of_state, bias_of = (
            [getattr(gru, f"{kind}_{way}").detach() for way in ways]
            for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        )
        self.of_input = nn.Buffer(torch.cat(of_input))  # (6H, I)
        self.bias_in = nn.Buffer(torch.cat(bias_in))  # (6H,)
        self.of_state = nn.Buffer(torch.stack([weight.t() for weight in of_state]))  # (2, H, 3H)
        self.bias_of = nn.Buffer(torch.stack(bias_of).unsqueeze(1))  # (2, 1, 3H)

    def forward(self, inputs: Tensor, live: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (T, B, I), live (T, 2, B, 1), zeros (2, B, H) -> outputs (T, 2, B, H), final state (2, B, H).

        ``live`` tells where the prompts are not padded. The backward direction reads them from their end: position
        T - 1 - t at step t, there too.
        """
        forth, back = linear(inputs, self.of_input, self.bias_in).chunk(2, -1)
        weighted = torch.stack((forth, back.flip(0)), 1).flatten(1, 2)  # (T, 2B, 3H)
        states: list[Tensor] = []
        for t in range(inputs.size(0)):
            products = torch.baddbmm(self.bias_of, state, self.of_state)
            after = cell(weighted[t], products.flatten(0, 1), state.flatten(0, 1)).view_as(state)
            state = torch.where(live[t], after, state)
            states.append(state)
        return torch.stack(states) * live, state


class FusedEncoder(nn.Module):
    """Computes from padded prompts what ``Encoder`` does from packed ones: states don't change after a prompt's end."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.embedding, self.hidden = encoder.embedding, encoder.hidden
        self.layers = nn.ModuleList(Layer(encoder.gru, layer) for layer in range(encoder.gru.num_layers))

    def forward(self, prompts: Tensor, blocked: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, T) tokens, where they are padded (T, B) -> outputs (T, B, H), final states (B, H) as in ``Encoder``."""
        open_ = ~blocked.unsqueeze(-1)
        live = torch.stack((open_, open_.flip(0)), 1)  # (T, 2, B, 1)
        inputs = self.embedding(prompts.t())
        zeros = inputs.new_zeros(2, prompts.size(0), self.hidden)
        finals: list[Tensor] = []
        for layer in self.layers:
            outputs, state = layer(inputs, live, zeros)
            forth, back = outputs[:, 0], outputs[:, 1].flip(0)
            inputs = torch.cat((forth, back), -1)
            finals += state.unbind()
        return forth + back, finals


class FusedStep(nn.Module):
    """One decoder step, followed by the greedy choice."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.embedding, self.concat, self.out = decoder.embedding, decoder.concat, decoder.out
        self.attn: Attention = decoder.attn
        self.cells = nn.ModuleList(_cell(decoder.gru, layer) for layer in range(decoder.gru.num_layers))

    def forward(
        self, token: Tensor, hidden: list[Tensor], outputs: Tensor, floor: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Token (B,), states (B, H) of each layer, outputs (T, B, H), floor (T, B) -> token (B,), states.

        ``floor`` is added to the energies: minus infinity where a prompt is padded, else 0.
        """
        state, states = self.embedding(token), []
        for one, before in zip(self.cells, hidden, strict=True):
            state = one(state, before)
            states.append(state)
        weights = torch.softmax((self.attn.energies(state.unsqueeze(0), outputs) + floor).t(), -1)  # (B, T)
        context = weights.unsqueeze(1).bmm(outputs.transpose(0, 1)).squeeze(1)
        logits = self.out(torch.tanh(self.concat(torch.cat((state, context), 1))))
        return logits.argmax(1), states


def _cell(gru: nn.GRU, layer: int) -> nn.GRUCell:
    """A layer of a GRU with the same parameters."""
    one = nn.GRUCell(gru.input_size if layer == 0 else gru.hidden_size, gru.hidden_size, device="meta")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(one, name, getattr(gru, f"{name}_l{layer}"))
    return one


class FusedGreedy(nn.Module):
    """The whole search, with every step unrolled: (B, T) tokens -> (B, S)."""

    def __init__(self, chatbot: Chatbot, steps: int) -> None:
        super().__init__()
        self.encoder, self.step, self.steps = FusedEncoder(chatbot.encoder), FusedStep(chatbot.decoder), steps

    def forward(self, prompts: Tensor) -> Tensor:
        blocked = (prompts == PAD).t()
        outputs, hidden = self.encoder(prompts, blocked)
        hidden = hidden[: len(self.step.cells)]
        floor = torch.zeros_like(blocked, dtype=outputs.dtype).masked_fill_(blocked, float("-inf"))
        token = torch.full((prompts.size(0),), SOS, dtype=torch.long, device=prompts.device)
        tokens: list[Tensor] = []
        for _ in range(self.steps):
            token, hidden = self.step(token, hidden, outputs, floor)
            tokens.append(token)
        return torch.stack(tokens, 1)
