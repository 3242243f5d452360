"""Outputs that can't be written, or no longer."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from breakage.bench import NOTHING, PATIENCE_S, Bench, Injected, line_with

UNREACHABLE = "s3://bucket/results?region=eu-central-1&scheme=http&endpoint_override=127.0.0.1:9"


def refused(words: str, *arguments: str) -> Callable[[Bench], Injected]:
    """Said before anything is measured, with exit code 2."""

    def inject(bench: Bench) -> Injected:
        command = bench.matrix(*arguments)
        seconds = command.wait_for(words, PATIENCE_S)
        code = command.wait(PATIENCE_S)
        return line_with(command.said, words), seconds, NOTHING if code == 2 else f"exit code {code}"

    return inject


def full_disk(bench: Bench) -> Injected:
    with _small_disk(bench, "4m") as disk:
        return refused("MB left", "--out", str(disk))(bench)


def disk_fills_up(bench: Bench) -> Injected:
    with _small_disk(bench, "40m") as disk:
        (bench.bed.folder / "results").mkdir(exist_ok=True)
        os.symlink(disk, bench.bed.folder / "results" / "disk")
        command = bench.running("disk/filling", "--out", str(disk), "--run-id", "filling")
        with (disk / "filler").open("wb") as file:
            free = shutil.disk_usage(disk).free
            file.write(b"\0" * (free - free % 4096))
        seconds = command.wait_for("can't be written", PATIENCE_S)
        code = command.wait(PATIENCE_S)
        before = bench.files("disk/filling")
        (disk / "filler").unlink()
        lost = bench.resumed("disk/filling", before, disk / "filling") if code == 1 else f"exit code {code}"
        return line_with(command.said, "can't be written"), seconds, lost


@contextmanager
def _small_disk(bench: Bench, size: str) -> Iterator[Path]:
    place = bench.bed.folder / f"disk-{size}"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
