"""The spec of a sweep: validated, frozen, and the same when it is resumed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from chatbot import corpus as corpora
from chatbot.config import PRESETS, Config, Options
from chatbot.errors import UsageError, one_of
from chatbot.vocabulary import Vocabulary
from ray_jobs.spec import first_mistake
from ray_jobs.sweep.space import DEFAULT, Space, Value, apply, trial_seed


@dataclass(frozen=True)
class SweepTrial:
    """One training run of a sweep."""

    number: int
    settings: Mapping[str, Value]
    options: Options
    config: Config


def _or_none(value: Any) -> Any:
    return None if value == "none" else value


class SweepSpec(BaseModel):
    """Random search: ``trials`` draws from a space, each trained for at most ``iterations``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: dict[str, Any] = Field(default_factory=lambda: dict(DEFAULT))
    # A key's description is its flag's help text.
    trials: int = Field(16, ge=1, description="Number of trials, all different draws from the space")
    iterations: int = Field(4000, ge=1, description="Maximum iterations per trial")
    validate_every: int = Field(200, ge=1, description="Iterations between validations")
    patience: Annotated[int | None, BeforeValidator(_or_none)] = Field(
        5, ge=1, description="End a trial after this many validations without improvement, or none"
    )
    asha: bool = Field(True, description="Stop poor trials early")
    grace: int | None = Field(
        None, ge=1, description="Iterations before a trial may be stopped; a ninth of --iterations by default"
    )
    reduction: float = Field(3.0, gt=1, allow_inf_nan=False, description="Keep one trial in N at each rung")
    size: str = Field("small", description=f"Preset of model sizes: {', '.join(PRESETS)}")
    corpus: str = Field("chitchat", description="Corpus: chitchat, a .tsv or .txt, or a Cornell path")
    min_count: int = Field(corpora.MIN_COUNT, ge=1, description="Drop pairs with a word that occurs less often")
    seed: int = Field(0, ge=0, description="Seed for the draws and for every trial")
    # The same in every sweep, so that sweeps can be compared.
    split_seed: int = Field(0, ge=0, description="Seed for the choice of held-out pairs")
    cpus: int = Field(1, ge=1, description="CPUs per trial")
    gpus: float = Field(0.0, ge=0, allow_inf_nan=False, description="GPUs per trial; with 0.25, four share one")
    concurrent: int | None = Field(
        None, ge=1, description="Trials to run at a time; 1 makes the sweep repeatable; as many as fit by default"
    )
    half: bool = Field(False, description="Store the best weights in 16 bits")

    @model_validator(mode="after")
    def _together(self) -> "SweepSpec":
        if self.size not in PRESETS:
            raise one_of("size", self.size, list(PRESETS))
        if self.grace is not None and self.grace > self.iterations:
            raise UsageError(f"grace is {self.grace}, more than all {self.iterations} iterations")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UsageError(f"gpus is {self.gpus:g}; give a whole number, or a share of one below 1")
        Space.of(self.space)
        return self

    @property
    def grace_iterations(self) -> int:
        """The first rung: a multiple of ``validate_every``, where a loss is known."""
        asked = self.grace or self.iterations / 9
        return min(self.iterations, math.ceil(asked / self.validate_every) * self.validate_every)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def plan(self, vocabulary: int) -> list[SweepTrial]:
        """The trials, each with a seed of its own. Raises UsageError where the space holds too few."""
        base = replace(PRESETS[self.size], vocabulary=vocabulary)
        settings = Space.of(self.space).draw(self.trials, self.seed, base)
        return [self.trial(n, one, trial_seed(self.seed, n), vocabulary) for n, one in enumerate(settings)]

    def trial(self, number: int, settings: Mapping[str, Value], seed: int, vocabulary: int) -> SweepTrial:
        """Makes a trial of these settings. Raises UsageError if they do not fit together."""
        base = replace(PRESETS[self.size], vocabulary=vocabulary)
        options = Options(
            iterations=self.iterations,
            validate_every=self.validate_every,
            patience=self.patience,
            seed=seed,
            split_seed=self.split_seed,
        )
        return SweepTrial(number, settings, *apply(settings, options, base))

    def load_data(self) -> tuple[list[corpora.Pair], Vocabulary]:
        """Loads the pairs that trials train on and are evaluated with, and their words. Raises UsageError."""
        pairs = corpora.short_pairs(corpora.load(self.corpus).pairs)
        usable = corpora.trim(pairs, self.min_count)
        if not usable:
            raise UsageError(f"no pair of {self.corpus} is left with --min-count {self.min_count}; give a lower one")
        return usable, Vocabulary.of_pairs(pairs, self.min_count)


def make_spec(content: Mapping[str, Any]) -> SweepSpec:
    """A spec of plain values. Raises UsageError: one line that names the key."""
    for key in content:
        if key not in SweepSpec.model_fields:
            raise one_of("key of a sweep", key, list(SweepSpec.model_fields))
    try:
        return SweepSpec.model_validate(dict(content))
    except ValidationError as error:
        raise UsageError(first_mistake(error)) from None
