"""OpenVINO: the graphs that ONNX Runtime reads, set to compute in fp32 (by default it uses bf16 if the CPU has it).

Source: https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.base import NoProductError, NothingToDoError, Reply, UnavailableError, Workload
from chatbot.variants.engines import OPENVINO_TYPES, engine_of
from chatbot.variants.exported import Form, require
from chatbot.variants.search import filled

QINT8 = OPENVINO_TYPES["i8"]
HELP = "pip install 'latency-matrix[openvino]'"


def compiled(model: bytes, workload: Workload) -> Any:
    """A graph compiled for one request at a time; its threads stay on the process's cores."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": workload.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(core.read_model(model), "CPU", settings)


class Inferring:
    """The chatbot's search: a compiled graph and its one request."""

    def __init__(self, model: bytes, workload: Workload) -> None:
        self.compiled_model = compiled(model, workload)
        self.request = self.compiled_model.create_infer_request()
        self.stop, self.steps = workload.stop_at_eos, workload.reply_tokens
        self.limit = np.array(self.steps)

    def __call__(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) tokens -> (B, S); ``lengths`` follow from the padding."""
        given = {"prompts": prompts.contiguous().numpy(), "steps": self.limit}
        self.request.infer(given, share_inputs=True, share_outputs=True)
        tokens = torch.from_numpy(self.request.get_output_tensor(0).data.copy()).t()  # the next call overwrites it
        return filled(tokens, self.steps) if self.stop else tokens


def _prepare(int8: bool, chatbot: Chatbot, workload: Workload) -> Reply:
    """Compiled from the ONNX graph whose encoder is written out: OpenVINO's own GRU answers ragged prompts wrongly."""
    try:
        import openvino  # noqa: F401

        from chatbot.variants.onnx_graph import greedy_graph
    except ImportError as error:
        raise UnavailableError(f"{error.name} is not installed: {HELP}") from None
    model = greedy_graph(chatbot, int8=int8, written_out=True, stop_at_eos=workload.stop_at_eos)
    found = Inferring(model.SerializeToString(), workload)
    _require_precision(int8, found.compiled_model)
    return found


def _require_precision(int8: bool, compiled_model: Any) -> None:
    """Raises UnavailableError where a graph with int8 weights is not computed in 8 bits."""
    shown = engine_of(compiled_model)
    if int8 and shown is not None and QINT8 not in shown.dtypes:
        raise UnavailableError("OpenVINO computes the quantised products of this model in fp32 on this CPU")


prepare, prepare_int8 = partial(_prepare, False), partial(_prepare, True)


class Answering:
    """Any module's graph and its one request; inputs are read where they lie."""

    def __init__(self, model: bytes, form: Form, workload: Workload) -> None:
        import onnx

        self.compiled_model = compiled(model, workload)
        self.request = self.compiled_model.create_infer_request()
        read = {name for one in self.compiled_model.inputs for name in one.names}  # without those that nothing uses
        graph = onnx.load_from_string(model).graph
        self._form, self._places = form, range(len(self.compiled_model.outputs))
        self._names = [one.name if one.name in read else None for one in graph.input]

    def __call__(self, *inputs: Tensor) -> Any:
        named = zip(self._names, inputs, strict=True)
        given = {name: one.contiguous().numpy() for name, one in named if name is not None}
        self.request.infer(given, share_inputs=True, share_outputs=True)
        # Copied: the next call overwrites them.
        return self._form([torch.from_numpy(self.request.get_output_tensor(i).data.copy()) for i in self._places])


def _prepare_module(
    int8: bool, module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload
) -> Callable[..., Any]:
    """Any module, through its ONNX graph, which ONNX Runtime's tool quantises."""
    require("openvino", "openvino", "onnx", "onnxscript")
    if int8:
        require("onnx", "onnxruntime")
    from chatbot.variants.onnx_export import graph_of

    try:
        found = Answering(*graph_of(module, inputs, int8), workload)
    except NoProductError as error:
        raise NothingToDoError(str(error), partial(prepare_module, module, inputs, workload)) from None
    _require_precision(int8, found.compiled_model)
    return found


prepare_module, prepare_module_int8 = partial(_prepare_module, False), partial(_prepare_module, True)
