"""Launches of a trial until precision or budget, each a fresh pinned process."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch

from chatbot.variants import BASELINE, CONTROL, variant_named
from ray_jobs.load import launch as load
from ray_jobs.load.behind import Behind
from ray_jobs.load.points import logs_of
from ray_jobs.load.stage import Asked
from ray_jobs.measure import launch as measure
from ray_jobs.measure import orders
from ray_jobs.measure.cold import Cold
from ray_jobs.measure.gpu import pci_address
from ray_jobs.measure.launch import Alone
from ray_jobs.measure.result import Launch, LaunchResult, Limits, Memory, VariantFacts
from ray_jobs.measure.trial import Factory, Inputs, Pair, Trial, rounds_s
from ray_jobs.process import cold, lease, untimed
from ray_jobs.process.conductor import Stage
from ray_jobs.process.cores import CoreChoice, choose_cores, near, topology
from ray_jobs.process.lease import Lease
from ray_jobs.process.player import LostError
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request, TrialError
from ray_jobs.process.sides import Environments, Sides, startable
from ray_jobs.process.untimed import Alive
from ray_jobs.sides import AGAIN, BASE, Side, label_of
from ray_jobs.statistics import LEAST_LAUNCHES, precise_enough

ATTEMPTS = 3  # of one launch
OTHER_PROGRAM = "it was another program than in earlier launches of its trial"
BLAMED = (LossKind.DIED, LossKind.RESTLESS, LossKind.MOVED)  # what costs a variant, rather than its side
TELL_EVERY_S = 10.0  # that somebody else still holds the station
AGAINST = " against base"  # behind the label of a side's variant: its speedup over the same variant of ``base``


@dataclass(frozen=True)
class Committed:
    """The part of a committed launch that the stopping rule needs."""

    index: int
    rounds: int
    calls: int
    log_speedups: Mapping[str, float]
    elapsed_s: float
    programs: Mapping[str, str] = field(default_factory=dict)  # identity of what each valid variant ran
    discarded: int = 0  # rounds

    @classmethod
    def of(cls, launch: LaunchResult) -> "Committed":
        """Extracts it from a launch; ``elapsed_s`` is 0 in runs that did not record it."""
        index, elapsed_s, programs = launch.launch.index, launch.elapsed_s or 0.0, _programs(launch)
        against = {f"{label}{AGAINST}": log for label, log in launch.log_side_speedups().items()}
        discarded = int((~launch.kept_rounds).sum())
        logs = {**logs_of(launch), **against}
        return cls(index, launch.rounds, launch.calls, logs, elapsed_s, programs, discarded)


@dataclass(frozen=True)
class Share:
    """The part of a machine that a trial holds."""

    cores: tuple[int, ...] | None = None  # None: all that the process may use
    gpus: tuple[str, ...] = ()  # as this host calls them
    behind: Behind | None = None  # how launches reach the Ray cluster; only of a trial through Ray Serve


WHOLE = Share()


@dataclass(frozen=True)
class Failure:
    """A launch that ended without a result, and the reason."""

    launch: Launch
    reason: str
    side: str = BASE  # that was lost


@dataclass(frozen=True)
class Waiting:
    """Another trial holds the station."""

    holder: str


class Crashes:
    """Variants that end the process they run in: each costs itself, not the trial."""

    def __init__(self, left_out: Mapping[str, VariantFacts] = MappingProxyType({})) -> None:
        self.left_out = dict(left_out)  # of later launches, and why
        self._seen: set[tuple[int, str]] = set()  # (launch, variant) of a crash

    def add(self, launch: Launch, loss: Loss, side: str = BASE, labels: Sequence[str] = ()) -> None:
        """Takes note of a lost launch; a variant that has crashed in it twice is left out from now on.

        One that leaves its cores or its threads is left out at once: it does so each time.
        Where no variant of a side is to blame it costs the side, whose ``labels`` are given; ``base`` has none.
        """
        blamed = loss.variant if loss.kind in BLAMED and loss.variant != BASELINE else None
        mine = labels if blamed is None else [label_of(side, blamed)]
        if not mine:
            return
        if (launch.index, mine[0]) in self._seen or loss.kind in (LossKind.RAISED, LossKind.MOVED):
            died = loss.kind == LossKind.DIED
            self.left_out |= dict.fromkeys(mine, untimed.ended(loss) if died else VariantFacts(failed=loss.reason))
        self._seen.add((launch.index, mine[0]))


TrialOutcome = LaunchResult | Failure | Memory | Limits | Cold | Waiting | Alive | Environments


class Ask(Protocol):
    """Asks for a value from a fresh pinned process, which has a launch's time at most; a ``Loss`` where it is lost."""

    def __call__(self, work: Callable[[], Any], timeout_s: float = math.inf, side: str = BASE) -> Any: ...


