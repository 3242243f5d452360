"""``python -m ray_jobs trace``."""

import json
import os
import secrets
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from chatbot import checkpoint
from chatbot.errors import UsageError
from chatbot.variants import VARIANTS, is_own
from ray_jobs.cluster.connection import Terminated
from ray_jobs.cluster.fetch import default_out
from ray_jobs.cluster.schedule import ClusterLostError
from ray_jobs.driver.resume import Earlier
from ray_jobs.driver.run import Where
from ray_jobs.results.store import RunDirectory, StoreError
from ray_jobs.spec import read_spec
from ray_jobs.trace import job
from ray_jobs.trace.job import FOLDER, Tracing

INTERRUPTED, TERMINATED = 130, 143  # as a shell says it of SIGINT and SIGTERM

Sizes = Annotated[str | None, typer.Option(help="One or several, separated by commas.", metavar="N[,N...]")]


def trace(
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
    corpus: Annotated[str | None, typer.Option(help="Where the prompts come from.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts.")] = None,
    stations: Annotated[
        str | None, typer.Option(help="all, one-per-hardware or label=value[,label=value].", metavar="WHICH")
    ] = None,
    launch_timeout: Annotated[float | None, typer.Option(help="Seconds after which a tracing launch is ended.")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Put the traces into this run, and trace what it measured: its directory, or name in --out."),
    ] = None,
    timeline_only: Annotated[
        bool, typer.Option("--timeline-only", help="With --run: only who measured where, when; nothing is traced.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="The results root: a folder or any pyarrow.fs URI.")] = None,
    run_id: Annotated[str | None, typer.Option(help="The new run's folder in it.")] = None,
    address: Annotated[
        str | None, typer.Option(help="local, auto or HOST:PORT. [default: $RAY_ADDRESS, else local]")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a station that somebody else holds.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Show where a reply's time goes: a Chrome trace of every variant, and their operators side by side.

    Traces are made in launches of their own, never in timed ones. Open traces/*.json.gz in https://ui.perfetto.dev or
    chrome://tracing. Exits 0 when nothing failed, else 1; 2 on unusable arguments, 130 when interrupted.
    """
    flags = {
        "variants": variants,
        "device": device,
        "batch": batch,
        "prompt_tokens": prompt_tokens,
        "reply_tokens": reply_tokens,
        "threads": threads,
        "model": model,
        "corpus": corpus,
        "seed": seed,
        "stations": stations,
        "launch_timeout": launch_timeout,
    }
    root = out or default_out()
    earlier = None if run is None else Earlier.of(run, root)
    given = [name for name, value in {"spec": spec, "run_id": run_id, **flags}.items() if value is not None]
    if earlier is not None and given:
        raise UsageError(f"traces in a run are of what it measured: leave out --{given[0].replace('_', '-')}, or --run")
    if timeline_only and earlier is None:
        raise UsageError("--timeline-only needs a run: give --run RUN")
    asked = earlier.spec if earlier else read_spec(spec, flags)
    if is_own(asked.model) and not timeline_only:
        raise UsageError(f"replies of the chatbot are traced, and model {asked.model!r} is another one")
    name = earlier.id if earlier else run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    directory = earlier.directory if earlier else RunDirectory.named(root, name)
    tracing = Tracing(asked, name, directory, earlier)
    if timeline_only:
        job.rebuild_timeline(tracing)
    else:
        _run(tracing, Where(address or os.environ.get("RAY_ADDRESS") or "local", wait_s=wait))
    for warning in tracing.warnings:
        typer.echo(f"warning: {warning}", err=True)
    kinds = Counter(entry["kind"] for entry in tracing.index)
    typer.echo(f"\n{directory.shown}/{FOLDER}: {kinds['trace']} traces, operators, timeline, index.json")
    typer.echo("open them in https://ui.perfetto.dev or chrome://tracing")
    if as_json:
        typer.echo(json.dumps({"run_dir": directory.shown, "run_id": name, **kinds}))
    raise typer.Exit(int(tracing.failed))


def _run(tracing: Tracing, where: Where) -> None:
    try:
        job.run(tracing, where)
    except (KeyboardInterrupt, StoreError, ClusterLostError) as error:
        what, code = str(error), 1
        if isinstance(error, KeyboardInterrupt):
            ended = isinstance(error, Terminated)
            what, code = ("terminated", TERMINATED) if ended else ("interrupted", INTERRUPTED)
        typer.echo(f"ray_jobs: {what}; traces made so far are in {tracing.directory.shown}/{FOLDER}", err=True)
        if isinstance(error, ClusterLostError):
            os._exit(1)  # Ray's own clean-up would wait for the head
        raise typer.Exit(code) from None
