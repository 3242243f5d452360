"""What commands share: options, the flags of a spec's keys, light refusals, exit codes. Loads nothing heavy."""

import inspect
import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NoReturn, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chatbot.console import ExitCode
from chatbot.errors import UsageError
from ray_jobs.cluster.job import JOB_OUT
from ray_jobs.results import no_run
from ray_jobs.wandb_sink.mode import MODES

FAILED = 1
ROOT = "Results root: a folder or any pyarrow.fs URI."

SpecFile = Annotated[
    Path | None, typer.Option("--spec", help="TOML file with the keys of these flags; flags override it.")
]
JobOut = Annotated[str | None, typer.Option(help=f"{ROOT} [default: results; in a job {JOB_OUT}]")]
Out = Annotated[str, typer.Option(help=ROOT)]
RunId = Annotated[str | None, typer.Option(help="Name of the new run's folder; time and random letters by default.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: local, auto or HOST:PORT. [default: $RAY_ADDRESS, else local]")
]
Wandb = Annotated[str, typer.Option(help=f"W&B mode: {', '.join(MODES)}.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run what a run names outside of this program: variants, a model, what sides have."),
]
WaitFor = Annotated[
    str | None,
    typer.Option(help="Resources to wait for before starting: cpu=4,gpu=1.", metavar="NAME=N[,...]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of stdout.")]


def flags_of(model: type[BaseModel], keys: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each key of a spec; those given on the command line are passed as ``flags``."""
    made = [_flag(key, model.model_fields[key]) for key in keys]
    names = [flag.name for flag in made]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command).parameters.values() if one.name != "flags"]

        @wraps(command)
        def run(**given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            command(flags={name: value for name, value in flags.items() if value not in (None, [])}, **given)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*made, *own)]
        run.__dict__["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _flag(key: str, field: FieldInfo) -> inspect.Parameter:
    """A key's flag: unset by default, so that a spec file's value stands."""
    shown: Any = field.default
    name = f"--{key.replace('_', '-')}"
    kinds = get_args(field.annotation) or (field.annotation,)
    kind: Any = next(one for one in kinds if one is not NoneType)
    metavar = None
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if "repeated" in extra:  # values hold commas
        kind, metavar, shown = list[str], str(extra["repeated"]), None
    elif get_origin(field.annotation) is tuple:
        shown = ",".join(map(str, field.default)) or None
        kind, metavar = str, "NAME[,NAME...]" if kinds[0] is str else "N[,N...]"
    elif NoneType in kinds and shown is not None:
        kind, metavar = str, "N|none"
    elif kind is bool and shown:
        name, shown = f"{name}/--no-{key.replace('_', '-')}", key
    told = f"{field.description}." + ("" if shown in (None, False) else f" [default: {shown}]")
    option = typer.Option(name, help=told, metavar=metavar, show_default=False)
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def require_run(place: str) -> None:
    """Raises UsageError where a local folder holds no run, before anything is loaded that reads one."""
    if "://" not in place and not Path(place).expanduser().joinpath("run.json").is_file():
        raise no_run(place)


def refuse_flags(given: Iterable[str], why: str, instead: str) -> None:
    """Raises UsageError for the first of these flags that was given: the command does not take it."""
    for name in given:
        raise UsageError(f"{why}: leave out --{name.replace('_', '-')}, or {instead}")


def resources_of(asked: str | None) -> dict[str, float]:
    """Parses resources such as ``cpu=4,gpu=1`` into Ray's names. Raises UsageError."""
    found: dict[str, float] = {}
    for part in (asked or "").split(","):
        name, _, count = part.strip().partition("=")
        if not name:
            continue
        try:
            found[name.upper() if name.lower() in ("cpu", "gpu") else name] = float(count)
        except ValueError:
            raise UsageError(f"--wait-for {asked!r} is not understood: give cpu=4,gpu=1") from None
    return found


def share(text: str) -> float:
    """Parses a share such as ``3%`` or ``0.03``. Raises UsageError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise UsageError(f"--gate {text!r} is not a share: give 3% or 0.03")
    return value


def write_file(option: str, path: Path, content: str) -> None:
    """Writes the file that an option names. Raises UsageError."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path} can't be written: {error.strerror}") from None


def leave(error: BaseException, safe: str, failed: int = FAILED) -> NoReturn:
    """Says what ended a command and what is safe, then exits: with ``failed``, unless somebody interrupted it."""
    from ray_jobs.cluster.schedule import ClusterLostError

    code = int(getattr(error, "code", ExitCode.INTERRUPTED)) if isinstance(error, KeyboardInterrupt) else failed
    typer.echo(f"ray_jobs: {str(error) or 'interrupted'}; {safe}", err=True)
    if isinstance(error, ClusterLostError):
        os._exit(code)  # Ray's own clean-up would wait for the head
    raise typer.Exit(code) from None
