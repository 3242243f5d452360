"""Named parts of a model, converted one by one and put back, while the loop around them stays Python.

The method of the tutorial that this project grew from: the networks are traced, the search is kept. A converted part
sees the tensors in its arguments alone: what else they hold (names, numbers, None) is fixed, in one program for each
such form of a call. Where lengths vary within a form, as those of a growing sequence do, one program answers all of
them if the tool can make it; the others get programs of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from chatbot.variants import EAGER_MODULE
from chatbot.variants.base import (
    Example,
    NothingToDoError,
    PrepareModule,
    Reply,
    UnavailableError,
    Variant,
    Workload,
    module_preparer,
)
from chatbot.variants.exported import PLAIN, Form

FIXED = (*PLAIN, torch.dtype, torch.device)  # what a program keeps of its arguments, beside their form
MOST_SIZES = 16  # of one part's calls that have a program each: some tools take seconds for one

Key = tuple[Any, ...]
Tensors = tuple[Tensor, ...]
Frame = Callable[[str, tuple[Any, ...], dict[str, Any]], None]


class StandIn(nn.Module):
    """Stands in a part's place; what it lacks is the part's."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.training = part.training

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__["_modules"]["part"]  # by nn.Module's own way each would cost an exception in a timed call
        return part if name == "part" else getattr(part, name)


class Watched(StandIn):
    """A part whose calls are told: ``enter(name, args, kwargs)`` before each, ``leave(name, answer)`` after."""

    def __init__(self, part: nn.Module, name: str, enter: Frame, leave: Callable[[str, Any], None]) -> None:
        super().__init__(part)
        self.name, self.enter, self.leave = name, enter, leave

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.enter(self.name, args, kwargs)
        answer = self.part(*args, **kwargs)
        self.leave(self.name, answer)
        return answer


