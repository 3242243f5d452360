"""TorchScript as in the tutorial on deploying this chatbot (networks traced, search scripted), and the script's further
forms: frozen, with its weights inlined as constants of the graph, and rewritten for inference.

Source: https://pytorch.org/tutorials/beginner/deploy_seq2seq_hybrid_frontend_tutorial.html
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from chatbot.model import Chatbot
from chatbot.variants.base import Example, NothingToDoError, Reply, Workload, converting
from chatbot.variants.search import replying, search_of
from chatbot.vocabulary import EOS, PAD, SOS


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the deprecation warning of each ``torch.jit`` call: TorchScript is what is measured here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.")
        yield


def script(chatbot: Chatbot, device: str) -> torch.jit.ScriptModule:
    """The whole search as one script: ``forward(prompts, lengths, max_length) -> (tokens, probabilities)``.

    Traced on ``device``, and bound to it: the trace bakes in where the GRU's first state lives. Any batch and
    prompt length will do afterwards.
    """
    return scripted(chatbot, chatbot.encoder, chatbot.decoder, Workload(device=device))


@quiet()
def scripted(chatbot: Chatbot, encoder: nn.Module, decoder: nn.Module, workload: Workload) -> torch.jit.ScriptModule:
    """Scripts the search over any networks with the signatures of the chatbot's."""
    device = workload.device
    prompts = torch.full((3, 2), EOS, dtype=torch.long, device=device)
    lengths = torch.tensor([3, 2])
    token = torch.full((1, 2), SOS, dtype=torch.long, device=device)
    with torch.no_grad():
        traced_encoder = _trace(encoder, (prompts, lengths))
        outputs, hidden = encoder(prompts, lengths)
        state = hidden[: chatbot.config.decoder_layers]
        traced_decoder = _trace(decoder, (token, state, outputs, prompts == PAD))
    search = torch.jit.script(search_of(traced_encoder, traced_decoder, chatbot, workload))
    assert isinstance(search, torch.jit.ScriptModule)
    return search


@quiet()
def _trace(network: nn.Module, inputs: tuple[Tensor, ...], strict: bool = True) -> torch.jit.ScriptModule:
    script = torch.jit.trace(network, inputs, check_trace=False, strict=strict)  # type: ignore[no-untyped-call]
    assert isinstance(script, torch.jit.ScriptModule)
    return script


def traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """A trace with these example inputs.

    Raises:
        UnavailableError: the module can't be traced, or its trace holds for the example's shapes alone.
    """
    with converting("torch.jit.trace"):
        script = _trace(module, inputs, strict=False)
        for other in inputs.others if isinstance(inputs, Example) else ():
            _require_same(script(*_copied(other)), module(*_copied(other)))
    return script


def _require_same(answers: Any, expected: Any) -> None:
    for one, other in zip(tree_leaves(answers), tree_leaves(expected), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, equal_nan=True)


def _copied(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [one.clone() for one in inputs]


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The scripted search, traced on the workload's device."""
    return replying(_whole(chatbot, workload), workload)


@quiet()
def prepare_frozen(chatbot: Chatbot, workload: Workload) -> Reply:
    """Frozen, without the rewriting that ``torchscript-optimized`` stands for."""
    return replying(torch.jit.freeze(_whole(chatbot, workload), optimize_numerics=False), workload)


@quiet()
def prepare_optimized(chatbot: Chatbot, workload: Workload) -> Reply:
    """The script rewritten for inference: on a CPU, linear layers become products with weights transposed once."""
    return replying(torch.jit.optimize_for_inference(_whole(chatbot, workload)), workload)


def _whole(chatbot: Chatbot, workload: Workload) -> torch.jit.ScriptModule:
    return scripted(chatbot, chatbot.encoder, chatbot.decoder, workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """Any module, traced."""
    return traced(module, inputs)


@quiet()
def prepare_module_frozen(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """The trace of any module, frozen."""
    frozen: nn.Module = torch.jit.freeze(traced(module, inputs), optimize_numerics=False)
    return frozen


@quiet()
def prepare_module_optimized(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """The trace of any module, rewritten. Raises UnavailableError if there is nothing to rewrite."""
    script = traced(module, inputs)
    frozen = torch.jit.freeze(script, optimize_numerics=False)
    optimized = torch.jit.optimize_for_inference(script)
    if str(optimized.inlined_graph) == str(frozen.inlined_graph):
        nothing = "it finds nothing to rewrite in this model: it would be torchscript-frozen again"
        raise NothingToDoError(nothing, lambda: frozen)
    return optimized
