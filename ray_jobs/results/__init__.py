"""Everything on disk. This file needs nothing heavy, so commands can refuse early."""

from chatbot.errors import UsageError

REPORT = "report.html"


def no_run(place: str, holds: str = "run.json") -> UsageError:
    """The error for a place without a run, recognised by the file that a run would hold."""
    return UsageError(f"no run at {place}: it has no {holds}")
