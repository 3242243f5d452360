"""The ways to execute the chatbot, one file each, and the table of their names.

A variant is a function ``(chatbot, workload) -> callable(prompts, lengths) -> tokens``: prompts (B, T) on the
workload's device, lengths (B,) on the CPU, tokens (B, S). Whatever it prepares (traces, copies, caches)
happens before it returns; the callable is what is timed. Where it can't run it raises ``UnavailableError``. Everything
else follows from its entry in ``VARIANTS``, or, for a variant of your own, from a ``Variant`` in any module, named
``package.module:NAME``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from chatbot.errors import UsageError, one_of
from chatbot.model import Chatbot
from chatbot.variants import (
    bf16,
    compile_cudagraph,
    compiled,
    cuda_graph,
    eager,
    export_aoti,
    inductor,
    int8,
    int8_torchscript,
    native,
    onnx_runtime,
    openvino_runtime,
    plain,
    torchscript,
    torchscript_frozen,
    torchscript_optimized,
)
from chatbot.variants.plain import PrepareModule
from chatbot.variants.program import Compiled
from chatbot.variants.base import DEVICES, Reply, UnavailableError, Workload, is_own

Prepare = Callable[[Chatbot, Workload], Reply]


@dataclass(frozen=True)
class Variant:
    """A way to execute the chatbot, and what it promises."""

    name: str
    summary: str  # one line, for help and report
    prepare: Prepare
    exact: bool  # promises the baseline's replies, but for ties within the arithmetic's noise; else nearly the same
    kind: str  # what the timed program must turn out to be: "eager", "torchscript", or the kind of a ``Compiled``
    dtype: str = "float32"  # and what it must compute in, all of several with "+" between
    devices: tuple[str, ...] = DEVICES
    control_of: str | None = None  # entered to measure the tool's own error: the same program as that variant
    stops_at_eos: bool = False  # it can end a call when every reply has ended
    any_shape: bool = True  # it answers prompts of other sizes than the workload's too
    cached: bool = False  # it keeps compiled artefacts for later launches: its first preparing takes much longer
    prepare_s: float = 0.0  # about how long preparing takes, beyond a script's, once its artefacts are kept: for plans
    ready: Callable[[str], None] | None = None  # raises UnavailableError where a device lacks what it compiles with
    needs: tuple[str, ...] = ()  # beside PyTorch, in words
    prepare_module: PrepareModule | None = None  # the same of any module; None: it needs the chatbot's structure


BASELINE = "eager"
CONTROL = "eager-again"

INT8 = "float32+qint8"  # embeddings and biases stay in fp32
COMPILER, TRITON = "a C++ compiler", "triton"

_TABLE = (
    Variant(
        BASELINE,
        "the Python modules as they are",
        eager.prepare,
        True,
        "eager",
        stops_at_eos=True,
        prepare_module=plain.unchanged,
    ),
    Variant(
        CONTROL,
        "the baseline entered a second time: its speedup is the tool's own error",
        eager.prepare,
        exact=True,
        kind="eager",
        control_of=BASELINE,
        stops_at_eos=True,
        prepare_module=plain.unchanged,
    ),
    Variant(
        "torchscript",
        "encoder and decoder traced, greedy search scripted",
        torchscript.prepare,
        exact=True,
        kind="torchscript",
        stops_at_eos=True,
        prepare_module=torchscript.prepare_module,
    ),
    Variant(
        "torchscript-frozen",
        "the script with its weights inlined as constants",
        torchscript_frozen.prepare,
        exact=True,
        kind="torchscript-frozen",
        stops_at_eos=True,
        prepare_module=torchscript_frozen.prepare_module,
    ),
    Variant(
        "torchscript-optimized",
        "the frozen script rewritten for inference",
        torchscript_optimized.prepare,
        exact=True,
        kind="torchscript-frozen",
        stops_at_eos=True,
        prepare_module=torchscript_optimized.prepare_module,
    ),
    Variant(
        "compile",
        "encoder and decoder step compiled by Inductor, the loop in Python",
        compiled.prepare,
        exact=True,
        kind="inductor",
        stops_at_eos=True,
        any_shape=False,
        cached=True,
        ready=inductor.require_compiler,
        needs=(COMPILER,),
        prepare_s=4.0,
        prepare_module=compiled.prepare_module,
    ),
    Variant(
        "export-aoti",
        "encoder and decoder step exported and compiled ahead of time (AOTInductor), the loop in Python",
        export_aoti.prepare,
        exact=True,
        kind="aoti",
        stops_at_eos=True,
        any_shape=False,
        cached=True,
        ready=inductor.require_compiler,
        needs=(COMPILER,),
        prepare_s=1.0,
    ),
    Variant(
        "bf16",
        "the Python modules in bfloat16",
        bf16.prepare,
        exact=False,
        kind="eager",
        dtype="bfloat16",
        stops_at_eos=True,
        prepare_module=bf16.prepare_module,
    ),
    Variant(
        "int8",
        "GRUs and linear layers quantised dynamically to int8",
        int8.prepare,
        exact=False,
        kind="eager",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        prepare_module=int8.prepare_module,
    ),
    Variant(
        "int8-torchscript",
        "the quantised networks traced, greedy search scripted",
        int8_torchscript.prepare,
        exact=False,
        kind="torchscript",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
    ),
    Variant(
        "onnx",
        "ONNX Runtime, the whole search as one graph",
        onnx_runtime.prepare,
        exact=True,
        kind="onnxruntime",
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[onnx]",),
        prepare_s=1.5,
    ),
    Variant(
        "onnx-int8",
        "ONNX Runtime, int8 weights",
        onnx_runtime.prepare_int8,
        exact=False,
        kind="onnxruntime",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[onnx]",),
        prepare_s=1.0,
    ),
    Variant(
        "openvino",
        "OpenVINO told to compute in fp32, the same graph",
        openvino_runtime.prepare,
        exact=True,
        kind="openvino",
        devices=("cpu",),
        stops_at_eos=True,
        needs=("latency-matrix[openvino]",),
        prepare_s=2.0,
    ),
    Variant(
        "native",
        "one call of C++ compiled for this CPU: fp32, the likeliest token found through a proved 8-bit screen",
        native.prepare,
        exact=True,
        kind="native",
        dtype=INT8,
        devices=("cpu",),
        stops_at_eos=True,
        needs=(COMPILER,),
        prepare_s=1.0,
    ),
    Variant(
        "native-int8",
        "the same, the GRUs' weights in 8 bits and the others in 16",
        native.prepare_int8,
        exact=False,
        kind="native",
        dtype="float32+int16+qint8",
        devices=("cpu",),
        stops_at_eos=True,
        needs=(COMPILER,),
        prepare_s=2.0,
    ),
    Variant(
        "cuda-graph",
        "the whole search captured as one CUDA graph",
        cuda_graph.prepare,
        exact=True,
        kind="cuda-graph",
        devices=("cuda",),
        any_shape=False,
    ),
    Variant(
        "compile-cudagraph",
        "the whole search compiled by Inductor, replayed as one CUDA graph",
        compile_cudagraph.prepare,
        exact=True,
        kind="inductor",
        devices=("cuda",),
        any_shape=False,
        cached=True,
        ready=inductor.require_compiler,
        needs=(COMPILER, TRITON),
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}


def prepared(variant: Variant, chatbot: Chatbot, workload: Workload) -> Reply:
    """The variant's callable for the workload.

    Raises:
        UnavailableError: it can't run here, or not so; the message says why.
    """
    _require_device(variant, workload)
    if workload.stop_at_eos and not variant.stops_at_eos:
        raise UnavailableError("it can't stop at the end of a reply")
    return variant.prepare(chatbot, workload)


def prepared_module(variant: Variant, module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Reply:
    """The variant's callable for a module that is not the chatbot; ``inputs`` are an example of what it is asked.

    Raises:
        UnavailableError: it can't run here, or not this module; the message says why.
    """
    if variant.prepare_module is None:
        raise UnavailableError("it needs the chatbot's structure")
    _require_device(variant, workload)
    return plain.answering(variant.prepare_module(module, inputs, workload))


def _require_device(variant: Variant, workload: Workload) -> None:
    if workload.device not in variant.devices:
        raise UnavailableError(f"it runs on {' and '.join(variant.devices)} only")


def variant_named(name: str) -> Variant:
    """The table's entry, or the ``Variant`` called ``NAME`` in a module: ``package.module:NAME``.

    Raises:
        UsageError: there is none; lists the valid names.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if ":" not in name:
        raise one_of("variant", name, [*VARIANTS, "package.module:NAME"])
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does when it is imported
        cause = str(error).splitlines()[0] if str(error) else ""
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise UsageError(f"variant {name!r} can't be imported: {kind}{cause}") from None
    if not isinstance(found, Variant):
        raise UsageError(f"variant {name!r} is a {type(found).__name__}, not a chatbot.variants.Variant")
    return found


__all__ = [
    "BASELINE",
    "CONTROL",
    "DEVICES",
    "VARIANTS",
    "Compiled",
    "Prepare",
    "PrepareModule",
    "Reply",
    "UnavailableError",
    "Variant",
    "Workload",
    "is_own",
    "prepared",
    "prepared_module",
    "variant_named",
]
