"""The whole greedy search as one ONNX graph: encoder, and a loop of decoder steps within.

Written node by node: PyTorch's exporters keep neither the loop nor packed sequences. Shapes: B prompts, T prompt
tokens, S reply steps, H hidden, V vocabulary; operators as in https://onnx.ai/onnx/operators/, and
``com.microsoft.DynamicQuantizeMatMul`` (ONNX Runtime's own: int8 weights, activations quantised at each call).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.vocabulary import EOS, PAD, SOS

OPSET, IR_VERSION = 18, 9
QUANTISED_DOMAIN = "com.microsoft"
# The largest quantised weight. A CPU without VNNI adds two products of a weight and an activation (at most 255) in 16
# bits, which saturate: 255 * (64 + 64) = 32,640 fits whichever two it takes. As ``reduce_range`` of
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
LARGEST_WEIGHT = 64

Weight = NDArray[np.float32]


def greedy_graph(
    chatbot: Chatbot, int8: bool = False, stop_at_eos: bool = False, written_out: bool = False
) -> onnx.ModelProto:
    """``(prompts (B, T) int64, steps () int64) -> tokens (S, B) int64``, fewer rows where every reply has ended.

    Args:
        chatbot: the weights, which are copied into the graph.
        int8: quantise the weights of GRUs and linear layers.
        stop_at_eos: end the loop when every reply has.
        written_out: the encoder's GRU as single operators, as the decoder's and any in int8 are.
    """
    graph = Graph(int8)
    outputs, hidden, blocked = _encoder(graph, chatbot, written_out or int8)
    tokens = _loop(graph, chatbot, outputs, hidden, blocked, stop_at_eos)
    graph.node("Identity", tokens, output="tokens")
    inputs = [
        helper.make_tensor_value_info("prompts", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("steps", TensorProto.INT64, []),
    ]
    made = graph.made("greedy", inputs, [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["S", "B"])])
    domains = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(QUANTISED_DOMAIN, 1)] if int8 else [])]
    return helper.make_model(made, opset_imports=domains, ir_version=IR_VERSION, producer_name="chatbot")


class Graph:
    """Nodes in the order they are added; weights and constants stay in the outermost graph."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self._nodes: list[list[onnx.NodeProto]] = [[]]
        self._weights: list[onnx.TensorProto] = []
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def nodes(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [self.name() for _ in range(outputs)]
        self._nodes[-1].append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or self.name()
        self._nodes[-1].append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: NDArray[Any] | Sequence[int] | int) -> str:
        array = np.asarray(value) if isinstance(value, np.ndarray) else np.asarray(value, dtype=np.int64)
        self._weights.append(numpy_helper.from_array(array, self.name()))
        return str(self._weights[-1].name)

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Nodes added meanwhile go to the list that is given: the body of a loop."""
        self._nodes.append([])
        try:
            yield self._nodes[-1]
        finally:
            self._nodes.pop()

    def linear(self, values: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> str:
        """Values (..., in) by a weight (out, in) as PyTorch has it, in int8 where the graph is to be so."""
        if not self.int8:
            product = self.node("MatMul", values, self.constant(np.ascontiguousarray(weight.T)))
            return product if bias is None else self.node("Add", product, self.constant(bias))
        scale = (np.abs(weight).max(1) / LARGEST_WEIGHT).clip(1e-12).astype(np.float32)  # of each output
        quantised = np.rint(weight / scale[:, None]).astype(np.int8)
        given = [self.constant(np.ascontiguousarray(quantised.T)), self.constant(scale), ""]
        given += [] if bias is None else [self.constant(bias)]
        return self.node("DynamicQuantizeMatMul", values, *given, domain=QUANTISED_DOMAIN)

    def made(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
        return helper.make_graph(self._nodes[0], name, inputs, outputs, initializer=self._weights)


def _array(parameter: Tensor) -> Weight:
    return np.asarray(parameter.detach().cpu().numpy())


def _gru_weights(gru: nn.GRU, name: str) -> tuple[Weight, Weight, Weight, Weight]:
    found = [_array(getattr(gru, f"{part}_{name}")) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return found[0], found[1], found[2], found[3]


def _gated(graph: Graph, inputs: str, states: str, before: str) -> str:
    """``chatbot.variants.masked.gated``."""
    reset_in, update_in, new_in = graph.nodes("Split", inputs, outputs=3, axis=-1, num_outputs=3)
    reset_of, update_of, new_of = graph.nodes("Split", states, outputs=3, axis=-1, num_outputs=3)
    update = graph.node("Sigmoid", graph.node("Add", update_in, update_of))
    reset = graph.node("Sigmoid", graph.node("Add", reset_in, reset_of))
    new = graph.node("Tanh", graph.node("Add", new_in, graph.node("Mul", reset, new_of)))
    return graph.node("Add", new, graph.node("Mul", update, graph.node("Sub", before, new)))


def _encoder(graph: Graph, chatbot: Chatbot, written_out: bool) -> tuple[str, str, str]:
    """Outputs (T, B, H), the decoder's first states (layers, B, H), where prompts are padded (T, B)."""
    config, encoder = chatbot.config, chatbot.encoder
    tokens = graph.node("Transpose", "prompts", perm=[1, 0])
    blocked = graph.node("Equal", tokens, graph.constant(PAD))
    outputs = graph.node("Gather", graph.constant(_array(encoder.embedding.weight)), tokens)
    finals: list[str] = []
    live = graph.node("Not", blocked)
    for layer in range(config.encoder_layers):
        of = _layer_written_out if written_out else _layer
        both, final = of(graph, encoder.gru, layer, outputs, live)
        outputs = graph.node("Reshape", both, graph.constant([0, 0, -1]))  # (T, B, 2H)
        finals.append(final)
    forth, back = graph.nodes("Split", outputs, outputs=2, axis=-1, num_outputs=2)
    hidden = graph.node("Concat", *finals, axis=0)
    first = graph.node("Slice", hidden, graph.constant([0]), graph.constant([config.decoder_layers]))
    return graph.node("Add", forth, back), first, blocked


