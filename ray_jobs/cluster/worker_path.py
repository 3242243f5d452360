"""Where the workers of a local Ray look for modules: as its driver does, in the folder that one stands in last.

By itself Ray puts that folder, and the script's, first in every worker: a ``chatbot.py`` there is then this program's.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ray.job_config import JobConfig

from ray_jobs.provenance import python_path

SEARCHED = "LATENCY_MATRIX_SEARCHED"  # the driver's sys.path, for workers on its own machine


class _NoFolders(JobConfig):  # type: ignore[misc]
    """Lets Ray add no folder to a worker's path, as it adds none for a job with a working directory."""

    def _runtime_env_has_working_dir(self) -> bool:
        return True


@contextmanager
def driver_path() -> Iterator[JobConfig]:
    """For a Ray that starts within the block: the configuration to start it with."""
    before = os.environ.get("PYTHONPATH")
    os.environ[SEARCHED] = os.pathsep.join(place or os.getcwd() for place in sys.path)
    os.environ["PYTHONPATH"] = python_path()
    try:
        yield _NoFolders()
    finally:
        del os.environ[SEARCHED], os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def search_as_driver() -> None:
    """In a worker: searches for modules of the user's own too, after all else."""
    places = os.environ.get(SEARCHED, "").split(os.pathsep)
    sys.path += [place for place in places if place and place not in sys.path]
