"""The variant that this process is busy with, in memory that outlives it: whoever forked it can name a crash.

A note is one byte, written between calls, never within a timed one.
"""

import json
import mmap
from collections.abc import Sequence

_page = mmap.mmap(-1, mmap.PAGESIZE)  # shared with every process that is forked from this one
_names: list[str] = []


def enter(variants: Sequence[str]) -> None:
    """Names the variants of this process; it is busy with none yet."""
    _names[:] = variants
    content = b"\0" + json.dumps(_names).encode()[: mmap.PAGESIZE - 2] + b"\0"
    _page[: len(content)] = content


def at(index: int | None) -> None:
    """Records that this process is busy with the variant of that index; None for no variant."""
    _page[0] = 0 if index is None else index + 1


def on(name: str) -> None:
    """Records that this process is busy with that variant, if it has entered any."""
    at(_names.index(name) if name in _names else None)


def last() -> str | None:
    """The variant that this process, or one forked from it, was last busy with; None where it was with none."""
    if not _page[0]:
        return None
    try:
        return str(json.loads(_page[1:].split(b"\0")[0])[_page[0] - 1])
    except (ValueError, IndexError):  # too many names for the page
        return None
