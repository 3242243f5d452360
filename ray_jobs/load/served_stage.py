"""A launch in progress through a handle of Ray Serve."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.load import calls
from ray_jobs.load.behind import Deployed, deployed
from ray_jobs.load.crew import ReplicaEndedError
from ray_jobs.load.generator import Flow, Patience
from ray_jobs.load.served import Start
from ray_jobs.load.stage import Asked, Stage, noted, processes
from ray_jobs.measure.result import LaunchResult
from ray_jobs.measure.rounds import WarmUp
from ray_jobs.measure.watch import HelpedWatch, MachineWatch

PACED = 100  # requests of each replica, by which a variant's pace through a handle is found
FASTER = 4.0  # than that at most: more of them at once wait less for others, and that was on a cold handle


def behind_serve(asked: Asked, running: Sequence[str], cores: Sequence[tuple[int, ...]]) -> LaunchResult:
    """As ``measure``, with replicas that Ray Serve starts."""
    assert asked.behind is not None
    os.sched_setaffinity(0, asked.cores[:1])  # the handle's threads too
    end = time.monotonic() + asked.timeout_s
    what = (asked.workload, tuple(running), asked.model, asked.pool, asked.launch, asked.share, asked.load, end)
    starts = [Start(number, mine, *what) for number, mine in enumerate(cores)]
    try:
        with deployed(asked.behind, starts) as there:
            return ServedStage(asked, there, dict(asked.left_out)).run()
    except ReplicaEndedError:
        os._exit(1)  # who finds this process dead blames the variant that it was busy with


@dataclass
class ServedStage(Stage):
    """The same through a handle of Ray Serve."""

    crew: Deployed
    opened: int = 0  # windows so far; each replica counts them too
    paces: dict[str, float] = field(default_factory=dict)  # in ns

    def _watch(self, met: Sequence[Mapping[str, Any]]) -> MachineWatch:
        """Of the replicas, with Serve's own processes and threads beside them."""
        sides, cores = processes(met), self.asked.cores[self.asked.load.generators :]
        beside = self.crew.helpers(sides[0])
        computing = tuple((int(one["pid"]), int(one["thread"])) for one in met)
        share = self.asked.share
        return HelpedWatch(cores, counted=share, sides=sides, beside=beside, itself=False, computing=computing)

    def _paced(self, warm: Mapping[str, WarmUp], room: int) -> int:
        """Through the handle it may be far slower than its warm-up was."""
        count = PACED * len(self.lines)
        for name in warm:
            with noted(name):
                self._ready("answer", name, [room - count] * len(self.lines), count)
                self.opened += 1
                self.paces[name] = calls.pace_ns(self.crew, count, self.opened) * len(self.lines)
        return room - count

    def _each_s(self, name: str, warm: WarmUp) -> tuple[float, float]:
        """The pace is about what rates can be held: the least of them is a share of it."""
        pace_ns = max(self.paces[name], warm.typical_ns)
        return pace_ns / 1e9, max(pace_ns / FASTER, warm.typical_ns) / 1e9

    def _sent(self, due_ns: Sequence[int], patience: Patience) -> Flow:
        self.opened += 1
        return calls.open_loop(self.crew, due_ns, patience, self.opened)
