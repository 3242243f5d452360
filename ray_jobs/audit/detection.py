"""Planted mistakes: each runs through the pipeline of the matrix, and something there must name it."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.audit import side_mistakes
from ray_jobs.audit.load import background_load
from ray_jobs.audit.mistakes import named
from ray_jobs.audit.plan import MOST
from ray_jobs.audit.station import AuditStation, Measured
from ray_jobs.cluster.events import Event, LaunchDone
from ray_jobs.matrix.rows import Status
from ray_jobs.measure.interference import commonest, complaint, disturbed
from ray_jobs.measure.result import TIMED, LaunchResult
from ray_jobs.measure.trial import ChatbotSource, Factory
from ray_jobs.sides import BASE
from ray_jobs.statistics import LEAST_LAUNCHES, Verdict

IMPOSSIBLE = "impossible by construction"
BY_OTHERS = {"foreign_cpu_ns", "run_delay_ns"}  # the counters that a background process moves
NOTHING_LIKE = 1.5  # a speedup below it is nothing like that of a memory, which would be hundreds
HALF_WAY = LEAST_LAUNCHES // 2
BUSY = 0.9  # of each core, from half-way on


@dataclass(frozen=True)
class Fault:
    """A mistake, the variant that it is planted as, and the check that must catch it."""

    name: str
    variants: tuple[str, ...]
    judge: Callable[[Measured], str | None]  # what caught it; None: nothing did
    half_way: bool = False  # a background process starts in the middle
    impossible: bool = False  # by construction: what shows it is that nothing came of it
    against: Callable[[Path], str] | None = None  # the side that it is planted in, given a folder for it
    model: Callable[[ChatbotSource], ChatbotSource] | None = None  # the model that it is planted in


@dataclass(frozen=True)
class Detection:
    """The outcome of a planted mistake."""

    fault: str
    caught: bool
    by: str
    impossible: bool = False  # by construction, rather than noticed


def _planted(name: str, plant: str, words: str, beside: tuple[str, ...] = ()) -> Fault:
    """A mistake that is caught where its row is invalid for a reason with these words, and shows no speedup."""

    def judge(state: Measured) -> str | None:
        row = next(row for row in state.rows if row.variant == named(plant))
        if row.verdict != Verdict.INVALID or row.speedup is not None or words not in (row.reason or ""):
            return None
        return f"invalid: {row.reason}"

    return Fault(name, (*beside, named(plant)), judge)


def _planted_in_a_side(
    name: str,
    words: str,
    against: Callable[[Path], str],
    variant: str = side_mistakes.NAME,
    model: Callable[[ChatbotSource], ChatbotSource] | None = None,
) -> Fault:
    """A mistake that costs its side's row for a reason with these words, and nothing of ``base``."""

    def judge(state: Measured) -> str | None:
        planted = next(row for row in state.rows if row.side != BASE and row.variant == variant)
        sound = all(row.status == Status.DONE and row.reason is None for row in state.rows if row.side == BASE)
        how = planted.status if planted.status == Status.FAILED else planted.verdict
        found = how in (Status.FAILED, Verdict.INVALID) and words in (planted.reason or "")
        return f"{how}: {planted.reason}" if found and sound and planted.side_speedup is None else None

    return Fault(name, (variant,), judge, against=against, model=model)


def _nothing_gained(state: Measured) -> str | None:
    """A memory of prompts can't help where no prompt is asked twice of a variant."""
    row = next(row for row in state.rows if row.variant == named("MEMORY"))
    if row.status != Status.DONE or row.verdict == Verdict.INVALID or row.speedup is None or row.speedup > NOTHING_LIKE:
        return None
    return f"{IMPOSSIBLE}: no prompt is asked twice of a variant in a launch (speedup {row.speedup:.3f}, {row.verdict})"


