"""The untimed parts of a trial, each in a process of its own: compiling, peak memory, comparing replies, limits.

The budget bounds it too: ``compiling_s`` and ``untimed_s``. What does not fit is left out, with the reason.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np

from chatbot.variants import BASELINE, CONTROL, variant_named
from chatbot.variants.parts import loop_behind
from ray_jobs.measure import roofline
from ray_jobs.measure.launch import Alone, measure_alone
from ray_jobs.measure.operators import Counted, CountedLoop, counted, counted_loop
from ray_jobs.measure.replies import LEAST_COMPARED, ReplyComparison, compare_replies
from ray_jobs.measure.result import Limits, Memory, VariantFacts
from ray_jobs.measure.speeds import measure_speeds
from ray_jobs.measure.subject import subject_of
from ray_jobs.measure.trial import Factory, Inputs, Trial, compiling_s, mode_of, present, untimed_s
from ray_jobs.process.server import Loss, LossKind

BUILDS = 8  # processes that a variant may take to compile, where each finds what the one before left
LIMITS_S = 10.0  # kept back for the limits; they take about two

AskAlone = Callable[[str, float, float], Alone | Loss]  # a variant, seconds for its process and for comparing replies


class Part(StrEnum):
    """Untimed work of a trial."""

    COMPILING = "compiling"
    TRYING = "trying the model"
    MEMORY = "memory and replies"
    LIMITS = "hardware limits"
    COLD = "cold starts"


@dataclass(frozen=True)
class Alive:
    """The trial has begun an untimed part, so that nobody thinks that it hangs."""

    part: Part | None = None  # that begins; None: its worker does
    variant: str = ""


@dataclass
class Allowance:
    """Seconds that a part of a trial may take, from now on."""

    seconds: float
    clock: Callable[[], float]
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - self.clock())


def compiled(
    trial: Trial, alone: AskAlone, clock: Callable[[], float]
) -> Generator[Alive, None, Mapping[str, VariantFacts]]:
    """Lets variants that compile do so before the first launch, which would outlast its time.

    Each variant of a model of the user's own is tried so: what can't take it costs its own row.
    Returns those that launches must leave out, because they did not end in their time or took their process with them.
    """
    allowance = Allowance(compiling_s(trial.budget_s), clock)
    left_out = {}
    able = present(trial.workload, trial.variants)
    for name in sorted(able, key=lambda name: variant_named(name).cached):  # who compiles may use up the time
        part = Part.COMPILING if variant_named(name).cached else Part.TRYING
        if part == Part.COMPILING or (trial.workload.own_model and name not in (BASELINE, CONTROL)):
            yield Alive(part, name)
            loss = _compile(name, alone, allowance, BUILDS if part == Part.COMPILING else 1)
            if loss is not None and loss.kind == LossKind.DIED:
                left_out[name] = _untakeable(loss) if trial.workload.own_model else ended(loss)
            elif loss is not None and loss.kind == LossKind.LATE:
                left_out[name] = VariantFacts(skipped=_too_long(part, allowance, trial))
    return left_out


def _untakeable(loss: Loss) -> VariantFacts:
    """Of a variant that ends its process as it is given a model of the user's own."""
    return VariantFacts(skipped=f"preparing it for this model ended its process: {loss.reason}")


def ended(loss: Loss) -> VariantFacts:
    """The facts of a variant that ends the process it runs in."""
    return VariantFacts(failed=f"ended its process: {loss.reason}")


def _compile(name: str, alone: AskAlone, allowance: Allowance, times: int) -> Loss | None:
    loss = Loss(LossKind.LATE, "there was no time left for it")
    for _ in range(times):
        if not allowance.left_s:
            break
        outcome = alone(name, allowance.left_s, 0.0)
        if not isinstance(outcome, Loss):
            return None
        loss = outcome
        if loss.kind != LossKind.LATE:
            break
    return loss


def _too_long(part: Part, allowance: Allowance, trial: Trial) -> str:
    share = f"the {allowance.seconds:.0f} s that a budget of {trial.budget_s:g} s leaves for {part}"
    return f"{share} were over; give a larger --budget"


