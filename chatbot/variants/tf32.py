"""The Python modules with their products in TF32: inputs rounded to 10 bits of mantissa, for a GPU's tensor cores.

Source: https://pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cuda, cudnn

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.search import replying, search_of

LEAST_CAPABILITY = (8, 0)  # Ampere


@contextmanager
def rounding() -> Iterator[None]:
    """Lets cuDNN and cuBLAS round; afterwards they compute as before. All other variants share the switches."""
    before = cudnn.allow_tf32, cuda.matmul.allow_tf32
    cudnn.allow_tf32 = cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32, cuda.matmul.allow_tf32 = before


class Rounded(nn.Module):
    """A module whose products are in TF32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        """The module's answer."""
        with rounding():
            return self.module(*inputs)


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """The eager greedy search in TF32. Raises UnavailableError on a GPU without it."""
    _require_hardware()
    return replying(Rounded(search_of(chatbot.encoder, chatbot.decoder, chatbot, workload)).eval(), workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    """Any module in TF32. Raises UnavailableError as ``prepare`` does."""
    _require_hardware()
    return Rounded(module).eval()


def _require_hardware() -> None:
    if (found := torch.cuda.get_device_capability()) < LEAST_CAPABILITY:
        needed = ".".join(map(str, LEAST_CAPABILITY))
        raise UnavailableError(f"TF32 needs compute capability {needed}; this GPU has {found[0]}.{found[1]}")
