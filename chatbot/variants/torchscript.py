"""TorchScript as the tutorial on deploying this chatbot has it: networks traced, search scripted.

Source: https://pytorch.org/tutorials/beginner/deploy_seq2seq_hybrid_frontend_tutorial.html
"""

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.plain import traced
from chatbot.variants.search import replying, search_of
from chatbot.variants.base import Reply, Workload
from chatbot.vocabulary import EOS, PAD, SOS


def script(chatbot: Chatbot, device: str) -> torch.jit.ScriptModule:
    """The whole search as one script: ``forward(prompts, lengths, max_length) -> (tokens, probabilities)``.

    Traced on ``device``, and bound to it: the trace bakes in where the GRU's first state lives. Any batch and
    prompt length will do afterwards.
    """
    return scripted(chatbot, chatbot.encoder, chatbot.decoder, Workload(device=device))


def scripted(chatbot: Chatbot, encoder: nn.Module, decoder: nn.Module, workload: Workload) -> torch.jit.ScriptModule:
    """The same of any networks with the signatures of ``chatbot``'s."""
    device = workload.device
    prompts = torch.full((3, 2), EOS, dtype=torch.long, device=device)
    lengths = torch.tensor([3, 2])
    token = torch.full((1, 2), SOS, dtype=torch.long, device=device)
    with torch.no_grad():
        traced_encoder = _traced(encoder, prompts, lengths)
        outputs, hidden = encoder(prompts, lengths)
        state = hidden[: chatbot.config.decoder_layers]
        traced_decoder = _traced(decoder, token, state, outputs, prompts == PAD)
    search = torch.jit.script(search_of(traced_encoder, traced_decoder, chatbot, workload))
    assert isinstance(search, torch.jit.ScriptModule)
    return search


def _traced(network: nn.Module, *example: Tensor) -> torch.jit.ScriptModule:
    traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    assert isinstance(traced, torch.jit.ScriptModule)
    return traced


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The scripted search, traced on the workload's device."""
    return replying(scripted(chatbot, chatbot.encoder, chatbot.decoder, workload), workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """Any module, traced."""
    return traced(module, inputs)
