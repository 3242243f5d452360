"""The latency matrix: what to measure, how, and how the numbers come home and are judged.

Importing it loads nothing: names come when they are first used, so that ``measure`` and ``process`` run on a machine
without Ray and pyarrow, and a command waits only for what it needs.
"""

import sys

if getattr(sys, "argv", [])[:1] == ["-m"]:  # so it is while ``python -m`` still looks for its module
    from ray_jobs.search_path import search_here_last

    search_here_last()

import importlib
import os
from typing import TYPE_CHECKING, Any

from ray_jobs.machine import AFFINITY

if TYPE_CHECKING:
    from chatbot.variants import Variant
    from ray_jobs.driver.api import Matrix, open_run, run
    from ray_jobs.measure.answers import close
    from ray_jobs.measure.custom_model import OwnModel
    from ray_jobs.spec import Spec

__all__ = ["Matrix", "OwnModel", "Spec", "Variant", "close", "open_run", "run"]

# OpenMP binds the thread that loads it, the driver's or a Ray worker's, and what is started from there inherits that:
# a machine of many cores would be a station of one.
for _name in AFFINITY:
    os.environ.pop(_name, None)

_PLACES = {
    "Matrix": "ray_jobs.driver.api",
    "OwnModel": "ray_jobs.measure.custom_model",
    "Spec": "ray_jobs.spec",
    "Variant": "chatbot.variants",
    "close": "ray_jobs.measure.answers",
    "open_run": "ray_jobs.driver.api",
    "run": "ray_jobs.driver.api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
