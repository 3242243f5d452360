"""``python -m ray_jobs sweep`` and ``sweep-trial``."""

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from chatbot import corpus
from chatbot.errors import UsageError
from chatbot.model import PRESETS
from chatbot.vocabulary import Vocabulary
from ray_jobs.cli.options import leave
from ray_jobs.results.store import RunDirectory, StoreError
from ray_jobs.sweep.space import read_space
from ray_jobs.sweep.spec import SweepSpec, Trial, make_spec
from ray_jobs.wandb_sink.mode import MODES, resolve_mode

NEEDS = {"pandas": "ray[tune]", "sklearn": "scikit-learn", "jinja2": "jinja2"}  # what the extra installs

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("sweep")
def sweep(
    space: Annotated[
        Path | None, typer.Option(help="TOML file of hyperparameters to vary. [default: the original's five]")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of trials, all different draws from the space. [default: 16]")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Maximum iterations per trial. [default: 4000]")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Iterations between validations. [default: 200]")] = None,
    patience: Annotated[
        str | None,
        typer.Option(help="End a trial after this many validations without improvement, or none. [default: 5]"),
    ] = None,
    asha: Annotated[
        bool | None, typer.Option("--asha/--no-asha", help="Stop poor trials early. [default: asha]")
    ] = None,
    grace: Annotated[
        int | None, typer.Option(help="Iterations before a trial may be stopped. [default: a ninth of --iterations]")
    ] = None,
    reduction: Annotated[float | None, typer.Option(help="Keep one trial in N at each rung. [default: 3]")] = None,
    size: Annotated[
        str | None, typer.Option(help=f"Preset of model sizes: {', '.join(PRESETS)}. [default: small]")
    ] = None,
    corpus_source: Annotated[
        str | None, typer.Option("--corpus", help="Corpus: chitchat, a .tsv, or a Cornell path. [default: chitchat]")
    ] = None,
    min_count: Annotated[
        int | None, typer.Option(help="Drop pairs with a word that occurs less often. [default: 3]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for the draws and for every trial. [default: 0]")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed for the choice of held-out pairs. [default: 0]")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs per trial. [default: 1]")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs per trial; with 0.25, four share one. [default: 0]")] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(help="Trials to run at a time; 1 makes the sweep repeatable. [default: as many as fit]"),
    ] = None,
    half: Annotated[bool | None, typer.Option("--half", help="Store the best weights in 16 bits.")] = None,
    out: Annotated[str, typer.Option(help="Results root: a folder or any pyarrow.fs URI.")] = "results",
    run_id: Annotated[str | None, typer.Option(help="Name of the sweep's folder; a new one by default.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the trials' settings; run nothing.")] = False,
    wandb: Annotated[str, typer.Option(help=f"W&B mode: {', '.join(MODES)}.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: local, auto or HOST:PORT. [default: $RAY_ADDRESS, else local]")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Continue an interrupted sweep: its directory, or its name in --out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of stdout.")] = False,
) -> None:
    """Search for good hyperparameters on Ray Tune, and report which of them mattered.

    Exits 0 when any trial has a loss (failed trials are rows), 1 when none has, 2 on unusable arguments, 130 when
    interrupted and 143 when terminated; --resume continues.
    """
    _check_extra()
    flags = {
        "space": None if space is None else read_space(space),
        "trials": trials,
        "iterations": iterations,
        "validate_every": validate_every,
        "patience": patience,
        "asha": asha,
        "grace": grace,
        "reduction": reduction,
        "size": size,
        "corpus": corpus_source,
        "min_count": min_count,
        "seed": seed,
        "split_seed": split_seed,
        "cpus": cpus,
        "gpus": gpus,
        "concurrent": concurrent,
        "half": half,
    }
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if patience == "none":
        given["patience"] = None
    mode = resolve_mode(wandb)
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if resume is not None:
        _refuse_changes(given, run_id, plan)
        code = _go_on(resume, out, where, mode, as_json)
    else:
        spec = make_spec(given)
        if plan:
            _print_plan(spec)
            return
        name = run_id or f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        code = _begin(spec, RunDirectory.named(out, name), where, mode, as_json)
    raise typer.Exit(code)


