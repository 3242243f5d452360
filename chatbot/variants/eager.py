"""The baseline: the Python modules as they are."""

from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants.workload import Reply, Workload


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager greedy search."""
    search, steps = chatbot.search(), workload.reply_tokens

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = search(prompts, lengths, steps)[0]
        return tokens

    return reply
