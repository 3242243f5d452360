"""The request for a launch, and everything that it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatbot.errors import UsageError
from chatbot.safe_text import safe
from chatbot.variants import BASELINE, CONTROL
from ray_jobs import statistics
from ray_jobs.measure import interference
from ray_jobs.measure import method as methods
from ray_jobs.measure.dynamo import Compilation
from ray_jobs.measure.interference import Interference
from ray_jobs.measure.method import FIRST
from ray_jobs.measure.replies import ReplyComparison
from ray_jobs.measure.requests import Served
from ray_jobs.measure.roofline import Limit, Speeds
from ray_jobs.sides import BASE, label_of
from ray_jobs.statistics import Centre


@dataclass(frozen=True)
class Launch:
    """The number of a launch within its trial, and what follows from it."""

    index: int
    seed: int  # of the trial; the orders and the prompts follow from it and the index
    rounds: int | None = None  # None: found from the first calls, to last about ``seconds``
    calls: int | None = None
    seconds: float = 12.0  # for the rounds
    attempt: int = 1

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.index])


@dataclass(frozen=True)
class Samples:
    """One array per column, one row per call, in the order of the calls."""

    variant: NDArray[np.int16]  # index into the launch's variants
    phase: NDArray[np.int8]  # index into PHASES
    round: NDArray[np.int32]  # -1 in the warm-up
    position: NDArray[np.int16]  # of the variant's turn in its round; in the warm-up, of its building
    call: NDArray[np.int32]  # within the turn, 0 the untimed one; under load the request's number in its window
    start_ns: NDArray[np.int64]  # since the launch's first sample; under load when it was due
    wall_ns: NDArray[np.int64]
    device_ns: NDArray[np.int64]  # -1 where the device has no clock of its own
    cpu_ns: NDArray[np.int64]
    involuntary_switches: NDArray[np.int32]


PHASES = ("warmup", "refresh", "timed", "served")
WARMUP, REFRESH, TIMED, SERVED = range(4)


@dataclass(frozen=True)
class VariantFacts:
    """A launch's findings about one variant."""

    prepare_s: float | None = None
    program: str | None = None  # identity of the timed program
    kind: str | None = None
    replies: int = 0
    identical: int = 0
    warmup_calls: int | None = None  # slow ones before it was settled
    settled: bool = True  # before its warm-up ended
    failed: str | None = None  # it could not be prepared or run
    invalid: str | None = None  # it is not what its label says, or answers otherwise than it promises
    skipped: str | None = None  # it can't run here: what it lacks
    tokens: int = 0  # in all compared replies; 0 in runs from before they were counted
    differing: tuple[int, ...] = ()  # the first step that differs, of each reply that is not identical
    scattered: bool = False  # a GRU's weights on the GPU are not in one buffer
    recompiled: int | None = None  # functions that Dynamo looked at anew in its turns; None: it has none to look at
    first_token_ms: float | None = None  # of a model with parts: see ``tokens.TokenTimes``
    further_token_ms: float | None = None

    @classmethod
    def told(cls, values: Mapping[str, Any]) -> "VariantFacts":
        """As another process told it, in plain values."""
        return cls(**{**values, "differing": tuple(values["differing"])})


