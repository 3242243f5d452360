"""An interpreter of its own with the packages of this one, and beside them what pip installs: it is found first.

What of this one's packages satisfies pip is not installed again, so that an environment holds what differs. Ray's own
``runtime_env`` would copy everything, into its session's folder: gigabytes, fetched again by each local run.
"""

import hashlib
import os
import platform
import re
import site
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from chatbot.safe_text import keyless, safe
from ray_jobs.process.supervised import LATE, output_of

BUILD_S = 1800.0
LINK = "latency_matrix_base.pth"
PYTHON = "bin/python"
# Where pip looks; of its other variables those that would let it install elsewhere are not its own.
INDICES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_PRE", "PIP_CONSTRAINT")
ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_DRY_RUN")
PIP = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--no-user")


CONFLICT = re.compile(r"The conflict is caused by:\n((?:[ \t]+\S.*\n)+)")


class BuildError(Exception):
    """What a side needs can't be built; one line says why."""


def key_of(packages: Sequence[str]) -> str:
    """A hash of all that an environment follows from, but for what an index holds today; no key of it is hashed."""
    parts = [*packages, *map(_content, packages), sys.executable, sys.version, platform.machine(), *platform.libc_ver()]
    parts += sorted(f"{one.name}=={one.version}" for one in metadata.distributions(path=list(_folders())))
    parts += [f"{name}={keyless(os.environ.get(name, ''))}" for name in INDICES]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _content(package: str) -> str:
    """A hash of the file that a package is installed from, if it is one."""
    try:
        return hashlib.sha256(Path(package).read_bytes()).hexdigest() if package.startswith("/") else ""
    except OSError as error:
        raise BuildError(f"{package}: {error.strerror}") from None


def build(place: Path, packages: Sequence[str]) -> None:
    """Makes the environment; its interpreter is ``place / PYTHON``.

    Raises:
        BuildError: pip can't install the packages, or had nothing to install.
    """
    python = str(place / PYTHON)
    try:
        venv.EnvBuilder(symlinks=True).create(place)
        own = Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))
        own.joinpath(LINK).write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in _folders()))
    except OSError as error:
        raise BuildError(f"its interpreter can't be made: {safe(str(error))}") from None
    if PathFinder.find_spec("pip") is None:  # setuptools's finder of pip would take distutils away from this process
        _run([python, "-I", "-m", "ensurepip"])
    before = set(own.glob("*-info"))
    # Upgraded, as what this interpreter has would satisfy a requirement without a version.
    _run([python, "-I", *PIP, "--upgrade", "--", *packages])
    if set(own.glob("*-info")) <= before:
        raise BuildError("this program's own environment satisfies it, so that it would be compared with itself")


def _folders() -> Iterator[str]:
    """The folders of this interpreter's packages."""
    yield from site.getsitepackages()
    if site.ENABLE_USER_SITE:
        yield site.getusersitepackages()


def _run(command: Sequence[str]) -> None:
    """Raises BuildError with pip's reason."""
    unset = [word for name in ELSEWHERE for word in ("-u", name)]
    ended = output_of(["env", *unset, *command], BUILD_S)
    if ended.code == LATE:
        raise BuildError(f"pip had not ended after {BUILD_S / 60:.0f} minutes")
    if ended.code:
        raise BuildError(reason_in(ended.said))


def reason_in(said: str) -> str:
    """What of pip's output tells why it failed, in one line."""
    if (conflict := CONFLICT.search(said)) is not None:
        return safe(f"they conflict: {'; '.join(line.strip() for line in conflict[1].splitlines())}")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["pip said nothing"])[-1].rstrip(".")
    unreached = any("Retrying (" in line for line in lines)
    return safe(f"{reason} (its index could not be reached)" if unreached else reason)
