"""The space of a sweep: hyperparameters, the values that each may take, and seeded draws from them.

A space is a table of names: a list is a choice between values, ``{low, high, log, step}`` a range, and a single value
holds for every trial.
"""

import hashlib
import math
import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chatbot.config import Config, Options
from chatbot.errors import UsageError, one_of

Value = float | int | str | None
# The five hyperparameters and their values of the sweep that this project grew from; its clip of 0, which zeroes every
# gradient, is ``none`` here.
DEFAULT: dict[str, Any] = {
    "learning_rate": [1e-4, 2.5e-4, 5e-4, 1e-3],
    "optimizer": ["adam", "sgd"],
    "clip": ["none", 25.0, 50.0, 100.0],
    "teacher_forcing": [0.0, 0.5, 1.0],
    "decoder_learning_ratio": [1.0, 3.0, 5.0, 10.0],
}
OF_OPTIONS = ("learning_rate", "optimizer", "clip", "teacher_forcing", "decoder_learning_ratio", "batch")
OF_CONFIG = ("hidden", "encoder_layers", "decoder_layers", "dropout", "attention")
NAMES = (*OF_OPTIONS, *OF_CONFIG)
KINDS = {field.name: field.type for kind in (Options, Config) for field in fields(kind)}
# They decide what is judged, or how long it may take: were they to vary, losses could not be compared.
SHARED = {
    "min_count": "--min-count",
    "iterations": "--iterations",
    "validate_every": "--validate-every",
    "patience": "--patience",
    "seed": "--seed",
}
RANGE_KEYS = {"low", "high", "log", "step"}
TRIES = 1000  # draws without a new usable combination before a space counts as used up


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Value, ...]

    def draw(self, source: random.Random) -> Value:
        return source.choice(self.values)


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included; on a logarithmic scale, or in steps from ``low``."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def draw(self, source: random.Random) -> Value:
        if self.step is not None:
            value = self.low + self.step * source.randint(0, math.floor((self.high - self.low) / self.step + 1e-9))
        elif self.log:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
            value = min(max(value, self.low), self.high)
        elif self.whole:
            return source.randint(int(self.low), int(self.high))
        else:
            value = source.uniform(self.low, self.high)
        return round(value) if self.whole else float(f"{value:.6g}")


@dataclass(frozen=True)
class Space:
    """The possible values of each hyperparameter, by name."""

    parameters: Mapping[str, Choice | Range]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Space":
        """The space of a TOML table. Raises UsageError, in one line that names the key."""
        if not table:
            raise UsageError(f"the space is empty; give at least one of: {', '.join(NAMES)}")
        return cls({name: _parameter(name, value) for name, value in table.items()})

    @property
    def varied(self) -> list[str]:
        """The names that can take more than one value."""
        return [name for name, kind in self.parameters.items() if not isinstance(kind, Choice) or len(kind.values) > 1]

    def draw(self, count: int, seed: int, base: Config) -> list[dict[str, Value]]:
        """The settings of trials 0 to ``count`` - 1, all different; fewer trials of a seed are the first of more.

        Raises:
            UsageError: it holds too few combinations that fit together.
        """
        found: list[dict[str, Value]] = []
        source = random.Random(f"sweep-{seed}")
        tries = 0
        while len(found) < count:
            settings = {name: kind.draw(source) for name, kind in self.parameters.items()}
            if settings not in found and _fits(settings, base):
                found.append(settings)
                tries = 0
                continue
            tries += 1
            if tries > TRIES * max(1, len(found)):
                raise UsageError(
                    f"{len(found)} combinations were found for {count} trials; give fewer --trials or a wider space"
                )
        return found


def read_space(path: Path) -> dict[str, Any]:
    """The table in a TOML file, as it stands there. Raises UsageError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"space {path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"space {path} is not TOML: {error}") from None
    Space.of(table)
    return table


def trial_seed(seed: int, number: int) -> int:
    """The seed for a trial's weights, batches and dropout; 31 bits, from the sweep's seed and the trial's number."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{number}".encode()).digest()[:4], "big") >> 1


def apply(settings: Mapping[str, Value], options: Options, config: Config) -> tuple[Options, Config]:
    """Makes training options and a network from settings. Raises UsageError if they are inconsistent."""
    of_options: dict[str, Any] = {name: value for name, value in settings.items() if name in OF_OPTIONS}
    of_config: dict[str, Any] = {name: value for name, value in settings.items() if name in OF_CONFIG}
    return replace(options, **of_options), replace(config, **of_config)


def parse_value(name: str, text: Any) -> Value:
    """A single value of a hyperparameter, from a file or a command line. Raises UsageError."""
    if name in SHARED:
        raise UsageError(f"{name} must be the same in every trial, or their losses can't be compared; {SHARED[name]}")
    if name not in NAMES:
        raise one_of("hyperparameter", name, NAMES)
    value = _converted(name, text)
    try:
        apply({name: value}, Options(), Config(decoder_layers=1) if name == "encoder_layers" else Config())
    except UsageError as error:
        if name == "decoder_layers" and isinstance(value, int) and value > 0:
            return value  # whether it fits depends on the encoder's
        raise error
    return value


def _converted(name: str, given: Any) -> Value:
    kind = KINDS[name]
    if name == "clip" and given in ("none", "None", "null", None):
        return None
    if kind is str and isinstance(given, str):
        return given
    try:
        number = float("nan") if isinstance(given, bool) or kind is str else float(given)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number) or (kind is int and number != int(number)):
        what = {str: "a name", int: "a whole number"}.get(kind, "a finite number") if isinstance(kind, type) else ""
        raise UsageError(f"{name} is {given!r}; give {what or 'a finite number or none'}")
    return int(number) if kind is int else number


def _parameter(name: str, value: Any) -> Choice | Range:
    if isinstance(value, dict):
        return _range(name, value)
    values = value if isinstance(value, list) else [value]
    found = tuple(dict.fromkeys(parse_value(name, one) for one in values))
    if not found:
        raise UsageError(f"{name} has no values; give at least one")
    return Choice(found)


def _range(name: str, table: Mapping[str, Any]) -> Range:
    for key in table:
        if key not in RANGE_KEYS:
            raise one_of(f"key of {name}", key, sorted(RANGE_KEYS))
    if not {"low", "high"} <= table.keys():
        raise UsageError(f"{name} is a range without ends; give {{low = ..., high = ...}} or a list of values")
    low, high = (parse_value(name, table[key]) for key in ("low", "high"))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        raise UsageError(f"{name} has no range; give a list of values")
    log, step = table.get("log", False), table.get("step")
    if not low < high:
        raise UsageError(f"{name} goes from {low} to {high}; low must be below high")
    if not isinstance(log, bool) or (log and (step is not None or low <= 0)):
        raise UsageError(f"{name}: log is true or false; a logarithmic range starts above 0 and has no step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf):
        raise UsageError(f"{name} has step {step!r}; give a number above 0")
    whole = KINDS[name] is int
    if whole and step is not None and step != int(step):
        raise UsageError(f"{name} has step {step}; give a whole number")
    return Range(low, high, log, step, whole)


def _fits(settings: Mapping[str, Value], base: Config) -> bool:
    try:
        apply(settings, Options(), base)
    except UsageError:
        return False
    return True