@app.command("sweep-trial", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sweep_trial(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder for the checkpoints.")] = "checkpoints",
    size: Annotated[str, typer.Option(help=f"Preset of model sizes: {', '.join(PRESETS)}.")] = "small",
    corpus_source: Annotated[
        str, typer.Option("--corpus", help="Corpus: chitchat, a .tsv, or a Cornell path.")
    ] = "chitchat",
    min_count: Annotated[
        int, typer.Option(min=1, help="Drop pairs with a word that occurs less often.")
    ] = corpus.MIN_COUNT,
    iterations: Annotated[int, typer.Option(help="Maximum number of batches.")] = 4000,
    validate_every: Annotated[int, typer.Option(help="Iterations between validations.")] = 200,
    patience: Annotated[str, typer.Option(help="Stop after this many validations without improvement, or none.")] = "5",
    seed: Annotated[int, typer.Option(help="Seed for weights and batches.")] = 0,
    device: Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")] = "cpu",
    wandb: Annotated[str, typer.Option(help=f"W&B mode: {', '.join(MODES)}.")] = "auto",
) -> None:
    """Train once with --HYPERPARAMETER=VALUE arguments, as `wandb agent` passes them, and report to W&B.

    Evaluated like a trial of `sweep`: the same loss on the same held-out pairs. Exits 1 if it diverged.
    """
    from ray_jobs.sweep import agent

    asked = {
        "size": size,
        "corpus": corpus_source,
        "min_count": min_count,
        "iterations": iterations,
        "validate_every": validate_every,
        "patience": None if patience == "none" else patience,
        "seed": seed,
    }
    raise typer.Exit(agent.run(agent.parse(context.args), make_spec(asked), out, device, resolve_mode(wandb)))


def _check_extra() -> None:
    missing = [package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"a sweep needs {' and '.join(missing)}; run: pip install 'latency-matrix[sweep]'")


def _refuse_changes(given: Mapping[str, Any], run_id: str | None, plan: bool) -> None:
    names = [*given, *(["run_id"] if run_id is not None else []), *(["plan"] if plan else [])]
    if names:
        flag = names[0].replace("_", "-")
        raise UsageError(f"a resumed sweep keeps what it was asked: leave out --{flag}, or start a new sweep")


def _print_plan(spec: SweepSpec) -> None:
    from ray_jobs.sweep.charts import settings_of

    for trial in spec.plan(len(spec.load_data()[1])):
        typer.echo(f"trial {trial.number}: {settings_of(trial.settings)}; seed {trial.options.seed}")
    rungs = f"stopped early from {spec.grace_iterations:,} iterations on" if spec.asha else "none stopped early"
    typer.echo(f"{spec.trials} trials of at most {spec.iterations:,} iterations, {rungs}; nothing was run")


def _begin(spec: SweepSpec, directory: RunDirectory, address: str, mode: str, as_json: bool) -> int:
    from ray_jobs.sweep.folder import Record, data_digest

    pairs, words = spec.load_data()
    trials = spec.plan(len(words))
    with directory.created(samples=False):
        record = Record(directory, spec, data_digest(pairs))
        return _run(record, trials, pairs, words, address, mode, as_json)


def _go_on(place: str, root: str, address: str, mode: str, as_json: bool) -> int:
    from ray_jobs.sweep.folder import Record, data_digest, find, read_rows

    directory, sheet, spec = find(place, root)
    pairs, words = spec.load_data()
    trials = spec.plan(len(words))
    with directory.reopened():
        record = Record(directory, spec, data_digest(pairs))
        record.restore(sheet, read_rows(directory))
        return _run(record, trials, pairs, words, address, mode, as_json)


def _run(
    record: Any,
    trials: list[Trial],
    pairs: list[corpus.Pair],
    words: Vocabulary,
    address: str,
    mode: str,
    as_json: bool,
) -> int:
    from ray_jobs.cluster.connection import connected
    from ray_jobs.sweep import text as told
    from ray_jobs.sweep import tuning
    from ray_jobs.sweep.sink import SweepSink
    from ray_jobs.sweep.table import SweepStatus
    from ray_jobs.sweep.worker import Data

    spec: SweepSpec = record.spec
    sink = SweepSink(mode, record)
    reporter = told.Reporter(record, trials)
    data = Data(tuple(pairs), words, {"corpus": spec.corpus, "min_count": spec.min_count, "sweep": record.id})
    record.write(SweepStatus.RUNNING)
    try:
        with connected(address):
            reporter.opening(len(pairs), len(words))
            tuning.run(record, trials, data, [reporter, sink])
    except (KeyboardInterrupt, StoreError) as error:
        if isinstance(error, KeyboardInterrupt):
            record.finish(SweepStatus.INTERRUPTED)
        leave(
            error, f"what was kept is safe, continue with: python -m ray_jobs sweep --resume {record.directory.shown}"
        )
    record.finish(SweepStatus.DONE)
    sink.finish()
    reporter.closing(sink.sync_command)
    if as_json:
        typer.echo(json.dumps({"run_dir": record.directory.shown, **record.summary()}))
    return int(record.best is None)
