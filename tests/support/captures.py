"""CUDA graphs without a GPU: a capture records the operators that PyTorch dispatches, a replay runs them again."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ_BACK = (torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.is_nonzero)
REFUSED = "operation not permitted when stream is capturing"


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps each operator with its arguments and results; reading a number back ends a capture."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in READ_BACK:
            raise RuntimeError(f"CUDA error: {REFUSED}\nCUDA kernel errors might be reported later")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found


class CUDAGraph:
    """Replays into the memory that was captured, as the real one does."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def replay(self) -> None:
        for func, args, kwargs, results in self.recorder.calls:
            for kept, new in zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


CUDAGraph.__module__ = "torch.cuda.graphs"  # by which ``engines`` knows it


def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts stand-ins in the place of CUDA's streams and graphs."""

    @contextlib.contextmanager
    def graph(one: CUDAGraph, stream: object) -> Iterator[None]:
        with one.recorder:
            yield

    def stream() -> Any:
        return SimpleNamespace(wait_stream=lambda other: None)

    for name, found in {"Stream": stream, "current_stream": stream, "CUDAGraph": CUDAGraph, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, found)
    monkeypatch.setattr(torch.cuda, "stream", lambda one: contextlib.nullcontext())
