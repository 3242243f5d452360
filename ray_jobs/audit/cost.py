"""The cost of honesty: time not spent inside timed calls, overhead of a sample, CPU used while launches run."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import psutil
import torch
from torch import Tensor

from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs.audit.comparisons import called_s
from ray_jobs.audit.station import AuditStation
from ray_jobs.cluster.events import Event, LaunchDone
from ray_jobs.measure.result import REFRESH, TIMED
from ray_jobs.measure.rounds import CALLS, Log, Prompts, run_rounds
from ray_jobs.measure.timing import CpuTimer
from ray_jobs.measure.watch import watch_for
from ray_jobs.process.server import LaunchServer, Loss, Request

LEAST_CALLED_SHARE = 0.85
MOST_SAMPLE_US = 5.0
MOST_OWN_CORES = 0.02
NULL_ROUNDS = 5000  # about a second, over which other processes come and go
LAUNCH_SERVER = "ray_jobs.process.server"  # as its command line has it


@dataclass(frozen=True)
class Cost:
    """The cost of one trial of the baseline and its control; None where it could not be measured."""

    timed_share: float | None  # time inside timed calls / time of the trial, the start of its server included
    refresh_share: float | None  # the same of the untimed calls at the start of turns
    called_share: float | None  # inside both / time until the last launch: memory and limits are asked for besides
    sample_us: float | None  # a sample of a variant that does nothing: timing it, keeping it, taking its reply
    inside_us: float | None  # of it between the two readings of the clock
    round_us: float | None  # between two rounds: counters read, prompts taken, garbage collected
    own_cores: float | None  # used by driver, worker and launch server while launches ran
    ray_cores: float | None  # used by Ray's own processes
    seconds: float
    launches: int

    @property
    def broken(self) -> list[str]:
        """A sentence for each missed target."""
        targets = (
            (self.called_share, f"share of calls under {LEAST_CALLED_SHARE:.0%}", -1, LEAST_CALLED_SHARE),
            (self.sample_us, f"more than {MOST_SAMPLE_US:g} us a sample", 1, MOST_SAMPLE_US),
            (self.own_cores, f"our processes use more than {MOST_OWN_CORES:.0%} of a core", 1, MOST_OWN_CORES),
        )
        unknown = [f"unknown whether {words}" for value, words, _, _ in targets if value is None]
        return unknown + [w for value, w, sign, limit in targets if value is not None and sign * value > sign * limit]


def null_sample() -> tuple[float, float, float]:
    """(us from one sample to the next of a turn, us of it inside, us between rounds): variants that do nothing."""
    answer = torch.zeros((1, 10), dtype=torch.long)

    def nothing(_prompts: Tensor, _lengths: Tensor) -> Tensor:
        return answer

    pool = np.zeros((NULL_ROUNDS * (1 + CALLS) * 2, 8), dtype=np.int64)
    turns = [[0, 1], [1, 0]] * (NULL_ROUNDS // 2)
    with torch.inference_mode():
        for rounds in (10, NULL_ROUNDS):  # a few to warm up
            log, prompts = Log(), Prompts(pool, Workload())
            run_rounds(turns[:rounds], CALLS, [nothing] * 2, prompts, CpuTimer(), log, watch_for("cpu"))
    samples = log.samples()
    steps = np.diff(samples.start_ns) / 1e3
    within, between = np.diff(samples.variant) == 0, np.diff(samples.round) != 0
    sample = float(np.median(steps[within & ~between]))
    return sample, float(np.median(samples.wall_ns)) / 1e3, float(np.median(steps[between])) - sample


@dataclass
class _Census:
    """CPU seconds of this program's processes, by role, between the second launch and the last."""

    first: dict[int, tuple[str, float]] = field(default_factory=dict)
    last: dict[int, tuple[str, float]] = field(default_factory=dict)
    at: list[float] = field(default_factory=list)

    def watch(self, event: Event) -> None:
        if isinstance(event.outcome, LaunchDone):
            self.at.append(time.monotonic())
            self.last = processes()
            if len(self.at) <= 2:
                self.first = self.last

    def cores(self, *roles: str) -> float | None:
        if len(self.at) < 4:
            return None
        mine = [(pid, seconds) for pid, (role, seconds) in self.last.items() if role in roles and pid in self.first]
        return sum(seconds - self.first[pid][1] for pid, seconds in mine) / (self.at[-1] - self.at[1])


def processes() -> dict[int, tuple[str, float]]:
    """(role, CPU seconds) of this process and all below it: driver, worker, server, launch, ray."""
    me = psutil.Process()
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    serves: set[int] = set()
    for one in (me, *me.children(recursive=True)):
        with suppress(psutil.Error), one.oneshot():  # it may have ended
            parents[one.pid], times = one.ppid(), one.cpu_times()
            spent[one.pid] = times.user + times.system
            if LAUNCH_SERVER in one.cmdline():
                serves.add(one.pid)
    servers = {pid for pid in serves if parents[pid] not in serves}  # the others are forked from them
    roles = dict.fromkeys(spent, "ray") | dict.fromkeys((parents[pid] for pid in servers), "worker")
    roles |= dict.fromkeys(serves, "launch") | dict.fromkeys(servers, "server") | {me.pid: "driver"}
    return {pid: (roles[pid], seconds) for pid, seconds in spent.items()}


def measure_cost(station: AuditStation) -> Cost:
    """Measures one trial, whole, and the null variant in a process pinned as a launch is."""
    census, began = _Census(), time.monotonic()
    state = station.run("cost", (BASELINE, CONTROL), station.spec.seed, memory=True, watch=census.watch)
    workload = station.template.trial.workload
    others = [core for core in os.sched_getaffinity(0) if core not in station.cores]
    with LaunchServer(workload, others) as server:
        found = server.run(Request(partial(null_sample), station.cores, workload.threads, 60.0))
    sample, inside, between = (None, None, None) if isinstance(found, Loss) else found
    seconds, known = state.seconds or 0.0, bool(state.seconds and state.launches)
    timed, refreshing = (called_s(state.launches, phase) for phase in (TIMED, REFRESH))
    return Cost(
        timed_share=timed / seconds if known else None,
        refresh_share=refreshing / seconds if known else None,
        called_share=(timed + refreshing) / (census.at[-1] - began) if known and census.at else None,
        sample_us=sample,
        inside_us=inside,
        round_us=between,
        own_cores=census.cores("driver", "worker", "server"),
        ray_cores=census.cores("ray"),
        seconds=seconds,
        launches=len(state.launches),
    )
