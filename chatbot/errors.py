"""The one exception that a person is meant to read, and what is said in it."""

import importlib
from typing import Any


class UsageError(ValueError):
    """A mistake of the user's: one line that says what was wrong and what would be right."""


def one_of(kind: str, name: str, valid: list[str] | tuple[str, ...]) -> UsageError:
    """The error for an unknown ``name``, listing the valid ones."""
    return UsageError(f"unknown {kind} {name!r}; choose from: {', '.join(valid)}")


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def imported(kind: str, name: str, advice: str = "") -> Any:
    """What ``package.module:attribute``, a ``kind`` of the user's own, names. Raises UsageError where there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does when it is imported
        cause = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise UsageError(f"{kind} {name!r} can't be imported: {cause}{first_line(error)}{advice}") from None
