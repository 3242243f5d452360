"""The Python modules with every weight, and all arithmetic, in bfloat16: half the bytes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from chatbot.compiler import cpu_flags
from chatbot.model import Chatbot
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.search import replying, search_of

HARDWARE = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # as Linux names it: Intel and AMD, and ARM
LIMITED_BY = "ONEDNN_MAX_CPU_ISA"


def require_hardware(device: str) -> None:
    """Raises UnavailableError on a CPU that would emulate each product, at as little as a fiftieth of fp32's rate."""
    if device != "cpu":
        return
    if not cpu_flags() & HARDWARE:
        raise UnavailableError("this CPU has no bfloat16 arithmetic (AVX512-BF16, AMX or ARM's BF16), only emulation")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UnavailableError(f"PyTorch does not use this CPU's bfloat16 arithmetic: is {LIMITED_BY} set?")


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager greedy search in 16 bits. Raises UnavailableError on a CPU without such arithmetic."""
    require_hardware(workload.device)
    own = chatbot.copy()
    encoder, decoder = (narrowed(part) for part in (own.encoder, own.decoder))
    return replying(search_of(encoder, decoder, chatbot, workload), workload)


def narrowed(module: nn.Module) -> nn.Module:
    """The module in bfloat16, on a GPU with each GRU's weights in one buffer, as cuDNN wants them.

    ``RNNBase.flatten_parameters`` would leave bfloat16 alone: this list lacks it, though cuDNN computes in it.
    """
    cudnn.CUDNN_TENSOR_DTYPES.add(torch.bfloat16)
    return module.to(torch.bfloat16)


class Narrowed(nn.Module):
    """A module in bfloat16 that takes inputs in float32, as its users pass them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = narrowed(module)

    def forward(self, *inputs: Tensor) -> Any:
        """The module's answer, in 16 bits."""
        return self.module(*(one.to(torch.bfloat16) if one.is_floating_point() else one for one in inputs))


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """Any module in 16 bits; converting its inputs is part of a call. Raises UnavailableError as ``prepare`` does."""
    require_hardware(workload.device)
    return Narrowed(module).eval()
