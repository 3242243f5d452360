"""``python -m ray_jobs matrix | audit | compact``."""

import json
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from chatbot import checkpoint, corpus
from chatbot.errors import UsageError
from chatbot.variants import VARIANTS
from ray_jobs import matrix as main_job
from ray_jobs.audit import commands as audit
from ray_jobs.compact import compact as make_compact
from ray_jobs.estimate import estimate
from ray_jobs.rows import DONE, FAILED, SKIPPED, Row
from ray_jobs.samples import RunDirectory
from ray_jobs.spec import Spec, read_spec
from ray_jobs.terminal import Reporter, print_matrix
from ray_jobs.wandb_sink import MODES, WandbSink, resolve_mode

app = typer.Typer(
    help="How fast does the chatbot answer, run this way on this hardware, and is that really faster?",
    no_args_is_help=True,
    add_completion=False,
)

app.add_typer(audit.app, name="audit")

INTERRUPTED = 130  # as a shell says it of SIGINT

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
    model: Annotated[str | None, typer.Option(help=f"{checkpoint.MODELS}.")] = None,
    corpus_source: Annotated[str | None, typer.Option("--corpus", help="Where the prompts come from.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Asked half-width of every speedup's interval: 0.01 is 1%.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Differences below it are called the same.")] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds a trial.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts and orders.")] = None,
    out: Annotated[str, typer.Option(help="The results root: a folder or any pyarrow.fs URI.")] = "results",
    run_id: Annotated[str | None, typer.Option(help="The run's folder in it; a new one by default.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the trials and their time; run nothing.")] = False,
    wandb: Annotated[str, typer.Option(help=f"{', '.join(MODES)}.")] = "auto",
    address: Annotated[
        str | None, typer.Option(help="local, auto or HOST:PORT. [default: $RAY_ADDRESS, else local]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Measure every variant on every station and print the latency matrix.

    Exits 0 when nothing failed, 1 when a trial failed or a variant is invalid, 2 on unusable arguments.
    """
    flags = {
        "variants": variants,
        "device": device,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "reply_tokens": reply_tokens,
        "threads": threads,
        "model": model,
        "corpus": corpus_source,
        "precision": precision,
        "margin": margin,
        "budget": budget,
        "seed": seed,
    }
    asked = read_spec(spec, flags)
    mode = resolve_mode(wandb)
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if plan:
        _print_plan(asked, out)
        return
    name = run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    directory = RunDirectory.named(out, name)
    sink = WandbSink(mode, directory)
    try:
        rows = main_job.run(asked, name, directory, where, sink, Reporter(asked.budget, asked.precision))
    except KeyboardInterrupt:
        typer.echo(f"ray_jobs: interrupted; the launches that were committed are in {directory.shown}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    print_matrix(rows, asked.margin)
    typer.echo(f"\n{directory.shown}: matrix.json, matrix.parquet, run.json, samples/")
    if sink.sync_command:
        typer.echo(f"W&B: written offline; to upload: {sink.sync_command}")
    if as_json:
        typer.echo(json.dumps({"run_dir": directory.shown, "run_id": name, **_counts(rows)}))
    raise typer.Exit(exit_code(rows))


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


def exit_code(rows: list[Row]) -> int:
    """1 where any trial failed or any variant is invalid, else 0."""
    return int(any(row.status == FAILED or row.verdict == "invalid" for row in rows))


def _counts(rows: list[Row]) -> dict[str, int]:
    """How many trials are done, failed and skipped; a trial with one failed row failed."""
    worst = {row.trial_id: DONE for row in rows}
    for status in (SKIPPED, FAILED):
        worst |= {row.trial_id: status for row in rows if row.status == status}
    trials = {status: list(worst.values()).count(status) for status in (DONE, FAILED, SKIPPED)}
    return {**trials, "invalid": sum(row.verdict == "invalid" for row in rows)}


def _print_plan(spec: Spec, root: str) -> None:
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
    typer.echo(f"{len(spec.plan())} trials of {names} on each station: {low:.0f} to {high:.0f} s; nothing was run")


def main() -> None:
    """Runs the command line; a mistake of the user's is one line and exit code 2."""
    try:
        app(prog_name="python -m ray_jobs")
    except UsageError as error:
        typer.echo(f"ray_jobs: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
