"""``latency-matrix matrix``."""

import json
import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatbot.console import ExitCode
from chatbot.errors import UsageError
from chatbot.safe_text import printable
from ray_jobs.cli.gate import Gate
from ray_jobs.cli.options import (
    FAILED,
    AddressOption,
    JobOut,
    Json,
    RunId,
    SpecFile,
    Trust,
    WaitFor,
    Wandb,
    flags_of,
    leave,
    refuse_flags,
    resources_of,
)
from ray_jobs.cluster.job import IN_A_JOB, check_uploaded, default_out, ray_address
from ray_jobs.provenance import new_run_id, typed
from ray_jobs.results import REPORT
from ray_jobs.scenario import Through
from ray_jobs.spec import Spec, own_code, read_spec, require_trust
from ray_jobs.wandb_sink.mode import resolve_mode

if TYPE_CHECKING:
    from ray_jobs.driver.resume import Earlier
    from ray_jobs.driver.run import Where
    from ray_jobs.matrix.rows import Row
    from ray_jobs.results.store import RunDirectory


OF_SERVE = ("starlette", "fastapi", "uvicorn")  # what the extra installs
MOST_STATIONS = 5  # named behind a run; its page and classes.json name all


@flags_of(Spec, Spec.model_fields)
def matrix(
    flags: dict[str, Any],
    spec: SpecFile = None,
    out: JobOut = None,
    run_id: RunId = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the trials and their duration; run nothing.")] = False,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process", help="Run one launch in this process, without Ray, to debug a variant; keep nothing."
        ),
    ] = False,
    wandb: Wandb = "auto",
    address: AddressOption = None,
    wait_for: WaitFor = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for these, and for a station held by another run.")
    ] = 600.0,
    resume: Annotated[
        str | None, typer.Option(help="Continue an interrupted run: its directory, or its name in --out.")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help="Ask of each side of --against whether it is slower than base: largest slowdown to accept, 3% or "
            "0.03; sets the exit code.",
            metavar="SHARE",
        ),
    ] = None,
    gate_out: Annotated[
        Path | None, typer.Option(help="Markdown file with what the gate found, for a pull request.")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure every variant on every station and print the latency matrix.

    Exits 0 when nothing failed, 1 when a trial failed or a variant is invalid, 2 on unusable arguments, 130 when
    interrupted, 143 when terminated. What was committed is never lost: --resume continues it.

    With --gate exits 0 when no side is slower than base, 1 when one is certainly slower, fails, is invalid or answers
    differently, 3 when that is undecided or base itself failed, 70 when the run did not come to its end.
    """
    gated = Gate.of(gate, gate_out)
    if gated is not None and in_process:
        raise UsageError("--in-process keeps no numbers to ask about: leave out --gate")
    if resume is not None:
        given = [name for name, value in {"spec": spec, "run_id": run_id, **flags}.items() if value is not None]
        given += [name for name, used in {"plan": plan, "in_process": in_process}.items() if used]
        refuse_flags(given, "a resumed run keeps what it was asked", "start a new run")
    check_uploaded(resume, spec)
    asked = None if resume is not None else read_spec(spec, flags, imports=not plan)
    if gated is not None and asked is not None:
        gated.require_sides(asked.against)
    mode, resources, root = resolve_mode(wandb), resources_of(wait_for), out or default_out()

    if asked is not None and (plan or in_process):
        _rehearse(asked, root, plan)
        return
    cluster = ray_address(address)
    if asked is not None:
        check_uploaded(asked.model, asked.corpus)
        require_extra(asked)
    # Loaded once nothing more can be refused without it.
    from ray_jobs.driver.resume import Earlier
    from ray_jobs.driver.run import Where

    earlier = None if resume is None else Earlier.of(resume, root)
    if earlier is not None:
        require_trust(earlier.spec, earlier.directory.shown, trust)
        if gated is not None:
            gated.require_sides(earlier.spec.against)
        require_extra(earlier.spec)
    where = Where(cluster, resources, wait)
    final = earlier.spec if earlier else asked or Spec()
    raise typer.Exit(_measure(final, earlier, root, run_id, where, mode, as_json, gated))


def require_extra(spec: Spec) -> None:
    """Raises UsageError where Ray Serve is asked for and not installed."""
    lacking = [name for name in OF_SERVE if find_spec(name) is None]
    if Through.SERVE in spec.through and lacking:
        raise UsageError(
            f"through serve needs ray[serve], and {', '.join(lacking)} of it is not installed; "
            "run: pip install 'latency-matrix[serve]'"
        )


def _rehearse(spec: Spec, root: str, plan: bool) -> None:
    """Prints the plan, or what one launch in this process does."""
    if plan:
        from ray_jobs.driver.plan import plan_lines

        lines = plan_lines(spec, root)
    elif any(load is not None for load in spec.loads):
        raise UsageError("--in-process makes one call after the other: leave out every scenario but single-stream")
    elif spec.against:
        raise UsageError("--in-process runs one process, and each side has its own: leave out --against")
    else:
        from ray_jobs.driver.in_process import in_process

        lines = in_process(spec)
    for line in lines:
        typer.echo(line)


def _measure(
    spec: Spec,
    earlier: "Earlier | None",
    root: str,
    run_id: str | None,
    where: "Where",
    mode: str,
    as_json: bool,
    gate: Gate | None = None,
) -> int:
    """Measures a run, new or resumed, and returns the exit code."""
    from ray_jobs.cluster.fetch import run_line
    from ray_jobs.cluster.schedule import ClusterLostError
    from ray_jobs.driver.run import run
    from ray_jobs.matrix.hardware import classes_of, off_stations
    from ray_jobs.report.terminal import Reporter, print_classes, print_matrix
    from ray_jobs.results.filesystem import StoreError
    from ray_jobs.results.store import RunDirectory
    from ray_jobs.wandb_sink.sink import WandbSink

    name = earlier.id if earlier else run_id or new_run_id()
    directory = earlier.directory if earlier else RunDirectory.named(root, name)
    sink = WandbSink(mode, directory)
    reporter = Reporter(spec.budget, spec.precision)
    if IN_A_JOB in os.environ:
        reporter.say(run_line(directory))
    try:
        rows = run(spec, name, directory, where, sink, reporter, earlier)
    except (KeyboardInterrupt, StoreError, ClusterLostError) as error:
        sink.stop()  # where the head is lost, nothing is cleaned up after this
        leave(error, _safe(directory, spec), FAILED if gate is None else ExitCode.UNEXPECTED)  # 1 is a gate's "slower"
    print_matrix(rows, spec.margin)
    print_classes(classes := classes_of(rows, spec.margin))
    judged = None if gate is None else gate.judge(directory)
    page = f"{REPORT}, " if directory.holds(REPORT) else ""
    typer.echo(f"\n{directory.shown}: {page}matrix.json, matrix.parquet, classes.json, run.json, samples/")
    if sink.result:
        typer.echo(sink.result)
    for sentence in off_stations(classes)[:MOST_STATIONS]:
        typer.echo(printable(sentence))
    counts = _counts(rows)
    if as_json:
        found = {} if judged is None else {"gate": judged.content()}
        typer.echo(json.dumps({"run_dir": directory.shown, "run_id": name, **counts, **found}))
    return int(bool(counts["failed"] or counts["invalid"])) if judged is None else int(judged.gate.exit)


def _safe(directory: "RunDirectory", spec: Spec) -> str:
    """Says what is safe of an interrupted run, and how to resume it; a complete one may lack only its page."""
    from ray_jobs.results.run import is_complete

    place = shlex.quote(directory.shown)
    if not directory.holds("run.json"):
        return "nothing was measured yet"
    if is_complete(directory):
        return (
            f"the run is complete in {place}; its page and W&B can be made again: {typed()} report, {typed()} publish"
        )
    trust = " --trust" if own_code(spec) else ""
    return f"the launches that were committed are safe, continue with: {typed()} matrix --resume {place}{trust}"


def _counts(rows: "list[Row]") -> dict[str, int]:
    """Counts trials done, failed and skipped: one failed row fails a trial, and only skipped rows skip it."""
    from ray_jobs.matrix.rows import Status
    from ray_jobs.statistics import Verdict

    status = {row.trial_id: Status.SKIPPED for row in rows}
    for decisive in (Status.DONE, Status.FAILED):
        status |= {row.trial_id: decisive for row in rows if row.status == decisive}
    trials = {str(one): list(status.values()).count(one) for one in (Status.DONE, Status.FAILED, Status.SKIPPED)}
    return {**trials, "invalid": sum(row.verdict == Verdict.INVALID for row in rows)}
