"""TorchScript as the tutorial on deploying this chatbot has it: networks traced, search scripted.

Source: https://pytorch.org/tutorials/beginner/deploy_seq2seq_hybrid_frontend_tutorial.html
"""

import torch
from torch import Tensor

from chatbot.model import Chatbot, GreedySearch
from chatbot.variants.workload import Reply, Workload
from chatbot.vocabulary import EOS, PAD, SOS


def script(chatbot: Chatbot, device: str) -> torch.jit.ScriptModule:
    """The whole search as one script: ``forward(prompts, lengths, max_length) -> (tokens, probabilities)``.

    Traced on ``device``, and bound to it: the trace bakes in where the GRU's first state lives. Any batch and
    prompt length will do afterwards.
    """
    prompts = torch.full((3, 2), EOS, dtype=torch.long, device=device)
    lengths = torch.tensor([3, 2])
    token = torch.full((1, 2), SOS, dtype=torch.long, device=device)
    with torch.no_grad():
        encoder = torch.jit.trace(chatbot.encoder, (prompts, lengths), check_trace=False)  # type: ignore[no-untyped-call]
        outputs, hidden = chatbot.encoder(prompts, lengths)
        state = hidden[: chatbot.config.decoder_layers]
        example = (token, state, outputs, prompts == PAD)
        decoder = torch.jit.trace(chatbot.decoder, example, check_trace=False)  # type: ignore[no-untyped-call]
    search = torch.jit.script(GreedySearch(encoder, decoder, chatbot.config.decoder_layers).eval())
    assert isinstance(search, torch.jit.ScriptModule)
    return search


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The scripted search, traced on the workload's device."""
    search, steps = script(chatbot, workload.device), workload.reply_tokens

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = search(prompts, lengths, steps)[0]
        return tokens

    return reply
