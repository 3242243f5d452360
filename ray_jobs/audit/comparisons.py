"""Comparisons of programs whose true speedup is known, one trial each, through the pipeline of the matrix."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chatbot.variants import BASELINE
from ray_jobs.audit import alternatives
from ray_jobs.audit.load import background_load
from ray_jobs.audit.plan import MOST, Plan
from ray_jobs.audit.rates import Comparison
from ray_jobs.audit.station import AuditStation, Measured
from ray_jobs.load import queueing
from ray_jobs.load.points import cycle_ns, logs_of
from ray_jobs.matrix.rows import Row
from ray_jobs.measure.result import TIMED, LaunchResult
from ray_jobs.measure.trial import Factory
from ray_jobs.process.server import LaunchServer
from ray_jobs.sides import label_of

FROM_ROW = ("status", "reason", "warnings", "sentinel_ms")
FOUND = ("speedup", "speedup_low", "speedup_high", "verdict")  # of a side with ``side_`` before it
# Where programs are compared by what they hold; one that is invalid says so where the others say it too.
HELD = ("capacity_ratio", "capacity_ratio_low", "capacity_ratio_high", "capacity_verdict")


def run_plan(station: AuditStation, plan: Plan, first: int = 0) -> Iterator[tuple[Comparison, Measured]]:
    """Runs the plan from its ``first`` comparison on, and yields each as it ends."""
    spec = station.spec
    workload = station.template.trial.workload
    with ExitStack() as stack:
        if plan.with_peers:
            others = [core for core in os.sched_getaffinity(0) if core not in station.cores]
            server = stack.enter_context(LaunchServer(workload, others))
        if plan.beside_load:
            stack.enter_context(background_load(spec.seed, sorted(os.sched_getaffinity(0))))
        for number in range(first, plan.comparisons):
            seed = spec.seed * MOST + number
            state = station.run(f"{plan.name}-{number:04d}", (plan.variant,), seed, sides=plan.sides)
            asked = {}
            if plan.with_peers:
                source = station.inputs.model
                assert not isinstance(source, Factory)
                inputs = (workload, source, station.inputs.pool(workload), seed)
                asked = {name: alternatives.ask(server, name, station.cores, *inputs) for name in alternatives.PEERS}
            yield _comparison(number, plan, state, asked), state


def _comparison(number: int, plan: Plan, state: Measured, asked: dict[str, alternatives.PeerResult]) -> Comparison:
    rows = {row.name: row for row in state.rows}
    row, baseline = rows[compared(plan)], rows[BASELINE]
    launches = state.launches
    peered: dict[str, Any] = {name: result.speedup for name, result in asked.items()}
    peered |= {f"{name}_s": result.seconds for name, result in asked.items()}
    return Comparison(
        number=number,
        beside_load=plan.beside_load,
        variant=plan.variant,
        truth=_truth(plan, launches),
        **{name: getattr(row, name) for name in FROM_ROW},
        **_found(plan, row),
        discarded_rounds=row.discarded_rounds or 0,
        disturbed_rounds=row.disturbed_rounds or 0,
        launches=len(launches),
        lost_launches=len(state.lost),
        rounds=launches[0].rounds if launches else 0,
        p50_ms=baseline.p50_ms,
        timed_s=called_s(launches, TIMED),
        seconds=state.seconds or 0.0,
        **peered,
    )


def _truth(plan: Plan, launches: Sequence[LaunchResult]) -> float:
    """The true ratio of the two; under load by the theory of queues, from how long the baseline's calls took.

    There the bound stays the same, so what is slower by a share holds less than that share fewer.
    """
    slower = 1 + plan.percent / 100
    served = [(one, one.served) for one in launches if one.served is not None]
    if plan.load is None or plan.percent == 0 or not served:
        return 1 / slower
    every = [cycle_ns(one, its, one.variants.index(BASELINE), set(range(one.rounds))) for one, its in served]
    answer_s, pause_s = (float(np.median(column)) / 1e9 for column in zip(*every, strict=True))
    services = (answer_s + pause_s, slower * answer_s + pause_s)
    return queueing.ratio_of(services, plan.load, np.random.default_rng(0))


def _found(plan: Plan, row: Row) -> dict[str, Any]:
    """What is told of the two, whatever they are compared by."""
    if plan.load is None:
        return {name: getattr(row, f"side_{name}" if plan.sides else name) for name in FOUND}
    return {name: getattr(row, held) for name, held in zip(FOUND, HELD, strict=True)} | (
        {"verdict": row.verdict} if row.verdict else {}
    )


def compared(plan: Plan) -> str:
    """The label of what is compared."""
    return label_of(plan.sides[-1].name if plan.sides else None, plan.variant)


def _log_speedup(plan: Plan, launch: LaunchResult) -> float | None:
    found = launch.log_side_speedups() if plan.sides else logs_of(launch)
    return found.get(compared(plan))


def called_s(launches: Sequence[LaunchResult], phase: int) -> float:
    """The time inside calls of a phase, that of timed ones, say."""
    return sum(int(launch.samples.wall_ns[launch.samples.phase == phase].sum()) for launch in launches) / 1e9


@dataclass(frozen=True)
class LaunchRow:
    """The result of one launch of a trial, from which every interval can be rebuilt."""

    part: str
    comparison: int
    launch: int
    built_first: str
    rounds: int
    calls: int
    kept_rounds: int
    log_speedup: float | None
    sentinel_ns: float | None


def launch_rows(plan: Plan, number: int, state: Measured) -> list[dict[str, Any]]:
    """The launches of a comparison's trial, in order."""
    rows = [
        LaunchRow(
            part=plan.name,
            comparison=number,
            launch=launch.launch.index,
            built_first=launch.built[0],
            rounds=launch.rounds,
            calls=launch.calls,
            kept_rounds=int(launch.kept_rounds.sum()),
            log_speedup=_log_speedup(plan, launch),
            sentinel_ns=float(np.mean(launch.sentinel_ns)) if launch.sentinel_ns else None,
        )
        for launch in state.launches
    ]
    return [asdict(row) for row in rows]