def _balanced(state: Measured) -> str | None:
    """Checks that every variant stands equally often in each place of the rounds and of the building order."""
    if state.status != Status.DONE or not state.launches:
        return None
    names = state.launches[0].variants
    if not all(_places_balanced(launch) for launch in state.launches):
        return None
    built = np.array([[launch.built.index(name) for name in names] for launch in state.launches])
    whole = len(built) // len(names) * len(names)
    counts = {tuple(np.bincount(column, minlength=len(names))) for column in built[:whole].T}
    if counts != {(whole // len(names),) * len(names)}:
        return None
    return f"{IMPOSSIBLE}: each variant had each place of the rounds equally often, in each of {len(built)} launches"


def _places_balanced(launch: LaunchResult) -> bool:
    samples = launch.samples
    first = (samples.phase == TIMED) & (samples.call == 1)
    places = range(len(launch.variants))
    counts = {int(((samples.variant == v) & (samples.position == p) & first).sum()) for v in places for p in places}
    return counts == {launch.rounds // len(launch.variants)}


def _noticed(state: Measured) -> str | None:
    """Checks that every row warns of it, and that the counters saw it in the rounds after its start."""
    watched = [w for launch in state.launches if (w := launch.interference) is not None]
    said = complaint(watched)
    warned = said is not None and all(said in row.warnings for row in state.rows)
    shares = [disturbed(w) / len(w.round_ns) for w in watched]
    before, after = shares[: HALF_WAY - 1], shares[HALF_WAY + 1 :]
    if state.status != Status.DONE or not warned or not BY_OTHERS & commonest(watched).keys() or not (before and after):
        return None
    if np.mean(after) < np.mean(before) + 0.5:
        return None
    return f"{state.rows[0].discarded_rounds} rounds discarded, and a warning: {said}"


def _run_again(state: Measured) -> str | None:
    """Checks that every launch was killed on its first attempt, recorded as lost, run again and counted once."""
    indices = [launch.launch.index for launch in state.launches]
    killed = [record["launch"] for record in state.lost if record["attempt"] == 1 and "SIGKILL" in record["reason"]]
    if state.status != Status.DONE or not indices or killed != indices or indices != list(range(len(indices))):
        return None
    return f"{len(killed)} launches lost ({state.lost[0]['reason']}), each run again in its place and counted once"


FAULTS = (
    _planted("the same program timed under two names", "SAME_PROGRAM", "the same program", beside=("torchscript",)),
    _planted("a variant left on another device", "ANOTHER_DEVICE", "holds weights on"),
    _planted("a missing synchronisation", "NOT_SYNCHRONISED", "promises the baseline's replies"),
    _planted("an answer that was never computed (meta tensors)", "NEVER_COMPUTED", "replies are on meta"),
    _planted("a remembered reply", "SAME_REPLY", "promises the baseline's replies"),
    Fault("a memory of prompts", (named("MEMORY"),), _nothing_gained, impossible=True),
    _planted("a shorter answer", "HALF", "shape"),
    _planted("stopping at the end of the sentence", "STOPS", "stops at the end of the sentence"),
    _planted("computing nothing", "NOTHING", "promises the baseline's replies"),
    _planted("dropout left on", "DROPOUT", "training mode"),
    _planted("gradients left on", "GRADIENTS", "records gradients"),
    Fault("always run second with a warm cache", (CONTROL,), _balanced, impossible=True),
    Fault("a background process that starts half-way", (CONTROL,), _noticed, half_way=True),
    _planted("tokenising inside the timed call", "TOKENISES", "handles text"),
    Fault("a launch that dies half-way", (named("DIES"),), _run_again),
    _planted_in_a_side(
        "two sides that are one environment", "the same environment as base", side_mistakes.asked_by_link, BASELINE
    ),
    _planted_in_a_side(
        "a side that runs on other cores in its turns", "with 1 threads, not as pinned", side_mistakes.asked("cores")
    ),
    _planted_in_a_side(
        "a side with another thread in its turns", "with 2 threads, not as pinned", side_mistakes.asked("threads")
    ),
    _planted_in_a_side(
        "a side with other weights",
        "its weights are not those of base",
        side_mistakes.asked("weights"),
        BASELINE,
        side_mistakes.altered,
    ),
    _planted_in_a_side(
        "two sides that compute at once", "computing in the turns of others", side_mistakes.asked("at-once")
    ),
    _planted_in_a_side(
        "a side that answers from a file of answers",
        "it answers from a memory",
        side_mistakes.asked_for_cache,
    ),
)


def plant(station: AuditStation, fault: Fault, number: int) -> Detection:
    """Runs one planted mistake."""
    done: list[Event] = []
    with ExitStack() as stack:

        def watch(event: Event) -> None:
            if isinstance(event.outcome, LaunchDone):
                done.append(event)
                if fault.half_way and len(done) == HALF_WAY:
                    stack.enter_context(background_load(station.spec.seed, sorted(os.sched_getaffinity(0)), BUSY))

        folder = Path(stack.enter_context(TemporaryDirectory(prefix="latency-matrix-")))
        sides = side_mistakes.sides(fault.against(folder)) if fault.against else ()
        state = _with_model(station, fault).run(
            f"fault-{number:02d}",
            (BASELINE, *fault.variants),
            station.spec.seed * MOST + number,
            watch=watch,
            sides=sides,
        )
    by = fault.judge(state)
    return Detection(fault.name, by is not None, by or _uncaught(state), fault.impossible)


def _with_model(station: AuditStation, fault: Fault) -> AuditStation:
    source = station.inputs.model
    if fault.model is None or isinstance(source, Factory):
        return station
    return replace(station, inputs=replace(station.inputs, model=fault.model(source)))


def _uncaught(state: Measured) -> str:
    if state.status != Status.DONE:
        return f"the trial failed: {state.reason}"
    seen = ", ".join(f"{row.name} {row.verdict or row.status}: {row.reason or row.speedup}" for row in state.rows)
    return f"nothing; {seen}"
