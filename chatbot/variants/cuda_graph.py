"""The whole search captured as one CUDA graph: no kernel is launched from Python.

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants.inductor import example, require_shape
from chatbot.variants.masked import Greedy
from chatbot.variants.base import Reply, Workload

CALLS = 3  # before the capture: libraries choose their algorithms and workspaces in them


class Captured:
    """A graph with the buffers that it reads and writes."""

    def __init__(self, search: Greedy, workload: Workload) -> None:
        self.search, self.workload = search, workload  # its weights must live as long as the graph
        self.prompts = example(workload)[0]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CALLS):
                search(self.prompts)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.tokens: Tensor = search(self.prompts)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        require_shape(prompts, self.workload)
        self.prompts.copy_(prompts)
        self.graph.replay()
        return self.tokens.clone()


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Captured for the workload's shapes."""
    with torch.no_grad():
        return Captured(Greedy(chatbot, workload.reply_tokens).eval(), workload)
