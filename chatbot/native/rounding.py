"""Rounds weights to 8 bits so that a layer's outputs for its usual inputs are right, not each weight by itself.

GPTQ (Frantar et al. 2023, https://arxiv.org/abs/2210.17323): column by column, and what rounding one of them does to
the layer's outputs is made good by the columns that are still to come, as far as their inputs go together. The inputs
are those of the network itself while it answers prompts of random words: no data is needed, and none that the replies
are later judged by is seen.
"""

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.native.pack import LARGEST, scales_of
from chatbot.vocabulary import EOS, FIRST_WORD, PAD, SOS

PROMPTS, PROMPT_TOKENS, REPLY_TOKENS = 256, 8, 10
DAMPING = 0.01  # of the mean square of an input: inputs that seldom differ from their like are not leant on
NO_INPUT = 1e-30  # the mean square of inputs that are all zero
BLOCK = 64  # columns between two updates of all the columns behind them
Inputs = dict[str, Tensor]  # of a layer, by the name of its weights in the encoder or decoder: (N, K)


def round_for(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) weights and (N, K) inputs -> whole numbers (R, K) of at most 127 and a scale for each row (R)."""
    scales = scales_of(weight, LARGEST)
    scale = scales.double()
    order, spread = _spread(inputs)
    rest = weight.double()[:, order]
    numbers = torch.empty_like(rest)
    for first in range(0, weight.size(1), BLOCK):
        here = slice(first, min(first + BLOCK, weight.size(1)))
        block, near, missed = rest[:, here], spread[here, here], torch.empty_like(rest[:, here])
        for column in range(block.size(1)):
            numbers[:, first + column] = (block[:, column] / scale).round().clamp(-LARGEST, LARGEST)
            off = block[:, column] - numbers[:, first + column] * scale
            missed[:, column] = off / near[column, column]
            block[:, column + 1 :] -= torch.outer(missed[:, column], near[column, column + 1 :])
        rest[:, here.stop :] -= missed @ spread[here, here.stop :]
    return numbers[:, order.argsort()].float(), scales


def _spread(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The order of columns, the strongest inputs first; and the inverse of their products, as its upper root."""
    products = inputs.double().t() @ inputs.double()
    order = products.diag().argsort(descending=True, stable=True)
    products = products[order][:, order]
    products.diagonal().add_(DAMPING * products.diag().mean().clamp_min(NO_INPUT))
    return order, torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(products)), upper=True)


def inputs_of(chatbot: Chatbot) -> Inputs:
    """Records the inputs of each GRU's weights while random prompts are answered."""
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(FIRST_WORD, chatbot.config.vocabulary, (PROMPTS, PROMPT_TOKENS), generator=rng)
    prompts[:, -1] = EOS
    met, outputs, states = _encoder_inputs(chatbot, prompts)
    return met | _decoder_inputs(chatbot, prompts, outputs, states)


def _encoder_inputs(chatbot: Chatbot, prompts: Tensor) -> tuple[Inputs, Tensor, Tensor]:
    """Returns also the outputs (T, B, H) and the final states (layers x directions, B, H)."""
    encoder, met = chatbot.encoder, {}
    outputs, finals = encoder.embedding(prompts.t()), []
    for layer in range(encoder.gru.num_layers):
        ways = []
        for way in ("", "_reverse"):
            before, states = _passed_through(encoder.gru, f"_l{layer}{way}", outputs)
            met[f"gru.weight_hh_l{layer}{way}"], met[f"gru.weight_ih_l{layer}{way}"] = before, outputs.flatten(0, 1)
            ways.append(states)
            finals.append(states[0 if way else -1])
        outputs = torch.cat(ways, 2)
    hidden = encoder.hidden
    named = {f"encoder.{name}": values for name, values in met.items()}
    return named, outputs[:, :, :hidden] + outputs[:, :, hidden:], torch.stack(finals)


def _passed_through(gru: nn.GRU, suffix: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(T, B, K) -> the states before each step (T x B, H), and after it (T, B, H)."""
    weights = [getattr(gru, kind + suffix) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    state = inputs.new_zeros(inputs.size(1), gru.hidden_size)
    befores, states = [], []
    for step in reversed(inputs) if suffix.endswith("_reverse") else inputs:
        befores.append(state)
        state = torch.gru_cell(step, state, *weights)
        states.append(state)
    if suffix.endswith("_reverse"):
        states.reverse()
    return torch.cat(befores), torch.stack(states)


def _decoder_inputs(chatbot: Chatbot, prompts: Tensor, outputs: Tensor, states: Tensor) -> Inputs:
    layers, blocked = chatbot.config.decoder_layers, (prompts == PAD).t()
    hidden, token = states[:layers], torch.full((1, len(prompts)), SOS)
    steps = []
    for _ in range(REPLY_TOKENS):
        before = hidden
        logits, hidden = chatbot.decoder(token, hidden, outputs, blocked)
        token = logits.argmax(1).unsqueeze(0)
        steps.append((before, hidden))
    met = {}
    for layer in range(layers):
        met[f"decoder.gru.weight_hh_l{layer}"] = torch.cat([before[layer] for before, _ in steps])
        if layer > 0:
            met[f"decoder.gru.weight_ih_l{layer}"] = torch.cat([after[layer - 1] for _, after in steps])
    return met
