"""A stand-in for cuDNN's layout of a GRU's weights, on the CPU."""

import pytest
import torch
from torch import nn
from torch.backends.cudnn import CUDNN_TENSOR_DTYPES


def lay_out(patch: pytest.MonkeyPatch) -> None:
    """Making or moving a GRU puts its weights into one buffer, as ``flatten_parameters`` does on a GPU."""

    def flatten(gru: nn.RNNBase) -> None:
        weights = [weight for weight in gru._flat_weights if weight is not None]
        if len(weights) == len(gru._flat_weights_names) and weights[0].dtype in CUDNN_TENSOR_DTYPES:
            buffer, start = torch.cat([weight.detach().flatten() for weight in weights]), 0
            for weight in weights:
                weight.data = buffer[start : start + weight.numel()].view_as(weight)
                start += weight.numel()

    patch.setattr(nn.RNNBase, "flatten_parameters", flatten)


def buffers(gru: nn.Module) -> int:
    """How many buffers a GRU's weights lie in."""
    return len({weight.untyped_storage().data_ptr() for weight in gru.parameters()})
