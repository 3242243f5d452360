"""``python -m ray_jobs matrix | report | compare | audit | sweep | trace | fetch | compact | publish``."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from chatbot import checkpoint, corpus
from chatbot.errors import UsageError
from chatbot.variants import VARIANTS, is_own
from ray_jobs.cli import audit, sweep
from ray_jobs.cli.compare import compare
from ray_jobs.cli.publish import publish
from ray_jobs.cli.report import report
from ray_jobs.cli.trace import trace
from ray_jobs.cli.variants import print_variants
from ray_jobs.cluster.connection import IN_A_JOB, Terminated
from ray_jobs.cluster.fetch import JOB_OUT, bring_home, default_out, run_line
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.driver import in_process as debugging
from ray_jobs.driver import run as main_job
from ray_jobs.driver.api import new_run_id
from ray_jobs.driver.plan import estimate
from ray_jobs.driver.resume import Earlier
from ray_jobs.driver.run import Where
from ray_jobs.driver.trials import Inputs
from ray_jobs.matrix.hardware import classes_of
from ray_jobs.matrix.rows import Row, Status
from ray_jobs.measure import custom_model
from ray_jobs.report.compact import compact as make_compact
from ray_jobs.report.terminal import Reporter, print_classes, print_matrix
from ray_jobs.report.text import counted
from ray_jobs.results.store import REPORT, RunDirectory, StoreError
from ray_jobs.spec import Spec, read_spec
from ray_jobs.statistics import Verdict
from ray_jobs.wandb_sink.sink import MODES, WandbSink, resolve_mode

app = typer.Typer(
    help="How fast does the chatbot answer, run this way on this hardware, and is that really faster?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # "[default: ...]" would be markup
)

INTERRUPTED, TERMINATED = 130, 143  # as a shell says it of SIGINT and SIGTERM

Sizes = Annotated[str | None, typer.Option(help="One or several, separated by commas.", metavar="N[,N...]")]


@app.command()
def matrix(
    spec: Annotated[Path | None, typer.Option(help="A TOML file; flags override it.")] = None,
    variants: Annotated[
        str | None, typer.Option(help=f"all, or of: {', '.join(VARIANTS)}.", metavar="NAME[,NAME...]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or all.")] = None,
    batch: Sizes = None,
    prompt_tokens: Annotated[str | None, typer.Option(help="EOS counted.", metavar="N[,N...]")] = None,
    reply_tokens: Sizes = None,
    threads: Sizes = None,
    stop_at_eos: Annotated[
        bool | None, typer.Option("--stop-at-eos", help="A call ends when each of its replies has.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"{checkpoint.MODELS}; or a model of your own, {custom_model.FORM}.")
    ] = None,
    corpus_source: Annotated[str | None, typer.Option("--corpus", help="Where the prompts come from.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Asked half-width of every speedup's interval: 0.01 is 1%.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Differences below it are called the same.")] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds a trial.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts and orders.")] = None,
    stations: Annotated[
        str | None, typer.Option(help="all, one-per-hardware or label=value[,label=value].", metavar="WHICH")
    ] = None,
    isolation: Annotated[
        str | None, typer.Option(help="node: a trial has a whole node; device: a GPU and a share of the cores.")
    ] = None,
    cores_per_gpu: Annotated[int | None, typer.Option(help="That share; an equal one by default.")] = None,
    launch_timeout: Annotated[
        float | None, typer.Option(help="Seconds after which a launch is ended. [default: the budget, at least 60]")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help=f"The results root: a folder or any pyarrow.fs URI. [default: results; in a job {JOB_OUT}]"),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="The run's folder in it; a new one by default.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the trials and their time; run nothing.")] = False,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process", help="Run one launch in this process, without Ray, to debug a variant; keep nothing."
        ),
    ] = False,
    wandb: Annotated[str, typer.Option(help=f"{', '.join(MODES)}.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="local, auto or HOST:PORT. [default: $RAY_ADDRESS, else local]")
    ] = None,
    wait_for: Annotated[
        str | None,
        typer.Option(help="What the cluster is to have before it starts: cpu=4,gpu=1.", metavar="NAME=N[,...]"),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for that, and for a station that somebody else holds.")
    ] = 600.0,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run that was cut off: its directory, or its name in --out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Measure every variant on every station and print the latency matrix.

    Exits 0 when nothing failed, 1 when a trial failed or a variant is invalid, 2 on unusable arguments, 130 when
    interrupted, 143 when terminated. What was committed is never lost: --resume goes on with it.
    """
    flags = {
        "variants": variants,
        "device": device,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "reply_tokens": reply_tokens,
        "threads": threads,
        "stop_at_eos": stop_at_eos,
        "model": model,
        "corpus": corpus_source,
        "precision": precision,
        "margin": margin,
        "budget": budget,
        "seed": seed,
        "stations": stations,
        "isolation": isolation,
        "cores_per_gpu": cores_per_gpu,
        "launch_timeout": launch_timeout,
    }
    root = out or default_out()
    if resume is not None:
        given = [name for name, value in {"spec": spec, "run_id": run_id, **flags}.items() if value is not None]
        if given or plan:
            name = (given or ["plan"])[0].replace("_", "-")
            raise UsageError(f"a resumed run keeps what it was asked: leave out --{name}, or start a new run")
    earlier = None if resume is None else Earlier.of(resume, root)
    asked = read_spec(spec, flags) if earlier is None else earlier.spec
    mode = resolve_mode(wandb)
    where = Where(address or os.environ.get("RAY_ADDRESS") or "local", _resources(wait_for), wait)
    if plan:
        _print_plan(asked, root)
        return
    if in_process:
        for line in debugging.in_process(asked):
            typer.echo(line)
        return
    name = earlier.id if earlier else run_id or new_run_id()
    directory = earlier.directory if earlier else RunDirectory.named(root, name)
    sink = WandbSink(mode, directory)
    reporter = Reporter(asked.budget, asked.precision)
    if IN_A_JOB in os.environ:
        reporter.say(run_line(directory))
    try:
        rows = main_job.run(asked, name, directory, where, sink, reporter, earlier)
    except (KeyboardInterrupt, StoreError, ClusterLostError) as error:
        what, code = _ending(error)
        again = f"python -m ray_jobs matrix --resume {shlex.quote(directory.shown)}"
        typer.echo(f"ray_jobs: {what}; the launches that were committed are safe, go on with: {again}", err=True)
        if isinstance(error, ClusterLostError):
            os._exit(1)  # Ray's own clean-up would wait for the head
        raise typer.Exit(code) from None
    print_matrix(rows, asked.margin)
    print_classes(classes_of(rows, asked.margin))
    page = f"{REPORT}, " if directory.holds(REPORT) else ""
    typer.echo(f"\n{directory.shown}: {page}matrix.json, matrix.parquet, classes.json, run.json, samples/")
    if sink.result:
        typer.echo(sink.result)
    if as_json:
        typer.echo(json.dumps({"run_dir": directory.shown, "run_id": name, **_counts(rows)}))
    raise typer.Exit(exit_code(rows))


