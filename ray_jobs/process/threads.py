"""The threads of this process besides its main one, by name: a process with some can't fork safely."""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType


def other_threads() -> list[str]:
    """Names each thread and, if it runs Python, the module that it was started with."""
    frames = sys._current_frames()  # the documented way to see another thread's stack
    known = {thread.native_id: thread for thread in threading.enumerate()}
    told = []
    for tid in sorted(map(int, os.listdir("/proc/self/task"))):
        if tid == os.getpid():
            continue
        thread = known.get(tid)
        frame = frames.get(thread.ident or 0) if thread else None
        told.append(f"{thread.name} of {_module(frame)}" if thread and frame else _native(tid))
    return told


def _module(frame: FrameType) -> str:
    """The module of the outermost function that is not the threading module's own."""
    found = frame
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") != threading.__name__:
            found = frame
    return f"module {found.f_globals.get('__name__')} ({found.f_code.co_filename})"


def _native(tid: int) -> str:
    with suppress(OSError):
        return f"{Path(f'/proc/self/task/{tid}/comm').read_text().strip()} (no Python)"
    return f"thread {tid}"
