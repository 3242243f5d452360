"""ONNX Runtime: the whole search, or any module, as one graph, in fp32 or with int8 weights; all in bound buffers.

Source: https://onnxruntime.ai/docs/api/python/api_summary.html
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants.base import NoProductError, NothingToDoError, Reply, UnavailableError, Workload, varying
from chatbot.variants.exported import Form, require
from chatbot.variants.search import filled

HELP = "pip install 'latency-matrix[onnx]'"
TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def session_of(model: bytes, workload: Workload) -> Any:
    """A session of a graph on one thread pool, which spins nowhere."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = workload.threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class BoundSession:
    """A session of the chatbot's search."""

    def __init__(self, model: bytes, workload: Workload) -> None:
        self.session = session_of(model, workload)
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
    return BoundSession(model.SerializeToString(), workload)


prepare, prepare_int8 = partial(_prepare, False), partial(_prepare, True)


def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


class Answering:
    """A session of any module's graph: it reads inputs where they lie, and writes each answer to tensors of its own.

    ``open_lengths``: the lengths of an answer may follow from those of the inputs; the runtime makes its tensors then.
    """

    def __init__(self, model: bytes, form: Form, workload: Workload, open_lengths: bool = False) -> None:
        self.session = session_of(model, workload)
        self.binding: Any = self.session.io_binding()
        self._form = form
        self._inputs = [(one.name, _numpy(TYPES[one.type])) for one in self.session.get_inputs()]
        self._outputs = [(one.name, TYPES[one.type], tuple(one.shape)) for one in self.session.get_outputs()]
        self._open = any(not isinstance(size, int) for _, _, shape in self._outputs for size in shape)
        if self._open and not open_lengths:
            raise UnavailableError("the shape of the model's answer depends on its inputs' values")
        self._types = {dtype: _numpy(dtype) for _, dtype, _ in self._outputs}

    def __call__(self, *inputs: Tensor) -> Any:
        binding, given = self.binding, [one.contiguous() for one in inputs]
        for (name, kind), tensor in zip(self._inputs, given, strict=True):
            binding.bind_input(name, "cpu", 0, kind, tuple(tensor.shape), tensor.data_ptr())
        if self._open:
            for name, _, _ in self._outputs:
                binding.bind_output(name, "cpu")
            self.session.run_with_iobinding(binding)
            return self._form([torch.from_numpy(one) for one in binding.copy_outputs_to_cpu()])
        tensors = [torch.empty(shape, dtype=dtype) for _, dtype, shape in self._outputs]
        for (name, dtype, shape), tensor in zip(self._outputs, tensors, strict=True):
            binding.bind_output(name, "cpu", 0, self._types[dtype], shape, tensor.data_ptr())
        self.session.run_with_iobinding(binding)
        return self._form(tensors)


def _prepare_module(
    int8: bool, module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload
) -> Callable[..., Any]:
    require("onnx", "onnxruntime", "onnx", "onnxscript")
    from chatbot.variants.onnx_export import graph_of

    try:
        return Answering(*graph_of(module, inputs, int8), workload, any(varying(inputs)))
    except NoProductError as error:
        raise NothingToDoError(str(error), partial(prepare_module, module, inputs, workload)) from None


prepare_module, prepare_module_int8 = partial(_prepare_module, False), partial(_prepare_module, True)