@dataclass(frozen=True)
class Holding:
    """What a trial has while it holds its station."""

    ask: Ask
    chosen: CoreChoice
    start: Callable[[str], LaunchServer]  # one more launch server, of a side that has an interpreter
    renew: Callable[[], None]  # raises TrialError where the station is lost


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

    def work(held: Holding) -> Iterator[LaunchResult | Failure | Memory | Limits | Cold | Alive | Environments]:
        stage = Stage(trial, inputs, held.start, held.chosen.cpus, tuple(held.chosen.others), share.cores)
        sides = Sides.of(stage, held.ask)
        if trial.sides:
            yield sides.environments
        told: dict[str, Mapping[str, VariantFacts]] = {}
        for side in sides.prepared:
            told[side] = yield from untimed.compiled(trial, partial(_alone, trial, inputs, held, side), clock)
        crashes = Crashes(sides.left_out(told))

        def run(launch: Launch) -> LaunchResult | Failure:
            held.renew()
            try:
                outcome = sides.launch(launch, crashes.left_out) if trial.sides else in_one_process(launch)
            except LostError as error:
                lost = LostError(error.side, replace(error.loss, reason=_way_out(error.loss, trial)))
                before = len(crashes.left_out)
                crashes.add(launch, lost.loss, lost.side, sides.labels(lost.side))
                gone = lost.side != BASE and len(crashes.left_out) > before
                return run(launch) if gone else Failure(launch, str(lost), lost.side)  # rows say why a side is gone
            where = {"chosen": held.chosen.text, "doubts": list(held.chosen.warnings)}
            return replace(outcome, machine={**outcome.machine, **where})

        def in_one_process(launch: Launch) -> LaunchResult:
            started = _launch if trial.load is None else _under_load
            work = partial(started, trial, inputs, share, launch, held.chosen.cpus, dict(crashes.left_out))
            outcome: LaunchResult | Loss = held.ask(work)
            if isinstance(outcome, Loss):
                raise LostError(BASE, outcome)
            return outcome

        yield from launches(trial, run, clock, committed, len(sides.able))
        left = [pair for pair in sides.able if _alone_too(pair) and pair.label not in crashes.left_out]
        if trial.memory and trial.load is None:
            yield from _memory_and_limits(trial, inputs, held, left, clock)
        if trial.cold and trial.load is None:
            names = [pair.variant for pair in left if pair.side == BASE and pair.variant != CONTROL]
            yield from cold.cold(trial, inputs, names, held.ask, cold.allowance_of(trial, clock))

    yield from on_station(trial, inputs, share, work, trial.sides)


def _alone_too(pair: Pair) -> bool:
    """Whether it is worth a process of its own: not what is another pair once more."""
    return pair.side == BASE or (pair.side != AGAIN and pair.variant != CONTROL)


def _alone(
    trial: Trial, inputs: Inputs, held: Holding, side: str, name: str, timeout_s: float, compare_s: float
) -> Alone | Loss:
    """A variant in a process of its own, of its side."""
    found: Alone | Loss = held.ask(partial(untimed.run_alone, trial, inputs, name, compare_s), timeout_s, side)
    return found


def _memory_and_limits(
    trial: Trial, inputs: Inputs, held: Holding, left: Sequence[Pair], clock: Callable[[], float]
) -> Iterator[Alive | Memory | Limits]:
    """Each variant's peak memory and limit; limits are those of ``base``."""
    pairs = {pair.label: pair for pair in left}
    allowance = untimed.allowance_of(trial, clock)

    def alone(label: str, timeout_s: float, compare_s: float) -> Alone | Loss:
        return _alone(trial, inputs, held, *pairs[label], timeout_s, compare_s)

    yield from untimed.memory(trial, list(pairs), alone, allowance)
    yield from untimed.limits(partial(held.ask, partial(untimed.run_limits, trial, inputs)), allowance)


