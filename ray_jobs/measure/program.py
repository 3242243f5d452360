"""Is the timed program what its label says?

The table that this project grew from timed one scripted model under four names; nothing looked at what ran. Here the
callable itself is examined, not what its author says of it.
"""

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from chatbot.variants import Compiled, Reply, Workload, variant_named
from chatbot.variants.engines import engine_of
from chatbot.variants.parts import loop_behind

TEXT_MODULES = ("chatbot.vocabulary", "chatbot.corpus", "unicodedata")
RUNTIMES = ("torch", "onnxruntime", "openvino")  # which may name their inputs
CUDA_GRAPH = "cuda-graph"
RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class Program:
    """The program that a callable executes, found by walking through its references."""

    kind: str  # "eager", "torchscript", the kind of a ``Compiled``, several with "+" between, or "unknown"
    devices: frozenset[str]
    dtypes: frozenset[str]  # of the floating parameters
    training: bool
    identity: str  # equal for callables that execute the same code
    objects: frozenset[int]  # ids of the modules themselves
    weights: frozenset[int]  # where their parameters lie in memory


def program_of(reply: Reply) -> Program:
    """Examines a prepared callable."""
    found = list(_programs(reply, set()))
    roots = [one for one in found if isinstance(one, nn.Module)]
    compiled = [one for one in found if isinstance(one, Compiled)]
    parts = [m for root in roots for m in root.modules()]
    tensors = [t for root in roots for t in _tensors(root)]
    kinds = {kind for root in roots for kind in _kinds(root)} | {one.kind for one in compiled}
    if CUDA_GRAPH in kinds:  # the modules that were captured; ``probe_fault`` sees whether they are called
        kinds.discard("eager")
    structures = sorted([*(_structure(root) for root in roots), *(one.identity for one in compiled)])
    dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}
    if any("quantized" in structure for structure in structures):  # packed weights are no parameters
        dtypes.add("qint8")
    dtypes = dtypes.union(*(one.dtypes for one in compiled))
    content = "\n".join([*sorted(kinds), *sorted(dtypes), *(structures or [_code(reply)])])
    return Program(
        kind="+".join(sorted(kinds)) or "unknown",
        devices=frozenset(t.device.type for t in tensors).union(*(one.devices for one in compiled)),
        dtypes=frozenset(dtypes),
        training=any(getattr(m, "training", False) for m in parts),
        identity=hashlib.sha256(content.encode()).hexdigest()[:16],
        objects=frozenset(id(root) for root in roots),
        weights=frozenset(t.data_ptr() for t in tensors if t.device.type != "meta" and t.numel() and _placed(t)).union(
            *(one.weights for one in compiled)
        ),
    )


def _kinds(root: nn.Module) -> set[str]:
    """The kinds of program that execute a module and its parts."""
    backend = getattr(root, "dynamo_ctx", None)
    if backend is not None:
        return {_compiler(root)}
    if isinstance(root, torch.jit.ScriptModule):
        held = next(root.parameters(), None) is not None or next(root.buffers(), None) is not None
        return {"torchscript" if held or not _constants(root) else "torchscript-frozen"}
    return {"torchscript" if isinstance(m, torch.jit.ScriptModule) else "eager" for m in (root, *root.modules())}


def _compiler(module: nn.Module) -> str:
    """The backend of a module that ``torch.compile`` made; "eager" where that only looks, or has compiled nothing."""
    from torch._dynamo.eval_frame import _get_total_cache_entry_count, innermost_backend

    backend = innermost_backend(module.dynamo_ctx.callback)  # type: ignore[union-attr, arg-type]
    name = str(getattr(backend, "compiler_name", getattr(backend, "__name__", type(backend).__name__)))
    forward = type(module._orig_mod).forward  # type: ignore[union-attr]
    return "eager" if "eager" in name or not _get_total_cache_entry_count(forward) else name


