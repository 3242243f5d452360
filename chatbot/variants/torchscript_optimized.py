"""The scripted search, frozen and rewritten for inference (``torch.jit.optimize_for_inference``)."""

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.plain import traced
from chatbot.variants.search import replying
from chatbot.variants.torchscript import scripted
from chatbot.variants.base import Reply, UnavailableError, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """On a CPU the linear layers become products with weights that were transposed once."""
    search = scripted(chatbot, chatbot.encoder, chatbot.decoder, workload)
    return replying(torch.jit.optimize_for_inference(search), workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """The trace of any module, rewritten. Raises UnavailableError where there is nothing to rewrite."""
    script = traced(module, inputs)
    frozen = torch.jit.freeze(script, optimize_numerics=False)
    optimized = torch.jit.optimize_for_inference(script)
    if str(optimized.inlined_graph) == str(frozen.inlined_graph):
        raise UnavailableError("it finds nothing to rewrite in this model: it would be torchscript-frozen again")
    return optimized
