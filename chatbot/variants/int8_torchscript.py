"""The quantised networks traced, the search over them scripted."""

from chatbot.model import Chatbot
from chatbot.variants.int8 import quantised
from chatbot.variants.search import replying
from chatbot.variants.torchscript import scripted
from chatbot.variants.base import Reply, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Few bytes and little Python."""
    return replying(scripted(chatbot, *quantised(chatbot), workload), workload)