class Converted(StandIn):
    """A part that is answered by its converted programs, one for each form of its calls.

    It keeps the part without its weights, for attributes that the loop may read.
    """

    def __init__(self, part: nn.Module, name: str, programs: Mapping[Key, Callable[..., Any]]) -> None:
        super().__init__(_hollow(part))
        self.name, self.programs = name, programs
        self._sized = any(len(key) == 2 and isinstance(key[0], tuple) for key in programs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key, tensors = opened(self.name, args, kwargs)
        program = self.programs.get((key, _shapes(tensors))) if self._sized else None
        program = program or self.programs.get(key)
        if program is None:
            raise UnavailableError(f"its part {self.name!r} is called in a form or size that its first calls had not")
        return program(*tensors)


class Direct(StandIn):
    """A part that one program answers, whose arguments are tensors in order: nothing stands between them."""

    def __init__(self, part: nn.Module, program: Callable[..., Any]) -> None:
        super().__init__(_hollow(part))
        self.program = (program,)  # in a tuple: it is no part of this module

    def __call__(self, *args: Tensor) -> Any:
        return self.program[0](*args)


@dataclass(frozen=True)
class Loop:
    """What a variant's callable calls: the model with its parts in place, and the programs that these are."""

    module: nn.Module
    parts: Mapping[str, nn.Module]  # by their names, as they stand in the module
    programs: tuple[Callable[..., Any], ...]

    @contextmanager
    def watched(self, enter: Frame, leave: Callable[[str, Any], None]) -> Iterator[None]:
        """Within the block the calls of the parts are told; see ``Watched``."""
        standing = {name: Watched(part, name, enter, leave) for name, part in self.parts.items()}
        for name, part in self.parts.items():
            _put(self.module, part, standing[name])
        try:
            yield
        finally:
            for name, part in self.parts.items():
                _put(self.module, standing[name], part)


def loop_of(module: nn.Module, names: Sequence[str]) -> Loop:
    """A model as it is. Raises AttributeError for a part that is not there."""
    parts = {name: module.get_submodule(name) for name in names}
    return Loop(module, parts, tuple(parts.values()))


def _put(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module in another's place, under each name that it has."""
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


@dataclass(frozen=True)
class Call:
    """A call of a part: what it was given and what it answered."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: Any

    @property
    def tensors(self) -> Tensors:
        """Those of its arguments, in order."""
        return tuple(_tensors((self.args, self.kwargs)))


def recorded(loop: Loop, inputs: Sequence[Tensors]) -> dict[str, list[Call]]:
    """The calls of each part while the model answers these inputs; of those alike in form and sizes the first."""
    found: dict[str, dict[object, Call]] = {name: {} for name in loop.parts}
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(_: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(_copied((args, kwargs)))

    def leave(name: str, answer: Any) -> None:
        args, kwargs = given.pop()
        found[name].setdefault(_signature(name, args, kwargs), Call(args, kwargs, _copied(answer)))

    with loop.watched(enter, leave):
        for one in inputs:
            loop.module(*_copied(one))
    return {name: list(calls.values()) for name, calls in found.items()}


def _signature(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    try:
        key, tensors = opened(name, args, kwargs)
    except UnavailableError as error:
        return str(error)
    return key, _shapes(tensors)


def _copied(value: Any) -> Any:
    leaves, form = tree_flatten(value)
    return tree_unflatten([one.clone() if isinstance(one, Tensor) else one for one in leaves], form)


def _shapes(tensors: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(one.shape for one in tensors)


def opened(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Key, list[Tensor]]:
    """The form of a part's arguments with all that is fixed in it, and their tensors in order.

    Raises:
        UnavailableError: they hold an object of which neither is known.
    """
    tensors: list[Tensor] = []
    form: list[Any] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()):
        plain = isinstance(value, (Tensor, *FIXED))
        leaves, spec = ([value], None) if plain else tree_flatten(value)
        if not plain:
            form.append(spec)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
                form.append((leaf.dtype, leaf.dim()))
            elif isinstance(leaf, FIXED):
                form.append((type(leaf), leaf))
            else:
                what = f"its part {name!r} is given a {type(leaf).__name__}"
                raise UnavailableError(f"{what}, which is no tensor, and nothing can be converted with it")
    return tuple(form), tensors


class Flat(nn.Module):
    """A part as a module of the tensors in its arguments, whose answer is a tensor or a tuple of tensors."""

    def __init__(self, part: nn.Module, call: Call, flat_answer: bool) -> None:
        super().__init__()
        self.part = part
        leaves, self._form = tree_flatten((call.args, call.kwargs))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._flat_answer = flat_answer

    def forward(self, *tensors: Tensor) -> Any:
        """The part's answer, or its tensors."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._form)
        answer = self.part(*args, **kwargs)
        if not self._flat_answer:
            return answer
        return tuple(_tensors(answer))


def _plain_answer(answer: Any) -> bool:
    """A tensor or a tuple of tensors, which every tool gives back as it is."""
    return isinstance(answer, Tensor) or (type(answer) is tuple and all(isinstance(one, Tensor) for one in answer))


def prepared_parts(
    variant: Variant, loop: Loop, donor: Loop, calls: Mapping[str, Sequence[Call]], workload: Workload
) -> Reply:
    """The variant's callable of a model, of which it converts the parts.

    Args:
        variant: the way to execute them.
        loop: the model that is called, with parts of its own.
        donor: another copy, whose parts are converted, which may change their weights.
        calls: the recorded calls of each part.
        workload: what the model is asked.

    Raises:
        UnavailableError: it can't run here, or can't convert one of the parts; the message says why.
    """
    prepare = module_preparer(variant, workload)
    if variant.prepare_module == EAGER_MODULE:
        return reply_of(loop)
    made = {name: _Part(name, part, prepare, workload) for name, part in donor.parts.items()}
    idle = [one.convert(calls[name]) for name, one in made.items()]
    if all(idle):
        raise UnavailableError(str(idle[0]))
    standing = {name: made[name].standing(part) for name, part in loop.parts.items()}
    for name, part in loop.parts.items():
        _put(loop.module, part, standing[name])
    return reply_of(Loop(loop.module, standing, tuple(run for one in made.values() for run in one.runs)))


def reply_of(loop: Loop) -> Reply:
    """The callable of a loop, the same around every variant."""
    module = loop.module

    def answer(inputs: Any, _: Tensor) -> Any:
        return module(*inputs)

    answer.loop = loop  # type: ignore[attr-defined]
    return answer


def loop_behind(reply: object) -> Loop | None:
    """The loop that a callable of ``prepared_parts`` calls; None for any other."""
    found = getattr(reply, "loop", None)
    return found if isinstance(found, Loop) else None


class _Part:
    """One part on its way to being converted."""

    def __init__(self, name: str, part: nn.Module, prepare: PrepareModule, workload: Workload) -> None:
        self.name, self.part = name, part
        self.runs: list[Callable[..., Any]] = []  # as the variant made them
        self._prepare, self._workload = prepare, workload
        self._programs: dict[Key, Callable[..., Any]] = {}  # by the form of a call, or by that and the sizes
        self._direct = True

    def convert(self, calls: Sequence[Call]) -> str | None:
        """Makes the programs of all its calls; returns why there was nothing to do, None if there was something.

        Raises:
            UnavailableError: it can't be converted.
        """
        forms: dict[Key, list[Call]] = {}
        for call in calls:
            forms.setdefault(opened(self.name, call.args, call.kwargs)[0], []).append(call)
        try:
            idle = [reason for key, alike in forms.items() for reason in self._convert(key, alike)]
        except UnavailableError as error:
            if error.__cause__ is None:  # a package or an instruction that is missing here
                raise
            raise UnavailableError(f"{error} (its part {self.name!r})") from error
        return idle[0] if all(idle) else None

    def _convert(self, key: Key, calls: Sequence[Call]) -> list[str | None]:
        """One program for calls of one form or, of what that doesn't answer, one for each; whether each is idle."""
        if len(calls) == 1:
            return [self._add(key, calls[0])]
        self._direct = False
        idle: list[str | None] = []
        left = list(calls)
        with suppress(Exception):  # as a tool that wants one size; its own program says what else there is
            program, reason = self._made(calls)
            left = [call for call in calls if not program.answers(call)]
            if len(left) < len(calls):
                self._keep(key, program)
                idle.append(reason)
        if len(left) > MOST_SIZES:
            raise UnavailableError(f"one program does not answer the {len(left)} sizes of its calls")
        return [*idle, *(self._add((key, _shapes(call.tensors)), call) for call in left)]

    def _add(self, key: Key, call: Call) -> str | None:
        program, reason = self._made([call])
        program.require(call)
        self._direct &= not call.kwargs and all(isinstance(one, Tensor) for one in call.args) and program.plain
        self._keep(key, program)
        return reason

    def _keep(self, key: Key, program: "_Program") -> None:
        self.runs.append(program.run)
        self._programs[key] = program.run if program.plain else program

    def _made(self, calls: Sequence[Call]) -> tuple["_Program", str | None]:
        """A program for these calls, and why there was nothing to do."""
        example = Example.of([_copied(call.tensors) for call in calls])
        form = None if _plain_answer(calls[0].answer) else Form(calls[0].answer)
        whole = form is None and not calls[0].kwargs and all(isinstance(one, Tensor) for one in calls[0].args)
        # Of a layer alone nothing within could be quantised.
        module = self.part if whole and any(self.part.children()) else Flat(self.part, calls[0], form is not None)
        try:
            return _Program(self._prepare(module.eval(), example, self._workload), form), None
        except NothingToDoError as error:
            return _Program(error.instead(), form), str(error)

    def standing(self, part: nn.Module) -> nn.Module:
        """What is put in the place of the loop's own part."""
        if self._direct and len(self._programs) == 1:
            return Direct(part, next(iter(self._programs.values())))
        return Converted(part, self.name, self._programs)


class _Program:
    """A converted program, whose answers are put back into the form and the precisions of the part's."""

    def __init__(self, run: Callable[..., Any], form: Form | None) -> None:
        self.run, self._form = run, form
        self._dtypes: list[torch.dtype] = []  # where they are others than the part's

    @property
    def plain(self) -> bool:
        """Its answers need nothing."""
        return self._form is None and not self._dtypes

    def require(self, call: Call) -> None:
        """Asks it once. Raises ValueError where its answer is not of the part's sizes."""
        answer, expected = _tensors(self.run(*_copied(call.tensors))), _tensors(call.answer)
        if _shapes(answer) != _shapes(expected):
            raise ValueError(f"its answer is {_shapes(answer)}, not {_shapes(expected)}")
        dtypes = [one.dtype for one in expected]
        if dtypes != [one.dtype for one in answer]:
            self._dtypes = dtypes

    def answers(self, call: Call) -> bool:
        """Tells whether it does."""
        try:
            self.require(call)
        except Exception:
            return False
        return True

    def __call__(self, *tensors: Tensor) -> Any:
        answer = self.run(*tensors)
        if self._dtypes:
            leaves, form = tree_flatten(answer)
            answer = tree_unflatten([one.to(dtype) for one, dtype in zip(leaves, self._dtypes, strict=True)], form)
        return answer if self._form is None else self._form(_tensors(answer))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _hollow(part: nn.Module) -> nn.Module:
    """The part with empty weights: their memory is given back, unless others use it too."""
    for module in part.modules():
        for name, weight in [*module._parameters.items()]:
            if weight is not None:  # recurrent layers list their weights, which setting one keeps up to date
                setattr(module, name, nn.Parameter(weight.new_empty(0), requires_grad=False))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.new_empty(0)
    return part