def on_station(
    trial: Trial,
    inputs: Inputs,
    share: Share,
    work: Callable[[Holding], Iterator[T]],
    sides: Sequence[Side] = (),
) -> Iterator[T | Waiting]:
    """Does ``work`` while the trial's station is held; ``sides`` but ``base`` have launch servers of their own.

    The siblings of measured cores are held too, except where a GPU's neighbours may measure on them.

    Raises:
        TrialError: the cores do not suffice, or the station stayed busy.
    """
    allowed = sorted(share.cores or os.sched_getaffinity(0))
    chosen = _chosen(beside_gpu(allowed, trial.cores, share.gpus), trial.cores)
    taken = allowed if share.cores else {*allowed, *chosen.empty}
    with Lease(lease.locks_for(sorted(taken), share.gpus), lease.describe(trial.run_id, trial.id)) as held:
        yield from _take(held, trial.wait_s)
        # Where no core is left, servers stay where requests are sent from: they sleep while a launch measures.
        beside = chosen.others or (chosen.cpus[:1] if trial.load is not None and trial.load.generators else ())
        start = partial(LaunchServer, trial.workload, beside, held.descriptors, given=inputs)
        with start() as server, ExitStack() as stack:
            others = {side.name: stack.enter_context(start(side=side)) for side in startable(sides)}
            servers = {**others, BASE: server}
            named = {side.name: side for side in sides if side.name != BASE}

            def another(side: str) -> LaunchServer:
                # On any core of the station, as long as it starts: never on those of another trial.
                mine = named.get(side)
                return LaunchServer(trial.workload, allowed, held.descriptors, given=inputs, side=mine)

            def renew() -> None:
                if (holder := held.renew()) is not None:
                    raise TrialError(f"a lock was removed while this trial held it, and now {holder}")

            def ask(work: Callable[[], Any], timeout_s: float = math.inf, side: str = BASE) -> Any:
                renew()
                timeout_s = min(timeout_s, trial.launch_timeout_s)
                try:
                    return servers[side].run(Request(work, chosen.cpus, trial.workload.threads, timeout_s))
                except TrialError as error:
                    if side == BASE:
                        raise
                    return Loss(LossKind.RAISED, str(error))  # the rest goes on without it

            if trial.workload.device == "cuda" and (fault := ask(_cuda_fault)) is not None:
                raise TrialError(fault.reason if isinstance(fault, Loss) else fault)
            compiles = any(variant_named(name).cached for name in trial.variants)
            own = inputs.model.warnings if isinstance(inputs.model, Factory) else ()
            told = replace(chosen, warnings=chosen.warnings + server.warnings * compiles + own)
            yield from work(Holding(ask, told, another, renew))


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
    failed = 0  # times, of the present launch
    while True:
        known = earlier_launches.get(launch.index)
        if known is None:
            outcome = run(launch)
            if isinstance(outcome, Failure):
                yield outcome
                failed += outcome.side == BASE  # another side that goes on failing is left out
                if failed == ATTEMPTS:
                    raise TrialError(f"launch {launch.index} failed {ATTEMPTS} times, last: {outcome.reason}")
                launch = replace(launch, attempt=launch.attempt + 1)
                continue
            outcome = replace(_held_against(outcome, [*committed, *ran]), elapsed_s=clock() - start)
            known = Committed.of(outcome)
            yield outcome
        ran.append(known)
        done, failed = launch.index + 1, 0
        launch = replace(launch, index=done, attempt=1, rounds=known.rounds, calls=known.calls)
        if done < least or done % block:
            continue
        after_another_block = known.elapsed_s * (done + block) / done
        speedups = [one.log_speedups for one in ran]
        if precise_enough(speedups, trial.precision) or after_another_block > trial.budget_s:
            return


def _first(trial: Trial, least: int, committed: Sequence[Committed]) -> Launch:
    """Sizes launches so that the least number of them fits in the budget."""
    launch = Launch(0, trial.seed, seconds=rounds_s(trial.budget_s, least, len(trial.sides)))
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
    """What each valid variant ran; of a side together with what it runs in."""
    known = {name: one.program for name, one in launch.facts.items() if one.program and not one.invalid}
    found = {side: json.dumps(told, sort_keys=True) for side, told in launch.machine.get("environments", {}).items()}
    return {name: f"{program} {found.get(launch.side_of(name), '')}".strip() for name, program in known.items()}


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


def _under_load(
    trial: Trial,
    inputs: Inputs,
    share: Share,
    launch: Launch,
    cores: tuple[int, ...],
    left_out: Mapping[str, VariantFacts] = MappingProxyType({}),
) -> LaunchResult:
    assert trial.load is not None
    pool, model = inputs.pool(trial.workload), inputs.model
    asked = Asked(
        trial.workload,
        trial.variants,
        model,
        pool,
        launch,
        trial.load,
        cores,
        share.cores,
        dict(left_out),
        trial.launch_timeout_s,
        behind=share.behind,
    )
    return load.measure(asked)
