"""The ways to execute the chatbot, one file each, and the table of their names.

A variant is a function ``(chatbot, workload) -> callable(prompts, lengths) -> tokens``: prompts (B, T) on the
workload's device, lengths (B,) on the CPU, tokens (B, S). Whatever it prepares (traces, copies, caches)
happens before it returns; the callable is what is timed. Where it can't run it raises ``UnavailableError``. Everything
else follows from its entry in ``VARIANTS``, or, for a variant of your own, from a ``Variant`` in any module, named
``package.module:NAME``. The table names functions by import path: a command that only names variants loads no PyTorch.
"""

import re

from chatbot.errors import one_of
from chatbot.variants.base import (
    DEVICES,
    MODELS,
    OWN_MODEL,
    UNTRIED,
    Compiled,
    Imported,
    Prepare,
    PrepareModule,
    Reply,
    UnavailableError,
    Variant,
    Workload,
    is_own,
    own_variant,
    prepared,
    prepared_module,
)

BASELINE = "eager"
CONTROL = "eager-again"
OWN_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:NAME

INT8 = "float32+qint8"  # embeddings and biases stay in fp32
COMPILER, TRITON, NVRTC = "a C++ compiler", "triton", "NVRTC"


def _at(place: str) -> Imported:
    return Imported(f"chatbot.variants.{place}")


EAGER, EAGER_MODULE = _at("eager:prepare"), _at("eager:prepare_module")
REQUIRE_COMPILER = _at("inductor:require_compiler")

