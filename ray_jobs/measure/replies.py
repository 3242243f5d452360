"""Is the timed program what its label says, and are its replies right?

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from chatbot.model import Chatbot
from chatbot.variants import Compiled, Reply, Workload, variant_named
from chatbot.variants.engines import engine_of
from chatbot.vocabulary import EOS, PAD, SOS

TIE_TOLERANCE = 1e-4  # logits: fp32 sums taken in another order differ by about 1e-6 of values near 10
LEAST_IDENTICAL = 0.5  # share of replies; an approximate variant below it is another chatbot
TEXT_MODULES = ("chatbot.vocabulary", "chatbot.corpus", "unicodedata")
RUNTIMES = ("torch", "onnxruntime", "openvino")  # which may name their inputs
CUDA_GRAPH = "cuda-graph"
LEAST_COMPARED = 500  # prompts that an approximate variant is judged on
LEAST_TAILS = 3  # replies that must go on otherwise after their end before a variant is said to stop there


@dataclass(frozen=True)
class Program:
    """What a callable executes, found by walking through what it refers to."""

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
    """What executes a module and its parts."""
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
    """The tensors within a script's graph."""
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
    return found


def _placed(tensor: Tensor) -> bool:
    """Whether a tensor can say where it lies."""
    return tensor.layout == torch.strided


def label_fault(name: str, program: Program, workload: Workload) -> str | None:
    """Why a program is not what its table entry and its workload say; None where it is."""
    variant = variant_named(name)
    if program.kind != variant.kind:
        return f"it is labelled {variant.kind} but runs {program.kind}"
    if program.devices - {workload.device}:
        return f"it is labelled {workload.device} but holds weights on {', '.join(sorted(program.devices))}"
    if program.dtypes and not _as_declared(program.dtypes, set(variant.dtype.split("+")), workload):
        return f"it is labelled {variant.dtype} but holds {', '.join(sorted(program.dtypes))}"
    if program.training:
        return "it runs in training mode, with dropout on"
    return None


def _as_declared(found: frozenset[str], declared: set[str], workload: Workload) -> bool:
    """A model of somebody's own need not keep anything in fp32 where a variant turns all that it holds into less."""
    if workload.own_model:
        return declared - {"float32"} <= found <= declared
    return found == declared


def same_program_faults(programs: Mapping[str, Program]) -> dict[str, str]:
    """For each variant that is another one under a second name, a sentence; a declared control may be its baseline.

    Even a control must be prepared apart: the same objects timed twice would hide how much preparing varies.
    """
    faults: dict[str, str] = {}
    for a, b in combinations(programs, 2):
        shared = programs[a].objects & programs[b].objects or programs[a].weights & programs[b].weights
        declared = variant_named(a).control_of == b or variant_named(b).control_of == a
        if shared or (not declared and programs[a].identity == programs[b].identity):
            faults[a], faults[b] = f"it is the same program as {b}", f"it is the same program as {a}"
    return faults


def first_difference(reply: Tensor, baseline: Tensor) -> int | None:
    """The first step at which two replies (S,) differ, up to and including the baseline's first EOS; None: the same."""
    ends = (baseline == EOS).nonzero()
    end = int(ends[0]) + 1 if len(ends) else len(baseline)
    differing = (reply[:end] != baseline[:end]).nonzero()
    return int(differing[0]) if len(differing) else None


@dataclass(frozen=True)
class ReplyCheck:
    """How a variant's timed replies compare with the baseline's."""

    replies: int
    identical: int
    fault: str | None  # why the variant is invalid
    differing: tuple[int, ...] = ()  # the first step that differs, of each reply that is not identical
    tokens: int = 0  # written in all replies: what the workload asks, or up to and including EOS where it stops there


@dataclass(frozen=True)
class Comparison:
    """How a variant's untimed replies to distinct prompts compare with the baseline's."""

    replies: int
    identical: int
    differing: tuple[int, ...]  # the first step that differs, of each reply that is not identical


