"""What a user's own model must be, asked of its baseline in a process of its own before anything is measured.

A launch takes a model's quirk for the fault of some variant, after minutes; here it is one line that names the model.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.errors import UsageError, first_line
from chatbot.variants import Workload
from chatbot.variants.parts import loop_of
from ray_jobs import provenance
from ray_jobs.measure import busy, custom_model
from ray_jobs.measure.answers import PLAIN, comparable, copied, equal, leaves
from ray_jobs.measure.custom_model import CLOSE, OwnModel

INDICES = (1, 2, 100_000)  # of calls whose inputs are held against the first one's; the last is a second launch's
SLOW_SHARE = 0.25  # of a launch's time, that a factory may take unsaid
GRADIENTS = "the model computes gradients inside, so its variants are measured under no_grad, not in inference mode"
WAY_OUT = "start each call from the same state, or make the state an input"


class Step(StrEnum):
    """What the process is busy with, should it end here."""

    FACTORY = "the factory"
    INPUTS = "inputs"
    CALL = "a call of the model"


class CallError(UsageError):
    """The model can't answer its inputs."""


@dataclass(frozen=True)
class Findings:
    """What is known of a model that can be measured."""

    weights: str  # a hash of their names, shapes and values
    code: str  # a hash of the factory's package, and of what it imports from beside that
    gradients: bool = False  # it computes some
    warnings: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()  # that were asked, of a factory that returns several
    parts: tuple[str, ...] = ()  # that variants convert, of all cases


@dataclass(frozen=True)
class Refusal:
    """Why a model can't be measured; one line."""

    reason: str