@app.command()
def variants() -> None:
    """List the ways to execute the chatbot, what each needs, and whether it can run here."""
    print_variants()


@app.command()
def fetch(
    job: Annotated[str, typer.Argument(help="Its id, as ray job submit printed it.")],
    address: Annotated[
        str | None, typer.Option(help="Of the cluster's dashboard. [default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS]")
    ] = None,
    out: Annotated[str, typer.Option(help="The local folder that the run directory goes to.")] = "results",
) -> None:
    """Copy the run directory of a submitted job home, through the dashboard's port alone."""
    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not place or not place.startswith("http"):
        raise UsageError("give the dashboard's address: --address http://HEAD:8265")
    typer.echo(bring_home(job, place, Path(out)))


@app.command()
def compact(
    run: Annotated[str, typer.Argument(help="The directory of a finished run.")],
    run_id: Annotated[str, typer.Option(help="The folder of the small one.")],
    out: Annotated[str, typer.Option(help="The results root that it goes to.")] = "results",
) -> None:
    """Copy a run small and anonymous, fit to be committed: one sample file, no host names, no paths."""
    target = RunDirectory.named(out, run_id)
    make_compact(RunDirectory.existing(run), target)
    typer.echo(target.shown)


for command in (report, compare, trace, publish):
    app.command()(command)
app.add_typer(sweep.app)
app.add_typer(audit.app, name="audit")


def _ending(error: BaseException) -> tuple[str, int]:
    """(what happened, exit code)."""
    if isinstance(error, Terminated):
        return "terminated", TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    return str(error), 1


def _resources(asked: str | None) -> dict[str, float]:
    """``cpu=4,gpu=1`` in Ray's names. Raises UsageError."""
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


def exit_code(rows: list[Row]) -> int:
    """1 where any trial failed or any variant is invalid, else 0."""
    return int(any(row.status == Status.FAILED or row.verdict == Verdict.INVALID for row in rows))


def _counts(rows: list[Row]) -> dict[str, int]:
    """How many trials are done, failed and skipped: a failed row fails it, skipped ones alone skip it."""
    status = {row.trial_id: Status.SKIPPED for row in rows}
    for decisive in (Status.DONE, Status.FAILED):
        status |= {row.trial_id: decisive for row in rows if row.status == decisive}
    trials = {str(one): list(status.values()).count(one) for one in (Status.DONE, Status.FAILED, Status.SKIPPED)}
    return {**trials, "invalid": sum(row.verdict == Verdict.INVALID for row in rows)}


def _print_plan(spec: Spec, root: str) -> None:
    if is_own(spec.model):
        _print_own_plan(spec)
        return
    config = checkpoint.open_model(spec.model).chatbot.config
    corpus.load(spec.corpus)
    low = high = 0.0
    for workload in spec.plan():
        time = estimate(spec, workload, config, root)
        low, high = low + time.least_s, high + time.most_s
        span = f"{time.least_s:.0f} s" if time.least_s == time.most_s else f"{time.least_s:.0f} to {time.most_s:.0f} s"
        sizes = f"batch {workload.batch}, prompt {workload.prompt_tokens}, reply {workload.reply_tokens}"
        typer.echo(f"{workload.device}, {sizes}, threads {workload.threads}: {span} a station ({time.source})")
    names = ", ".join(spec.variants)
    typer.echo(
        f"{counted(len(spec.plan()), 'trial')} of {names} on each station: {low:.0f} to {high:.0f} s; nothing was run"
    )


def _print_own_plan(spec: Spec) -> None:
    Inputs.of(spec)
    for workload in spec.plan():
        sizes = f"{workload.device}, batch {workload.batch}, threads {workload.threads}"
        why = "a model of your own: the budget decides, unless the least number of launches takes longer"
        typer.echo(f"{sizes}: about {spec.budget:.0f} s a station ({why})")
    typer.echo(f"{counted(len(spec.plan()), 'trial')} of {', '.join(spec.variants)} on each station; nothing was run")


def main() -> None:
    """Runs the command line; a mistake of the user's is one line and exit code 2."""
    try:
        app(prog_name="python -m ray_jobs")
    except UsageError as error:
        typer.echo(f"ray_jobs: {error}", err=True)
        sys.exit(2)
