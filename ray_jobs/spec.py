"""What to measure: validated and frozen; ``plan()`` makes workloads of it."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from chatbot.errors import UsageError, one_of
from chatbot.variants import (
    BASELINE,
    CONTROL,
    DEVICES,
    MODELS,
    OWN_MODEL,
    VARIANTS,
    Workload,
    is_own,
    require_name,
    variant_named,
)
from ray_jobs.scenario import Bound, Load, ReplicaKind, Scenario, Through, loads_of, price_of, window_of
from ray_jobs.sides import code_in, sides_of


def _listed(value: Any) -> Any:
    """A single value is a list of one; commas separate."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, (list, tuple)) else [value]


def _devices(value: Any) -> Any:
    names = [name for given in _listed(value) for name in (DEVICES if given == "all" else (given,))]
    for name in names:
        if name not in DEVICES:
            raise one_of("device", str(name), [*DEVICES, "all"])
    return tuple(dict.fromkeys(names))


def _variants(value: Any) -> Any:
    """The baseline and its control come first in every trial, requested or not."""
    names = [name for given in _listed(value) for name in (VARIANTS if given == "all" else (given,))]
    for name in names:
        require_name(str(name))
    return tuple(dict.fromkeys([BASELINE, CONTROL, *map(str, names)]))


def _numbers(value: Any) -> Any:
    if any(isinstance(size, bool) for size in _listed(value)):
        raise ValueError("input should be whole numbers")
    return tuple(_listed(value))


def _stations(asked: str) -> str:
    parts = [part.strip() for part in asked.split(",")]
    if asked in CHOICES or all(label and value for label, _, value in (part.partition("=") for part in parts)):
        return ",".join(parts)
    raise one_of("choice of stations", asked, [*CHOICES, "label=value"])


def _isolation(asked: str) -> str:
    if asked not in ISOLATIONS:
        raise one_of("isolation", asked, ISOLATIONS)
    return asked


def _against(value: Any) -> Any:
    """One side or several, each with commas of its own; a mistake in one is found here."""
    asked = [value] if isinstance(value, str) else value
    if isinstance(asked, (list, tuple)):
        sides_of([str(one) for one in asked])
    return asked


def _names(kind: str, names: Sequence[str]) -> Callable[[Any], Any]:
    """Some of these, each once."""

    def listed(value: Any) -> Any:
        for name in (found := [str(one) for one in _listed(value)]):
            if name not in names:
                raise one_of(kind, name, list(names))
        return tuple(dict.fromkeys(found))

    return listed


def _slo(asked: str) -> str:
    Bound.of(asked)
    return asked.replace(" ", "")


def _window(asked: str) -> str:
    window_of(asked)
    return asked.replace(" ", "")


def _prices(value: Any) -> Any:
    asked = [value] if isinstance(value, str) else value
    if isinstance(asked, (list, tuple)):
        for one in asked:
            price_of(str(one))
    return asked