_TABLE = (
    Variant(
        BASELINE,
        "the Python modules as they are",
        EAGER,
        exact=True,
        kind="eager",
        stops_at_eos=True,
        prepare_module=EAGER_MODULE,
    ),
    Variant(
        CONTROL,
        "the baseline entered a second time: its speedup is the tool's own error",
        EAGER,
        exact=True,
        kind="eager",
        control_of=BASELINE,
        stops_at_eos=True,
        prepare_module=EAGER_MODULE,
    ),
    Variant(
        "torchscript",
        "encoder and decoder traced, greedy search scripted",
        _at("torchscript:prepare"),
        exact=True,
        kind="torchscript",
        stops_at_eos=True,
        prepare_module=_at("torchscript:prepare_module"),
    ),
    Variant(
        "torchscript-frozen",
        "the script with its weights inlined as constants",
        _at("torchscript:prepare_frozen"),
        exact=True,
        kind="torchscript-frozen",
        stops_at_eos=True,
        prepare_module=_at("torchscript:prepare_module_frozen"),
    ),
    Variant(
        "torchscript-optimized",
        "the frozen script rewritten for inference",
        _at("torchscript:prepare_optimized"),
        exact=True,
        kind="torchscript-frozen",
        stops_at_eos=True,
        prepare_module=_at("torchscript:prepare_module_optimized"),
    ),
    Variant(
        "compile",
        "encoder and decoder step compiled by Inductor, the loop in Python",
        _at("compiled:prepare"),
        exact=True,
        kind="inductor",
        stops_at_eos=True,
        any_shape=False,
        cached=True,
        ready=REQUIRE_COMPILER,
        needs=(COMPILER,),
        prepare_s=4.0,
        prepare_module=_at("compiled:prepare_module"),
    ),
    Variant(
        "export-aoti",
        "encoder and decoder step exported and compiled ahead of time (AOTInductor), the loop in Python",
        _at("export_aoti:prepare"),
        exact=True,
        kind="aoti",
        stops_at_eos=True,
        any_shape=False,
        cached=True,
        ready=REQUIRE_COMPILER,
        needs=(COMPILER,),
        prepare_s=1.0,
        prepare_module=_at("export_aoti:prepare_module"),
    ),
    Variant(
        "bf16",
        "the Python modules in bfloat16",
        _at("bf16:prepare"),
        exact=False,
        kind="eager",
        dtype="bfloat16",
        stops_at_eos=True,
        prepare_module=_at("bf16:prepare_module"),
    ),
    Variant(
        "tf32",
        "the Python modules, products with inputs rounded to TF32 for tensor cores",
        _at("tf32:prepare"),
        exact=False,
        kind="eager",
        product="tf32",
        devices=("cuda",),
        stops_at_eos=True,
        untried=True,
        prepare_module=_at("tf32:prepare_module"),
    ),
    Variant(
        "int8",
        "GRUs and linear layers quantised dynamically to int8",
        _at("int8:prepare"),
        exact=False,
        kind="eager",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        prepare_module=_at("int8:prepare_module"),
    ),
    Variant(
        "int8-torchscript",
        "the quantised networks traced, greedy search scripted",
        _at("int8:prepare_script"),
        exact=False,
        kind="torchscript",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        prepare_module=_at("int8:prepare_module_script"),
    ),
    Variant(
        "onnx",
        "ONNX Runtime, the whole search as one graph",
        _at("onnx_runtime:prepare"),
        exact=True,
        kind="onnxruntime",
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[onnx]",),
        prepare_s=1.5,
        prepare_module=_at("onnx_runtime:prepare_module"),
    ),
    Variant(
        "onnx-int8",
        "ONNX Runtime, int8 weights",
        _at("onnx_runtime:prepare_int8"),
        exact=False,
        kind="onnxruntime",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[onnx]",),
        prepare_s=1.0,
        prepare_module=_at("onnx_runtime:prepare_module_int8"),
    ),
    Variant(
        "openvino",
        "OpenVINO set to compute in fp32, the same graph",
        _at("openvino_runtime:prepare"),
        exact=True,
        kind="openvino",
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[openvino]",),
        prepare_s=2.0,
        prepare_module=_at("openvino_runtime:prepare_module"),
    ),
    Variant(
        "openvino-int8",
        "OpenVINO, the graph of onnx-int8",
        _at("openvino_runtime:prepare_int8"),
        exact=False,
        kind="openvino",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[openvino]", "latency-matrix[onnx]"),  # whose tool quantises models of one's own
        prepare_s=1.0,
        prepare_module=_at("openvino_runtime:prepare_module_int8"),
    ),
    Variant(
        "native",
        "one call of C++ compiled for this CPU: fp32, the likeliest token found through a proved 8-bit screen",
        _at("native:prepare"),
        exact=True,
        kind="native",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        cached=True,
        needs=(COMPILER,),
        prepare_s=1.0,
    ),
    Variant(
        "native-int8",
        "the same, the GRUs' weights in 8 bits and the others in 16",
        _at("native:prepare_int8"),
        exact=False,
        kind="native",
        dtype="float32+int16+qint8",
        devices=("cpu",),
        stops_at_eos=True,
        cached=True,
        needs=(COMPILER,),
        prepare_s=2.0,
    ),
    Variant(
        "cuda-graph",
        "the whole search captured as one CUDA graph",
        _at("cuda_graph:prepare"),
        exact=True,
        kind="cuda-graph",
        devices=("cuda",),
        any_shape=False,
        untried=True,
        prepare_module=_at("cuda_graph:prepare_module"),
    ),
    Variant(
        "triton-graph",
        "three kinds of Triton kernels, captured as one CUDA graph",
        _at("triton_graph:prepare"),
        exact=True,
        kind="cuda-graph",
        devices=("cuda",),
        any_shape=False,
        cached=True,
        ready=REQUIRE_COMPILER,
        needs=(COMPILER, TRITON),
        prepare_s=2.0,
        untried=True,
    ),
    Variant(
        "persistent",
        "the whole search as one CUDA kernel, its weights kept in the shared memory of all multiprocessors",
        _at("persistent:prepare"),
        exact=True,
        kind="persistent",
        devices=("cuda",),
        stops_at_eos=True,
        any_shape=False,
        cached=True,
        needs=(NVRTC,),
        prepare_s=1.0,
        untried=True,
    ),
    Variant(
        "compile-cudagraph",
        "the whole search compiled by Inductor, replayed as one CUDA graph",
        _at("cuda_graph:prepare_compiled"),
        exact=True,
        kind="inductor",
        devices=("cuda",),
        any_shape=False,
        cached=True,
        ready=REQUIRE_COMPILER,
        needs=(COMPILER, TRITON),
        prepare_s=15.0,  # Dynamo's tracing of every step, which no cache keeps; not measured on a GPU yet
        untried=True,
        prepare_module=_at("cuda_graph:prepare_module_compiled"),
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}


def variant_named(name: str) -> Variant:
    """The table's entry, or the ``Variant`` called ``NAME`` in a module: ``package.module:NAME``.

    Raises:
        UsageError: there is none; lists the valid names.
    """
    if ":" not in name:
        require_name(name)
    return VARIANTS[name] if name in VARIANTS else own_variant(name)


def require_name(name: str) -> None:
    """Raises UsageError for a name that is neither in the table nor ``package.module:NAME``; imports nothing."""
    if name not in VARIANTS and not OWN_NAME.fullmatch(name):
        raise one_of("variant", name, [*VARIANTS, "package.module:NAME"])


def load() -> None:
    """Imports the functions of every entry now, so that the first to be prepared does not pay for it."""
    for variant in VARIANTS.values():
        for entry in (variant.prepare, variant.prepare_module, variant.ready):
            if isinstance(entry, Imported):
                entry.function()


__all__ = [
    "BASELINE",
    "CONTROL",
    "DEVICES",
    "MODELS",
    "OWN_MODEL",
    "UNTRIED",
    "VARIANTS",
    "Compiled",
    "Prepare",
    "PrepareModule",
    "Reply",
    "UnavailableError",
    "Variant",
    "Workload",
    "is_own",
    "load",
    "prepared",
    "prepared_module",
    "require_name",
    "variant_named",
]
