"""The phases of a reply, named from outside: hooks on the networks while a trace is made, nothing in the timed code."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every_module
from torch.profiler import record_function

from chatbot.variants.parts import Loop

REPLY, ENCODE, STEP = "reply", "encode", "decode step"  # the steps are numbered from 1
CALL = "call"  # of a model that is not the chatbot, beside its named parts
ENCODER, DECODER = "Encoder", "Decoder"  # how the names of the networks' classes end


def networks(call: Callable[[], object], steps: int) -> tuple[nn.Module, nn.Module] | None:
    """The encoder and the decoder that a call runs from Python, found by watching one; None if that can't be done.

    It can if an encoder is called once and then a decoder ``steps`` times. A scripted or compiled search, or one that
    is not a module, calls neither from Python.
    """
    called: list[nn.Module] = []
    inside: list[nn.Module] = []

    def enter(module: nn.Module, _: object) -> None:
        if _role(module) is not None:
            if not inside:
                called.append(module)
            inside.append(module)

    def leave(module: nn.Module, *_: object) -> None:
        if inside and inside[-1] is module:
            inside.pop()

    with every_module.register_module_forward_pre_hook(enter), every_module.register_module_forward_hook(leave):
        call()
    if [_role(module) for module in called] != [ENCODER, *[DECODER] * steps] or len({*called[1:]}) != 1:
        return None
    return called[0], called[1]


def _role(module: nn.Module) -> str | None:
    """The role by the name of the class, which a trace, a script and a compiled module preserve."""
    name = module.original_name if isinstance(module, torch.jit.ScriptModule) else None
    name = name or type(getattr(module, "_orig_mod", module)).__name__
    return next((role for role in (ENCODER, DECODER) if name.endswith(role)), None)


@contextmanager
def named(found: tuple[nn.Module, nn.Module] | None, whole: str = REPLY) -> Iterator[Callable[[], Any]]:
    """Gives the phase ``whole``, to be entered around each call; within the block the networks name theirs too."""
    step = 0
    open_phases: list[record_function] = []

    def enter(title: Callable[[], str], *_: object) -> None:
        phase = record_function(title())
        phase.__enter__()  # type: ignore[no-untyped-call]
        open_phases.append(phase)

    def leave(*_: object) -> None:
        open_phases.pop().__exit__(None, None, None)

    def next_step() -> str:
        nonlocal step
        step += 1
        return f"{STEP} {step}"

    @contextmanager
    def reply() -> Iterator[None]:
        nonlocal step
        step = 0
        with record_function(whole):
            yield

    with ExitStack() as hooks:
        for module, title in zip(found or (), (lambda: ENCODE, next_step), strict=False):
            hooks.enter_context(module.register_forward_pre_hook(partial(enter, title)))
            hooks.enter_context(module.register_forward_hook(leave))
        yield reply


@contextmanager
def named_parts(loop: Loop, call: Callable[[], object]) -> Iterator[Callable[[], Any]]:
    """Gives the phase of each call, as ``named`` does; within the block each call of a part has a phase of its name.

    They are numbered from 1 in each call of the model where ``call``, which makes one, shows that there are several.
    """
    seen: Counter[str] = Counter()
    with loop.watched(lambda name, *_: seen.update([name]), lambda *_: None):
        call()
    several = {name for name, times in seen.items() if times > 1 or name in (CALL, REPLY, ENCODE)}
    open_phases: list[record_function] = []

    def enter(name: str, *_: object) -> None:
        seen[name] += 1
        phase = record_function(f"{name} {seen[name]}" if name in several else name)
        phase.__enter__()  # type: ignore[no-untyped-call]
        open_phases.append(phase)

    def leave(*_: object) -> None:
        open_phases.pop().__exit__(None, None, None)

    @contextmanager
    def one() -> Iterator[None]:
        seen.clear()
        with record_function(CALL):
            yield

    with loop.watched(enter, leave):
        yield one