def _distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(sizes))


Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_numbers), AfterValidator(_distinct), Field(min_length=1)
]
PromptSizes = Annotated[
    tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_numbers), AfterValidator(_distinct), Field(min_length=1)
]
Devices = Annotated[tuple[str, ...], BeforeValidator(_devices)]
Variants = Annotated[tuple[str, ...], BeforeValidator(_variants)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Stations = Annotated[str, AfterValidator(_stations)]
Isolation = Annotated[str, AfterValidator(_isolation)]
Against = Annotated[tuple[str, ...], BeforeValidator(_against)]
Scenarios = Annotated[tuple[str, ...], BeforeValidator(_names("scenario", list(Scenario)))]
Kinds = Annotated[tuple[str, ...], BeforeValidator(_names("replica kind", list(ReplicaKind)))]
Ways = Annotated[tuple[str, ...], BeforeValidator(_names("way", list(Through)))]
Slo = Annotated[str, AfterValidator(_slo)]
Window = Annotated[str, AfterValidator(_window)]
Prices = Annotated[tuple[str, ...], BeforeValidator(_prices)]

LAUNCH_TIMEOUT_S = 60.0  # at least; a launch may take as long as a whole budget
VARIANT_TIMEOUT_S = 15.0  # for each variant of a launch and side: its least number of rounds is that of their turns
CHOICES = ("all", "one-per-hardware")
ISOLATIONS = ("node", "device")
OF_THE_CHATBOT = ("prompt_tokens", "reply_tokens", "stop_at_eos", "corpus")  # no matter to another model


class Spec(BaseModel):
    """Every combination of the listed sizes and devices is one workload. Each key is a flag too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: Variants = Field(
        default=(BASELINE, CONTROL, "torchscript"), description=f"Variants: all, or some of: {', '.join(VARIANTS)}"
    )
    device: Devices = Field(default=("cpu",), min_length=1, description="Device kinds: cpu, cuda or all")
    batch: Sizes = Field(default=(1,), description="Prompts per call, one or several sizes")
    prompt_tokens: PromptSizes = Field(default=(8,), description="Tokens of a prompt, EOS counted, one or several")
    reply_tokens: Sizes = Field(default=(10,), description="Tokens of a reply, one or several lengths")
    threads: Sizes = Field(default=(1,), description="Threads of a launch, one or several counts")
    model: str = Field(default="small", description=f"Model: {MODELS}; or your own, {OWN_MODEL}")
    corpus: str = Field(
        default="chitchat", description="Source of the prompts: chitchat, a .tsv or .txt, or a Cornell path"
    )
    precision: Fraction = Field(
        default=0.01, description="Half-width that every speedup's interval must reach: 0.01 is 1%"
    )
    margin: Fraction = Field(default=0.02, description="Speedups within this margin of 1 are called the same")
    budget: Seconds = Field(default=120.0, description="Maximum seconds per trial")
    seed: int = Field(default=0, ge=0, description="Seed for prompts and orders")
    stations: Stations = Field(
        default="all", description="Stations: all, one-per-hardware or label=value[,label=value]"
    )
    isolation: Isolation = Field(default="node", description="node: a trial has a whole node; device: a GPU and cores")
    cores_per_gpu: int | None = Field(default=None, ge=1, description="Cores for each GPU; by default an equal share")
    stop_at_eos: bool = Field(
        default=False, description="End a call when its replies have ended, within --reply-tokens"
    )
    cold: bool = Field(
        default=False, description="Also measure what a fresh start costs: nothing compiled, compiled, second model"
    )
    launch_timeout: Seconds | None = Field(
        default=None, description="Seconds until a launch is ended; by default --budget, at least 60 and 15 a variant"
    )

    cases: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), description="Cases of your own model, one or several; by default all that it has"
    )
    against: Against = Field(
        default=(),
        description="Environment or sources to compare with these, several times for several: env=NAME=VALUE, "
        "python=PATH, pip=REQUIREMENTS, rev=REVISION, or such parts with commas",
        json_schema_extra={"repeated": "SIDE"},
    )
    scenario: Scenarios = Field(
        default=(Scenario.SINGLE_STREAM,),
        min_length=1,
        description="How calls come, one or several: single-stream, offline (as many as are answered) or server (at "
        "random times, the most that hold --slo)",
    )
    slo: Slo | None = Field(default=None, description="Bound on the latencies of scenario server, as p99=50ms")
    replicas: Sizes = Field(default=(1,), description="Replicas that answer under load, one or several counts")
    replica_kind: Kinds = Field(
        default=(ReplicaKind.PROCESS,), min_length=1, description="What replicas are: process, thread or both"
    )
    max_batch: Sizes = Field(
        default=(1,), description="Requests that a replica answers together at most, one or several counts"
    )
    batch_window: Window | None = Field(
        default=None, description="Time that a replica which has a request waits for others, as 2ms; by default none"
    )
    through: Ways = Field(
        default=(Through.DIRECT,),
        min_length=1,
        description="What requests of scenario server pass through: direct (nothing), serve (Ray Serve) or both",
    )
    price: Prices = Field(
        default=(),
        description="Price of a station's hour by how its hardware class begins: EPYC=0.096, several times for several",
        json_schema_extra={"repeated": "CLASS=PRICE"},
    )

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> "Spec":
        if any(load is not None for load in self.loads) and self.against:
            raise UsageError("sides are compared call by call: leave out against, or every scenario but single-stream")
        if max(self.max_batch) > 1 and self.batch != (1,):
            raise UsageError("batch is that of a request, and max_batch joins requests of one prompt: leave one out")
        if Through.SERVE in self.through and "cuda" in self.device:
            raise UsageError("through serve is measured on CPUs: leave out --device cuda, or --through serve")
        return self

    @property
    def launch_timeout_s(self) -> float:
        """After which a launch is ended."""
        turns = len(self.variants) * max(1, len(sides_of(self.against)))
        return self.launch_timeout or max(LAUNCH_TIMEOUT_S, self.budget, VARIANT_TIMEOUT_S * turns)

    @property
    def loads(self) -> tuple[Load | None, ...]:
        """How each workload is asked; None: each call follows the one before. Raises UsageError."""
        who = (self.replicas, self.replica_kind, self.slo, self.max_batch, self.batch_window, self.through)
        return loads_of(self.scenario, *who)

    @property
    def prices(self) -> tuple[tuple[str, float], ...]:
        """Of a station's hour, by how its hardware class begins."""
        return tuple(map(price_of, self.price))

    def plan(self) -> list[Workload]:
        """The workloads, in the order of their rows."""
        sizes = (self.device, self.batch, self.prompt_tokens, self.reply_tokens, self.threads)
        models = [f"{self.model}#{case}" for case in self.cases] or [self.model]
        asked = product(models, product(*sizes))
        return [Workload(*values, model=model, stop_at_eos=self.stop_at_eos) for model, values in asked]


def read_spec(path: Path | None, flags: dict[str, Any], imports: bool = True) -> Spec:
    """The spec of a TOML file, overridden by the flags that were given (those not None).

    Args:
        path: the file.
        flags: the flags by their keys.
        imports: also import the variants of the user's own, so that a mistake in them is found here.

    Raises:
        UsageError: one line that names the key, what was wrong, and what would be right.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"spec {path} can't be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"spec {path} is not TOML: {error}") from None
    content |= {key: value for key, value in flags.items() if value is not None}
    for key in content:
        if key not in Spec.model_fields:
            raise one_of("spec key", key, list(Spec.model_fields))
    model = str(content.get("model", ""))
    for key in OF_THE_CHATBOT:
        if is_own(model) and key in content:
            raise UsageError(f"{key} is of the chatbot, and model {model!r} makes its own inputs: leave it out")
    if content.get("cases") and ("#" in model or not is_own(model)):
        raise UsageError(
            f"cases are of a model of your own, {OWN_MODEL}, and {model or 'small'!r} has none: leave them out"
        )
    spec = spec_of(content)
    if imports:
        import_own(spec)
    return spec


def import_own(spec: Spec) -> None:
    """Imports the variants that are not in the table. Raises UsageError where one can't be."""
    for name in spec.variants:
        variant_named(name)


def own_code(spec: Spec) -> list[str]:
    """The variants, the model and the sides' programs of a spec that are not in this program."""
    named = [name for name in spec.variants if name not in VARIANTS] + [spec.model] * is_own(spec.model)
    return named + code_in(spec.against)


def require_trust(spec: Spec, place: str, trusted: bool) -> None:
    """Raises UsageError where a run of perhaps somebody else names code that would now be imported and run."""
    own = own_code(spec)
    if own and not trusted:
        raise UsageError(
            f"{place} names code outside of this program, which would be imported and run: {', '.join(own)}; "
            "look at it, then add --trust"
        )


def spec_of(content: Mapping[str, Any]) -> Spec:
    """The spec of all its keys, as ``run.json`` holds them; imports nothing. Raises UsageError."""
    try:
        return Spec.model_validate(content)
    except ValidationError as error:
        raise UsageError(first_mistake(error)) from None


def first_mistake(error: ValidationError) -> str:
    """What is wrong first, and where."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UsageError):  # raised by a validator of ours
        return str(cause)
    where = str(first["loc"][0]) if first["loc"] else "spec"
    return f"{where} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
