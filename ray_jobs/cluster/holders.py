"""What sides need, on each node: an actor of no CPU builds it, and holds it until the run is over.

The trial's own task has no environment of Ray's: it runs in that of ``base``, and starts each side's interpreter.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chatbot.errors import first_line
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.process.packages import BUILD_S
from ray_jobs.process.ready import Holder, Ready
from ray_jobs.process.supervised import LEAVE_S
from ray_jobs.sides import Side

START_S = 60.0  # of an actor, on a node that is busy
GRACE_S = LEAVE_S + 60.0  # beyond what installing may take: hashing, unpacking, removing what failed
POLL_S = 1.0

Tell = Callable[[str, Ready], None]


@contextmanager
def holding(
    sides: Sequence[Side],
    nodes: Sequence[str],
    archives: Mapping[str, bytes],
    run_id: str,
    patience_s: float,
    tell: Tell,
) -> Iterator[dict[str, list[Ready]]]:
    """The sides as they are on each node (by id), as long as the block lasts.

    Args:
        sides: those that need something.
        nodes: ids.
        archives: the files of each commit.
        run_id: who builds, for those who wait for a machine meanwhile.
        patience_s: seconds to wait for a machine that measures.
        tell: gets a node and what has become of a side there.
    """
    packed = {commit: ray.put(archive) for commit, archive in archives.items()}
    actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(Holder)
    placed = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes}
    holders = {node: actor.options(scheduling_strategy=where).remote() for node, where in placed.items()}
    try:
        silent = _silent({node: holder.begun.remote() for node, holder in holders.items()})
        asked = {
            holder.ready.remote(side, packed.get(side.commit or "", b""), run_id, patience_s): (node, side)
            for node, holder in holders.items()
            if node not in silent
            for side in sides
        }
        found = _gathered(asked, (patience_s + BUILD_S + GRACE_S) * len(sides), tell)
        lost = {node: [Ready(replace(side, fault=reason)) for side in sides] for node, reason in silent.items()}
        yield {node: lost.get(node) or [found[node, side.name] for side in sides] for node in nodes}
    finally:
        if not isinstance(sys.exception(), ClusterLostError):  # then Ray would wait for the head
            for holder in holders.values():
                with suppress(ray.exceptions.RayError):
                    ray.kill(holder)


def _silent(asked: Mapping[str, Any]) -> dict[str, str]:
    """The nodes that did not answer, each with the reason."""
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=START_S)
    reasons = {}
    for node, reference in asked.items():
        try:
            ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            reasons[node] = f"its node did not answer within {START_S:.0f} s"
        except ray.exceptions.RayError as error:
            reasons[node] = _told(error)
    return reasons


def _gathered(asked: Mapping[Any, tuple[str, Side]], seconds: float, tell: Tell) -> dict[tuple[str, str], Ready]:
    """What has become of each side on each node, by id and name."""
    found: dict[tuple[str, str], Ready] = {}
    left, end = dict(asked), time.monotonic() + seconds
    while left:
        done = ray.wait(list(left), timeout=POLL_S)[0]
        late = list(left) if time.monotonic() > end else []
        for reference in done or late:
            node, side = left.pop(reference)
            try:
                one = ray.get(reference, timeout=0)
            except ray.exceptions.GetTimeoutError:
                one = Ready(replace(side, fault=f"its node had not answered after {seconds:.0f} s"))
            except ray.exceptions.RayError as error:
                one = Ready(replace(side, fault=_told(error)))
            found[node, side.name] = one
            tell(node, one)
    return found


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
