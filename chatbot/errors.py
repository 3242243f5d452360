"""The one exception meant for people to read, and helpers to word it."""

import importlib
from typing import Any

from chatbot.safe_text import safe


class UsageError(ValueError):
    """A user's mistake: one line that says what was wrong and what would be right, without keys or escapes."""

    def __init__(self, message: str = "") -> None:
        super().__init__(safe(message))


def one_of(kind: str, name: str, valid: list[str] | tuple[str, ...]) -> UsageError:
    """The error for an unknown ``name``, listing the valid ones."""
    return UsageError(f"unknown {kind} {name!r}; choose from: {', '.join(valid)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return safe(next(iter(str(error).strip().splitlines()), type(error).__name__))


def imported(kind: str, name: str, advice: str = "") -> Any:
    """Imports ``package.module:attribute``, a user's own ``kind``. Raises UsageError if that fails."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module does when it is imported
        cause = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise UsageError(f"{kind} {name!r} can't be imported: {cause}{first_line(error)}{advice}") from None
