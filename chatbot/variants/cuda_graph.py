"""The whole search, or any module, as one CUDA graph, so that no kernel is launched from Python: captured as it is, or
compiled by Inductor first (``torch.compile(mode="reduce-overhead")``).

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, UnavailableError, Workload, converting
from chatbot.variants.compiled import Whole
from chatbot.variants.exported import Form
from chatbot.variants.fused import FusedGreedy
from chatbot.variants.inductor import compiling, example, require_compiler, require_shape
from chatbot.variants.masked import Greedy

CALLS = 3  # before the capture: libraries choose their algorithms and workspaces in them
COMPILED_CALLS = 4  # one compiles, one warms up, one captures


class Replayed:
    """A graph with the tensors that it reads and writes.

    Captured on the stream of the calls before it: each stream has a workspace of cuBLAS, 32 MB on Hopper.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module = module  # its weights must live as long as the graph
        self.inputs = tuple(one.clone() for one in inputs)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CALLS):
                module(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.answer: Any = module(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        """The answer in the graph's own tensors, which the next call overwrites."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.answer


class Captured:
    """The chatbot's search as a graph."""

    def __init__(self, search: nn.Module, workload: Workload) -> None:
        self.workload = workload
        self.replayed = Replayed(search, example(workload)[:1])

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        require_shape(prompts, self.workload)
        tokens: Tensor = self.replayed(prompts)
        return tokens.clone()


class Answering:
    """Any module as a graph: inputs of the captured shapes -> the module's answer, in tensors of its own."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.replayed = Replayed(module, inputs)
        self._shapes = [one.shape for one in inputs]
        self._form = Form(self.replayed.answer)
        self._tensors = [leaf for leaf in tree_leaves(self.replayed.answer) if isinstance(leaf, Tensor)]

    def __call__(self, *inputs: Tensor) -> Any:
        if [one.shape for one in inputs] != self._shapes:  # copying would spread one row over all
            raise ValueError(f"captured for {self._shapes}, not for {[one.shape for one in inputs]}")
        self.replayed(*inputs)
        return self._form([tensor.clone() for tensor in self._tensors])


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Captures the search for the workload's shapes."""
    with torch.no_grad():
        return Captured(FusedGreedy(chatbot, workload.reply_tokens).eval(), workload)


def prepare_compiled(chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiles and captures the search before it returns."""
    require_compiler(workload.device)
    skipped = _skipped_graphs()
    search = Greedy(chatbot, workload.reply_tokens).eval()
    whole = torch.compile(search, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        require_shape(prompts, workload)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        tokens: Tensor = whole(prompts)
        return tokens.clone()  # the graph's own buffer is overwritten by the next call

    with compiling(workload), torch.no_grad():
        for _ in range(COMPILED_CALLS):
            reply(*example(workload))
    if _skipped_graphs() > skipped:  # it only writes that into its log
        raise RuntimeError("Inductor compiled the search but replays no CUDA graph; TORCH_LOGS=cudagraphs says why")
    return reply


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Callable[..., Any]:
    """Captures any module for inputs of these shapes."""
    with converting("a CUDA graph"):
        return Answering(module, inputs)


def prepare_module_compiled(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Callable[..., Any]:
    """Compiles and captures any module for these shapes before it returns."""
    require_compiler(workload.device)
    skipped = _skipped_graphs()
    whole = torch.compile(Whole(module).eval(), dynamic=False, mode="reduce-overhead")

    def answer(*inputs: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return tree_map(_own, whole(*inputs))

    with compiling(workload), torch.no_grad(), converting("torch.compile"):
        for _ in range(COMPILED_CALLS):
            Form(answer(*inputs))  # a tensor within an unknown object would be overwritten by the next call
    if _skipped_graphs() > skipped:
        raise UnavailableError("Inductor replays no CUDA graph of this model; TORCH_LOGS=cudagraphs says why")
    return answer


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _skipped_graphs() -> int:
    """How often Inductor has compiled for a CUDA graph in this process and then did without one."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])
