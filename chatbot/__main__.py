"""``python -m chatbot``."""

import os
import sys

UNEXPECTED = 70  # as ``console.ExitCode``, which can't be imported where a package is missing
HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where this package was found


def main() -> None:
    """Runs the command line. A ``typer.py`` in the folder that one stands in is not imported in the place of Typer."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = HOME
    if not sys.flags.safe_path and sys.path[0] == here != HOME:
        sys.path.append(sys.path.pop(0))
    try:
        from chatbot.cli import main as run
    except Exception:  # as ``ray_jobs``
        import traceback  # not before the folder that one stands in is searched last

        traceback.print_exc()
        sys.exit(UNEXPECTED)
    run()


if __name__ == "__main__":
    main()
