"""The scripted search with its weights inlined as constants of the graph (``torch.jit.freeze``)."""

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.plain import traced
from chatbot.variants.search import replying
from chatbot.variants.torchscript import scripted
from chatbot.variants.base import Reply, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Frozen, without the rewriting that ``torchscript-optimized`` stands for."""
    search = scripted(chatbot, chatbot.encoder, chatbot.decoder, workload)
    return replying(torch.jit.freeze(search, optimize_numerics=False), workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """The trace of any module, frozen."""
    frozen: nn.Module = torch.jit.freeze(traced(module, inputs), optimize_numerics=False)
    return frozen
