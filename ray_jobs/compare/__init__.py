"""Two runs, a gate, an exit code."""

FORMATS = ("text", "markdown", "json")
