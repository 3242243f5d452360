"""OpenVINO: the same graph, set to compute in fp32 (by default it uses bf16 if the CPU has it).

Source: https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

import numpy as np
import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants.base import Reply, UnavailableError, Workload
from chatbot.variants.search import filled

HELP = "pip install 'latency-matrix[openvino]'"


class Inferring:
    """A compiled graph and its one request; its threads stay on the process's cores."""

    def __init__(self, model: bytes, workload: Workload) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": workload.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        self.compiled_model = core.compile_model(core.read_model(model), "CPU", settings)
        self.request = self.compiled_model.create_infer_request()
        self.stop, self.steps = workload.stop_at_eos, workload.reply_tokens
        self.limit = np.array(self.steps)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens -> (B, S); ``lengths`` follow from the padding."""
        given = {"prompts": prompts.contiguous().numpy(), "steps": self.limit}
        self.request.infer(given, share_inputs=True, share_outputs=True)
        tokens = torch.from_numpy(self.request.get_output_tensor(0).data.copy()).t()  # the next call overwrites it
        return filled(tokens, self.steps) if self.stop else tokens


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiled from the ONNX graph whose encoder is written out: OpenVINO's own GRU answers ragged prompts wrongly."""
    try:
        import openvino  # noqa: F401

        from chatbot.variants.onnx_graph import greedy_graph
    except ImportError as error:
        raise UnavailableError(f"{error.name} is not installed: {HELP}") from None
    model = greedy_graph(chatbot, written_out=True, stop_at_eos=workload.stop_at_eos)
    return Inferring(model.SerializeToString(), workload)