def _layer(graph: Graph, gru: nn.GRU, layer: int, inputs: str, live: str) -> tuple[str, str]:
    """Both directions by ONNX's GRU, whose gates stand as update, reset, new: (T, B, 2, H), (2, B, H)."""
    ways = [_gru_weights(gru, f"l{layer}{suffix}") for suffix in ("", "_reverse")]
    counted = graph.node("Cast", live, to=TensorProto.INT32)
    lengths = graph.node("ReduceSum", counted, graph.constant([0]), keepdims=0)

    def order(weight: Weight) -> Weight:
        reset, update, new = np.split(weight, 3)
        return np.concatenate([update, reset, new])

    into, of_state = np.stack([order(way[0]) for way in ways]), np.stack([order(way[1]) for way in ways])
    bias = np.stack([np.concatenate([order(way[2]), order(way[3])]) for way in ways])
    outputs, final = graph.nodes(
        "GRU",
        inputs,
        *(graph.constant(weight) for weight in (into, of_state, bias)),
        lengths,
        outputs=2,
        direction="bidirectional",
        hidden_size=gru.hidden_size,
        linear_before_reset=1,
    )
    return graph.node("Transpose", outputs, perm=[0, 2, 1, 3]), final


def _layer_written_out(graph: Graph, gru: nn.GRU, layer: int, inputs: str, live: str) -> tuple[str, str]:
    """Both directions by a scan over the steps; where ``live`` (T, B) is false a prompt has ended."""
    live = graph.node("Unsqueeze", live, graph.constant([2]))
    ways, finals = [], []
    for backwards, suffix in enumerate(("", "_reverse")):
        of_input, of_state, bias_in, bias_of = _gru_weights(gru, f"l{layer}{suffix}")
        weighted = graph.linear(inputs, of_input, bias_in)  # (T, B, 3H)
        size = graph.node("Shape", inputs, start=1, end=2)
        shape = graph.node("Concat", size, graph.constant([gru.hidden_size]), axis=0)
        start = graph.node("Expand", graph.constant(np.zeros(1, dtype=np.float32)), shape)
        before, weighted_t, live_t, after, out = (graph.name() for _ in range(5))
        with graph.body() as nodes:
            state = _gated(graph, weighted_t, graph.linear(before, of_state, bias_of), before)
            graph.node("Where", live_t, state, before, output=after)
            graph.node("Where", live_t, after, graph.constant(np.zeros((), dtype=np.float32)), output=out)
        floats, flags = TensorProto.FLOAT, TensorProto.BOOL
        body = helper.make_graph(
            nodes,
            after,
            [
                helper.make_tensor_value_info(before, floats, ["B", gru.hidden_size]),
                helper.make_tensor_value_info(weighted_t, floats, ["B", 3 * gru.hidden_size]),
                helper.make_tensor_value_info(live_t, flags, ["B", 1]),
            ],
            [helper.make_tensor_value_info(name, floats, ["B", gru.hidden_size]) for name in (after, out)],
        )
        ways_in = {"scan_input_directions": [backwards] * 2, "scan_output_directions": [backwards]}
        final, way = graph.nodes("Scan", start, weighted, live, outputs=2, body=body, num_scan_inputs=2, **ways_in)
        ways.append(graph.node("Unsqueeze", way, graph.constant([2])))
        finals.append(graph.node("Unsqueeze", final, graph.constant([0])))
    return graph.node("Concat", *ways, axis=2), graph.node("Concat", *finals, axis=0)


