"""The chatbot's networks without packed sequences: fixed shapes, and a mask after a prompt's end.

``torch.export``, Inductor and CUDA graphs need this form: a packed sequence is created on the CPU, from lengths known
only to the call. A GRU step is written out as in PyTorch's documentation of ``nn.GRU``.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from chatbot.model import Attention, Chatbot, Decoder, Encoder
from chatbot.vocabulary import PAD, SOS

ALIGNMENT = 16  # bytes; torch/_inductor/utils.py


def gated(inputs: Tensor, states: Tensor, before: Tensor) -> Tensor:
    """A GRU's next state (B, H) from its weighted inputs and states (B, 3H each: reset, update, new) and the last."""
    reset_in, update_in, new_in = inputs.chunk(3, -1)
    reset_of, update_of, new_of = states.chunk(3, -1)
    update = torch.sigmoid(update_in + update_of)
    new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_of) * new_of)
    return new + update * (before - new)


class Weights(nn.Module):
    """A GRU's own parameters, without the GRU: Dynamo refuses to trace a module that holds one.

    In cuDNN's buffer a weight begins where the one before ends. Inductor copies an input that is not aligned at each
    call, so here such a weight is copied once.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        for name, parameter in gru.named_parameters():
            aligned = parameter.data_ptr() % ALIGNMENT == 0
            self.register_parameter(name, parameter if aligned else nn.Parameter(parameter.detach().clone(), False))

    def named(self, place: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights of inputs and of states, and their biases, of a place such as ``l0_reverse``."""
        return (
            getattr(self, f"weight_ih_{place}"),
            getattr(self, f"weight_hh_{place}"),
            getattr(self, f"bias_ih_{place}"),
            getattr(self, f"bias_hh_{place}"),
        )


class MaskedEncoder(nn.Module):
    """Computes from padded prompts what ``Encoder`` does from packed ones: states don't change after a prompt's end."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.embedding, self.gru = encoder.embedding, Weights(encoder.gru)
        self.layers = encoder.gru.num_layers

    def forward(self, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T) tokens -> outputs (T, B, H), final states (2 x layers, B, H), where prompts are padded (T, B)."""
        blocked = (prompts == PAD).t()
        live = ~blocked.unsqueeze(-1)  # (T, B, 1)
        outputs = self.embedding(prompts.t())
        finals: list[Tensor] = []
        for layer in range(self.layers):
            ways = [self._way(outputs, live, layer, backwards) for backwards in (False, True)]
            outputs = torch.cat([way for way, _ in ways], -1)
            finals += [final for _, final in ways]
        forth, back = outputs.chunk(2, -1)
        return forth + back, torch.stack(finals), blocked

    def _way(self, inputs: Tensor, live: Tensor, layer: int, backwards: bool) -> tuple[Tensor, Tensor]:
        """One direction of a layer: inputs (T, B, ...) -> outputs (T, B, H), final state (B, H)."""
        of_input, of_state, bias_in, bias_of = self.gru.named(f"l{layer}_reverse" if backwards else f"l{layer}")
        weighted = linear(inputs, of_input, bias_in)  # (T, B, 3H): every step's at once
        state = inputs.new_zeros(inputs.size(1), of_state.size(1))
        outputs: list[Tensor] = []
        steps = range(inputs.size(0))
        for t in reversed(steps) if backwards else steps:
            state = torch.where(live[t], gated(weighted[t], linear(state, of_state, bias_of), state), state)
            outputs.append(torch.where(live[t], state, 0.0))
        return torch.stack(outputs[::-1] if backwards else outputs), state


class Step(nn.Module):
    """One decoder step, followed by the greedy choice."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.embedding, self.gru = decoder.embedding, Weights(decoder.gru)
        self.concat, self.out = decoder.concat, decoder.out
        self.attn: Attention = decoder.attn

    def forward(self, token: Tensor, hidden: Tensor, outputs: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
        """Token (B,), hidden (layers, B, H), outputs (T, B, H), blocked (T, B) -> token (B,), hidden."""
        state = self.embedding(token)
        states: list[Tensor] = []
        for layer, before in enumerate(hidden.unbind()):
            of_input, of_state, bias_in, bias_of = self.gru.named(f"l{layer}")
            state = gated(linear(state, of_input, bias_in), linear(before, of_state, bias_of), before)
            states.append(state)
        weights = self.attn(state.unsqueeze(0), outputs, blocked)  # (B, T)
        context = weights.unsqueeze(1).bmm(outputs.transpose(0, 1)).squeeze(1)
        logits = self.out(torch.tanh(self.concat(torch.cat((state, context), 1))))
        return logits.argmax(1), torch.stack(states)


class Greedy(nn.Module):
    """The whole search in fixed shapes, with every step unrolled: (B, T) tokens -> (B, S)."""

    def __init__(self, chatbot: Chatbot, steps: int) -> None:
        super().__init__()
        self.encoder, self.step = MaskedEncoder(chatbot.encoder), Step(chatbot.decoder)
        self.layers, self.steps = chatbot.config.decoder_layers, steps

    def forward(self, prompts: Tensor) -> Tensor:
        outputs, hidden, blocked = self.encoder(prompts)
        hidden = hidden[: self.layers]
        token = torch.full((prompts.size(0),), SOS, dtype=torch.long, device=prompts.device)
        tokens: list[Tensor] = []
        for _ in range(self.steps):
            token, hidden = self.step(token, hidden, outputs, blocked)
            tokens.append(token)
        return torch.stack(tokens, 1)
