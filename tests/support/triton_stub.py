"""As much of Triton as ``triton_kernels`` uses, on NumPy: for machines without it, and faster than its interpreter.

One program runs after the other. Whatever is read or written must lie within its tensor, and tensors be contiguous.
"""

import itertools
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import Tensor

KERNELS = "chatbot.variants.triton_kernels"


class Block(np.ndarray[Any, Any]):
    """Values of a program."""

    def to(self, dtype: Any, bitcast: bool = False) -> "Block":
        return (self.view(dtype) if bitcast else self.astype(dtype)).view(Block)


class Pointer:
    """Places in a tensor."""

    def __init__(self, values: Any, place: Any = 0) -> None:
        self.values, self.place = values, place

    def __add__(self, by: Any) -> "Pointer":
        return Pointer(self.values, self.place + by)

    def within(self, mask: Any) -> tuple[Any, Any]:
        place, mask = np.broadcast_arrays(self.place, mask)
        assert ((place >= 0) & (place < len(self.values)))[mask].all(), "a place outside of the tensor"
        return place, mask


class Kernel:
    """A function, and a launch of it for each program of a grid."""

    def __init__(self, function: Callable[..., Any], language: "Language") -> None:
        self.function, self.language = function, language

    def __call__(self, *values: Any) -> Any:
        return self.function(*values)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, **constants: Any) -> None:
            pointers = [_pointer(one) if isinstance(one, Tensor) else one for one in given]
            self.language.grid = grid
            self.language.launches += 1
            for program in itertools.product(*map(range, grid)):
                self.language.program = program
                self.function(*pointers, **constants)

        return launch


def _pointer(tensor: Tensor) -> Pointer:
    assert tensor.is_contiguous()
    return Pointer(tensor.detach().view(-1).numpy())


class Language(ModuleType):
    """``triton.language``."""

    float32, int32, int64, constexpr = np.float32, np.int32, np.int64, Any
    program: tuple[int, ...] = ()
    grid: tuple[int, ...] = ()
    launches = 0

    def program_id(self, axis: int) -> Block:
        return np.array(self.program[axis], dtype=np.int32).view(Block)

    def num_programs(self, axis: int) -> int:
        return self.grid[axis]

    def arange(self, start: int, end: int) -> Any:
        assert math.log2(end - start).is_integer(), "Triton knows powers of two only"
        return np.arange(start, end, dtype=np.int32).view(Block)

    def zeros(self, shape: list[int], dtype: Any) -> Block:
        return np.zeros(shape, dtype).view(Block)

    def load(self, pointer: Pointer, mask: Any = True, other: Any = 0) -> Any:
        place, mask = pointer.within(mask)
        return np.where(mask, pointer.values[np.where(mask, place, 0)], pointer.values.dtype.type(other)).view(Block)

    def store(self, pointer: Pointer, value: Any, mask: Any = True) -> None:
        place, mask = pointer.within(mask)
        pointer.values[place[mask]] = np.broadcast_to(value, place.shape)[mask]

    def atomic_max(self, pointer: Pointer, value: Any) -> None:
        pointer.values[pointer.place] = max(pointer.values[pointer.place], value)

    def sum(self, value: Any, axis: int) -> Any:
        return np.sum(value, axis)

    def max(self, value: Any, axis: int) -> Any:
        return np.max(value, axis)

    def where(self, condition: Any, one: Any, other: Any) -> Any:
        return np.where(condition, one, other).view(Block)

    def exp(self, value: Any) -> Any:
        return np.exp(value)

    def abs(self, value: Any) -> Any:
        return np.abs(value)

    def sigmoid(self, value: Any) -> Any:
        return 1 / (1 + np.exp(-value))


def install(patch: pytest.MonkeyPatch) -> Language:
    """Makes ``import triton`` find this, and the kernels be imported anew, until the test ends."""
    language, package = Language("triton.language"), ModuleType("triton")
    package.__dict__.update(language=language, jit=lambda function: Kernel(function, language))
    patch.setitem(sys.modules, "triton", package)
    patch.setitem(sys.modules, "triton.language", language)
    patch.delitem(sys.modules, KERNELS, raising=False)
    patch.delattr("chatbot.variants.triton_kernels", raising=False)
    return language
