"""Launches of a trial until precision or budget, each a fresh pinned process."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch

from chatbot.variants import BASELINE, variant_named
from ray_jobs.measure import launch as measure
from ray_jobs.measure import orders
from ray_jobs.measure.gpu import pci_address
from ray_jobs.measure.result import Launch, LaunchResult, Limits, Memory, VariantFacts
from ray_jobs.measure.trial import Factory, Inputs, Trial, present
from ray_jobs.process import lease, untimed
from ray_jobs.process.cores import CoreChoice, choose_cores, near, topology
from ray_jobs.process.lease import Lease
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request, TrialError
from ray_jobs.process.untimed import Alive
from ray_jobs.statistics import LEAST_LAUNCHES, precise_enough

ATTEMPTS = 3  # of one launch
OTHER_PROGRAM = "it was another program than in earlier launches of its trial"
TELL_EVERY_S = 10.0  # that somebody else still holds the station


@dataclass(frozen=True)
class Committed:
    """The part of a committed launch that the stopping rule needs."""

    index: int
    rounds: int
    calls: int
    log_speedups: Mapping[str, float]
    elapsed_s: float
    programs: Mapping[str, str] = field(default_factory=dict)  # identity of what each valid variant ran

    @classmethod
    def of(cls, launch: LaunchResult) -> "Committed":
        """Extracts it from a launch; ``elapsed_s`` is 0 in runs that did not record it."""
        index, elapsed_s, programs = launch.launch.index, launch.elapsed_s or 0.0, _programs(launch)
        return cls(index, launch.rounds, launch.calls, launch.log_speedups(), elapsed_s, programs)


@dataclass(frozen=True)
class Share:
    """The part of a machine that a trial holds."""

    cores: tuple[int, ...] | None = None  # None: all that the process may use
    gpus: tuple[str, ...] = ()  # as this host calls them


WHOLE = Share()


@dataclass(frozen=True)
class Failure:
    """A launch that ended without a result, and the reason."""

    launch: Launch
    reason: str


@dataclass(frozen=True)
class Waiting:
    """Another trial holds the station."""

    holder: str


class Crashes:
    """Variants that end the process they run in: each costs itself, not the trial."""

    def __init__(self, left_out: Mapping[str, VariantFacts] = MappingProxyType({})) -> None:
        self.left_out = dict(left_out)  # of later launches, and why
        self._seen: set[tuple[int, str]] = set()  # (launch, variant) of a crash

    def add(self, launch: Launch, loss: Loss) -> None:
        """Takes note of a lost launch; a variant that has crashed in it twice is left out from now on."""
        if loss.kind != LossKind.DIED or loss.variant in (None, BASELINE):
            return
        assert loss.variant is not None
        if (launch.index, loss.variant) in self._seen:
            self.left_out[loss.variant] = untimed.ended(loss)
        self._seen.add((launch.index, loss.variant))


TrialOutcome = LaunchResult | Failure | Memory | Limits | Waiting | Alive


class Ask(Protocol):
    """Asks for a value from a fresh pinned process, which has a launch's time at most; a ``Loss`` where it is lost."""

    def __call__(self, work: Callable[[], Any], timeout_s: float = math.inf) -> Any: ...


T = TypeVar("T")


