"""Joining a Ray cluster, waiting for its resources, and leaving it on a signal."""

import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.autoscaler import sdk as autoscaler

from chatbot.errors import UsageError, first_line
from ray_jobs.cluster.job import IN_A_JOB, host_and_port, ray_address
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.cluster.session_folder import SessionFolder, session_folder
from ray_jobs.cluster.signals import terminable
from ray_jobs.cluster.worker_path import driver_path, for_a_cluster
from ray_jobs.results.filesystem import StoreError

CONNECT_TIMEOUT_S = 10.0
POLL_S = 1.0
SOURCES = Path(__file__).resolve().parents[2]
REQUESTED: dict[str, float] = {}  # of the autoscaler, by this process
TOKEN, TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # what Ray reads its token from
TOO_SLOW = "timed out during startup"  # in Ray's error
VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")  # twice in a mismatch: the cluster's, then ours
EXPECTED = (UsageError, StoreError)  # Ray's logs tell nothing more of these


class RefusedError(UsageError):
    """Ray did not start or let this process join; its logs may tell more."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Joins the cluster at ``auto`` or ``HOST:PORT``; ``local`` starts one here, which ends with the block.

    If this process is already connected, that connection is used and left open.
    Inside, SIGTERM and SIGHUP raise ``Terminated`` in the main thread.

    Raises:
        UsageError: no driver can join there, or Ray can't be started here.
    """
    with terminable() as arm:
        if ray.is_initialized():
            arm()
            with _nothing_more_requested():
                yield
        elif address == "local":
            with _local_session() as options, _joined(address, include_dashboard=False, **options):
                arm()
                yield
        else:
            with _joined(ray_address(address), **_sources()):
                arm()
                yield


@contextmanager
def _joined(address: str, **options: Any) -> Iterator[None]:
    """Connects to Ray. Raises UsageError if that is impossible."""
    if (place := host_and_port(address)) is not None:
        _reach(address, place)
    try:
        _init(address, options)
    except Exception as error:  # a plain Exception, OSError, TimeoutError and more
        with suppress(Exception):
            ray.shutdown()
        raise RefusedError(_refusal(address, error)) from error
    try:
        with _nothing_more_requested():
            yield
    except ClusterLostError:
        raise  # Ray would wait for a minute, and then end this process itself
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _init(address: str, options: Mapping[str, Any]) -> None:
    """Starts or joins Ray; a start that was too slow for Ray's fixed limits is tried once more, with warm caches."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except Exception as error:
        if address != "local" or TOO_SLOW not in str(error):
            raise
        _end_parts_below(options["_temp_dir"])
        print("Ray did not start in its time; trying once more", file=sys.stderr)
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)


def _end_parts_below(folder: str) -> None:
    """Ends the processes of a Ray that did not start, which would otherwise live as long as this one."""
    with suppress(Exception):
        ray.shutdown()
    for part in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(folder in word for word in part.cmdline()):
                part.kill()


def _refusal(address: str, error: Exception) -> str:
    """One line with Ray's reason, and the versions of both sides if they differ."""
    versions = VERSIONS.findall(str(error))
    if len(versions) == 2:
        there, here = (f"Ray {ray} and Python {python}" for ray, python in versions)
        return f"the Ray cluster at {address!r} has {there}, this process {here}; install the same"
    if isinstance(error, ray.exceptions.AuthenticationError):
        return f"the Ray cluster at {address!r} wants its token: set RAY_AUTH_MODE=token, and {TOKEN} or {TOKEN_FILE}"
    said = f"{type(error).__name__}: {first_line(error)}"
    return f"Ray can't be started here: {said}" if address == "local" else f"no Ray cluster at {address!r}: {said}"


def _sources() -> dict[str, Any]:
    """Options of ``ray.init`` that send this program to the nodes; a job's working directory is there already."""
    if IN_A_JOB in os.environ:
        return {}
    environment, job = for_a_cluster()
    packages = [str(SOURCES / package) for package in ("chatbot", "ray_jobs")]
    return {"runtime_env": {"py_modules": packages, "env_vars": environment}, "job_config": job}


@contextmanager
def _local_session() -> Iterator[dict[str, Any]]:
    """How to start Ray: in a private folder with a token of this run; it is kept, and named, where a run fails."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default a worker gives way to any other process
    with session_folder() as folder, _token_of_this_run(folder), driver_path() as job:
        try:
            # Ray opens its folder to everybody, within a folder that it does not touch.
            yield {"_temp_dir": str(folder.path / "ray"), "job_config": job}
        except RefusedError as error:
            folder.keep()
            raise UsageError(f"{error}; its logs are in {folder.path}") from None
        except EXPECTED:
            raise
        except Exception as error:
            folder.keep()
            error.add_note(f"Ray's logs are in {folder.path}")
            raise


@contextmanager
def _token_of_this_run(folder: SessionFolder) -> Iterator[None]:
    """Ray's token lies in the private folder: by itself Ray makes one in the home, which others may be able to read."""
    if TOKEN in os.environ or TOKEN_FILE in os.environ:
        yield
        return
    file = folder.path / "token"
    file.touch(0o600)
    file.write_text(secrets.token_hex(32))
    os.environ[TOKEN_FILE] = str(file)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        os.environ.pop(TOKEN_FILE, None)
        AuthenticationTokenLoader.instance().reset_cache()


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


def _reach(address: str, place: tuple[str, int]) -> None:
    """Raises UsageError if nothing listens there: Ray itself would keep trying for minutes."""
    try:
        socket.create_connection(place, timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}; give local, auto or HOST:PORT") from None


def wait_for_resources(resources: Mapping[str, float], seconds: float, tell: Callable[[str], None]) -> str | None:
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