def _tensors(root: nn.Module) -> list[Tensor]:
    """Parameters and buffers; of a frozen script the constants that they became."""
    held = [*root.parameters(), *root.buffers()]
    return held or (_constants(root) if isinstance(root, torch.jit.ScriptModule) else [])


def _constants(script: torch.jit.ScriptModule) -> list[Tensor]:
    """The tensors within a script's graph, but for numbers, which a trace keeps in 64 bits."""
    if not hasattr(script, "forward"):
        return []
    graph = script.inlined_graph  # made for this call: its nodes live as long as it does
    found: list[Tensor] = []
    blocks: list[Any] = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            blocks += node.blocks()
            if node.kind() == "prim::Constant" and node.hasAttribute("value") and node.kindOf("value") == "t":
                found.append(node.t("value"))
    return [tensor for tensor in found if tensor.dim()]


def _placed(tensor: Tensor) -> bool:
    """Tells whether a tensor has a memory address."""
    return tensor.layout == torch.strided


def scattered(reply: Reply) -> bool:
    """Tells whether the parameters of a GRU lie in several buffers: on a GPU, cuDNN copies them into one at each call.

    See ``torch.nn.RNNBase.flatten_parameters``.
    """
    roots = [one for one in _programs(reply, set()) if isinstance(one, nn.Module)]
    cells = [part for root in roots for part in root.modules() if _name(part) in RECURRENT]
    return any(len({one.untyped_storage().data_ptr() for one in cell.parameters()}) > 1 for cell in cells)


def _name(module: nn.Module) -> str:
    """The name of a module's class, also if the module is scripted."""
    return str(module.original_name) if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def label_fault(name: str, program: Program, workload: Workload, held: frozenset[str] = frozenset()) -> str | None:
    """The reason why a program is not what its table entry and workload say; None if it is.

    ``held``: the precisions that a user's own model keeps, in its buffers say; a variant may keep them too.
    """
    variant = variant_named(name)
    if program.kind != variant.kind:
        return f"it is labelled {variant.kind} but runs {program.kind}"
    if program.devices - {workload.device}:
        return f"it is labelled {workload.device} but holds weights on {', '.join(sorted(program.devices))}"
    if program.dtypes and not _as_declared(program.dtypes, set(variant.dtype.split("+")), held, workload):
        return f"it is labelled {variant.dtype} but holds {', '.join(sorted(program.dtypes))}"
    if program.training:
        return "it runs in training mode, with dropout on"
    return None


def _as_declared(found: frozenset[str], declared: set[str], held: frozenset[str], workload: Workload) -> bool:
    """Allows a user's own model to keep nothing in fp32 when a variant converts everything it holds."""
    if workload.own_model:
        return declared - {"float32"} <= found <= declared | (held - {"float32"} if "float32" in declared else set())
    return found == declared


def same_program_faults(programs: Mapping[str, Program]) -> dict[str, str]:
    """A sentence for each variant that is another one under a second name; a declared control may be its baseline.

    Even a control must be prepared separately: timing the same objects twice would hide the variation of preparing.
    """
    faults: dict[str, str] = {}
    for a, b in combinations(programs, 2):
        shared = programs[a].objects & programs[b].objects or programs[a].weights & programs[b].weights
        declared = variant_named(a).control_of == b or variant_named(b).control_of == a
        if shared or (not declared and programs[a].identity == programs[b].identity):
            faults[a], faults[b] = f"it is the same program as {b}", f"it is the same program as {a}"
    return faults


