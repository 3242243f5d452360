"""What a submitted job knows of itself, told without Ray."""

import os
from pathlib import Path

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray sets for the driver of a submitted job
JOB_OUT = "~/latency-matrix-results"  # a job's working directory is taken away when Ray needs the room


def default_out() -> str:
    """The default results root."""
    return str(Path(JOB_OUT).expanduser()) if IN_A_JOB in os.environ else "results"
