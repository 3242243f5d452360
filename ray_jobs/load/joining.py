"""Requests that are answered together: their inputs as those of one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def joined(inputs: Sequence[Any], size: int) -> Any:
    """One call's inputs, of ``size`` along their first axis, from those of 1: tensors, or tuples of them.

    What is missing is filled up with the last one: compiled code answers calls of one shape.

    Raises:
        ValueError: one has not 1 along its first axis: it can't be joined.
    """
    filled = [*inputs, *[inputs[-1]] * (size - len(inputs))]
    if isinstance(filled[0], Tensor):
        return _joined(filled)
    return tuple(_joined(column) for column in zip(*filled, strict=True))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    shape = tuple(parts[0].shape)
    if shape[:1] != (1,):
        raise ValueError(f"requests can't be answered together: an input of batch 1 has the shape {shape}")
    return torch.cat(list(parts))
