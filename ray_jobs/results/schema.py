"""The version of a run's files: its history, and the upgrade of older files as they are read.

History of ``schema_version`` in run.json, audit.json, sweep.json and cluster.json; a newer one is refused. Within a
version fields are only added, and a reader ignores those that it does not know. Only an unknown key of a spec is
refused by ``matrix --resume`` and ``trace``, which would measure something else than what was asked.

1  the first. Added meanwhile, and unknown (None, empty or 0) where a file lacks it:
   run.json: identity, resumed, purpose, parts, sides, method (in audit.json too; the first where it lacks), driver
   (in audit.json and sweep.json too); of the spec stations,
   isolation, cores_per_gpu, stop_at_eos, launch_timeout, cases, against, cold, scenario, slo, replicas, replica_kind,
   max_batch, batch_window, through, price; in audit.json asked, resumed; of a trial load, attempts, limits, speeds,
   compared, not_known, moments, host, device_name, hardware, compiled, environments, cold
   matrix.json: disturbed_rounds and all that follow it, in the order of ``rows.Row``
   samples: what ``watch`` saw of each round, discarded; of a launch method, sentinel_ns, elapsed_s, sides (then
   variants are labels, ``side: variant``, but of base), waits and environments of its machine, and under load served
   with a column for each part of a request; of a variant tokens,
   differing, skipped, scattered, recompiled, first_token_ms, further_token_ms
2  the planted mistakes of audits are ``ray_jobs.audit.mistakes:NAME``; they were ``ray_jobs.audit.plants:NAME``
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from chatbot.errors import UsageError
from chatbot.safe_text import keyless, printable
from ray_jobs.measure import method

VERSION = 2
RENAMED = {"ray_jobs.audit.plants:": "ray_jobs.audit.mistakes:"}  # prefixes of a variant's name, wherever it stands
T = TypeVar("T")


class NewerVersionError(UsageError):
    """The file was written by a later version of this program."""


def current(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A file's content as this version would have written it.

    Raises:
        NewerVersionError: a later version wrote it.
        ValueError: it has no version.
    """
    found = content.get("schema_version", 1)
    if type(found) is not int or found < 1:
        raise ValueError(f"schema_version is {found!r}, not a whole number above 0")
    if found > VERSION:
        raise _newer(f"{place} has schema version {found}, and this program reads versions up to {VERSION}")
    try:
        method.known(method.version_in(content))
    except method.UnknownMethodError as error:
        raise _newer(f"{place} was {error}") from None
    return {**each_text(renamed(content), keyless), "schema_version": VERSION}


def _newer(fault: str) -> NewerVersionError:
    return NewerVersionError(f"{fault}: update it (pip install --upgrade latency-matrix)")


def renamed(value: Any) -> Any:
    """A plain value with today's names in it, however deep; what a terminal would obey is escaped."""
    return each_text(value, _renamed)


def _renamed(text: str) -> str:
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    return printable(text)


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A plain value in which every text is changed, however deep, keys included."""
    if isinstance(value, Mapping):
        return {each_text(key, change): each_text(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [each_text(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def known(kind: type[T], values: Mapping[str, Any]) -> T:
    """A record of the fields that this version knows; a list becomes a tuple. Raises TypeError where one is missing."""
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    own = {name: value for name, value in values.items() if name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})
