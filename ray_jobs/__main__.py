"""``python -m ray_jobs``, and the console script ``latency-matrix``."""

import sys

from ray_jobs.search_path import search_here_last

UNEXPECTED = 70  # as ``console.ExitCode``, which can't be imported where a package is missing


def main() -> None:
    """The console script."""
    search_here_last()
    run()


def run() -> None:
    """Runs the command line."""
    try:
        from ray_jobs.cli.app import main as command_line
    except Exception:  # with Python's own code, 1, a broken installation would be a gate's "slower"
        import traceback  # not before the folder that one stands in is searched last

        traceback.print_exc()
        sys.exit(UNEXPECTED)
    command_line()


if __name__ == "__main__":
    run()  # importing the package has moved the folder that one stands in
