"""PyTorch's dynamic quantisation: weights of GRUs and linear layers in int8, activations quantised at each call.

Source: https://pytorch.org/docs/stable/quantization.html
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from chatbot.model import Chatbot, Encoder
from chatbot.variants.search import replying, search_of
from chatbot.variants.workload import Reply, UnavailableError, Workload


class QuantisedEncoder(nn.Module):
    """``chatbot.model.Encoder`` around a quantised GRU.

    Its first state is given to it: a quantised GRU that makes its own bakes the batch into a trace.
    """

    def __init__(self, encoder: Encoder, gru: nn.Module) -> None:
        super().__init__()
        self.embedding, self.gru = encoder.embedding, gru
        self.hidden, self.states = encoder.hidden, 2 * encoder.gru.num_layers

    def forward(self, prompts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Encoder.forward``."""
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
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError:
        raise UnavailableError("this PyTorch has no torch.ao.quantization: install torch 2.13 or earlier") from None
    if torch.backends.quantized.engine == "none":
        raise UnavailableError("this PyTorch has no engine for int8 on this CPU")
    both = nn.ModuleList([copy.copy(chatbot.encoder), copy.copy(chatbot.decoder)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that both this way and its tensors have successors elsewhere
        encoder, decoder = quantize_dynamic(both, {nn.GRU, nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return QuantisedEncoder(chatbot.encoder, encoder.gru).eval(), decoder.eval()


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager search over the quantised networks."""
    encoder, decoder = quantised(chatbot)
    return replying(search_of(encoder, decoder, chatbot, workload), workload)
