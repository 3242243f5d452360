"""A variant of your own, explained in docs/adding-a-variant.md: one prompt at a time needs no attention mask."""

import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import Reply, UnavailableError, Variant, Workload
from chatbot.vocabulary import SOS


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The tutorial's own search, which has no mask and so takes prompts one by one."""
    if workload.batch > 1:
        raise UnavailableError("without a mask it can't read padded prompts: give --batch 1")
    encoder, decoder, layers = chatbot.encoder, chatbot.decoder, chatbot.config.decoder_layers
    unmasked = torch.zeros((workload.prompt_tokens, 1), dtype=torch.bool, device=workload.device)

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        outputs, hidden = encoder(prompts.t(), lengths)
        hidden, token = hidden[:layers], torch.full((1, 1), SOS, device=prompts.device)
        tokens: list[Tensor] = []
        for _ in range(workload.reply_tokens):
            logits, hidden = decoder(token, hidden, outputs, unmasked)
            token = logits.argmax(1, keepdim=True)
            tokens.append(token)
        return torch.cat(tokens, 1)

    return reply


WITHOUT_MASK = Variant(
    "without-mask", "the tutorial's search, one prompt at a time", prepare, exact=True, kind="eager", any_shape=False
)
