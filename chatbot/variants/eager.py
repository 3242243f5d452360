"""The baseline: the Python modules as they are."""

from chatbot.model import Chatbot
from chatbot.variants.search import replying, search_of
from chatbot.variants.base import Reply, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager greedy search."""
    return replying(search_of(chatbot.encoder, chatbot.decoder, chatbot, workload), workload)
