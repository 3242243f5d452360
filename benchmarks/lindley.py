"""Latencies under load against theory, request by request: ``python benchmarks/lindley.py --out FILE``.

From when requests were due and how long each was served, Lindley's recursion gives every latency (Kiefer and
Wolfowitz's for two replicas). The mean of one server that always takes as long is that of M/D/1. What differs is the
generator's own. A request needs what its answer takes, and waking a replica that is idle; between two that wait passes
what typically does, or by ``each_pause`` what did. A load is a share of what a first window finds can be answered.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process that forks must have one thread

import numpy as np
from numpy.typing import NDArray

from chatbot.variants import BASELINE, Workload
from ray_jobs.load import crew, queueing
from ray_jobs.load.crew import Crew
from ray_jobs.load.generator import Patience, open_loop
from ray_jobs.load.replica import Replica
from ray_jobs.measure.channel import Channel
from ray_jobs.measure.result import Launch
from ray_jobs.measure.trial import Factory, mode_of
from ray_jobs.provenance import driver_facts, station_facts
from ray_jobs.scenario import Load, ReplicaKind, Scenario

SPINS = "ray_jobs.audit.artificial:half_a_millisecond"
SLEEPS = "ray_jobs.audit.artificial:two_milliseconds_asleep"
LOADS = (0.3, 0.6, 0.9)
NEAR_NS = 200_000
NEVER = Patience(2**62, 2**62, 2**62)


def replicas(model: str, count: int, core: int) -> Crew:
    """Ready ones, all on this core: those of several sleep."""
    workload, source = Workload(model=model), Factory(model)

    def play(channel: Channel, takes: int) -> None:
        with mode_of(source):
            pool = np.zeros((0, workload.prompt_tokens), dtype=np.int64)
            replica = Replica(workload, (BASELINE,), source, pool, Launch(0, seed=1))
            replica.serve_load(Load(Scenario.SERVER, count), channel, takes)

    started = crew.start(play, ReplicaKind.PROCESS, [(core,)] * count)
    for line in started.lines:
        for do, asked in (("hello", {}), ("prepare", {"variant": BASELINE}), ("examine", {})):
            line.ask(do, **asked)
        line.ask("warm", variant=BASELINE, place=0)
    return started


def window(there: Crew, rate: float, calls: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """The requests of a window, in ns of the clock."""
    due = queueing.arrivals(calls, np.random.default_rng(seed)) / rate * 1e9
    for line in there.lines:
        line.tell("answer", variant=BASELINE, first=0, count=calls)
    for line in there.lines:
        line.hear_ready()
    flow = open_loop(there, np.round(due).astype(np.int64).tolist(), NEVER)
    return {name: flow.array(name) for name in ("due", "sent", "began", "ended", "done", "replica")}


def service(flow: dict[str, NDArray[np.int64]], each: bool = False) -> NDArray[np.float64]:
    """(N,) in ns: how long each request by itself keeps a replica, as ``queueing.needed``."""
    return queueing.needed(flow["sent"], flow["began"], flow["ended"], flow["replica"], each)


def measured(model: str, count: int, service_s: float, calls: int, windows: int) -> Iterator[dict[str, Any]]:
    """A line for each load; requests are sent from the first core, answered on the last."""
    allowed = sorted(os.sched_getaffinity(0))
    there = replicas(model, count, allowed[-1])
    os.sched_setaffinity(0, allowed[:1])
    first = window(there, LOADS[0] * count / service_s, calls, windows)
    taken_s = float(service(first).mean()) / 1e9
    for load in LOADS:
        rate = load * count / taken_s
        near: list[NDArray[np.bool_]] = []
        near_each: list[NDArray[np.bool_]] = []
        walls, lengths, ways = [], [], []
        for seed in range(windows):
            flow = window(there, rate, calls, seed)
            served = service(flow)
            back = flow["done"] - flow["ended"]  # an answer's way, which keeps no replica
            found, due = flow["done"] - flow["due"], flow["due"].astype(np.float64)
            for kept, needs in ((near, served), (near_each, service(flow, each=True))):
                kept.append(np.abs(found - queueing.latencies(due, needs, count) - back) <= NEAR_NS)
            walls.append(found / 1e6)
            lengths.append(served / 1e6)
            ways.append(back / 1e6)
        wall, length = np.concatenate(walls), np.concatenate(lengths)
        way = float(np.concatenate(ways).mean())
        told = {"model": model.partition(":")[2], "replicas": count, "load": load, "requests": len(wall)}
        told |= {"within_200us": float(np.concatenate(near).mean())}
        told |= {"within_200us_each_pause": float(np.concatenate(near_each).mean()), "mean_ms": float(wall.mean())}
        if count == 1:
            used = rate * length.mean() / 1e3
            told["md1_ms"] = float(length.mean() * (1 + used / (2 * (1 - used))) + way) if used < 1 else None
        yield told
    for line in there.lines:
        line.channel.close()
    os.sched_setaffinity(0, allowed)


def main() -> None:
    """Prints a line for each load, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--calls", type=int, default=2000, help="of a window")
    parser.add_argument("--windows", type=int, default=5, help="of each load")
    asked = parser.parse_args()
    told: list[dict[str, Any]] = [{"sources": driver_facts()["source_hash"], "cpu": station_facts()["cpu"]}]
    for model, count, service_s in ((SPINS, 1, 0.5e-3), (SLEEPS, 2, 2e-3)):
        for line in measured(model, count, service_s, asked.calls, asked.windows):
            told.append(line)
            print(json.dumps(line), flush=True)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(f"{json.dumps(line)}\n" for line in told))


if __name__ == "__main__":
    main()
