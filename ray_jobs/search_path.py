"""Where ``python -m ray_jobs`` looks for modules: in the folder that one stands in last.

So models and variants of one's own are found there, and a ``typer.py`` or ``chatbot.py`` among downloaded files is not
imported in the place of the real one. Imports nothing that Python has not loaded by then: that would come from there.
"""

import os
import sys

HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where this package was found


def search_here_last() -> None:
    """Moves the folder that one stands in to the end of ``sys.path``; without effect under ``python -P``."""
    here = _folder()
    if sys.flags.safe_path or here == HOME:
        return
    if sys.path[0] == here:  # where ``python -m`` puts it; the console script has its own folder there
        del sys.path[0]
    if HOME not in sys.path:  # a development install is found by an import hook, which comes after all of the path
        sys.path.append(HOME)
    sys.path.append(here)


def _folder() -> str:
    """The folder that one stands in; one that was deleted has no name."""
    try:
        return os.getcwd()
    except OSError:
        return HOME
