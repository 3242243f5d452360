"""A model that is not the chatbot: finding its factory, and checking what the factory returns."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.errors import UsageError, first_line, imported
from chatbot.variants import OWN_MODEL, Workload

SEED = 0  # of torch's generator while a factory runs: weights that it draws are the same in each process


@dataclass(frozen=True)
class OwnModel:
    """What a factory, a function without arguments, returns.

    ``inputs(i, workload)`` are the i-th call's positional arguments: a tuple of tensors on the CPU, of one shape for
    one workload, ``workload.batch`` of whatever a batch is made of. They are the same for the same ``i``; what torch
    draws at random is, as its generator is seeded with ``i`` before. ``same(answer, baselines)`` says whether an
    answer is what the baseline answered to the same inputs. Answers are tensors, or tuples, lists and dicts of them;
    what it is given has been brought to the CPU, and floating numbers to 32 bits at least.
    """

    module: nn.Module
    inputs: Callable[[int, Workload], tuple[Tensor, ...]]
    same: Callable[[Any, Any], bool]


def load(name: str) -> OwnModel:
    """Calls the factory named ``package.module:factory``; the module that it returns is put in evaluation mode.

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
    return _checked(name, found)


def _checked(name: str, found: object) -> OwnModel:
    if not isinstance(found, OwnModel):
        raise UsageError(f"model {name!r} returned a {type(found).__name__}, not a ray_jobs.OwnModel")
    if not isinstance(found.module, nn.Module):
        raise UsageError(f"model {name!r} holds a {type(found.module).__name__} as its module, not an nn.Module")
    floats = {str(one.dtype).removeprefix("torch.") for one in found.module.parameters() if one.is_floating_point()}
    if floats - {"float32"}:
        raise UsageError(f"model {name!r} has weights in {', '.join(sorted(floats))}: give float32, bf16 is a variant")
    try:
        copy.deepcopy(found.module)
    except Exception as error:
        raise UsageError(f"model {name!r} can't be copied, once for each variant: {first_line(error)}") from None
    found.module.eval()
    return found


def inputs_of(model: OwnModel, index: int, workload: Workload) -> tuple[Tensor, ...]:
    """The inputs of a call, on the workload's device. Raises UsageError where they are no tuple of tensors.

    They are copies, of the mode that this is called in, as the warm-up's are: a compiled variant would be compiled
    again for a tensor that the model made outside of inference mode and keeps.
    """
    torch.manual_seed(index)
    try:
        inputs = model.inputs(index, workload)
    except Exception as error:
        raise UsageError(f"inputs({index}, workload) of {workload.model!r} failed: {first_line(error)}") from None
    if not isinstance(inputs, tuple) or not all(isinstance(one, Tensor) for one in inputs):
        what = type(inputs).__name__
        held = "" if not isinstance(inputs, tuple) else f" of {', '.join(type(one).__name__ for one in inputs)}"
        raise UsageError(f"inputs({index}, workload) of {workload.model!r} is a {what}{held}, not a tuple of tensors")
    return tuple(one.to(workload.device, copy=True) for one in inputs)


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
