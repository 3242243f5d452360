"""``python -m ray_jobs``, and the console script ``latency-matrix``."""

from ray_jobs.search_path import search_here_last


def main() -> None:
    """The console script."""
    search_here_last()
    run()


def run() -> None:
    """Runs the command line."""
    from ray_jobs.cli.app import main as command_line

    command_line()


if __name__ == "__main__":
    run()  # importing the package has moved the folder that one stands in
