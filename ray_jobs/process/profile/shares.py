"""The division of a traced reply's wall time: kernels, dispatch, and what runs between operators.

Every moment of a reply belongs to one of three. On the CPU it is decided by the innermost operator that runs then:

- **kernel**: an operator with an implementation of its own for the device, its entry through the dispatcher included;
- **dispatch**: an operator that only arranges: calls others (``aten::linear``, ``aten::gru``), creates a view
  (``aten::transpose``) or allocates memory (``aten::empty``), by PyTorch's own registry; a call of CUDA's runtime;
- **interpreter**: no operator at all: Python and its modules or, in a scripted search, TorchScript's interpreter.

On CUDA the device's own activity is the kernels; while it idles, the CPU's operators distinguish the two others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ray_jobs.process.profile.phases import CALL, ENCODE, REPLY, STEP

KERNEL, DISPATCH, INTERPRETER = "kernel", "dispatch", "interpreter"
BACKENDS = ("CPU", "CUDA")
TAKE_MEMORY = {"aten::empty", "aten::empty_strided", "aten::resize_", "aten::set_"}
COPY = "aten::copy_"  # registered as made of others, yet it moves the bytes itself
RUNTIME = re.compile("cu(da)?[A-Z]")  # cudaLaunchKernel, cuLaunchKernelEx, ...
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}  # categories of a trace's events

TraceEvent = Mapping[str, Any]  # of the Trace Event Format
Span = tuple[float, float]


@dataclass(frozen=True)
class Shares:
    """The fastest traced reply, least disturbed by others; the three kinds add up to it. Tracing makes it longer."""

    reply_ms: float
    kernel_ms: float
    dispatch_ms: float
    interpreter_ms: float
    encode_ms: float | None  # None: its phases can't be told apart
    decode_ms: float | None


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    """The kind of an operator's own time: ``kernel`` or ``dispatch``; ``interpreter`` for anything else."""
    if "::" not in name:
        return DISPATCH if RUNTIME.match(name) else INTERPRETER
    schemas = [s for s in torch._C._jit_get_schemas_for_operator(name) if not any(a.is_out for a in s.arguments)]
    if not schemas:
        return INTERPRETER
    if name == COPY:
        return KERNEL
    if name in TAKE_MEMORY or all(_views(schema) for schema in schemas):
        return DISPATCH
    if not name.startswith("aten::"):
        return KERNEL  # of an extension, which registers what computes
    return KERNEL if any(_has_kernel(schema) for schema in schemas if not _views(schema)) else DISPATCH


def _views(schema: Any) -> bool:
    """Tells whether it returns another view of its input, at least for some inputs."""
    return any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)


def _has_kernel(schema: Any) -> bool:
    name = f"{schema.name}.{schema.overload_name}".rstrip(".")
    try:
        return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, backend) for backend in BACKENDS)
    except RuntimeError:  # an overload of TorchScript alone, on lists and numbers
        return False


def shares_of(events: Iterable[TraceEvent], device: str) -> Shares:
    """The shares of a trace's fastest reply. Raises ValueError if the trace has no reply."""
    spans = [event for event in events if event.get("ph") == "X"]
    reply = min((e for e in spans if e["name"] in (REPLY, CALL) and e.get("cat") == "user_annotation"), key=_duration)
    start, end = _span(reply)
    own = [e for e in spans if e["tid"] == reply["tid"] and start <= e["ts"] < end and e is not reply]
    times = dict.fromkeys((KERNEL, DISPATCH, INTERPRETER), 0.0)
    # Device activity may outlast the call that launched it by a moment; the reply waits for all of it.
    busy = [(max(a, start), min(b, end)) for a, b in map(_span, (e for e in spans if e.get("cat") in ON_DEVICE))]
    busy = merged([span for span in busy if span[0] < span[1]])
    for kind, span in _innermost((start, end), [e for e in own if e.get("cat") == "cpu_op"]):
        covered = overlap(span, busy)
        times[KERNEL] += covered
        kind = DISPATCH if device == "cuda" and kind == KERNEL else kind
        times[kind] += span[1] - span[0] - covered
    phases = [e for e in own if e.get("cat") == "user_annotation"]
    encode = [_duration(e) for e in phases if e["name"] == ENCODE]
    decode = [_duration(e) for e in phases if e["name"].startswith(STEP)]
    return Shares(
        reply_ms=(end - start) / 1e3,
        kernel_ms=times[KERNEL] / 1e3,
        dispatch_ms=times[DISPATCH] / 1e3,
        interpreter_ms=times[INTERPRETER] / 1e3,
        encode_ms=sum(encode) / 1e3 if encode else None,
        decode_ms=sum(decode) / 1e3 if decode else None,
    )


def _innermost(whole: Span, operators: Sequence[TraceEvent]) -> list[tuple[str, Span]]:
    """Cuts a span into pieces, each with the kind of the innermost operator that runs then."""
    pieces: list[tuple[str, Span]] = []
    now, stack = whole[0], [(INTERPRETER, whole[1])]

    def advance(to: float) -> None:
        nonlocal now
        if to > now:
            pieces.append((stack[-1][0], (now, to)))
            now = to

    for event in sorted(operators, key=lambda e: (e["ts"], -e["dur"])):
        start, end = _span(event)
        while len(stack) > 1 and stack[-1][1] <= start:
            advance(stack[-1][1])
            stack.pop()
        advance(start)
        stack.append((kind_of(event["name"]), min(end, stack[-1][1])))
    while stack:
        advance(stack[-1][1])
        stack.pop()
    return pieces


def merged(spans: Iterable[Span]) -> list[Span]:
    """The union of spans, as disjoint ones in order."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def overlap(span: Span, union: Iterable[Span]) -> float:
    """The part of a span that disjoint spans cover."""
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in union)


def _span(event: TraceEvent) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def _duration(event: TraceEvent) -> float:
    return float(event["dur"])