def run_trial(
    trial: Trial,
    inputs: Inputs,
    share: Share = WHOLE,
    committed: Sequence[Committed] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[TrialOutcome]:
    """Launches until every speedup is precise enough or the budget ends; then each variant's peak memory and limit.

    Nothing else of ours runs on the trial's cores meanwhile: a station that somebody else holds is waited for, and each
    ``Waiting`` says for whom. A lost launch is yielded as a ``Failure`` and run again in its place with the same order;
    launches that earlier attempts ``committed`` are not.

    Raises:
        TrialError: the cores do not suffice, the station stayed busy, or a launch failed ``ATTEMPTS`` times.
    """

    def work(ask: Ask, chosen: CoreChoice) -> Iterator[LaunchResult | Failure | Memory | Limits | Alive]:
        def alone(name: str, timeout_s: float, compare_s: float) -> Any:
            return ask(partial(untimed.run_alone, trial, inputs, name, compare_s), timeout_s)

        crashes = Crashes((yield from untimed.compiled(trial, alone, clock)))

        def run(launch: Launch) -> LaunchResult | Failure:
            work = partial(_launch, trial, inputs, share, launch, chosen.cpus, dict(crashes.left_out))
            outcome: LaunchResult | Loss = ask(work)
            if isinstance(outcome, Loss):
                crashes.add(launch, outcome)
                return Failure(launch, _way_out(outcome, trial))
            where = {"chosen": chosen.text, "doubts": list(chosen.warnings)}
            return replace(outcome, machine={**outcome.machine, **where})

        able = present(trial.workload, trial.variants)
        yield from launches(trial, run, clock, committed, len(able))
        allowance = untimed.allowance_of(trial, clock)
        if trial.memory:
            names = [name for name in able if name not in crashes.left_out]
            yield from untimed.memory(trial, names, alone, allowance)
            yield from untimed.limits(partial(ask, partial(untimed.run_limits, trial, inputs)), allowance)

    yield from on_station(trial, inputs, share, work)


def on_station(
    trial: Trial, inputs: Inputs, share: Share, work: Callable[[Ask, CoreChoice], Iterator[T]]
) -> Iterator[T | Waiting]:
    """Does ``work`` while the trial's station is held; it is given what asks for fresh processes, and their cores.

    The siblings of measured cores are held too, except where a GPU's neighbours may measure on them.

    Raises:
        TrialError: the cores do not suffice, or the station stayed busy.
    """
    allowed = sorted(share.cores or os.sched_getaffinity(0))
    chosen = _chosen(beside_gpu(allowed, trial.workload.threads, share.gpus), trial.workload.threads)
    taken = allowed if share.cores else {*allowed, *chosen.empty}
    with Lease(lease.locks_for(sorted(taken), share.gpus), lease.describe(trial.run_id, trial.id)) as held:
        yield from _take(held, trial.wait_s)
        with LaunchServer(trial.workload, chosen.others, held.descriptors, given=inputs) as server:

            def ask(work: Callable[[], Any], timeout_s: float = math.inf) -> Any:
                if (holder := held.renew()) is not None:
                    raise TrialError(f"a lock was removed while this trial held it, and now {holder}")
                timeout_s = min(timeout_s, trial.launch_timeout_s)
                return server.run(Request(work, chosen.cpus, trial.workload.threads, timeout_s))

            if trial.workload.device == "cuda" and (fault := ask(_cuda_fault)) is not None:
                raise TrialError(fault.reason if isinstance(fault, Loss) else fault)
            compiles = any(variant_named(name).cached for name in trial.variants)
            own = inputs.model.warnings if isinstance(inputs.model, Factory) else ()
            yield from work(ask, replace(chosen, warnings=chosen.warnings + server.warnings * compiles + own))


def beside_gpu(allowed: Sequence[int], threads: int, gpus: Sequence[str]) -> Sequence[int]:
    """The allowed CPUs on the GPU's own NUMA node if they outnumber the threads, else all allowed CPUs."""
    close = {cpu for gpu in gpus for cpu in near(pci_address(gpu))} & set(allowed)
    return sorted(close) if len(close) > threads else allowed


def _chosen(allowed: Sequence[int], threads: int) -> CoreChoice:
    try:
        return choose_cores(allowed, threads, topology())
    except ValueError as error:
        raise TrialError(str(error)) from None


def _take(held: Lease, patience_s: float) -> Iterator[Waiting]:
    """Waits until the lease is ours. The processes of a trial that has just ended may hold it for a moment."""
    end = time.monotonic() + patience_s
    try:
        holder = lease.take_within(held, min(1.0, patience_s))
        while holder is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise TrialError(f"the station was busy for {patience_s:.0f} s: {holder}")
            yield Waiting(holder)
            holder = lease.take_within(held, min(TELL_EVERY_S, left))
    except lease.LeaseError as error:
        raise TrialError(str(error)) from None


def launches(
    trial: Trial,
    run: Callable[[Launch], LaunchResult | Failure],
    clock: Callable[[], float],
    committed: Sequence[Committed] = (),
    block: int | None = None,
) -> Iterator[LaunchResult | Failure]:
    """The stopping rule, whatever runs a launch and whatever tells the time (``clock``, in seconds).

    Launches come in whole blocks of ``block`` (as many as there are variants), at least ``LEAST_LAUNCHES``; then until
    every interval is as narrow as asked, or another block would outlast the budget. What intervals say plays no part.
    Those that earlier attempts committed stand where they stood, with the time that they had taken.

    Raises:
        TrialError: a launch failed ``ATTEMPTS`` times.
    """
    start = clock() - max((earlier.elapsed_s for earlier in committed), default=0.0)
    earlier_launches = {earlier.index: earlier for earlier in committed}
    block = block or len(trial.variants)
    least = orders.up_to_multiple(LEAST_LAUNCHES, block)
    launch = _first(trial, least, committed)
    ran: list[Committed] = []
    while True:
        known = earlier_launches.get(launch.index)
        if known is None:
            outcome = run(launch)
            if isinstance(outcome, Failure):
                yield outcome
                if launch.attempt == ATTEMPTS:
                    raise TrialError(f"launch {launch.index} failed {ATTEMPTS} times, last: {outcome.reason}")
                launch = replace(launch, attempt=launch.attempt + 1)
                continue
            outcome = replace(_held_against(outcome, [*committed, *ran]), elapsed_s=clock() - start)
            known = Committed.of(outcome)
            yield outcome
        ran.append(known)
        done = launch.index + 1
        launch = replace(launch, index=done, attempt=1, rounds=known.rounds, calls=known.calls)
        if done < least or done % block:
            continue
        after_another_block = known.elapsed_s * (done + block) / done
        speedups = [one.log_speedups for one in ran]
        if precise_enough(speedups, trial.precision) or after_another_block > trial.budget_s:
            return


def _first(trial: Trial, least: int, committed: Sequence[Committed]) -> Launch:
    """Sizes launches so that the least number of them fits in the budget, less a tenth for starting and preparing."""
    launch = Launch(0, trial.seed, seconds=0.9 * trial.budget_s / least)
    for earlier in committed[:1]:  # all launches of a trial are of one size
        launch = replace(launch, rounds=earlier.rounds, calls=earlier.calls)
    return launch


def changed_programs(launches: Iterable[Mapping[str, str]]) -> list[str]:
    """The variants that were not the same program in all of a trial's launches, whatever the reason."""
    found: dict[str, set[str]] = {}
    for programs in launches:
        for name, program in programs.items():
            found.setdefault(name, set()).add(program)
    return [name for name, different in found.items() if len(different) > 1]


def _programs(launch: LaunchResult) -> dict[str, str]:
    return {name: one.program for name, one in launch.facts.items() if one.program and not one.invalid}


def _held_against(launch: LaunchResult, earlier: Sequence[Committed]) -> LaunchResult:
    """The launch, where a variant is invalid that was another program in earlier ones."""
    changed = changed_programs([*(one.programs for one in earlier), _programs(launch)])
    invalid = {name: replace(launch.facts[name], invalid=OTHER_PROGRAM) for name in changed if name in launch.facts}
    return replace(launch, facts={**launch.facts, **invalid}) if invalid else launch


def _way_out(loss: Loss, trial: Trial) -> str:
    if loss.kind != LossKind.LATE:
        return loss.reason
    return f"{loss.reason} ({trial.launch_timeout_s:g} s; --launch-timeout gives a launch more)"


def _cuda_fault() -> str | None:
    """The reason why no launch can compute on the GPU, reported once rather than by each."""
    if torch.cuda.is_available():
        return None
    return (
        f"PyTorch {torch.__version__} sees no CUDA device here (install one built for CUDA, see what nvidia-smi says, "
        "or leave --device cuda out)"
    )


def _launch(
    trial: Trial,
    inputs: Inputs,
    share: Share,
    launch: Launch,
    cores: tuple[int, ...],
    left_out: Mapping[str, VariantFacts] = MappingProxyType({}),
) -> LaunchResult:
    pool = inputs.pool(trial.workload)
    result = measure.measure(trial.workload, trial.variants, inputs.model, pool, launch, share.cores, left_out)
    machine = measure.machine_facts()
    if tuple(machine["cores"]) != cores or machine["threads"] != trial.workload.threads:
        raise RuntimeError(f"it ended on cores {machine['cores']} with {machine['threads']} threads, not as pinned")
    return replace(result, machine={**machine, **result.machine})
