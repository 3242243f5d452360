"""Named parts of a model, converted one by one and put back, while the loop around them stays Python.

A converted part sees the tensors in its arguments alone: what else they hold (names, numbers, None) is fixed, in one
program for each such form of a call. Where lengths vary within a form, as those of a growing sequence do, one program
answers all of them if the tool can make it; the others get programs of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

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
from chatbot.variants.exported import Form
from chatbot.variants.parts import Call, Key, Loop, StandIn, copied, opened, put, reply_of, shapes, tensors_of

MOST_SIZES = 16  # of one part's calls that have a program each: some tools take seconds for one


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
        program = self.programs.get((key, shapes(tensors))) if self._sized else None
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


class OfTensors(nn.Module):
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
        return tuple(tensors_of(answer))


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
        put(loop.module, part, standing[name])
    return reply_of(Loop(loop.module, standing, tuple(run for one in made.values() for run in one.runs)))


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
        return [*idle, *(self._add((key, shapes(call.tensors)), call) for call in left)]

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
        example = Example.of([copied(call.tensors) for call in calls])
        form = None if _plain_answer(calls[0].answer) else Form(calls[0].answer)
        whole = form is None and not calls[0].kwargs and all(isinstance(one, Tensor) for one in calls[0].args)
        # Of a layer alone nothing within could be quantised.
        module = self.part if whole and any(self.part.children()) else OfTensors(self.part, calls[0], form is not None)
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
        answer, expected = tensors_of(self.run(*copied(call.tensors))), tensors_of(call.answer)
        if shapes(answer) != shapes(expected):
            raise ValueError(f"its answer is {shapes(answer)}, not {shapes(expected)}")
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
        return answer if self._form is None else self._form(tensors_of(answer))


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
