"""Facts about the cluster and a submitted job that need no Ray."""

import os
from pathlib import Path

from chatbot.errors import UsageError

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray sets for the driver of a submitted job
JOB_OUT = "~/latency-matrix-results"  # a job's working directory is taken away when Ray needs the room
ADDRESS = "RAY_ADDRESS"


def default_out() -> str:
    """The default results root."""
    return str(Path(JOB_OUT).expanduser()) if IN_A_JOB in os.environ else "results"


def check_uploaded(*paths: str | Path | None) -> None:
    """Raises UsageError for a relative path that a submitted job lacks, most likely since it was not uploaded."""
    if IN_A_JOB not in os.environ or not Path(".gitignore").is_file():
        return
    for path in map(str, filter(None, paths)):
        if "/" in path and "://" not in path and not path.startswith(("/", "~")) and not Path(path).exists():
            raise UsageError(
                f"{path} is not in this job's working directory: ray job submit leaves out what .gitignore names, "
                "results/ and checkpoints/ among others; export RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 where you submit, "
                "or give a path of the head, from / on"
            )


def ray_address(given: str | None) -> str:
    """The cluster's address: the one given, the environment's, or ``local``.

    Raises:
        UsageError: it is none that a driver can join.
    """
    place = given or os.environ.get(ADDRESS) or "local"
    named = f"--address {place}" if given else f"{ADDRESS}={place}"
    if place.startswith(("http://", "https://")):
        raise UsageError(
            f"{named} is a dashboard, where jobs are submitted (ray job submit); give local, auto or HOST:PORT"
        )
    if place.startswith("ray://"):
        raise UsageError(
            f"{named} keeps the driver off the cluster; use: ray job submit -- python -m ray_jobs matrix, or give "
            "local, auto or HOST:PORT"
        )
    if place not in ("local", "auto") and host_and_port(place) is None:
        raise UsageError(f"{named} is no address: give local, auto or HOST:PORT, IPv6 as [ADDRESS]:PORT")
    return place


def host_and_port(address: str) -> tuple[str, int] | None:
    """``HOST:PORT`` or ``[IPV6]:PORT``, without the brackets; None if it is neither."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or not (port.isascii() and port.isdigit() and int(port) < 65536):
        return None
    return bare, int(port)