def check_replies(
    name: str,
    replies: list[Tensor],
    baselines: list[Tensor],
    prompts: list[Tensor],
    judge: Chatbot,
    workload: Workload,
) -> ReplyCheck:
    """Compares every reply with the baseline's for the same prompts: lists of (B, S), (B, S) and (B, T) tensors.

    An exact variant may differ only at a tie: where the baseline's networks (``judge``, on the workload's device)
    give its token and theirs logits within ``TIE_TOLERANCE``. Either must go on after its end as the baseline does.
    """
    identical = tokens_written = 0
    differing: list[int] = []
    exact = variant_named(name).exact
    tails: list[tuple[Tensor, Tensor]] = []
    shape = (workload.batch, workload.reply_tokens)
    for tokens, expected, batch in zip(replies, baselines, prompts, strict=True):
        if not isinstance(tokens, Tensor):
            return ReplyCheck(0, 0, f"a reply is a {type(tokens).__name__} instead of a tensor of tokens")
        if tuple(tokens.shape) != shape:
            return ReplyCheck(0, 0, f"a reply has shape {tuple(tokens.shape)} instead of {shape}")
        if tokens.device.type != workload.device:
            return ReplyCheck(0, 0, f"its replies are on {tokens.device.type}, not on {workload.device}")
        if workload.stop_at_eos and (fault := _goes_on(tokens)) is not None:
            return ReplyCheck(0, 0, fault)
        tokens_written += int(written(tokens).sum()) if workload.stop_at_eos else tokens.numel()
        if torch.equal(tokens, expected):
            identical += workload.batch
            continue
        for row in range(workload.batch):
            step = first_difference(tokens[row].cpu(), expected[row].cpu())
            if step is None:
                identical += 1
                tails.append((_tail(tokens[row], expected[row]), _tail(expected[row], expected[row])))
            elif exact and not _is_tie(judge, batch[row], expected[row], int(tokens[row, step]), step):
                return ReplyCheck(0, 0, f"it promises the baseline's replies but one differs at step {step + 1}")
            else:
                differing.append(step)
    count = len(replies) * workload.batch
    fault = None if workload.stop_at_eos else _early_stop(tails, count)
    if count and identical / count < LEAST_IDENTICAL:
        fault = f"only {identical} of its {count} replies are the baseline's"
    return ReplyCheck(count, identical, fault, tuple(differing), tokens_written)


def compare(tokens: NDArray[np.int64], baseline: NDArray[np.int64]) -> Comparison:
    """Replies (N, S) to N distinct prompts beside the baseline's."""
    pairs = zip(torch.from_numpy(tokens), torch.from_numpy(baseline), strict=True)
    steps = [step for reply, expected in pairs if (step := first_difference(reply, expected)) is not None]
    return Comparison(len(baseline), len(baseline) - len(steps), tuple(steps))


def written(tokens: Tensor) -> Tensor:
    """(B,): how many of the tokens (B, S) stand up to and including the first EOS, all where there is none."""
    ends = tokens == EOS
    return tokens.size(1) - (ends.cumsum(1) - ends.long() > 0).sum(1)


def _goes_on(tokens: Tensor) -> str | None:
    """A sentence where a reply (B, S) holds words behind its EOS, though the workload stops there."""
    ends = tokens == EOS
    behind = ends.cumsum(1) - ends.long() > 0
    if bool((behind & (tokens != PAD) & (tokens != EOS)).any()):
        return "it goes on behind the end of a reply, where the workload stops"
    return None


def _tail(reply: Tensor, baseline: Tensor) -> Tensor:
    """What a reply (S,) holds after the baseline's first EOS."""
    ends = (baseline == EOS).nonzero()
    return reply[int(ends[0]) + 1 :].cpu() if len(ends) else reply[:0].cpu()


def _early_stop(tails: list[tuple[Tensor, Tensor]], replies: int) -> str | None:
    """A sentence where a variant stops at EOS and fills up, while the workload asks every step of the others.

    Seen from tails of two words or more that differ from the baseline's: one that has stopped repeats one token in
    each of them, and never finds the baseline's own words.
    """
    long = [(tail, expected) for tail, expected in tails if len(tail) > 1]
    if any(torch.equal(tail, expected) and bool((tail != tail[0]).any()) for tail, expected in long):
        return None
    other = [tail for tail, expected in long if not torch.equal(tail, expected)]
    if len(other) < LEAST_TAILS or any(bool((tail != tail[0]).any()) for tail in other):
        return None
    return f"it stops at the end of the sentence: {len(other)} of {replies} replies are filled up, not computed"


def probe_fault(reply: Reply, prompts: Any, lengths: Tensor, kind: str | None = None, text: bool = False) -> str | None:
    """What one more, untimed, call does that a timed one must not: record gradients, handle text. None: neither.

    A program of ``kind`` "cuda-graph" must not call the modules that it says to have captured. ``text``: it may handle
    text, since the model itself does.
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
    if saved:
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


def _is_tie(judge: Chatbot, prompt: Tensor, baseline: Tensor, token: int, step: int) -> bool:
    """Whether the baseline's logits at ``step`` hold ``token`` as near its own choice as arithmetic noise."""
    if not 0 <= token < judge.config.vocabulary:
        return False
    length = torch.tensor([prompt.numel()])
    outputs, hidden = judge.encoder(prompt.unsqueeze(1), length)
    blocked = (prompt == PAD).unsqueeze(1)
    first = torch.full((1, 1), SOS, device=prompt.device)
    tokens = torch.cat((first, baseline[:step].unsqueeze(1)))
    logits = judge.decoder.teacher_forced(tokens, hidden[: judge.config.decoder_layers], outputs, blocked)[-1, 0]
    return bool((logits[int(baseline[step])] - logits[token]).abs() <= TIE_TOLERANCE)


def _programs(value: object, seen: set[int]) -> Iterator[nn.Module | Compiled]:
    """The outermost modules and compiled programs that a callable refers to.

    Through closures, partials, bound objects, containers and attributes.
    """
    if id(value) in seen or isinstance(value, (type, types.ModuleType, Tensor, str, bytes)):
        return
    seen.add(id(value))
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
    """What a module executes: a script's graph with its calls inlined, else the classes and code of its parts."""
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
