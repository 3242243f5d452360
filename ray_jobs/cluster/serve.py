"""Ray Serve on the cluster of a run: what a launch deploys, and that nothing of it is left.

A launch deploys its replicas anew and deletes them at its end. What one leaves that is killed is deleted by the next on
its station, by the end of its trial, or by the end of the run. Serve is shut down then if this program started it.
"""

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray.experimental import internal_kv

from ray_jobs.cluster.worker_path import search_as_driver
from ray_jobs.load.behind import Ask, Behind, Helpers
from ray_jobs.load.served import Answer, Served
from ray_jobs.measure.trial import Trial
from ray_jobs.process.server import TrialError
from ray_jobs.scenario import Through

EXTRA = "through serve needs Ray Serve; run: pip install 'latency-matrix[serve]'"
APP, REPLICA = "latency-matrix", "Replica"
NAMESPACE, OURS = b"latency-matrix", b"serve"  # of a note in the cluster: the controller that this program started
CONTROLLER = {"namespace": "serve", "name": "SERVE_CONTROLLER_ACTOR"}
HANDED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
OWN = "LATENCY_MATRIX_"  # how environment variables of this program begin
HELPERS = ("ray::ServeController", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # of the raylet's children
SESSION = re.compile(r"session_[\d_-]+")


class Replica(Served):
    """What is deployed."""

    def __init__(self, place: str) -> None:
        """As ``Served``, with the modules of the user's own."""
        search_as_driver()
        super().__init__(place)


# In the task of a trial


@contextmanager
def behind(trial: Trial, cores: tuple[int, ...] | None) -> Iterator[Behind | None]:
    """How launches of this trial reach the cluster; None where they need not. Nothing of theirs is left afterwards.

    Args:
        trial: the trial.
        cores: those of its station, where others of the node belong to other trials.

    Raises:
        TrialError: Serve is not installed on this node.
    """
    if trial.load is None or trial.load.through != Through.SERVE:
        yield None
        return
    try:
        import ray.serve
    except ImportError as error:
        raise TrialError(f"{EXTRA} ({error})") from None
    context = ray.get_runtime_context()
    node = context.get_node_id()
    station = f"{node[:16]}-{cores[0] if cores else 'all'}"
    sources = {name: value for name, value in context.runtime_env.items() if not name.startswith("_")}
    try:
        yield Behind(context.gcs_address, f"{APP}-{trial.run_id}-{station}", station, node, sources)
    finally:
        with suppress(Exception):  # the end of the run tries again
            delete(lambda name: name.endswith(station))


# In a launch


@contextmanager
def deployed(behind: Behind, place: str, replicas: int) -> Iterator[tuple[Ask, Helpers]]:
    """Deploys so many replicas on this node, which connect to this place; a ``behind.Deploy``.

    Raises:
        RuntimeError: Serve can't deploy them.
    """
    from ray import serve

    ray.init(address=behind.address, namespace=NAMESPACE.decode(), log_to_driver=False, logging_level="error")
    try:
        quiet()
        serve.start(proxy_location="Disabled")
        delete(lambda name: name.endswith(behind.station))
        deployment = serve.deployment(
            Replica,
            name=REPLICA,
            num_replicas=replicas,
            graceful_shutdown_timeout_s=0,
            graceful_shutdown_wait_loop_s=0.1,
            ray_actor_options=_options(behind),
        )
        try:
            handle = serve.run(deployment.bind(place), name=behind.app, route_prefix=None)
            yield _ask(handle), helpers
        finally:
            with suppress(Exception):  # the next launch tries again
                delete(lambda name: name == behind.app)
    finally:
        ray.shutdown()


def _options(behind: Behind) -> dict[str, Any]:
    """Of the replicas: on this node, whose cores its trial holds, in fresh processes with a launch's environment."""
    own = {name: value for name, value in os.environ.items() if name in HANDED_ON or name.startswith(OWN)}
    fresh = {f"{OWN}FRESH": secrets.token_hex(8)}  # Ray starts another process for another environment
    variables = {**behind.runtime_env.get("env_vars", {}), **own, **fresh}
    sources = {**behind.runtime_env, "env_vars": variables}
    return {"num_cpus": 0, "label_selector": {"ray.io/node-id": behind.node}, "runtime_env": sources}


def _ask(handle: Any) -> Ask:
    async def ask(window: int, number: int) -> Answer:
        response = handle.remote(window, number)
        try:
            answer: Answer = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return answer

    return ask


def helpers(replica: int) -> tuple[int, ...]:
    """The processes of Ray and Serve on this machine that work for a replica: part of what it costs to be behind it.

    That is the raylet, its agents, Serve's controller and the cluster's store, those that are here.
    """
    raylet = psutil.Process(psutil.Process(replica).ppid())
    if raylet.name() != "raylet":
        return ()
    found = [raylet, *(one for one in raylet.children() if _title(one).startswith(HELPERS))]
    session = SESSION.search(_title(raylet))
    stores = [one for one in psutil.process_iter() if one.name() == "gcs_server"]
    found += [one for one in stores if session and session[0] in _title(one)]
    return tuple(one.pid for one in found)


def _title(process: psutil.Process) -> str:
    """Its command line; empty where it has ended, or is not ours to see."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


# In the driver of a run


def start() -> None:
    """Starts Serve, without anything that listens for HTTP, unless it runs."""
    from ray import serve

    quiet()
    if _controller() is None:
        serve.start(proxy_location="Disabled")
        internal_kv._internal_kv_put(OURS, _controller(), overwrite=True, namespace=NAMESPACE)


def end(run_id: str) -> None:
    """Deletes what is left of a run, and shuts Serve down if this program started it and nobody else uses it."""
    from ray import serve

    delete(lambda name: name.startswith(f"{APP}-{run_id}-"))
    ours = internal_kv._internal_kv_get(OURS, namespace=NAMESPACE)
    if ours and ours == _controller() and not serve.status().applications and not _ends_with_us():
        serve.shutdown()
        internal_kv._internal_kv_del(OURS, namespace=NAMESPACE)


def _ends_with_us() -> bool:
    """Whether this process has started Ray, which then ends with it, Serve included."""
    return any(child.name() == "raylet" for child in psutil.Process().children())


def _controller() -> bytes | None:
    """The id of Serve's controller; None where it does not run."""
    if CONTROLLER not in ray.util.list_named_actors(all_namespaces=True):
        return None
    actor = ray.get_actor(CONTROLLER["name"], namespace=CONTROLLER["namespace"])
    return bytes(actor._actor_id.binary())


# Anywhere


def delete(chosen: Callable[[str], bool]) -> None:
    """Deletes those of our applications whose names are chosen."""
    from ray import serve

    for name in serve.status().applications:
        if name.startswith(f"{APP}-") and chosen(name):
            serve.delete(name)


def quiet() -> None:
    """Serve tells of each step that goes well otherwise."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
