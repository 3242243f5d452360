"""The ways to execute the chatbot, one file each, and the table of their names.

A variant is a function ``(chatbot, workload) -> callable(prompts, lengths) -> tokens``: prompts (B, T) on the
workload's device, lengths (B,) on the CPU, tokens (B, S). Whatever it prepares (traces, copies, caches)
happens before it returns; the callable is what is timed. Where it can't run it raises ``UnavailableError``. Everything
else follows from its entry in ``VARIANTS``, or, for a variant of your own, from a ``Variant`` in any module, named
``package.module:NAME``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from chatbot.errors import UsageError, one_of
from chatbot.model import Chatbot
from chatbot.variants import eager, torchscript
from chatbot.variants.program import Compiled
from chatbot.variants.workload import DEVICES, Reply, UnavailableError, Workload

Prepare = Callable[[Chatbot, Workload], Reply]


@dataclass(frozen=True)
class Variant:
    """A way to execute the chatbot, and what it promises."""

    name: str
    summary: str  # one line, for help and report
    prepare: Prepare
    exact: bool  # promises the baseline's replies, but for ties within the arithmetic's noise; else nearly the same
    kind: str  # what the timed program must turn out to be: "eager", "torchscript", or the kind of a ``Compiled``
    dtype: str = "float32"  # and what it must compute in
    devices: tuple[str, ...] = DEVICES
    control_of: str | None = None  # entered to measure the tool's own error: the same program as that variant


BASELINE = "eager"
CONTROL = "eager-again"

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(BASELINE, "the Python modules as they are", eager.prepare, exact=True, kind="eager"),
        Variant(
            CONTROL,
            "the baseline entered a second time: its speedup is the tool's own error",
            eager.prepare,
            exact=True,
            kind="eager",
            control_of=BASELINE,
        ),
        Variant(
            "torchscript",
            "encoder and decoder traced, greedy search scripted",
            torchscript.prepare,
            exact=True,
            kind="torchscript",
        ),
    )
}


def variant_named(name: str) -> Variant:
    """The table's entry, or the ``Variant`` called ``NAME`` in a module: ``package.module:NAME``.

    Raises:
        UsageError: there is none; lists the valid names.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if ":" not in name:
        raise one_of("variant", name, [*VARIANTS, "package.module:NAME"])
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does when it is imported
        cause = str(error).splitlines()[0] if str(error) else ""
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise UsageError(f"variant {name!r} can't be imported: {kind}{cause}") from None
    if not isinstance(found, Variant):
        raise UsageError(f"variant {name!r} is a {type(found).__name__}, not a chatbot.variants.Variant")
    return found


__all__ = [
    "BASELINE",
    "CONTROL",
    "DEVICES",
    "VARIANTS",
    "Compiled",
    "Prepare",
    "Reply",
    "UnavailableError",
    "Variant",
    "Workload",
    "variant_named",
]
