"""PyTorch's dynamic quantisation: weights of GRUs and linear layers in int8, activations quantised at each call.

A PyTorch that has dropped ``quantize_dynamic`` gets the same numbers from ``quantized_layers``.

Source: https://pytorch.org/docs/stable/quantization.html
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from chatbot.model import Chatbot, Encoder
from chatbot.variants.base import NothingToDoError, Reply, UnavailableError, Workload, converting
from chatbot.variants.quantized_layers import with_quantised_layers
from chatbot.variants.search import replying, search_of
from chatbot.variants.torchscript import scripted, traced


class QuantisedEncoder(nn.Module):
    """``chatbot.model.Encoder`` around a quantised GRU.

    It passes the first state: a quantised GRU that creates its own bakes the batch size into a trace.
    """

    def __init__(self, encoder: Encoder, gru: nn.Module) -> None:
        super().__init__()
        self.embedding, self.gru = encoder.embedding, gru
        self.hidden, self.states = encoder.hidden, 2 * encoder.gru.num_layers

    def forward(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Encoder.forward``."""
        packed = pack_padded_sequence(self.embedding(prompts), lengths, enforce_sorted=False)
        first = torch.zeros(self.states, prompts.size(1), self.hidden)
        packed, hidden = self.gru(packed, first)
        outputs, _ = pad_packed_sequence(packed)
        return outputs[:, :, : self.hidden] + outputs[:, :, self.hidden :], hidden


def quantised(chatbot: Chatbot) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) in int8; their embedding stays in fp32.

    Raises:
        UnavailableError: this PyTorch can't quantise here.
    """
    both = nn.ModuleList([copy.copy(chatbot.encoder), copy.copy(chatbot.decoder)])
    encoder, decoder = _quantised(both, {nn.GRU, nn.Linear})
    return QuantisedEncoder(chatbot.encoder, encoder.gru).eval(), decoder.eval()


def _quantised(module: nn.Module, kinds: set[type[nn.Module]]) -> Any:
    if torch.backends.quantized.engine == "none":
        raise UnavailableError("this PyTorch has no engine for int8 on this CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that both this way and its tensors have successors elsewhere
        try:
            from torch.ao.quantization import quantize_dynamic
        except ImportError:
            return with_quantised_layers(module, kinds)
        return quantize_dynamic(module, kinds, dtype=torch.qint8)  # type: ignore[no-untyped-call]


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager search over the quantised networks."""
    encoder, decoder = quantised(chatbot)
    return replying(search_of(encoder, decoder, chatbot, workload), workload)


def prepare_script(chatbot: Chatbot, workload: Workload) -> Reply:
    """The quantised networks traced, the search over them scripted: few bytes and little Python."""
    return replying(scripted(chatbot, *quantised(chatbot), workload), workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """Any module with its linear and recurrent layers quantised. Raises UnavailableError if it has none."""
    found: nn.Module = _quantised(module, {nn.GRU, nn.LSTM, nn.Linear})
    if not any("quantized" in type(part).__module__ for part in found.modules()):
        raise NothingToDoError("this model has no linear or recurrent layer within to quantise", lambda: found)
    with converting("dynamic quantisation"):  # some layers look at weights that are packed now
        found(*inputs)
    return found.eval()


def prepare_module_script(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """A trace of what ``prepare_module`` makes."""
    try:
        return traced(prepare_module(module, inputs, workload), inputs)
    except NothingToDoError as error:
        raise NothingToDoError(str(error), lambda: traced(module, inputs)) from None
