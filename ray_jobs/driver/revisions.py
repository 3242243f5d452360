"""The revisions that sides name: their commits, and their files as git packs them. The work tree is never touched.

Packed by ``git archive``: ``git worktree`` registers a folder in the user's ``.git``, and leaves it there if killed.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chatbot.errors import UsageError, first_line
from chatbot.variants import is_own
from ray_jobs import provenance
from ray_jobs.measure import custom_model
from ray_jobs.sides import BASE, Side

ASK_S, PACK_S = 30.0, 600.0
CHATBOT = "chatbot/__init__.py"


def resolved(sides: Sequence[Side], model: str) -> tuple[Side, ...]:
    """The sides with the commits of the repository that this process stands in.

    Raises:
        UsageError: there is no repository, no such revision, or it holds nothing that could be measured.
    """
    if not any(side.revision for side in sides):
        return tuple(sides)
    top = _top(sides)
    roots = _roots(model, top) if is_own(model) else ()
    stands_at = provenance.git_commit(Path(top)) if is_own(model) else provenance.git_commit()
    return tuple(_resolved(side, top, model, roots, stands_at) for side in sides)


def packed(sides: Sequence[Side]) -> dict[str, bytes]:
    """The files of each commit that ``resolved`` has found, as a tar. Raises UsageError."""
    named = {side.commit: side for side in sides if side.revision is not None and side.commit is not None}
    top = _top(sides) if named else ""
    archives = {}
    for commit, side in named.items():
        done = _git(top, "archive", "--format=tar", commit, timeout_s=PACK_S)
        if done.returncode:
            raise UsageError(f"--against rev={side.revision} can't be packed: {_said(done)}")
        archives[commit] = done.stdout
    return archives


def _resolved(side: Side, top: str, model: str, roots: tuple[str, ...], stands_at: str | None) -> Side:
    if side.name == BASE:
        return replace(side, commit=stands_at)
    if side.revision is None:
        return side
    done = _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{side.revision}^{{commit}}")
    if done.returncode:
        raise UsageError(f"--against rev={side.revision}: {top} has no such revision; give a commit, a branch or a tag")
    commit = done.stdout.decode().strip()
    if roots:
        name = model.partition(":")[0].partition(".")[0]
        paths = [os.path.normpath(f"{root}/{name}{end}") for root in roots for end in ("", ".py")]
        if not any(_holds(top, commit, path) for path in paths):
            raise UsageError(f"--against rev={side.revision}: it has no {paths[0]}, which model {model!r} comes from")
    elif not _holds(top, commit, CHATBOT):
        way_out = "stand in a repository of this program, or name a model of your own with --model"
        raise UsageError(f"--against rev={side.revision}: it has no {CHATBOT}; {way_out}")
    return replace(side, commit=commit, roots=roots)


def _roots(model: str, top: str) -> tuple[str, ...]:
    """The folders that a model of the user's own is found in, within the repository. Raises UsageError."""
    places = custom_model.places_of(model)
    if not places:
        raise UsageError(f"model {model!r} can't be found: stand in its folder, or install it")
    home = Path(top).resolve()
    for place in places:
        if not Path(place).resolve().is_relative_to(home):
            raise UsageError(f"model {model!r} comes from {place}, which is not in the repository {top} of rev=")
    return tuple(str(Path(place).resolve().relative_to(home)) for place in places)


def _top(sides: Sequence[Side]) -> str:
    """The repository's folder. Raises UsageError."""
    done = _git(os.getcwd(), "rev-parse", "--show-toplevel")
    if done.returncode:
        asked = next(side.revision for side in sides if side.revision)
        raise UsageError(f"--against rev={asked}: {_said(done)}; stand in the repository that it is a revision of")
    return os.fsdecode(done.stdout).removesuffix("\n")


def _holds(top: str, commit: str, path: str) -> bool:
    return _git(top, "cat-file", "-e", f"{commit}:{path}").returncode == 0


def _git(folder: str, *words: str, timeout_s: float = ASK_S) -> "subprocess.CompletedProcess[bytes]":
    """Raises UsageError where git is missing or silent."""
    try:
        command = ["git", "-C", folder, *words]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise UsageError("--against rev= needs git, which is not installed here") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--against rev= needs git, which does not answer: {first_line(error)}") from None


def _said(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[0].removeprefix("fatal: ") if lines else f"git ended with {done.returncode}"
