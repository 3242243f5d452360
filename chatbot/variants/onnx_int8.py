"""The products of an ONNX graph in int8: constant weights quantised, values quantised at each call, without samples.

ONNX Runtime's tool writes a product as five operators. They become the one that the runtime fuses them into itself, and
by which OpenVINO knows that they are a product in 8 bits: it computes the five in fp32.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import NodeProto, helper

from chatbot.variants.base import NoProductError

QUANTISED = ("MatMul", "Gemm")  # the operators whose constant weights are quantised
DOMAIN = "com.microsoft"
FUSED = "DynamicQuantizeMatMul"


def quantise(plain: Path, made: Path) -> None:
    """Writes the graph of ``plain`` with symmetric weights of 7 bits: see ``onnx_graph.LARGEST_WEIGHT``.

    Raises:
        NoProductError: it has no product with constant weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(plain, made, list(QUANTISED), per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    model = onnx.load(str(made))
    if onnx.TensorProto.INT8 not in {weight.data_type for weight in model.graph.initializer if weight.dims}:
        raise NoProductError("this model has no product with constant weights to quantise")
    fuse(model)
    made.write_bytes(model.SerializeToString())


def fuse(model: onnx.ModelProto) -> None:
    """Writes each quantised product of a graph as one operator, in place."""
    nodes = model.graph.node
    makers = {name: node for node in nodes for name in node.output}
    fused = [_product(node, makers) or node for node in nodes]
    needed = list(_needed(fused, [one.name for one in model.graph.output]))
    del nodes[:]
    nodes.extend(needed)
    if DOMAIN not in {one.domain for one in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _product(last: NodeProto, makers: Mapping[str, NodeProto]) -> NodeProto | None:
    """One operator for ``Cast(MatMulInteger(quantised values, weights)) * (scale of values * scales of weights)``."""
    found = _chain(last, ("Mul", "Cast", "MatMulInteger", "DynamicQuantizeLinear"), makers)
    scales = makers.get(last.input[1]) if len(last.input) > 1 else None
    if found is None or scales is None or scales.op_type != "Mul":
        return None
    product, values = found[2], found[3].input[0]
    _, weights, _, zeros = product.input
    given = [values, weights, scales.input[1], zeros]
    return helper.make_node(FUSED, given, last.output, name=last.name, domain=DOMAIN)


def _chain(last: NodeProto, kinds: Sequence[str], makers: Mapping[str, NodeProto]) -> list[NodeProto] | None:
    """The nodes of these kinds, each the maker of the first input of the one before; None if they are others."""
    found = [last]
    for kind in kinds[1:]:
        maker = makers.get(found[-1].input[0]) if found[-1].input else None
        if maker is None or maker.op_type != kind:
            return None
        found.append(maker)
    return found if last.op_type == kinds[0] else None


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> Iterator[NodeProto]:
    """The nodes that the outputs follow from, in order."""
    read, kept = {*outputs}, []
    for node in reversed(nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    yield from reversed(kept)
