"""Everything on disk. Here stands what is said of it before anything heavy is loaded that reads it."""

from chatbot.errors import UsageError

REPORT = "report.html"


def no_run(place: str, holds: str = "run.json") -> UsageError:
    """The error for a place where there is no run, told by a file that it would hold."""
    return UsageError(f"no run at {place}: it has no {holds}")
