"""What the variants that execute any module share: the timed callable, and how a module is traced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.variants.base import Reply, UnavailableError, Workload

PrepareModule = Callable[[nn.Module, tuple[Tensor, ...], Workload], Callable[..., Any]]


def unchanged(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Callable[..., Any]:
    """The baseline: the module as it is."""
    return module


def traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.jit.ScriptModule:
    """A trace with these example inputs. Raises UnavailableError where the module can't be traced."""
    with converting("torch.jit.trace"):
        script = torch.jit.trace(module, inputs, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        assert isinstance(script, torch.jit.ScriptModule)
        return script


@contextmanager
def converting(tool: str) -> Iterator[None]:
    """Makes an error of a tool that does not take every module a reason to skip the variant."""
    try:
        yield
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnavailableError(f"{tool} can't take this model: {cause}") from error


def answering(call: Callable[..., Any]) -> Reply:
    """The timed callable, ``(inputs, nothing) -> answer``, the same around every variant."""

    def answer(inputs: Any, _: Tensor) -> Any:
        return call(*inputs)

    return answer
