"""Dynamically quantised layers, for a PyTorch without ``quantize_dynamic``: the same operators, the same numbers.

A weight is kept in int8 with one scale for the whole matrix; what is multiplied with it is quantised at each call.
PyTorch's Python modules for this go first (torch.ao.quantization, torch.ao.nn.quantized); their operators are part of
the library, where TorchScript files need them. Those take quantised tensors, which are deprecated in their turn since
torch 2.13 (https://github.com/pytorch/pytorch/issues/184982): without these there is nothing to stand on.

Source: https://pytorch.org/docs/stable/generated/torch.ao.quantization.quantize_dynamic.html
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chatbot.variants.base import UnavailableError

LEAST_SCALE = torch.finfo(torch.float32).eps  # of a weight that is 0 everywhere
STEPS = 127.5  # half of int8's 255: its range, -128 to 127, is not symmetric
OPERATORS = ("linear_prepack", "linear_dynamic", "make_quantized_cell_params_dynamic")  # of torch.ops.quantized
FUNCTIONS = ("qint8", "quantize_per_tensor", "quantized_gru", "quantized_lstm")  # of torch


def require_operators() -> None:
    """Raises UnavailableError if this PyTorch has dropped the operators, or the tensors that they take, too."""
    needed = [(torch.ops.quantized, name) for name in OPERATORS] + [(torch, name) for name in FUNCTIONS]
    if lacking := [name for place, name in needed if not hasattr(place, name)]:
        raise UnavailableError(
            f"torch {torch.__version__} has no dynamic quantisation any more (no {', '.join(lacking)}); "
            "onnx-int8 and openvino-int8 bring their own"
        )


def with_quantised_layers(module: nn.Module, kinds: set[type[nn.Module]]) -> nn.Module:
    """A copy in evaluation mode, every layer of exactly these kinds (of nn.Linear, nn.GRU, nn.LSTM) in int8.

    Raises:
        UnavailableError: this PyTorch lacks the operators, or a recurrent layer has a form that they don't know.
    """
    require_operators()
    with torch.no_grad():
        return _converted(copy.deepcopy(module), kinds).eval()


def _converted(module: nn.Module, kinds: set[type[nn.Module]]) -> nn.Module:
    if type(module) in kinds:
        return QuantizedRecurrent(module) if isinstance(module, nn.RNNBase) else QuantizedLinear(module)
    for name, part in module.named_children():
        setattr(module, name, _converted(part, kinds))
    return module


def packed(weight: Tensor, bias: Tensor | None) -> Any:
    """A weight (out, in) in int8 and a bias (out,), in the form that this CPU's engine multiplies with."""
    weight = weight.detach().float()
    scale = max(float(weight.abs().max() / STEPS), LEAST_SCALE)
    quantised = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.detach().float())


class Held(nn.Module):
    """Holds packed weights: a trace finds them as a module's attribute, not within a list."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = weights


class QuantizedLinear(nn.Module):
    """``nn.Linear`` in int8: values (..., in) -> (..., out) of the same type."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weights = packed(linear.weight, linear.bias)

    def forward(self, values: Tensor) -> Tensor:
        """See ``nn.Linear.forward``."""
        product: Tensor = torch.ops.quantized.linear_dynamic(values, self.weights, reduce_range=True)
        return product.to(values.dtype)


class QuantizedRecurrent(nn.Module):
    """``nn.GRU`` or ``nn.LSTM`` in int8, over a padded or a packed sequence."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        if not layer.bias or layer.proj_size:
            raise UnavailableError("dynamic quantisation takes recurrent layers with biases and without projections")
        self.of = torch.quantized_gru if layer.mode == "GRU" else torch.quantized_lstm
        self.lstm, self.hidden, self.layers = layer.mode == "LSTM", layer.hidden_size, layer.num_layers
        self.batch_first, self.bidirectional = layer.batch_first, layer.bidirectional
        self.cells = nn.ModuleList(Held(_cell(*weights)) for weights in layer.all_weights)

    def forward(self, values: Any, state: Any = None) -> tuple[Any, Any]:
        """See ``nn.GRU.forward`` and ``nn.LSTM.forward``; no batch dimension may be left out."""
        if not isinstance(values, PackedSequence):
            state = state if state is not None else self._zeros(values, values.size(0 if self.batch_first else 1))
            return self._ran((values,), state, (self.batch_first,))
        data, sizes, order, back = values
        rows = int(sizes[0]) if order is None else order.size(0)  # the latter is not baked into a trace
        first = _permuted(state, order) if state is not None else self._zeros(data, rows)
        answer, last = self._ran((data, sizes), first, ())
        return PackedSequence(answer, sizes, order, back), _permuted(last, back)

    def _zeros(self, like: Tensor, rows: int) -> Any:
        zeros = torch.zeros(len(self.cells), rows, self.hidden, dtype=like.dtype)
        return (zeros, zeros) if self.lstm else zeros

    def _ran(self, values: tuple[Tensor, ...], state: Any, form: tuple[bool, ...]) -> tuple[Tensor, Any]:
        cells = [cell.weights for cell in self.cells]
        settings = (True, self.layers, 0.0, False, self.bidirectional, *form)  # biases, no dropout, no training
        if not self.lstm:
            answer, last = self.of(*values, state, cells, *settings)
            return answer, last
        answer, *both = self.of(*values, state, cells, *settings, dtype=torch.qint8, use_dynamic=True)
        return answer, tuple(both)


def _cell(by_input: Tensor, by_state: Tensor, input_bias: Tensor, state_bias: Tensor) -> Any:
    """The packed weights of one layer in one direction; the activations keep to 7 bits (see linear_dynamic)."""
    biases = input_bias.detach(), state_bias.detach()
    weights = packed(by_input, biases[0]), packed(by_state, biases[1])
    return torch.ops.quantized.make_quantized_cell_params_dynamic(*weights, *biases, True)


def _permuted(state: Any, order: Tensor | None) -> Any:
    """A state (layers, B, H), or a pair of them, with its rows in this order."""
    if order is None:
        return state
    if isinstance(state, tuple):
        return tuple(one.index_select(1, order) for one in state)
    return state.index_select(1, order)
