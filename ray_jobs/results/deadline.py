"""Deadlines for a store that may not answer: no action waits longer than a reachable store would need."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

T = TypeVar("T")

REACH_TIMEOUT_S = 60.0
SLOWEST = 1e6  # bytes a second: what moves many of them has more time


@dataclass
class Moved:
    """The number of bytes that an action has moved or will move."""

    size: int = 0

    def counting(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the parts and counts their bytes."""
        for part in parts:
            self.size += len(part)
            yield part

    @property
    def limit_s(self) -> float:
        """The seconds that moving so many bytes may take."""
        return REACH_TIMEOUT_S + self.size / SLOWEST


def in_time(action: Callable[[], T], moved: Moved | None = None) -> T:
    """Returns the value of an action; abandons it when its time is over. Raises TimeoutError without an errno."""
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((action(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()  # one that never ends does not keep the program from ending
    start, moved = time.monotonic(), moved or Moved()
    while (left_s := start + moved.limit_s - time.monotonic()) > 0:
        try:
            value, error = answers.get(timeout=left_s)
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return cast("T", value)
    raise TimeoutError(f"it did not answer within {moved.limit_s:.0f} s")