@dataclass(frozen=True)
class LaunchResult:
    """All findings of a launch."""

    launch: Launch
    variants: tuple[str, ...]
    built: tuple[str, ...]  # in this order
    rounds: int
    calls: int
    facts: Mapping[str, VariantFacts]
    samples: Samples
    machine: Mapping[str, Any] = field(default_factory=dict)  # what the process ran on
    interference: Interference | None = None  # a row per round; None: of a run from before it was watched
    sentinel_ns: tuple[int, ...] = ()  # before the first variant was built, and after the last round
    elapsed_s: float | None = None  # of the trial when it came home, the time of earlier attempts included
    sides: tuple[str, ...] = ()  # whose each of ``variants`` is, which are labels then (``sides.label_of``); none: base
    method: int = FIRST  # its version
    served: Served | None = None  # of a launch under load

    @property
    def centre(self) -> Centre:
        """Of rounds, by the method that measured it. Raises UnknownMethodError."""
        return methods.known(self.method).centre

    @cached_property
    def kept_rounds(self) -> NDArray[np.bool_]:
        """(rounds,): the rounds that the statistics use."""
        if self.interference is None:
            return np.ones(self.rounds, dtype=bool)
        return np.asarray(interference.kept(self.interference))

    @cached_property
    def turn_medians(self) -> NDArray[np.float64]:
        """(rounds, variants): ns; NaN where a variant had no turn or the round is discarded."""
        timed = self.samples.phase == TIMED
        columns = (self.samples.variant[timed], self.samples.round[timed], self.samples.wall_ns[timed])
        turns = statistics.turn_medians(*columns, shape=(self.rounds, len(self.variants)))
        turns[~self.kept_rounds] = np.nan
        return turns

    def log_speedups(self) -> dict[str, float]:
        """ln(baseline / variant) of each valid variant but the baseline, which is that of its own side."""
        found: dict[str, float] = {}
        for side in dict.fromkeys(self.sides) or (BASE,):
            mine = [v for v in self.variants if self.side_of(v) == side]
            baseline, columns = label_of(side, BASELINE), [self.variants.index(v) for v in mine]
            logs = statistics.log_speedups(self.turn_medians[:, columns], mine.index(baseline), self.centre)
            found |= {v: float(r) for v, r in zip(mine, logs, strict=True) if self.sound(v) and v != baseline}
        return found

    def log_side_speedups(self) -> dict[str, float]:
        """ln(base / side) of each valid variant of a side but ``base``: that of the same variant there.

        None of the control, which is the baseline once more.
        """
        found: dict[str, float] = {}
        for index, label in enumerate(self.variants):
            same = label.removeprefix(label_of(self.side_of(label), ""))
            if same not in (label, CONTROL) and self.sound(label) and self.sound(same):
                turns = self.turn_medians[:, [self.variants.index(same), index]]
                found[label] = float(statistics.log_speedups(turns, 0, self.centre)[1])
        return found

    def side_of(self, label: str) -> str:
        """The side of one of ``variants``."""
        return self.sides[self.variants.index(label)] if self.sides else BASE

    def sound(self, label: str) -> bool:
        """Whether nothing speaks against the figures of one of ``variants``."""
        facts = self.facts[label]
        return not (facts.failed or facts.invalid or facts.skipped)

    def timed_ms(self, variant: str) -> NDArray[np.float64]:
        """The timed calls of one variant in the kept rounds."""
        samples = self.samples
        chosen = (samples.phase == TIMED) & (samples.variant == self.variants.index(variant))
        chosen[chosen] = self.kept_rounds[samples.round[chosen]]
        return np.asarray(samples.wall_ns[chosen] / 1e6)


@dataclass(frozen=True)
class Memory:
    """Findings of untimed processes about each variant alone: peak memory in MB, replies against the baseline's."""

    peak_mb: dict[str, float] = field(default_factory=dict)
    compared: dict[str, ReplyComparison] = field(default_factory=dict)  # of the approximate variants
    lost: dict[str, str] = field(default_factory=dict)  # why a variant's process told nothing
    compiled: dict[str, Compilation] = field(default_factory=dict)  # of the variants that Dynamo takes apart
    prepare_mb: dict[str, float] = field(default_factory=dict)  # the peak of preparing


@dataclass(frozen=True)
class Limits:
    """The station's speeds, and the limit there of each variant whose program is known."""

    speeds: Speeds | None = None
    of: dict[str, Limit] = field(default_factory=dict)
    lost: str | None = None  # why nothing is known


def one_line(error: BaseException) -> str:
    """The kind and first line of an error, without keys or escapes; of a mistake of the user's the line says enough."""
    text = str(error).strip().splitlines()
    if text and isinstance(error, UsageError):
        return safe(text[0])
    return safe(f"{type(error).__name__}: {text[0]}") if text else type(error).__name__
