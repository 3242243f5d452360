"""The baseline: the Python modules as they are."""

from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, Workload
from chatbot.variants.search import replying, search_of


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager greedy search."""
    return replying(search_of(chatbot.encoder, chatbot.decoder, chatbot, workload), workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """Any module as it is."""
    return module