def memory(trial: Trial, names: list[str], alone: AskAlone, allowance: Allowance) -> Iterator[Alive | Memory]:
    """These variants, by their labels, each in a process of its own; ends with what was found out.

    A variant may use all the time that is left, but compare replies in no more than its share of it. The baseline, the
    slowest more often than not, bounds how many replies the others are held against.
    """
    comparing = [name for name in names if name in _comparing(trial)]
    told: dict[str, Alone] = {}
    lost: dict[str, str] = {}
    for name in names:
        yield Alive(Part.MEMORY, name)
        left_s = allowance.left_s - LIMITS_S
        if left_s <= 0:
            lost[name] = _too_long(Part.MEMORY, allowance, trial)
            continue
        share = 1 / 4 if name == BASELINE else 1 / 2 / max(1, len(comparing))
        outcome = alone(name, left_s, share * left_s * (name in comparing))
        comparing = [other for other in comparing if other != name]
        if not isinstance(outcome, Loss):
            told[name] = outcome
        elif outcome.kind == LossKind.LATE:
            lost[name] = _too_long(Part.MEMORY, allowance, trial)
        else:
            lost[name] = outcome.reason
    compiled = {name: found.compiled for name, found in told.items() if found.compiled is not None}
    preparing = {name: found.prepare_mb for name, found in told.items() if found.prepare_mb is not None}
    yield Memory({name: found.peak_mb for name, found in told.items()}, _compared(told), lost, compiled, preparing)


def _comparing(trial: Trial) -> tuple[str, ...]:
    """The variants whose replies are compared: the approximate ones, and what they are held against."""
    own = trial.workload.own_model  # whose answers only its ``same`` can compare, as each launch does
    approximate = [name for name in trial.variants if not (variant_named(name).exact or own)]
    return (BASELINE, *approximate) if approximate else ()


def _compared(told: Mapping[str, Alone]) -> dict[str, ReplyComparison]:
    """Compares replies with the baseline's, as far as both answered the same prompts."""
    expected = told[BASELINE].tokens if BASELINE in told else None
    compared = {}
    for name, found in told.items():
        if name != BASELINE and found.tokens is not None and expected is not None:
            both = min(len(found.tokens), len(expected))
            if np.shape(found.tokens)[1:] == expected.shape[1:]:
                compared[name] = compare_replies(found.tokens[:both], expected[:both])
    return compared


def run_alone(trial: Trial, inputs: Inputs, variant: str, compare_s: float) -> Alone:
    """Runs in a process of its own: prepares and calls one variant, and collects replies for ``compare_s`` seconds."""
    pool, compared = inputs.pool(trial.workload), LEAST_COMPARED if compare_s else 0
    return measure_alone(trial.workload, variant, inputs.model, pool, compared, compare_s)


def run_limits(trial: Trial, inputs: Inputs) -> Limits:
    """Runs in a process of its own: measures the station's speeds and derives the variants' limits from them."""
    if isinstance(inputs.model, Factory):
        found = _counted(trial, inputs)
        if found.unknown is not None:
            return Limits(lost=f"what {found.unknown} reads and multiplies is not known")
        speeds = measure_speeds(trial.workload.device)
        return Limits(speeds, roofline.limits(found.phases, trial.variants, speeds))
    speeds = measure_speeds(trial.workload.device)
    return Limits(speeds, roofline.limits_of(inputs.model.load().config, trial.workload, trial.variants, speeds))


def _counted(trial: Trial, inputs: Inputs) -> Counted | CountedLoop:
    """What the baseline reads and multiplies in a call of an own model."""
    with mode_of(inputs.model):
        subject = subject_of(inputs.model, inputs.pool(trial.workload), trial.workload)
        reply = subject.fresh()(variant_named(BASELINE))
        asked = subject.questions.next()
        call, loop = partial(reply, *asked), loop_behind(reply)
        return counted(call, asked) if loop is None else counted_loop(loop, call, asked)


def limits(ask: Callable[[float], Any], allowance: Allowance) -> Iterator[Alive | Limits]:
    """Yields the limits, or the reason why they are unknown."""
    yield Alive(Part.LIMITS)
    found: Limits | Loss = ask(max(LIMITS_S, allowance.left_s))
    yield Limits(lost=found.reason) if isinstance(found, Loss) else found


def allowance_of(trial: Trial, clock: Callable[[], float]) -> Allowance:
    """The time allowed for everything that follows the launches."""
    return Allowance(untimed_s(trial.budget_s), clock)
