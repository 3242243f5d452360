"""``torch.compile(mode="reduce-overhead")``: the whole search by Inductor, replayed as one CUDA graph."""

import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants.inductor import compiling, example, require_compiler, require_shape
from chatbot.variants.masked import Greedy
from chatbot.variants.base import Reply, Workload

CALLS = 4  # one compiles, one warms up, one captures


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiled and captured before it returns."""
    require_compiler(workload.device)
    search = Greedy(chatbot, workload.reply_tokens).eval()
    whole = torch.compile(search, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        require_shape(prompts, workload)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        tokens: Tensor = whole(prompts)
        return tokens.clone()  # the graph's own buffer is overwritten by the next call

    with compiling(workload), torch.no_grad():
        for _ in range(CALLS):
            reply(*example(workload))
    return reply
