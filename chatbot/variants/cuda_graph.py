"""The whole search as one CUDA graph, so that no kernel is launched from Python: captured as it is, or compiled by
Inductor first (``torch.compile(mode="reduce-overhead")``).

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, Workload
from chatbot.variants.fused import FusedGreedy
from chatbot.variants.inductor import compiling, example, require_compiler, require_shape
from chatbot.variants.masked import Greedy

CALLS = 3  # before the capture: libraries choose their algorithms and workspaces in them
COMPILED_CALLS = 4  # one compiles, one warms up, one captures


class Captured:
    """A graph with the buffers that it reads and writes.

    Captured on the stream of the calls before it: each stream has a workspace of cuBLAS, 32 MB on Hopper.
    """

    def __init__(self, search: nn.Module, workload: Workload) -> None:
        self.search, self.workload = search, workload  # its weights must live as long as the graph
        self.prompts = example(workload)[0]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CALLS):
                search(self.prompts)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.tokens: Tensor = search(self.prompts)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        require_shape(prompts, self.workload)
        self.prompts.copy_(prompts)
        self.graph.replay()
        return self.tokens.clone()


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


def _skipped_graphs() -> int:
    """How often Inductor has compiled for a CUDA graph in this process and then did without one."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])
