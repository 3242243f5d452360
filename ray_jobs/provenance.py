"""Where a run comes from: sources, commit, packages."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "pyarrow", "numpy", "scipy", "wandb", "chitchat-dataset")
ROOT = Path(__file__).resolve().parent.parent


def driver_facts() -> dict[str, Any]:
    """What tells this run's program from another's."""
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "git_commit": git_commit(),
        "source_hash": source_hash(),
    }


def package_versions() -> dict[str, str | None]:
    """The installed version of each package that a number may depend on; None where it is missing."""
    return {name: _version(name) for name in PACKAGES}


def source_hash() -> str:
    """A hash of every source file of both packages: a submitted working directory has no ``.git``."""
    digest = hashlib.sha256()
    for package in ("chatbot", "ray_jobs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def git_commit() -> str | None:
    """The commit that is checked out, with ``+`` where the tree differs from it; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return f"{commit}+" if commit and _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
