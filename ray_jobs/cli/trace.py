"""``latency-matrix trace``."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatbot.errors import UsageError
from ray_jobs.cli.options import (
    AddressOption,
    JobOut,
    Json,
    RunId,
    SpecFile,
    Trust,
    flags_of,
    leave,
    refuse_flags,
)
from ray_jobs.cluster.job import check_uploaded, default_out, ray_address
from ray_jobs.provenance import new_run_id
from ray_jobs.spec import Spec, read_spec, require_trust

if TYPE_CHECKING:
    from ray_jobs.driver.run import Where
    from ray_jobs.trace.job import Tracing

# These mean nothing to a trace.
TIMING = (
    *("stop_at_eos", "precision", "margin", "budget", "isolation", "cores_per_gpu", "against", "cold"),
    *("scenario", "slo", "replicas", "replica_kind", "max_batch", "batch_window", "through", "price"),
)


@flags_of(Spec, [key for key in Spec.model_fields if key not in TIMING])
def trace(
    flags: dict[str, Any],
    spec: SpecFile = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="Trace what this run measured and add the traces to it: its directory, or its name in --out."
        ),
    ] = None,
    timeline_only: Annotated[
        bool, typer.Option("--timeline-only", help="With --run: rebuild only the timeline of stations; trace nothing.")
    ] = False,
    out: JobOut = None,
    run_id: RunId = None,
    address: AddressOption = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a station held by another run.")] = 600.0,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Show where a reply's time goes: a Chrome trace of every variant, and their operators side by side.

    Traces are made in launches of their own, never in timed ones. Open traces/*.json.gz in https://ui.perfetto.dev or
    chrome://tracing. Exits 0 when nothing failed, else 1; 2 on unusable arguments, 130 when interrupted.
    """
    check_uploaded(run, spec)
    if run is not None:
        given = [name for name, value in {"spec": spec, "run_id": run_id, **flags}.items() if value is not None]
        refuse_flags(given, "traces in a run are of what it measured", "--run")
    elif timeline_only:
        raise UsageError("--timeline-only needs a run: give --run RUN")
    asked = None if run is not None else read_spec(spec, flags)
    if asked is not None:
        check_uploaded(asked.model, asked.corpus)
    root, cluster = out or default_out(), ray_address(address)

    # Loaded once nothing more can be refused without it.
    from ray_jobs.driver.resume import Earlier
    from ray_jobs.driver.run import Where
    from ray_jobs.results.store import RunDirectory
    from ray_jobs.trace import job

    earlier = None if run is None else Earlier.of(run, root)
    if earlier is not None:
        require_trust(earlier.spec, earlier.directory.shown, trust or timeline_only)
        asked = earlier.spec
    name = earlier.id if earlier else run_id or new_run_id()
    directory = earlier.directory if earlier else RunDirectory.named(root, name)
    tracing = job.Tracing(asked or Spec(), name, directory, earlier)
    if timeline_only:
        job.rebuild_timeline(tracing)
    else:
        _run(tracing, Where(cluster, wait_s=wait))
    for warning in tracing.warnings:
        typer.echo(f"warning: {warning}", err=True)
    kinds = Counter(entry["kind"] for entry in tracing.index)
    typer.echo(f"\n{directory.shown}/{job.FOLDER}: {kinds['trace']} traces, operators, timeline, index.json")
    typer.echo("open them in https://ui.perfetto.dev or chrome://tracing")
    if as_json:
        typer.echo(json.dumps({"run_dir": directory.shown, "run_id": name, **kinds}))
    raise typer.Exit(int(tracing.failed))


def _run(tracing: "Tracing", where: "Where") -> None:
    from ray_jobs.cluster.schedule import ClusterLostError
    from ray_jobs.results.filesystem import StoreError
    from ray_jobs.trace import job

    try:
        job.trace_run(tracing, where)
    except (KeyboardInterrupt, StoreError, ClusterLostError) as error:
        leave(error, f"traces made so far are in {tracing.directory.shown}/{job.FOLDER}")
