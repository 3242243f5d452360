"""The Python modules with every weight, and all arithmetic, in bfloat16: half the bytes."""

import copy

import torch

from chatbot.model import Chatbot
from chatbot.variants.search import replying, search_of
from chatbot.variants.workload import Reply, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager greedy search in 16 bits."""
    encoder, decoder = (copy.deepcopy(part).to(torch.bfloat16) for part in (chatbot.encoder, chatbot.decoder))
    return replying(search_of(encoder, decoder, chatbot, workload), workload)