def ask(name: str, workloads: Sequence[Workload], timeout_s: float) -> Findings | Refusal:
    """Examines a model in this process, which may not outlive it; ``timeout_s`` is what a launch may take."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process is ended
    try:
        return examine(name, workloads, timeout_s)
    except UsageError as error:
        return Refusal(str(error))


def examine(name: str, workloads: Sequence[Workload], timeout_s: float) -> Findings:
    """Makes the model of a factory and asks it, on the CPU.

    Raises:
        UsageError: it can't be measured; one line that says what is at fault and the way out.
    """
    try:
        with torch.inference_mode():
            return _examined(name, workloads, timeout_s)
    except CallError as refused:
        with torch.no_grad():
            try:
                found = _examined(name, workloads, timeout_s)
            except CallError:
                raise refused from None
        return replace(found, gradients=True, warnings=(GRADIENTS, *found.warnings))


def _examined(name: str, workloads: Sequence[Workload], timeout_s: float) -> Findings:
    busy.enter(list(Step))
    busy.on(Step.FACTORY)
    start = time.monotonic()
    cases = custom_model.load_cases(name.partition("#")[0])
    took_s = time.monotonic() - start
    warnings = []
    if took_s > SLOW_SHARE * timeout_s:
        warnings.append(f"the factory takes {took_s:.0f} s of the {timeout_s:.0f} s that each launch may take")
    weights: dict[str, str] = {}  # by case
    parts: list[str] = []
    for workload in _workloads(list(cases), workloads):
        busy.on(Step.INPUTS)
        model, case = custom_model.case_of(workload.model, cases), workload.model.partition("#")[2]
        ready = custom_model.ready(model, workload)
        weights.setdefault(case, hash_of(model.module))
        _require_inputs(ready, workload)
        parts += model.parts
        busy.on(Step.CALL)
        warnings += [f"{case}: {one}" if case else one for one in _Asked(ready, workload).findings()]
    busy.at(None)
    asked, code = tuple(filter(None, weights)), provenance.own_code(name)
    told, named = (tuple(dict.fromkeys(each)) for each in (warnings, parts))
    return Findings(_hash(weights), code, warnings=told, cases=asked, parts=named)


def _workloads(cases: Sequence[str], workloads: Sequence[Workload]) -> list[Workload]:
    """What differs to a model on the CPU: each workload, once for each case where none is named."""
    each = [
        replace(
            one, device="cpu", threads=1, model=f"{one.model}#{case}" if case and "#" not in one.model else one.model
        )
        for one in workloads
        for case in cases
    ]
    return list(dict.fromkeys(each))


def _require_inputs(model: OwnModel, workload: Workload) -> None:
    """Raises UsageError where inputs differ in shape, or from one time to the next."""
    first = custom_model.made(model, 0, workload)
    for index in INDICES:
        other = custom_model.made(model, index, workload)
        if _shapes(other) != _shapes(first):
            raise UsageError(
                f"inputs({index}, workload) of {workload.model!r} are {_shapes(other)}, but inputs(0, workload) "
                f"{_shapes(first)}: pad the inputs of a workload to one shape"
            )
    if not equal(copied(first), custom_model.made(model, 0, workload)):
        raise UsageError(
            f"inputs(0, workload) of {workload.model!r} differ from one time to the next: draw them with torch, whose "
            "generator is seeded with i, and change nothing that you keep"
        )


def _shapes(inputs: tuple[Tensor, ...] | Mapping[str, Tensor]) -> str:
    named = inputs.items() if isinstance(inputs, Mapping) else (("", one) for one in inputs)
    told = (f"{name} {tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}".strip() for name, one in named)
    return ", ".join(sorted(told) if isinstance(inputs, Mapping) else told) or "none"


class _Asked:
    """A model that answers one workload, call after call."""

    def __init__(self, model: OwnModel, workload: Workload) -> None:
        self.model, self.workload, self.draws = model, workload, 0

    def findings(self) -> Iterator[str]:
        """Warnings. Raises UsageError."""
        first = self._answer(0)
        self._require_parts()
        yield from self._of_answer(first)
        before, held = hashes(self.model.module), []
        for index in (1, 2):
            self._answer(index)
            held.append(_held(self.model.module))
        again = self._answer(0)
        self._require_no_state(before, [*held, _held(self.model.module)])
        if not CLOSE(again, first):
            raise UsageError(self._why_other(first))

    def _require_parts(self) -> None:
        """Raises UsageError for a part that a call of the model does not reach."""
        if not self.model.parts:
            return
        loop, called = loop_of(self.model.module, self.model.parts), set[str]()
        with loop.watched(lambda name, *_: called.add(name), lambda *_: None):
            self._answer(0)
        for name in self.model.parts:
            if name not in called:
                how = f"self.{name}(...)" if name.isidentifier() else "its forward"
                self._refuse(f"does not call its part {name!r} in a call: call it as {how}, or name another")

    def _answer(self, index: int, model: OwnModel | None = None) -> Any:
        """The answer to a call, as ``same`` sees it; each draws other random numbers."""
        module = (model or self.model).module
        inputs = custom_model.inputs_of(self.model, index, self.workload)
        given = copied(inputs)
        self.draws += 1
        torch.manual_seed(10_000 + self.draws)
        try:
            answer = module(*given)
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise CallError(f"model {self.workload.model!r} can't answer inputs({index}, workload): {what}") from None
        if not equal(given, inputs):
            self._refuse("changes its inputs in place, which the next variant reads: work on a copy (x = x.clone())")
        return copied(comparable(answer))

    def _refuse(self, what: str) -> None:
        raise UsageError(f"model {self.workload.model!r} {what}")

    def _of_answer(self, answer: Any) -> Iterator[str]:
        found = leaves(answer)
        for leaf in found:
            if isinstance(leaf, Iterator):
                self._refuse(
                    f"answers with a {type(leaf).__name__}, which computes after the call: return a list of it"
                )
        odd = sorted({type(leaf).__name__ for leaf in found if not isinstance(leaf, PLAIN)})
        if all(leaf is None or not isinstance(leaf, PLAIN) for leaf in found):
            what = " and ".join(odd) or "nothing"
            self._refuse(f"answers with {what}: return a tensor, or a tuple, list, dict or dataclass of tensors")
        missing = _share_missing(found)
        if missing == 1.0:
            self._refuse(
                "answers with NaN alone, so no answer can be compared: give it weights and inputs that it works on"
            )
        self._require_itself(answer, missing)
        if odd:
            yield f"the model's answer holds {' and '.join(odd)}, which can't be compared and are not"
        if missing:
            yield f"{missing:.1%} of the numbers in the model's answer are NaN"

    def _require_itself(self, answer: Any, missing: float) -> None:
        try:
            itself = bool(self.model.same(answer, copied(answer)))
        except Exception as error:
            self._refuse(f"has a same(answer, baselines) that fails: {type(error).__name__}: {first_line(error)}")
        if not itself:
            hint = ": its answer holds NaN, which ray_jobs.close() takes as equal to NaN" if missing else ""
            self._refuse(f"has a same(answer, baselines) that is False of an answer and itself{hint}")

    def _require_no_state(self, before: Mapping[str, str], held: Sequence[Mapping[str, int]]) -> None:
        after = hashes(self.model.module)
        changed = [name for name in after if after[name] != before.get(name)]
        if changed:
            self._refuse(f"keeps state from call to call (its {changed[0]!r} changes): {WAY_OUT}")
        for name, last in held[-1].items():
            sizes = [one.get(name, 0) for one in held]
            if sizes[0] < sizes[1] < last:
                self._refuse(f"keeps state from call to call (its {name!r} grows with each): {WAY_OUT}")

    def _why_other(self, first: Any) -> str:
        """The reason why the same inputs were answered differently: a module that is new answers as before, or not."""
        new = custom_model.ready(custom_model.load(self.workload.model), self.workload)
        if CLOSE(self._answer(0, new), first):
            return f"model {self.workload.model!r} keeps state from call to call (its answers depend on it): {WAY_OUT}"
        return (
            f"model {self.workload.model!r} answers the same inputs differently (dropout without "
            "training=self.training, sampling): let it draw nothing in evaluation mode"
        )


def _share_missing(found: Sequence[Any]) -> float:
    """The share of NaN among the floating numbers of an answer."""
    floats = [leaf for leaf in found if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())]
    numbers = sum(one.numel() for one in floats)
    return sum(int(torch.isnan(one).sum()) for one in floats) / numbers if numbers else 0.0


def hashes(module: nn.Module) -> dict[str, str]:
    """The hash of each weight and buffer: its shape, precision and values."""
    return {name: _of_tensor(one) for name, one in [*module.named_parameters(), *module.named_buffers()]}


def hash_of(module: nn.Module) -> str:
    """One hash of all weights and buffers."""
    return _hash(hashes(module))


def _of_tensor(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    values = (torch.view_as_real(flat) if flat.is_complex() else flat).reshape(-1).view(torch.uint8).numpy()
    head = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    return hashlib.blake2b(values.data, key=hashlib.sha256(head).digest(), digest_size=16).hexdigest()


def _hash(named: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()[:16]


def _held(module: nn.Module) -> dict[str, int]:
    """How much each attribute of a module's parts holds beside weights, buffers and parts: items and numbers."""
    return {
        f"{name}.{key}".lstrip("."): _size(value, set())
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if not key.startswith("_") or key not in vars(nn.Module())
    }


def _size(value: object, seen: set[int]) -> int:
    if id(value) in seen or isinstance(value, (nn.Module, type)) or callable(value):
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, Mapping):
        return len(value) + sum(_size(one, seen) for one in value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return len(value) + sum(_size(one, seen) for one in value)
    return sum(_size(one, seen) for one in vars(value).values()) if hasattr(value, "__dict__") else 0
