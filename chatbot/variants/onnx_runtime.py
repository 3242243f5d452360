"""ONNX Runtime: the whole search as one graph, in fp32 or with int8 weights; prompts and tokens in bound buffers.

Source: https://onnxruntime.ai/docs/api/python/api_summary.html
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.search import filled

HELP = "pip install 'latency-matrix[onnx]'"


class Bound:
    """A session of the graph on one thread pool, which spins nowhere."""

    def __init__(self, model: bytes, workload: Workload) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = workload.threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.binding: Any = self.session.io_binding()
        self.stop, self.steps = workload.stop_at_eos, workload.reply_tokens
        self.limit = np.array(self.steps)
        self.binding.bind_cpu_input("steps", self.limit)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens -> (B, S); ``lengths`` follow from the padding."""
        prompts, binding = prompts.contiguous(), self.binding
        shape = (self.steps, prompts.size(0))
        binding.bind_input("prompts", "cpu", 0, np.int64, tuple(prompts.shape), prompts.data_ptr())
        if self.stop:  # how many rows there are is known afterwards
            binding.bind_output("tokens", "cpu")
            self.session.run_with_iobinding(binding)
            return filled(torch.from_numpy(binding.copy_outputs_to_cpu()[0]).t(), self.steps)
        tokens = torch.empty(shape, dtype=torch.long)
        binding.bind_output("tokens", "cpu", 0, np.int64, shape, tokens.data_ptr())
        self.session.run_with_iobinding(binding)
        return tokens.t()


def _prepare(int8: bool, chatbot: Chatbot, workload: Workload) -> Reply:
    try:
        import onnxruntime  # noqa: F401

        from chatbot.variants.onnx_graph import greedy_graph
    except ImportError as error:
        raise UnavailableError(f"{error.name} is not installed: {HELP}") from None
    model = greedy_graph(chatbot, int8=int8, stop_at_eos=workload.stop_at_eos)
    return Bound(model.SerializeToString(), workload)


prepare, prepare_int8 = partial(_prepare, False), partial(_prepare, True)
