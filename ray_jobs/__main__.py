"""``python -m ray_jobs``, and the console script ``latency-matrix``."""

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where this package was found


def main() -> None:
    """Runs the command line. The folder that one stands in is searched last.

    So models and variants of one's own are found there, and a ``typer.py`` or ``chatbot.py`` among downloaded files is
    not imported in the place of the real one.
    """
    here = _folder()
    if not sys.flags.safe_path and here != HOME:
        if sys.path[0] == here:  # where ``python -m`` puts it; the console script has its own folder there
            del sys.path[0]
        if HOME not in sys.path:  # a development install is found by an import hook, which comes after all of the path
            sys.path.append(HOME)
        sys.path.append(here)
    from ray_jobs.cli.app import main as run

    run()


def _folder() -> str:
    """The folder that one stands in; one that was deleted has no name."""
    try:
        return os.getcwd()
    except OSError:
        return HOME


if __name__ == "__main__":
    main()
