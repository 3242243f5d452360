"""Where workers look for modules of the user's own: in the driver's folders, after all else.

By itself Ray puts the folder that one stands in, and the script's, first in every worker: a ``chatbot.py`` there is
this program's then.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.job_config import JobConfig

from ray_jobs.provenance import python_path

SEARCHED = "LATENCY_MATRIX_SEARCHED"  # the driver's sys.path; on other machines, what of it is no environment's


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


def for_a_cluster() -> tuple[dict[str, str], JobConfig]:
    """For a Ray that runs already: environment variables of its workers, and the configuration to join it with.

    An environment's own folders are left out, as another machine's may hold another Python's packages.
    """
    environments = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    places = [os.path.abspath(place or os.curdir) for place in sys.path]
    own = [place for place in places if not any(Path(place).is_relative_to(prefix) for prefix in environments)]
    return {SEARCHED: os.pathsep.join(own)}, _NoFolders()


def search_as_driver() -> None:
    """In a worker: searches for modules of the user's own too, after all else."""
    places = os.environ.get(SEARCHED, "").split(os.pathsep)
    sys.path += [place for place in places if place and place not in sys.path]
