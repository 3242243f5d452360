"""``torch.compile``: encoder and decoder step compiled by Inductor for the workload's shapes, the loop in Python."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.base import Example, Reply, Workload, converting, varying
from chatbot.variants.inductor import compiling, example, require_compiler, stepping
from chatbot.variants.masked import MaskedEncoder, Step

CALLS = 2  # the second step's state has other strides than the first's


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiles before it returns; reuses what an earlier process compiled from Inductor's cache."""
    require_compiler(workload.device)
    encoder = torch.compile(MaskedEncoder(chatbot.encoder).eval(), fullgraph=True, dynamic=False)
    step = torch.compile(Step(chatbot.decoder).eval(), fullgraph=True, dynamic=False)
    layers = chatbot.config.decoder_layers
    to_the_end = stepping(encoder, step, layers, replace(workload, stop_at_eos=False))  # an example may stop at once
    with compiling(workload), torch.no_grad():
        for _ in range(CALLS):
            to_the_end(*example(workload))
    return stepping(encoder, step, layers, workload)


class Whole(nn.Module):
    """Wraps any module: Dynamo compiles PyTorch's own modules elsewhere than in their forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        """The module's answer."""
        return self.module(*inputs)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Callable[..., Any]:
    """Compiles any module for these shapes before it returns; lengths that vary are left open, where Dynamo can."""
    require_compiler(workload.device)
    others = inputs.others if isinstance(inputs, Example) else ()
    compiled = torch.compile(Whole(module).eval(), dynamic=None if others else False)
    for one, dims in zip(inputs, varying(inputs), strict=True):
        for dim in dims:
            torch._dynamo.maybe_mark_dynamic(one, dim)
    with compiling(workload), torch.no_grad(), converting("torch.compile"):
        for call in (inputs, *others):
            for _ in range(CALLS):
                compiled(*call)
    return compiled