def _loop(graph: Graph, chatbot: Chatbot, outputs: str, hidden: str, blocked: str, stop_at_eos: bool) -> str:
    """Tokens (S, B)."""
    batch = graph.node("Shape", "prompts", start=0, end=1)
    first = graph.node("Expand", graph.constant([SOS]), batch)
    unfinished = graph.node("Expand", graph.constant(np.array([False])), batch)
    keys = _keys(graph, chatbot, outputs)
    values = graph.node("Transpose", outputs, perm=[1, 0, 2])  # (B, T, H)
    number, going, token, state, ended = (graph.name() for _ in range(5))
    with graph.body() as nodes:
        after, best = _step(graph, chatbot, token, state, keys, values, blocked)
        finished = graph.node("Or", ended, graph.node("Equal", best, graph.constant(EOS)))
        still = graph.node("Identity", going)
        if stop_at_eos:
            every = graph.node("ReduceMin", graph.node("Cast", finished, to=TensorProto.INT32), keepdims=0)
            still = graph.node("Not", graph.node("Cast", every, to=TensorProto.BOOL))
        written = graph.node("Identity", best)
    integer, flag = TensorProto.INT64, TensorProto.BOOL
    shapes: dict[str, tuple[int, list[int | str]]] = {number: (integer, []), going: (flag, []), still: (flag, [])}
    shapes |= {name: (integer, ["B"]) for name in (token, best, written)}
    shapes |= {name: (flag, ["B"]) for name in (ended, finished)}
    wide: list[int | str] = [chatbot.config.decoder_layers, "B", chatbot.config.hidden]
    shapes |= dict.fromkeys((state, after), (TensorProto.FLOAT, wide))
    info = {name: helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()}
    body = helper.make_graph(
        nodes,
        "step",
        [info[name] for name in (number, going, token, state, ended)],
        [info[name] for name in (still, best, after, finished, written)],
    )
    go = graph.constant(np.array(True))
    return graph.nodes("Loop", "steps", go, first, hidden, unfinished, outputs=4, body=body)[3]


def _keys(graph: Graph, chatbot: Chatbot, outputs: str) -> str:
    """The part of the attention that is the same in every step: (T, B, H)."""
    attention = chatbot.decoder.attn
    if attention.method == "dot":
        return outputs
    weight, bias = _array(attention.attn.weight), _array(attention.attn.bias)
    if attention.method == "concat":
        weight = weight[:, weight.shape[1] // 2 :]
    return graph.linear(outputs, weight, bias)


def _energies(graph: Graph, chatbot: Chatbot, state: str, keys: str) -> str:
    """State (B, H) against keys (T, B, H) -> (T, B)."""
    attention = chatbot.decoder.attn
    if attention.method == "concat":
        weight = _array(attention.attn.weight)
        query = graph.linear(state, weight[:, : weight.shape[1] // 2], None)
        mixed = graph.node("Tanh", graph.node("Add", query, keys))
        product = graph.node("Mul", mixed, graph.constant(_array(attention.v)))
    else:
        product = graph.node("Mul", state, keys)
    return graph.node("ReduceSum", product, graph.constant([2]), keepdims=0)


def _step(
    graph: Graph, chatbot: Chatbot, token: str, hidden: str, keys: str, values: str, blocked: str
) -> tuple[str, str]:
    """``chatbot.variants.masked.Step``: hidden (layers, B, H), token (B,)."""
    decoder, layers = chatbot.decoder, chatbot.config.decoder_layers
    state = graph.node("Gather", graph.constant(_array(decoder.embedding.weight)), token)
    befores = graph.nodes("Split", hidden, outputs=layers, axis=0, num_outputs=layers) if layers > 1 else [hidden]
    states: list[str] = []
    for layer, before in enumerate(befores):
        before = graph.node("Squeeze", before, graph.constant([0]))
        of_input, of_state, bias_in, bias_of = _gru_weights(decoder.gru, f"l{layer}")
        state = _gated(graph, graph.linear(state, of_input, bias_in), graph.linear(before, of_state, bias_of), before)
        states.append(graph.node("Unsqueeze", state, graph.constant([0])))
    energies = _energies(graph, chatbot, state, keys)
    masked = graph.node("Where", blocked, graph.constant(np.array(-np.inf, dtype=np.float32)), energies)
    weights = graph.node("Softmax", graph.node("Transpose", masked, perm=[1, 0]), axis=1)
    context = graph.node("MatMul", graph.node("Unsqueeze", weights, graph.constant([1])), values)
    joined = graph.node("Concat", state, graph.node("Squeeze", context, graph.constant([1])), axis=1)
    mixed = graph.node("Tanh", graph.linear(joined, _array(decoder.concat.weight), _array(decoder.concat.bias)))
    logits = graph.linear(mixed, _array(decoder.out.weight), _array(decoder.out.bias))
    return graph.node("Concat", *states, axis=0), graph.node("ArgMax", logits, axis=1, keepdims=0)
