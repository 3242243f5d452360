"""SIGTERM and SIGHUP end a command as Ctrl-C does: what was begun is cleaned up, and one line says what happened."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

NUMBERS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived: ``ray job stop``, a batch system, a shutdown, a closed terminal."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__("terminated")
        self.code = 128 + number  # the exit code, as a shell says it


@contextmanager
def terminable() -> Iterator[Callable[[], None]]:
    """Inside, both signals raise ``Terminated`` in the main thread, once; what was set before comes back afterwards.

    Yields a function that puts the handlers in place again, for after ``ray.init``, which installs its own. A signal
    that is ignored stays so (``nohup``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {one: signal.getsignal(one) for one in NUMBERS if signal.getsignal(one) != signal.SIG_IGN}
    terminals = [one for one in (1, 2) if os.isatty(one)]
    arrived: list[int] = []

    def terminate(number: int, _: Any) -> NoReturn:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # once is enough: what follows cleans up
        arrived.append(number)
        if number == signal.SIGHUP:
            _mute(terminals)
        raise Terminated(number)

    def arm() -> None:
        for one in before:
            signal.signal(one, terminate)

    arm()
    try:
        yield arm
    except KeyboardInterrupt:
        if arrived:  # met inside ray.wait or ray.get, which make a plain KeyboardInterrupt of it
            raise Terminated(arrived[0]) from None
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _mute(terminals: list[int]) -> None:
    """Sends what is still said nowhere: writing to a terminal that is gone would hide what ended the command."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    for one in terminals:
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), one)
