"""A model that is not the chatbot: finding its factory, and checking what the factory returns."""

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from chatbot.errors import UsageError, first_line, imported
from chatbot.variants import OWN_MODEL, Workload
from ray_jobs.measure.answers import close

CLOSE = close()
CASE = re.compile(r"[A-Za-z0-9_]+")
SEED = 0  # of torch's generator while a factory runs: weights that it draws are the same in each process


@dataclass(frozen=True)
class OwnModel:
    """What a factory, a function without arguments, returns, or a dict of several: cases, each with rows of its own.

    ``inputs(i, workload)`` are the i-th call's arguments: a tuple of tensors on the CPU, or a dict of them by the names
    of ``forward``'s arguments; of one shape for one workload, ``workload.batch`` of whatever a batch is made of. They
    are the same for the same ``i``; what torch draws at random is, as its generator is seeded with ``i`` before.
    ``parts`` names submodules (``"encoder"``, ``"model.decoder"``) that variants convert while what calls them stays
    Python, in the order in which a call reaches them first: each call of the last one yields a token.
    ``same(answer, baselines)`` says whether an answer is what the baseline answered to the same inputs. Answers are
    tensors, or tuples, lists, dicts and dataclasses of them; what it is given has been brought to the CPU, and floating
    numbers to 32 bits at least.
    """

    module: nn.Module
    inputs: Callable[[int, Workload], tuple[Tensor, ...] | Mapping[str, Tensor]]
    same: Callable[[Any, Any], bool] = CLOSE
    parts: tuple[str, ...] = ()


class Keywords(nn.Module):
    """A module that is called by the names of its arguments, as one that takes them in the order of ``names``."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Any:
        """The module's answer."""
        return self.module(**dict(zip(self.names, inputs, strict=True)))

    def get_submodule(self, target: str) -> nn.Module:
        """Parts have the names that they have in the module."""
        return self.module.get_submodule(target)


def load(name: str) -> OwnModel:
    """The model of a factory named ``package.module:factory``, or one of its cases, ``package.module:factory#case``.

    Raises:
        UsageError: see ``load_cases`` and ``case_of``.
    """
    return case_of(name, load_cases(name.partition("#")[0]))


def case_of(name: str, cases: Mapping[str, OwnModel]) -> OwnModel:
    """The model that a name means. Raises UsageError where it names none of the cases."""
    factory, _, case = name.partition("#")
    if case in cases:
        return cases[case]
    if "" in cases:
        raise UsageError(f"model {factory!r} has no cases: leave {case!r} out")
    if not case:
        raise UsageError(f"model {factory!r} has several cases; name one: {', '.join(f'{factory}#{c}' for c in cases)}")
    raise UsageError(f"model {factory!r} has no case {case!r}; choose from: {', '.join(cases)}")


