"""Named parts of a model whose loop stays Python: the loop around them, and the calls that they get from it.

The method of the tutorial that this project grew from: the networks are traced, the search is kept.
``converted_parts`` converts them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from chatbot.variants.base import Reply, UnavailableError
from chatbot.variants.exported import PLAIN

FIXED = (*PLAIN, torch.dtype, torch.device)  # what a program keeps of its arguments, beside their form

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
            put(self.module, part, standing[name])
        try:
            yield
        finally:
            for name, part in self.parts.items():
                put(self.module, standing[name], part)


def loop_of(module: nn.Module, names: Sequence[str]) -> Loop:
    """A model as it is. Raises AttributeError for a part that is not there."""
    parts = {name: module.get_submodule(name) for name in names}
    return Loop(module, parts, tuple(parts.values()))


def put(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
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
        return tuple(tensors_of((self.args, self.kwargs)))


def recorded(loop: Loop, inputs: Sequence[Tensors]) -> dict[str, list[Call]]:
    """The calls of each part while the model answers these inputs; of those alike in form and sizes the first."""
    found: dict[str, dict[object, Call]] = {name: {} for name in loop.parts}
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(_: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(copied((args, kwargs)))

    def leave(name: str, answer: Any) -> None:
        args, kwargs = given.pop()
        found[name].setdefault(_signature(name, args, kwargs), Call(args, kwargs, copied(answer)))

    with loop.watched(enter, leave):
        for one in inputs:
            loop.module(*copied(one))
    return {name: list(calls.values()) for name, calls in found.items()}


def _signature(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    try:
        key, tensors = opened(name, args, kwargs)
    except UnavailableError as error:
        return str(error)
    return key, shapes(tensors)


def copied(value: Any) -> Any:
    """A structure with tensors of its own."""
    leaves, form = tree_flatten(value)
    return tree_unflatten([one.clone() if isinstance(one, Tensor) else one for one in leaves], form)


def shapes(tensors: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    """The shape of each."""
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


def tensors_of(value: Any) -> list[Tensor]:
    """Those within a structure, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
