"""Joining a Ray cluster, waiting for its resources, and leaving it on a signal."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.autoscaler import sdk as autoscaler

from chatbot.errors import UsageError
from ray_jobs.cluster.job import IN_A_JOB
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.measure.result import one_line

CONNECT_TIMEOUT_S = 10.0
POLL_S = 1.0
SOURCES = Path(__file__).resolve().parents[2]
REQUESTED: dict[str, float] = {}  # of the autoscaler, by this process


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: ``ray job stop``, a batch system, a shutdown."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Joins the cluster at ``auto`` or ``HOST:PORT``; ``local`` starts one here, which ends with the block.

    If this process is already connected, that connection is used and left open.
    Inside, SIGTERM raises ``Terminated`` in the main thread.

    Raises:
        UsageError: a ``ray://`` address, or no cluster there.
    """
    if ray.is_initialized():
        with _terminable(), _nothing_more_requested():
            yield
        return
    if address.startswith("ray://"):
        raise UsageError("ray:// keeps the driver off the cluster; use: ray job submit -- python -m ray_jobs matrix")
    if ":" in address:
        _reach(address)
    options: dict[str, Any] = {}
    if address == "local":
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default a worker gives way to any other process
    elif IN_A_JOB not in os.environ:  # a job's working directory is already everywhere
        options["runtime_env"] = {"py_modules": [str(SOURCES / package) for package in ("chatbot", "ray_jobs")]}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {one_line(error).partition(': ')[2]}") from None
    try:
        with _terminable(), _nothing_more_requested():
            yield
    except ClusterLostError:
        raise  # Ray would wait for a minute, and then end this process itself
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


@contextmanager
def _nothing_more_requested() -> Iterator[None]:
    """Withdraws requests to the autoscaler, which would otherwise outlive the driver."""
    try:
        yield
    finally:
        if REQUESTED and not isinstance(sys.exception(), ClusterLostError):
            REQUESTED.clear()
            with suppress(Exception):  # the cluster may be gone
                autoscaler.request_resources(num_cpus=0)


@contextmanager
def _terminable() -> Iterator[None]:
    """``ray.init`` has put its own handlers in place; ours stands until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = threading.Event()

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows cleans up
        arrived.set()
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        if arrived.is_set():  # met inside ray.wait or ray.get, which make a plain KeyboardInterrupt of it
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _reach(address: str) -> None:
    """Raises UsageError if nothing listens there: Ray itself would keep trying for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}; give local, auto or HOST:PORT") from None


def wait_for(resources: Mapping[str, float], seconds: float, tell: Callable[[str], None]) -> str | None:
    """Waits until the live nodes together have these (``{"CPU": 4, "GPU": 1}``), and asks an autoscaler for them.

    Returns None once they do, otherwise what was missing when the time was up. ``tell`` gets a line whenever the
    available resources change.
    """
    if not resources:
        return None
    REQUESTED.update(resources)
    _request(resources)
    end = time.monotonic() + seconds
    said = None
    while True:
        there = {name: ray.cluster_resources().get(name, 0.0) for name in resources}
        if all(there[name] >= count for name, count in resources.items()):
            return None
        text = ", ".join(f"{there[name]:g} of {count:g} {name}" for name, count in resources.items())
        if time.monotonic() >= end:
            return f"waited {seconds:.0f} s; only {text} available"
        if text != said:
            tell(f"waiting for the cluster: {text} available")
            said = text
        time.sleep(POLL_S)


def _request(resources: Mapping[str, float]) -> None:
    """Asks the autoscaler, if there is one, in single units, since no node need have them all."""
    bundles = [{name: 1} for name, count in resources.items() if name != "CPU" for _ in range(int(count))]
    autoscaler.request_resources(num_cpus=int(resources.get("CPU", 0)) or None, bundles=bundles or None)
