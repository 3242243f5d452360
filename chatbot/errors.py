"""The one exception that a person is meant to read."""


class UsageError(ValueError):
    """A mistake of the user's: one line that says what was wrong and what would be right."""


def one_of(kind: str, name: str, valid: list[str] | tuple[str, ...]) -> UsageError:
    """The error for an unknown ``name``, listing the valid ones."""
    return UsageError(f"unknown {kind} {name!r}; choose from: {', '.join(valid)}")
