"""The definition of a variant: its workload, the form of its reply, its promises, and how it reports that it can't run.

Loads no PyTorch: naming variants and planning runs must not wait for it.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatbot.errors import UsageError, first_line, imported

if TYPE_CHECKING:
    from torch import Tensor, nn

    from chatbot.model import Chatbot

DEVICES = ("cpu", "cuda")
MODELS = "small, tutorial, or the path of a checkpoint"  # what --model takes
OWN_MODEL = "package.module:factory"
UNTRIED = "never run on a device by its makers"


class UnavailableError(Exception):
    """A variant can't run here, through no fault of its own; the message says what is missing and what would help."""


class NoProductError(UnavailableError):
    """A graph has no product whose weights could be quantised."""


class NothingToDoError(UnavailableError):
    """A variant leaves this module as another one would; ``instead`` makes what that is, for one part among several."""

    def __init__(self, message: str, instead: Callable[[], Callable[..., Any]]) -> None:
        super().__init__(message)
        self.instead = instead


@dataclass(frozen=True)
class Workload:
    """Every call reads ``batch`` prompts of ``prompt_tokens`` tokens, EOS counted, and writes ``reply_tokens`` each."""

    device: str = "cpu"  # a kind: "cpu" or "cuda"
    batch: int = 1
    prompt_tokens: int = 8
    reply_tokens: int = 10
    threads: int = 1
    model: str = "small"
    stop_at_eos: bool = False  # a call ends when each reply has; behind a reply's EOS stands PAD

    @property
    def own_model(self) -> bool:
        """True if the model is not the chatbot; prompts and replies then have no meaning."""
        return is_own(self.model)


def is_own(model: str) -> bool:
    """Tells whether a model's name has the form ``package.module:factory``."""
    return ":" in model and "/" not in model


Reply = Callable[["Tensor", "Tensor"], "Tensor"]  # (prompts (B, T), lengths (B,)) -> tokens (B, S)
Prepare = Callable[["Chatbot", Workload], Reply]
PrepareModule = Callable[["nn.Module", tuple["Tensor", ...], Workload], Callable[..., Any]]


class Example(tuple["Tensor", ...]):
    """The inputs of one call of a module that is given ``others`` too, of the same kinds in other shapes."""

    others: tuple[tuple["Tensor", ...], ...] = ()

    @classmethod
    def of(cls, calls: Sequence[tuple["Tensor", ...]]) -> "Example":
        """The largest call as the example: tools take a length of 0 or 1 for one that never changes."""
        largest = max(calls, key=lambda call: sum(one.numel() for one in call))
        made = cls(largest)
        made.others = tuple(call for call in calls if call is not largest)
        return made


def varying(inputs: tuple["Tensor", ...]) -> tuple[tuple[int, ...], ...]:
    """The dimensions of each input that are not of one length in all calls; none where there is one call."""
    others = inputs.others if isinstance(inputs, Example) else ()
    return tuple(
        tuple(dim for dim in range(one.dim()) if any(other[i].size(dim) != one.size(dim) for other in others))
        for i, one in enumerate(inputs)
    )


@dataclass(frozen=True)
class Imported:
    """A function known by its import path, ``package.module:name``, and imported when it is first called."""

    path: str

    def function(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.path.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found

    def __call__(self, *given: Any) -> Any:
        return self.function()(*given)


@dataclass(frozen=True)
class Variant:
    """A way to execute the chatbot, and what it promises."""

    name: str
    summary: str  # one line, for help and report
    prepare: Prepare
    exact: bool  # promises the baseline's replies, but for ties within the arithmetic's noise; else nearly the same
    kind: str  # what the timed program must turn out to be: "eager", "torchscript", or the kind of a ``Compiled``
    dtype: str = "float32"  # and what it must compute in, all of several with "+" between
    product: str | None = None  # the type it multiplies in, where that is not told by its weights'
    devices: tuple[str, ...] = DEVICES
    control_of: str | None = None  # entered to measure the tool's own error: the same program as that variant
    stops_at_eos: bool = False  # it can end a call when every reply has ended
    any_shape: bool = True  # it answers prompts of other sizes than the workload's too
    cached: bool = False  # it keeps compiled artefacts for later launches: its first preparing takes much longer
    prepare_s: float = 0.0  # about how long preparing takes, beyond a script's, once its artefacts are kept: for plans
    ready: Callable[[str], None] | None = None  # raises UnavailableError where a device lacks what it compiles with
    needs: tuple[str, ...] = ()  # beside PyTorch, in words
    untried: bool = False  # no committed run has it on its device: said wherever it is listed
    prepare_module: PrepareModule | None = None  # the same of any module; None: it needs the chatbot's structure


def own_variant(name: str) -> Variant:
    """The ``Variant`` called ``NAME`` in a user's module: ``package.module:NAME``.

    Raises:
        UsageError: there is none.
    """
    found = imported("variant", name)
    if not isinstance(found, Variant):
        raise UsageError(f"variant {name!r} is a {type(found).__name__}, not a chatbot.variants.Variant")
    return found


@dataclass(frozen=True)
class Compiled:
    """A program not made of PyTorch's modules, as read from itself (its session, its buffers), not from its label.

    An object that a variant's callable refers to provides it as its attribute ``compiled``.
    """

    kind: str  # "native", "onnxruntime", ...: as in the variant's entry
    devices: frozenset[str]  # where its weights are: "cpu", "cuda"
    dtypes: frozenset[str]  # that it computes in: "float32", "qint8", ...
    identity: str  # equal for programs that execute the same code
    weights: frozenset[int] = frozenset()  # where its parameters lie in memory, where it can tell


def prepared(variant: Variant, chatbot: "Chatbot", workload: Workload) -> Reply:
    """The variant's callable for the workload.

    Raises:
        UnavailableError: it can't run here, or not this workload; the message says why.
    """
    _require_device(variant, workload)
    if workload.stop_at_eos and not variant.stops_at_eos:
        raise UnavailableError("it can't stop at the end of a reply")
    return variant.prepare(chatbot, workload)


def prepared_module(variant: Variant, module: "nn.Module", inputs: tuple["Tensor", ...], workload: Workload) -> Reply:
    """The variant's callable for a module that is not the chatbot; ``inputs`` are an example.

    Raises:
        UnavailableError: it can't run here, or not this module; the message says why.
    """
    call = module_preparer(variant, workload)(module, inputs, workload)

    def answer(inputs: Any, _: "Tensor") -> Any:  # the same around every variant
        return call(*inputs)

    return answer


def module_preparer(variant: Variant, workload: Workload) -> PrepareModule:
    """What prepares a module that is not the chatbot. Raises UnavailableError where the variant takes none."""
    if variant.prepare_module is None:
        raise UnavailableError("it needs the chatbot's structure")
    _require_device(variant, workload)
    return variant.prepare_module


def _require_device(variant: Variant, workload: Workload) -> None:
    if workload.device not in variant.devices:
        raise UnavailableError(f"it runs on {' and '.join(variant.devices)} only")


@contextmanager
def converting(tool: str) -> Iterator[None]:
    """Makes an error of a tool that does not take every module a reason to skip the variant."""
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        raise UnavailableError(f"{tool} can't take this model: {first_line(error)}") from error