def load_cases(name: str) -> dict[str, OwnModel]:
    """Calls a factory; its models by their cases, or by "" where it returns one. Modules are put in evaluation mode.

    Raises:
        UsageError: it can't be imported or called, or returns something else; one line.
    """
    factory = imported("model", name, f"; give {OWN_MODEL}")
    if not callable(factory):
        raise UsageError(f"model {name!r} is a {type(factory).__name__}, not a function that returns an OwnModel")
    module, home = name.partition(":")[0], str(getattr(factory, "__module__", None))
    if home != module and not home.startswith(f"{module}."):  # "os:abort" is a function without arguments too
        raise UsageError(f"model {name!r} is not defined in {module} but in {home}: name it where it is defined")
    torch.manual_seed(SEED)
    try:
        found = factory()
    except Exception as error:
        raise UsageError(f"model {name!r} can't be made: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(found, Mapping):
        return {"": _checked(name, found)}
    if not found or not all(isinstance(case, str) and CASE.fullmatch(case) for case in found):
        raise UsageError(f"model {name!r} names its cases {list(found)}: use letters, digits and underscores")
    return {case: _checked(f"{name}#{case}", one) for case, one in found.items()}


def _checked(name: str, found: object) -> OwnModel:
    if not isinstance(found, OwnModel):
        raise UsageError(f"model {name!r} returned a {type(found).__name__}, not a ray_jobs.OwnModel")
    if not isinstance(found.module, nn.Module):
        raise UsageError(f"model {name!r} holds a {type(found.module).__name__} as its module, not an nn.Module")
    for role in ("inputs", "same"):
        if not callable(given := getattr(found, role)):
            raise UsageError(f"model {name!r} holds a {type(given).__name__} as its {role}, not a function")
    floats = {str(one.dtype).removeprefix("torch.") for one in found.module.parameters() if one.is_floating_point()}
    if floats - {"float32"}:
        raise UsageError(f"model {name!r} has weights in {', '.join(sorted(floats))}: give float32, bf16 is a variant")
    _require_parts(name, found)
    found.module.eval()
    return found


def _require_parts(name: str, found: OwnModel) -> None:
    """Raises UsageError where a part is not there, or lies within another."""
    if not isinstance(found.parts, (tuple, list)) or not all(isinstance(part, str) for part in found.parts):
        raise UsageError(f"model {name!r} holds {found.parts!r} as its parts, not a tuple of names of submodules")
    there = {path: part for path, part in found.module.named_modules(remove_duplicate=False) if path}
    inside: dict[int, str] = {}
    for part in found.parts:
        if part not in there:
            near = get_close_matches(part, there, 5, 0.0) if there else ["it has none"]
            raise UsageError(f"model {name!r} has no part {part!r}; submodules are: {', '.join(near)}")
        for one in there[part].modules():
            if (other := inside.setdefault(id(one), part)) != part or found.parts.count(part) > 1:
                both = f"{other!r} and {part!r}"
                raise UsageError(f"model {name!r} names parts that are not apart, {both}: name one of them")


def ready(model: OwnModel, workload: Workload) -> OwnModel:
    """The model as a launch calls it, with arguments in order, its lazy layers made for the workload's inputs.

    Raises:
        UsageError: its inputs can't be made, or leave a layer without weights.
    """
    asked = replace(workload, device="cpu")
    if isinstance(given := made(model, 0, asked), Mapping):
        model = replace(model, module=Keywords(model.module, tuple(sorted(given))).eval())
    if any(map(is_lazy, _weights(model.module))):
        torch.manual_seed(SEED)
        try:
            model.module(*inputs_of(model, 0, asked))
        except Exception as error:
            raise UsageError(f"{_call(0, workload)} leave a lazy layer without weights: {first_line(error)}") from None
    left = [type(part).__name__ for part in model.module.modules() if any(map(is_lazy, _weights(part, False)))]
    if left:
        where = f"a {left[0]} without weights, which it needs from them"
        raise UsageError(f"{_call(0, workload)} do not reach {where}: use that layer, or leave it out")
    return model


def _weights(module: nn.Module, inner: bool = True) -> list[Tensor]:
    return [*module.parameters(inner), *module.buffers(inner)]


def _call(index: int, workload: Workload) -> str:
    return f"inputs({index}, workload) of {workload.model!r}"


def inputs_of(model: OwnModel, index: int, workload: Workload) -> tuple[Tensor, ...]:
    """The inputs of a call, on the workload's device, keyword arguments in the order of their names.

    They are copies, of the mode that this is called in, as the warm-up's are: a compiled variant would be compiled
    again for a tensor that the model made outside of inference mode and keeps.

    Raises:
        UsageError: they are neither a tuple nor a dict of tensors.
    """
    inputs = made(model, index, workload)
    ordered = [inputs[name] for name in sorted(inputs)] if isinstance(inputs, Mapping) else inputs
    return tuple(one.to(workload.device, copy=True) for one in ordered)


def made(model: OwnModel, index: int, workload: Workload) -> tuple[Tensor, ...] | Mapping[str, Tensor]:
    """The inputs of a call as the factory gives them. Raises UsageError."""
    torch.manual_seed(index)
    try:
        inputs = model.inputs(index, workload)
    except Exception as error:
        how = "; the index grows large, so use i % len(data)" if isinstance(error, LookupError) else ""
        raise UsageError(f"{_call(index, workload)} failed: {first_line(error)}{how}") from None
    if not isinstance(inputs, (tuple, Mapping)):
        raise UsageError(f"{_call(index, workload)} is a {type(inputs).__name__}, not a tuple or dict of tensors")
    held = list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    if not all(isinstance(one, Tensor) for one in held):
        what = f"{type(inputs).__name__} of {', '.join(type(one).__name__ for one in held)}"
        raise UsageError(f"{_call(index, workload)} is a {what}, not a tuple or dict of tensors")
    return inputs


def places_of(name: str) -> list[str]:
    """The folders that a fresh process needs on its path to import the factory's module; none where it is not found."""
    try:
        spec = importlib.util.find_spec(name.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    folders = [str(Path(place).parent) for place in spec.submodule_search_locations or ()]
    return folders or ([str(Path(spec.origin).parent)] if spec.has_location and spec.origin else [])
