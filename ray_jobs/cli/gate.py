"""``--gate`` of ``latency-matrix matrix``: a question about the result, and no part of what is measured."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from chatbot.errors import UsageError
from ray_jobs.cli.options import share, write_file

if TYPE_CHECKING:
    from ray_jobs.compare.side_text import SidePage
    from ray_jobs.results.store import RunDirectory


@dataclass(frozen=True)
class Gate:
    """Whether a side is slower than base by more than ``share``, and the file for a pull request's comment."""

    share: float
    out: Path | None

    @classmethod
    def of(cls, given: str | None, out: Path | None) -> "Gate | None":
        """The gate as it was asked for; None where it was not. Raises UsageError."""
        if given is None:
            if out is not None:
                raise UsageError("--gate-out holds what a gate found: add --gate 3%")
            return None
        if out is not None and (out.is_dir() or not os.access(out.parent, os.W_OK)):  # not after minutes of measuring
            raise UsageError(f"--gate-out {out} can't be written: give a file in a folder that is there")
        return cls(share(given), out)

    def require_sides(self, against: Sequence[str]) -> None:
        """Raises UsageError where there is no side to ask about."""
        if not against:
            raise UsageError("--gate asks whether a side is slower: add --against; two runs are asked by compare")

    def judge(self, directory: "RunDirectory") -> "SidePage":
        """Says what is found in a finished run. Raises UsageError."""
        from ray_jobs.compare.side_text import SidePage

        page = SidePage.of(directory, self.share)
        typer.echo()
        for line in page.lines():
            typer.echo(line)
        if self.out is not None:
            write_file("--gate-out", self.out, page.markdown())
        return page
