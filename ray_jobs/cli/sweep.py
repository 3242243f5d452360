"""``latency-matrix sweep``."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatbot.errors import UsageError
from ray_jobs.cli.options import (
    AddressOption,
    Json,
    Out,
    RunId,
    WaitFor,
    Wandb,
    flags_of,
    leave,
    refuse_flags,
    resources_of,
)
from ray_jobs.cluster.job import check_uploaded, ray_address
from ray_jobs.provenance import new_run_id, typed
from ray_jobs.sweep.space import read_space
from ray_jobs.sweep.spec import SweepSpec, SweepTrial, make_spec
from ray_jobs.wandb_sink.mode import resolve_mode

if TYPE_CHECKING:
    from chatbot.corpus import Pair
    from chatbot.vocabulary import Vocabulary
    from ray_jobs.sweep.folder import Record


@dataclass(frozen=True)
class Cluster:
    """The cluster of a sweep, the resources to wait for, and for how long."""

    address: str
    resources: Mapping[str, float]
    wait_s: float


NEEDS = {"pandas": "ray[tune]", "sklearn": "scikit-learn", "jinja2": "jinja2"}  # what the extra installs


@flags_of(SweepSpec, (key for key in SweepSpec.model_fields if key != "space"))
def sweep(
    flags: dict[str, Any],
    space: Annotated[
        Path | None, typer.Option(help="TOML file of hyperparameters to vary. [default: the original's five]")
    ] = None,
    out: Out = "results",
    run_id: RunId = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the trials' settings; run nothing.")] = False,
    wandb: Wandb = "auto",
    address: AddressOption = None,
    wait_for: WaitFor = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for these, and for a node that can hold a trial.")
    ] = 600.0,
    resume: Annotated[
        str | None, typer.Option(help="Continue an interrupted sweep: its directory, or its name in --out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for good hyperparameters on Ray Tune, and report which of them mattered.

    Exits 0 when any trial has a loss (failed trials are rows), 1 when none has, 2 on unusable arguments, 130 when
    interrupted and 143 when terminated; --resume continues.
    """
    _check_extra()
    mode, where = resolve_mode(wandb), Cluster(ray_address(address), resources_of(wait_for), wait)
    check_uploaded(resume, space, flags.get("corpus"))
    if resume is not None:
        given = [name for name, value in {"space": space, "run_id": run_id, **flags}.items() if value is not None]
        refuse_flags([*given, *["plan"] * plan], "a resumed sweep keeps what it was asked", "start a new sweep")
        raise typer.Exit(_go_on(resume, out, where, mode, as_json))
    spec = make_spec(flags if space is None else {"space": read_space(space), **flags})
    if plan:
        _print_plan(spec)
        return
    raise typer.Exit(_begin(spec, out, run_id or new_run_id("sweep"), where, mode, as_json))


def _check_extra() -> None:
    missing = [package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"a sweep needs {' and '.join(missing)}; run: pip install 'latency-matrix[sweep]'")


def _print_plan(spec: SweepSpec) -> None:
    from ray_jobs.sweep.charts import settings_of

    for trial in spec.plan(len(spec.load_data()[1])):
        typer.echo(f"trial {trial.number}: {settings_of(trial.settings)}; seed {trial.options.seed}")
    rungs = f"stopped early from {spec.grace_iterations:,} iterations on" if spec.asha else "none stopped early"
    typer.echo(f"{spec.trials} trials of at most {spec.iterations:,} iterations, {rungs}; nothing was run")


def _begin(spec: SweepSpec, root: str, name: str, where: Cluster, mode: str, as_json: bool) -> int:
    from ray_jobs.results.store import RunDirectory
    from ray_jobs.sweep.folder import Record, data_digest

    directory = RunDirectory.named(root, name)
    pairs, words = spec.load_data()
    trials = spec.plan(len(words))
    with directory.created(samples=False):
        record = Record(directory, spec, data_digest(pairs))
        return _run(record, trials, pairs, words, where, mode, as_json)


def _go_on(place: str, root: str, where: Cluster, mode: str, as_json: bool) -> int:
    from ray_jobs.sweep.folder import Record, data_digest, find, read_rows

    directory, sheet, spec = find(place, root)
    pairs, words = spec.load_data()
    trials = spec.plan(len(words))
    with directory.reopened():
        record = Record(directory, spec, data_digest(pairs))
        record.restore(sheet, read_rows(directory))
        return _run(record, trials, pairs, words, where, mode, as_json)


def _run(
    record: "Record",
    trials: list[SweepTrial],
    pairs: "list[Pair]",
    words: "Vocabulary",
    where: Cluster,
    mode: str,
    as_json: bool,
) -> int:
    from ray_jobs.cluster.connection import connected, wait_for_resources
    from ray_jobs.cluster.schedule import ClusterLostError
    from ray_jobs.results.filesystem import StoreError
    from ray_jobs.sweep import text as told
    from ray_jobs.sweep import tuning
    from ray_jobs.sweep.sink import SweepSink
    from ray_jobs.sweep.table import SweepStatus
    from ray_jobs.sweep.worker import Data

    spec = record.spec
    sink = SweepSink(mode, record)
    reporter = told.SweepReporter(record, trials)
    data = Data(tuple(pairs), words, {"corpus": spec.corpus, "min_count": spec.min_count, "sweep": record.id})
    record.write(SweepStatus.RUNNING)
    try:
        with connected(where.address):
            missed = wait_for_resources(where.resources, where.wait_s, lambda line: typer.echo(line, err=True))
            reporter.opening(len(pairs), len(words))
            tuning.run_trials(record, trials, data, [reporter, sink], tuning.Patience(where.wait_s, missed))
    except (KeyboardInterrupt, StoreError, ClusterLostError) as error:
        if not isinstance(error, StoreError):
            record.finish(SweepStatus.INTERRUPTED)
        leave(error, f"what was kept is safe, continue with: {typed()} sweep --resume {record.directory.shown}")
    record.finish(SweepStatus.DONE)
    sink.finish()
    reporter.closing(sink.sync_command)
    if as_json:
        typer.echo(json.dumps({"run_dir": record.directory.shown, **record.summary()}))
    return int(record.best is None)
