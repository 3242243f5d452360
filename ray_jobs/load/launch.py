"""Runs one launch under load, once it is pinned: starts its replicas, and what they answer is a ``Stage``."""

import os
from dataclasses import replace

from ray_jobs.load import crew
from ray_jobs.load.replica import DRAWING, Replica
from ray_jobs.load.served_stage import behind_serve
from ray_jobs.load.stage import Asked, Stage
from ray_jobs.measure import busy
from ray_jobs.measure.channel import Channel
from ray_jobs.measure.result import LaunchResult
from ray_jobs.measure.trial import mode_of
from ray_jobs.scenario import Through


def measure(asked: Asked) -> LaunchResult:
    """Runs one launch, in a process that has no thread but its main one. Raises RuntimeError where it can't go on."""
    generators, workload = asked.load.generators, asked.workload
    mine = crew.shares(asked.cores[generators:], asked.load.replicas, workload.threads)
    running = [name for name in asked.variants if name not in asked.left_out]
    busy.enter(running)
    if asked.load.through == Through.SERVE:
        return behind_serve(asked, running, mine)

    def play(channel: Channel, takes: int) -> None:
        full = replace(workload, batch=workload.batch * asked.load.max_batch)
        with mode_of(asked.model):
            with DRAWING:
                replica = Replica(full, running, asked.model, asked.pool, asked.launch, asked.share)
            replica.serve_load(asked.load, channel, takes)

    started = crew.start(play, asked.load.kind, mine)
    if generators:
        os.sched_setaffinity(0, asked.cores[:1])
    return Stage(asked, started, dict(asked.left_out)).run()