def probe_fault(
    reply: Reply,
    prompts: Any,
    lengths: Tensor,
    kind: str | None = None,
    text: bool = False,
    gradients: bool = False,
) -> str | None:
    """What an extra, untimed call does that a timed one must not: record gradients, process text. None: neither.

    A program of ``kind`` "cuda-graph" must not call the modules that it claims to have captured. ``text``,
    ``gradients``: it may process text, or record gradients, because the model itself does.
    """
    saved: list[int] = []
    called: list[str] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(1)
        return tensor

    try:
        with ExitStack() as stack:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
            if kind == CUDA_GRAPH:
                hook = register_module_forward_pre_hook(lambda module, _: called.append(type(module).__name__))
                stack.enter_context(hook)
            texts = stack.enter_context(_watching_text())
            reply(prompts, lengths)
    except Exception as error:
        return f"it answers only while it is timed: {type(error).__name__}"
    if called:
        return f"it is labelled {CUDA_GRAPH} but calls {called[0]}"
    if saved and not gradients:
        return f"it records gradients: {len(saved)} tensors kept for a backward pass"
    return f"it handles text inside the timed call: {texts[0]}" if texts and not text else None


@contextmanager
def _watching_text() -> Iterator[list[str]]:
    """Collects the calls of string and regular-expression methods, and of the vocabulary, outside of runtimes."""
    seen: list[str] = []

    def profile(frame: types.FrameType, event: str, called: Any) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and module in TEXT_MODULES:
            seen.append(f"{module}.{frame.f_code.co_name}")
        owner = getattr(called, "__self__", None) if event == "c_call" else None
        if isinstance(owner, (str, bytes, re.Pattern)) and module.split(".")[0] not in RUNTIMES:
            seen.append(f"{type(owner).__name__}.{called.__name__}")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def _programs(value: object, seen: set[int]) -> Iterator[nn.Module | Compiled]:
    """The outermost modules and compiled programs that a callable refers to.

    Through closures, partials, bound objects, containers and attributes.
    """
    if id(value) in seen or isinstance(value, (type, types.ModuleType, Tensor, str, bytes)):
        return
    seen.add(id(value))
    if (loop := loop_behind(value)) is not None:  # what a label speaks of are the parts, not the Python around them
        for program in loop.programs:
            yield from _programs(program, seen)
        return
    if isinstance(own := getattr(value, "compiled", None), Compiled):
        yield own
        return
    if (engine := engine_of(value)) is not None:
        yield engine
        return
    if isinstance(value, nn.Module):
        yield value
        seen.update(id(part) for part in value.modules())
        if isinstance(value, torch.jit.ScriptModule) or hasattr(value, "dynamo_ctx"):
            return
        # What a module holds outside its registered parts is called all the same.
        hidden = [v for part in value.modules() for k, v in vars(part).items() if not k.startswith("_")]
        for inner in hidden:
            if isinstance(inner, (list, tuple, dict, types.FunctionType, functools.partial)):
                yield from _programs(inner, seen)
        return
    for inner in _referred(value):
        yield from _programs(inner, seen)


def _referred(value: object) -> list[object]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return [*_cells(value), *(value.__defaults__ or ())]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, f.name) for f in fields(value)]
    return list(vars(value).values()) if hasattr(value, "__dict__") else []


def _cells(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is not filled yet
            yield cell.cell_contents


def _structure(module: nn.Module) -> str:
    """The code of a module: a script's graph with its calls inlined, else the classes and code of its parts."""
    if isinstance(module, torch.jit.ScriptModule):
        if not hasattr(module, "forward"):
            return module.original_name
        # Every scripting of a class gives it a new name, and source lines tell of Python, not of the program.
        return re.sub(r"\.___torch_mangle_\d+|# .*", "", str(module.inlined_graph))
    parts = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            parts.append(f"{name}:{_structure(part)}")
        else:
            kind = type(part)
            code = getattr(kind.forward, "__code__", None)
            parts.append(f"{name}:{kind.__module__}.{kind.__qualname__}:{code.co_code.hex() if code else ''}")
    return "\n".join(parts)


def _code(reply: Reply) -> str:
    """The bytecode of a callable that refers to no module."""
    function = reply.func if isinstance(reply, functools.partial) else reply
    code = getattr(function, "__code__", None)
    return code.co_code.hex() if code else repr(type(function))
