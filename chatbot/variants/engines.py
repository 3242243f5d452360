"""Reads what engines other than PyTorch's modules execute from their own sessions, without importing any engine."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from chatbot.variants.base import Compiled

# As PyTorch calls them; integers count as quantised weights.
ONNX_TYPES = {1: "float32", 2: "quint8", 3: "qint8", 10: "float16", 11: "float64", 16: "bfloat16"}
OPENVINO_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "qint8", "u8": "quint8"}
OPENVINO_LAYERS = ("FullyConnected", "MatMul", "RNNCell", "RNNSeq")  # that hold the weights
UNKNOWN = "unknown"


def engine_of(value: object) -> Compiled | None:
    """The program of an engine's object; None if the engine is unknown."""
    kind = type(value)
    reader = READERS.get((kind.__module__, kind.__name__))
    return None if reader is None else reader(value)


def _identity(kind: str, parts: Iterable[bytes | str]) -> str:
    content = b"\n".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    return f"{kind}:{hashlib.sha256(content).hexdigest()}"


def _onnx_session(session: Any) -> Compiled:
    """The first provider executes what it can; the weights are those of the model that the session was created from."""
    provider = session.get_providers()[0].removesuffix("ExecutionProvider").lower()
    try:
        import onnx

        given = session._model_bytes
        model = onnx.load_from_string(given) if given else onnx.load(session._model_path)
    except ImportError:
        return Compiled("onnxruntime", frozenset({provider}), frozenset({UNKNOWN}), "onnxruntime")
    held = {ONNX_TYPES[weight.data_type] for weight in model.graph.initializer if weight.data_type in ONNX_TYPES}
    nodes = [node.SerializeToString(deterministic=True) for node in model.graph.node]
    return Compiled("onnxruntime", frozenset({provider}), frozenset(held), _identity("onnxruntime", nodes))


def _openvino_model(model: Any) -> Compiled:
    """The precision that the plugin was configured for, and that of its layers with weights."""
    devices = frozenset(name.split(".")[0].lower() for name in model.get_property("EXECUTION_DEVICES"))
    told = str(model.get_property("INFERENCE_PRECISION_HINT").to_string())
    layers = [_openvino_layer(layer) for layer in model.get_runtime_model().get_ops()]
    computed = {told, *(precision for layer, precision in layers if layer in OPENVINO_LAYERS)}
    dtypes = frozenset(OPENVINO_TYPES.get(name, name) for name in computed)
    return Compiled("openvino", devices, dtypes, _identity("openvino", (layer for layer, _ in layers)))


def _openvino_layer(layer: Any) -> tuple[str, str]:
    facts = layer.get_rt_info()
    return tuple(str(getattr(facts[name], "value", facts[name])) for name in ("layerType", "runtimePrecision"))  # type: ignore[return-value]


def _aoti_library(library: Any) -> Compiled:
    """The device it was compiled for; its precision is that of the weights it was given."""
    facts = library.get_metadata()
    names = library.get_constant_fqns()
    return Compiled("aoti", frozenset({facts["AOTI_DEVICE_KEY"]}), frozenset(), _identity("aoti", sorted(names)))


def _cuda_graph(graph: Any) -> Compiled:
    """A captured graph can't be read; the modules next to it can."""
    return Compiled("cuda-graph", frozenset({"cuda"}), frozenset(), "cuda-graph")


READERS: dict[tuple[str, str], Callable[[Any], Compiled]] = {
    ("onnxruntime.capi.onnxruntime_inference_collection", "InferenceSession"): _onnx_session,
    ("openvino._ov_api", "CompiledModel"): _openvino_model,
    ("torch.export.pt2_archive._package", "AOTICompiledModel"): _aoti_library,
    ("torch.cuda.graphs", "CUDAGraph"): _cuda_graph,
}
