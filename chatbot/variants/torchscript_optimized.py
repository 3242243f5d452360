"""The scripted search, frozen and rewritten for inference (``torch.jit.optimize_for_inference``)."""

import torch

from chatbot.model import Chatbot
from chatbot.variants.search import replying
from chatbot.variants.torchscript import scripted
from chatbot.variants.workload import Reply, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """On a CPU the linear layers become products with weights that were transposed once."""
    search = scripted(chatbot, chatbot.encoder, chatbot.decoder, workload)
    return replying(torch.jit.optimize_for_inference(search), workload)
