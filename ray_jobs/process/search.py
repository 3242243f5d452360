"""Where the process of a side looks for code: what measures is this program's, what is measured may be a revision's."""

import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import chatbot
import ray_jobs
from chatbot.variants import Workload
from ray_jobs.measure import custom_model
from ray_jobs.sides import Side


@dataclass(frozen=True)
class Search:
    """The folders that a process searches."""

    first: tuple[str, ...]  # on its PYTHONPATH
    last: tuple[str, ...]  # where the caller finds modules of the user's own, after all else: a json.py may lie there
    instead: Mapping[str, str] = field(default_factory=dict)  # folders of the user's own, and what a revision has there
    links: "tempfile.TemporaryDirectory[str] | None" = None  # lives as long as the process


def search_of(workload: Workload, side: Side | None) -> Search:
    """What the process of a side searches; None: that of ``base``."""
    own = custom_model.places_of(workload.model) if workload.own_model else []
    given = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    searched = [*own, *(place or os.getcwd() for place in sys.path)]
    if side is None or (side.python is None and side.sources is None):
        return Search((*map(_home, (ray_jobs, chatbot)), *given), tuple(searched))
    if side.python is not None:
        given, searched = of_no_python(given), of_no_python(searched)
    instead: dict[str, str] = {}
    sources = None if side.sources is None else Path(side.sources)
    if sources is not None and workload.own_model:
        theirs = [os.path.normpath(sources / root) for root in side.roots]
        instead = dict(zip(map(os.path.realpath, own), theirs, strict=False))
        given, searched = replaced(given, instead), [*theirs, *replaced(searched, instead)]
    links = _links(_folder(chatbot) if sources is None or workload.own_model else sources / chatbot.__name__)
    return Search((links.name, *given), tuple(searched), instead, links)


def replaced(places: Sequence[str], instead: Mapping[str, str]) -> list[str]:
    """The folders, with others in place of some."""
    return [instead.get(os.path.realpath(place), place) for place in places] if instead else list(places)


def of_no_python(places: Sequence[str]) -> list[str]:
    """The folders of a path that are not this Python's own, its library or its packages."""
    paths = sysconfig.get_paths()
    own = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own += [*site.getsitepackages(), site.getusersitepackages()]
    return [place for place in places if not (place.endswith(".zip") or any(map(Path(place).is_relative_to, own)))]


def _links(chatbots: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder with this program's packages alone: beside them may lie a PyTorch for another Python."""
    made = tempfile.TemporaryDirectory(prefix="latency-matrix-", ignore_cleanup_errors=True)
    for name, folder in ((ray_jobs.__name__, _folder(ray_jobs)), (chatbot.__name__, chatbots)):
        Path(made.name, name).symlink_to(folder)
    return made


def _folder(package: ModuleType) -> Path:
    return Path(package.__path__[0]).resolve()


def _home(package: ModuleType) -> str:
    return str(_folder(package).parent)
