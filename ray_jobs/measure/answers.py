"""What a model answers: tensors, in tuples, lists, dicts and dataclasses; walking through them, and comparing two."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

PLAIN = (Tensor, bool, int, float, complex, str, type(None))  # what can be compared


def mapped(function: Callable[[Any], Any], answer: Any) -> Any:
    """The same structure with ``function`` of each leaf; other objects than those above are leaves."""
    return tree_map(lambda leaf: _rebuilt(function, leaf) if _opened(leaf) else function(leaf), answer)


def leaves(answer: Any) -> list[Any]:
    """The leaves of an answer, in order."""
    return [inner for leaf in tree_leaves(answer) for inner in _within(leaf)]


def copied(value: Any) -> Any:
    """Copies tensors, and the structure that holds them."""
    if isinstance(value, Tensor):
        return value.clone()
    return mapped(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def bytes_of(answer: Any) -> int:
    """The memory that the tensors of an answer take."""
    return sum(leaf.nbytes for leaf in leaves(answer) if isinstance(leaf, Tensor))


def comparable(answer: Any) -> Any:
    """On the CPU, and floating numbers in 32 bits at least: ``same`` need not know what a variant computes in."""

    def plain(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        small = leaf.is_floating_point() and leaf.element_size() < 4
        return leaf.cpu().float() if small else leaf.cpu()

    return mapped(plain, answer)


def in_form(answer: Any, model: Any) -> Any:
    """An answer in the classes of another of the same structure: a trace makes tuples of named ones, dicts of others.

    Where the structures differ it stays as it is.
    """
    given, wanted = _parts(answer), _parts(model)
    if given is None or wanted is None or set(given) != set(wanted):
        return answer
    made = {key: in_form(part, wanted[key]) for key, part in given.items()}
    if isinstance(model, tuple):
        parts = [made[place] for place in range(len(model))]
        return model._make(parts) if hasattr(model, "_make") else tuple(parts)
    if isinstance(model, list):
        return [made[place] for place in range(len(model))]
    filled = copy.copy(model)
    for key, part in made.items():
        if isinstance(model, Mapping):
            filled[key] = part
        else:
            object.__setattr__(filled, key, part)
    return filled


def equal(one: Any, other: Any) -> bool:
    """Compares two structures of the same form, tensor by tensor; NaN equals NaN."""
    return all(map(_identical, tree_leaves(one), tree_leaves(other)))


def _identical(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other):
        return True
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and bool(((one == other) | ((one != one) & (other != other))).all())


def _opened(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)


def _within(leaf: Any) -> list[Any]:
    return leaves(_fields(leaf)) if _opened(leaf) else [leaf]


def _fields(one: Any) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if hasattr(one, field.name)}


def _rebuilt(function: Callable[[Any], Any], one: Any) -> Any:
    made = copy.copy(one)
    for name, value in _fields(one).items():
        object.__setattr__(made, name, mapped(function, value))
    return made


@dataclass(frozen=True)
class Close:
    """Whether two answers have the same structure and nearly the same numbers; see ``close``."""

    rtol: float
    atol: float
    argmax: bool

    def __call__(self, answer: Any, baselines: Any) -> bool:
        return all(self._same(*pair) for pair in _pairs(answer, baselines))

    def _same(self, one: Any, other: Any) -> bool:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return one.shape == other.shape and self._near(one, other)
        if isinstance(one, float) and isinstance(other, float):
            both_nan = math.isnan(one) and math.isnan(other)
            return both_nan or math.isclose(one, other, rel_tol=self.rtol, abs_tol=self.atol)
        if not isinstance(other, PLAIN):  # an object that nobody can compare but for its class
            return type(one) is type(other)
        return type(one) is type(other) and bool(one == other)

    def _near(self, one: Tensor, other: Tensor) -> bool:
        if not (other.is_floating_point() or other.is_complex()):
            return torch.equal(one, other)
        if self.argmax and other.dim() and other.is_floating_point():
            return self._one_choice(one, other)
        return torch.allclose(one.to(other.dtype), other, self.rtol, self.atol, equal_nan=True)

    def _one_choice(self, one: Tensor, other: Tensor) -> bool:
        """The largest along the last dimension is at one place, but for places that tie in the baseline's."""
        if not other.numel():
            return True
        chosen = other.gather(-1, one.argmax(-1, keepdim=True))
        best = other.amax(-1, keepdim=True)
        return torch.allclose(chosen, best, self.rtol, self.atol, equal_nan=True)


def close(rtol: float = 1e-3, atol: float = 1e-3, argmax: bool = False) -> Close:
    """A ``same`` for most models: one structure, equal integers, and floating numbers that are close.

    Numbers are close where they differ by at most ``atol + rtol * |the baseline's|``; NaN equals NaN. With ``argmax``
    floating tensors are logits: only the place of the largest along the last dimension counts, and places tie that
    are as close as that. Objects that are neither tensors nor numbers must be of one class.
    """
    return Close(rtol, atol, argmax)


def _pairs(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Leaves that belong together, (0, None) where a structure has none to the other's.

    What a tool hands back as a tuple may have been a list, and what was a dataclass a dict.
    """
    first, second = _parts(one), _parts(other)
    if first is None or second is None:
        yield (one, other) if first is second else (0, None)
    elif set(first) == set(second):
        for key, part in first.items():
            yield from _pairs(part, second[key])
    else:
        yield (0, None)


def _parts(value: Any) -> dict[Any, Any] | None:
    """The parts of a container by name or place, but for those that are None; None for a leaf."""
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if _opened(value):
        return {key: part for key, part in _fields(value).items() if part is not None}
    return None
