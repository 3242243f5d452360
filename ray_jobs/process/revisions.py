"""The files of a commit, as git packs them, in a folder of their own."""

import io
import tarfile
from pathlib import Path

from ray_jobs.process.packages import BuildError


def unpack(place: Path, archive: bytes) -> None:
    """Unpacks a tar of files; links that lead out of the folder are left out. Raises BuildError."""
    try:
        place.mkdir()
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(place, filter=_within)
    except (OSError, tarfile.TarError) as error:
        raise BuildError(f"its files can't be unpacked: {error}") from None


def _within(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo | None:
    try:
        return tarfile.data_filter(member, place)
    except tarfile.FilterError:
        return None
