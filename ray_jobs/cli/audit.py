"""``python -m ray_jobs audit [aa | effect | faults | cost]``."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from chatbot.errors import UsageError, one_of
from chatbot.variants import MODELS
from ray_jobs.audit import detection as planted
from ray_jobs.audit.comparisons import MOST, Plan, launch_rows, run_plan
from ray_jobs.audit.cost import measure_cost
from ray_jobs.audit.folder import Audit, make_again, new_audit
from ray_jobs.audit.mistakes import DELAYED
from ray_jobs.audit.page import EVERY_S
from ray_jobs.audit.rates import EXIT, Comparison, Promise, effects_found, false_verdicts
from ray_jobs.audit.station import AuditStation, Measured, audit_spec, audit_station

app = typer.Typer(
    help="How often is this tool wrong, on this machine? Without a part: all of them, twenty-five minutes.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)

LOADS = ("none", "beside", "both")
BROKEN, TOO_FEW = EXIT[Promise.BROKEN], EXIT[Promise.TOO_FEW]
SEVERITY = (0, TOO_FEW, BROKEN)
# Of an audit without a part: enough to see a tool that is wrong often, few enough to wait for.
SHORT_COMPARISONS, SHORT_EFFECTS, SHORT_BUDGET_S = 40, 12, 5.0
FULL_BUDGET_S = 60.0

Model = Annotated[str, typer.Option(help=f"{MODELS}.")]
Budget = Annotated[float, typer.Option(help="Maximum seconds per trial.")]
Precision = Annotated[float, typer.Option(help="Half-width of the interval to reach: 0.01 is 1%.")]
Margin = Annotated[float, typer.Option(help="Speedups within this margin of 1 are called the same.")]
Seed = Annotated[int, typer.Option(help="Seed for prompts, orders and the load's timetable.")]
OUT = "The results root: a folder or any pyarrow.fs URI."
Out = Annotated[str, typer.Option(help=OUT)]
RunId = Annotated[str | None, typer.Option(help="Name of the audit's folder; a new one by default.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON as the last line of stdout.")]


@app.callback()
def everything(context: typer.Context, out: Annotated[str | None, typer.Option(help=OUT)] = None) -> None:
    """How often is this tool wrong, on this machine?

    Without a part: identical programs, quiet and beside a load, a known slowdown of 2%, planted mistakes, and the cost
    of it all, in about twenty-five minutes. Exits 0 when every promise is kept, 1 when one is broken, 3 when there were
    too few comparisons to tell, as there often are in so short an audit: a single false verdict among its forty is more
    than the promise can bear, though within it.
    """
    if context.invoked_subcommand is not None:
        if out is not None:
            raise UsageError(f"give --out behind {context.invoked_subcommand}")
        return
    codes = []
    with new_audit("all", out or "results", None) as audit:
        with audit_station(audit_spec("small", SHORT_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            for beside_load in (False, True):
                plan = Plan(SHORT_COMPARISONS, beside_load=beside_load, with_peers=True)
                codes.append(EXIT[_aa(audit, here, plan)["promise"]])
            codes.append(_faults(audit, here))
        with audit_station(audit_spec("small", FULL_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            codes.append(EXIT[_effect(audit, here, Plan(SHORT_EFFECTS, percent=2))["promise"]])
        with audit_station(audit_spec("tutorial", FULL_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            codes.append(BROKEN if _cost(audit, here)["missed"] else 0)
    raise typer.Exit(_worst(codes))


@app.command()
def aa(
    comparisons: Annotated[int, typer.Option(min=1, max=MOST, help="Number of comparisons.")] = 200,
    load: Annotated[str, typer.Option(help="Background load on every core: none, beside or both.")] = "none",
    model: Model = "small",
    budget: Budget = 5.0,
    precision: Precision = 0.01,
    margin: Margin = 0.02,
    seed: Seed = 0,
    peers: Annotated[bool, typer.Option(help="Also time with the tools that a user would reach for.")] = True,
    out: Out = "results",
    run_id: RunId = None,
    as_json: Json = False,
) -> None:
    """Compare identical programs: how often are they called different?

    Exits 0 where the rate's 95% interval reaches below 5% and ends under 10%, 1 where it lies above 5%, 3 where there
    were too few comparisons to tell.
    """
    if load not in LOADS:
        raise one_of("load", load, LOADS)
    spec = audit_spec(model, budget, precision, margin, seed)
    found = {}
    with new_audit("aa", out, run_id) as audit, audit_station(spec, audit.run_id) as here:
        for beside_load in [False] * (load != "beside") + [True] * (load != "none"):
            plan = Plan(comparisons, beside_load=beside_load, with_peers=peers)
            found[plan.name] = _aa(audit, here, plan)
    if as_json:
        first, *others = found.values()
        worst = max((part["promise"] for part in found.values()), key=lambda promise: SEVERITY.index(EXIT[promise]))
        typer.echo(json.dumps({**first, "promise": worst, "parts": found} if others else first))
    raise typer.Exit(_worst([EXIT[part["promise"]] for part in found.values()]))


@app.command()
def effect(
    percent: Annotated[int, typer.Option(help=f"The slowdown: {', '.join(map(str, DELAYED))}.")] = 2,
    comparisons: Annotated[int, typer.Option(min=1, max=MOST, help="Number of comparisons.")] = 40,
    load: Annotated[str, typer.Option(help="Background load on every core: none or beside.")] = "none",
    model: Model = "small",
    budget: Budget = FULL_BUDGET_S,
    precision: Precision = 0.01,
    margin: Margin = 0.02,
    seed: Seed = 0,
    out: Out = "results",
    run_id: RunId = None,
    as_json: Json = False,
) -> None:
    """Slow one of two identical programs down by a known share: how often is it found, and is the figure right?

    Exits 0 where a slowdown of 2% or more is found 9 times in 10 without bias, 1 where it is not, 3 where there were
    too few comparisons to tell.
    """
    if percent not in DELAYED:
        raise UsageError(f"percent is {percent}; choose from: {', '.join(map(str, DELAYED))}")
    if load not in LOADS[:2]:
        raise one_of("load", load, LOADS[:2])
    spec = audit_spec(model, budget, precision, margin, seed)
    with new_audit("effect", out, run_id) as audit, audit_station(spec, audit.run_id) as here:
        found = _effect(audit, here, Plan(comparisons, percent, beside_load=load == "beside"))
    if as_json:
        typer.echo(json.dumps(found))
    raise typer.Exit(EXIT[found["promise"]])


@app.command()
def faults(
    model: Model = "small",
    budget: Budget = 1.0,
    seed: Seed = 0,
    out: Out = "results",
    run_id: RunId = None,
    as_json: Json = False,
) -> None:
    """Plant mistakes, each in a trial of its own: what catches them?

    Exits 0 where every one is caught, else 1.
    """
    spec = audit_spec(model, budget, 0.01, 0.02, seed)
    with new_audit("faults", out, run_id) as audit, audit_station(spec, audit.run_id) as here:
        code = _faults(audit, here)
    if as_json:
        typer.echo(json.dumps(audit.parts[0]["faults"]))
    raise typer.Exit(code)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cluster() -> None:
    """Say where the cluster's faults went: mounting file systems and cutting networks as root is for tests."""
    raise UsageError("the faults of a cluster are injected by its tests: make test-cluster, or make cluster-table")


@app.command()
def summary(audit: Annotated[str, typer.Argument(help="The directory of an audit.")]) -> None:
    """Rebuild the figures and the page of a finished audit from its tables."""
    typer.echo(make_again(audit))


@app.command()
def cost(
    model: Model = "tutorial",
    budget: Budget = FULL_BUDGET_S,
    seed: Seed = 0,
    out: Out = "results",
    run_id: RunId = None,
    as_json: Json = False,
) -> None:
    """Measure what honesty costs: time not spent in timed calls, overhead of a sample, CPU use beside a launch.

    Exits 0 where the targets are met, else 1.
    """
    spec = audit_spec(model, budget, 0.01, 0.02, seed)
    with new_audit("cost", out, run_id) as audit, audit_station(spec, audit.run_id) as here:
        found = _cost(audit, here)
    if as_json:
        typer.echo(json.dumps(found))
    raise typer.Exit(BROKEN if found["missed"] else 0)


def _aa(audit: Audit, here: AuditStation, plan: Plan) -> dict[str, Any]:
    done = _compared(audit, here, plan)
    return audit.add(plan.name, here, false_verdicts(done, here.spec.margin))


def _effect(audit: Audit, here: AuditStation, plan: Plan) -> dict[str, Any]:
    return audit.add(plan.name, here, effects_found(_compared(audit, here, plan), plan.percent))


def _faults(audit: Audit, here: AuditStation) -> int:
    found: list[planted.Detection] = []
    try:
        for number, fault in enumerate(planted.FAULTS):
            found.append(planted.plant(here, fault, number))
            typer.echo(f"{number + 1}/{len(planted.FAULTS)} {fault.name}: {found[-1].by}", err=True)
    finally:
        audit.add("faults", here, {"faults": [asdict(one) for one in found]})
    return 0 if all(one.caught for one in found) else BROKEN


def _cost(audit: Audit, here: AuditStation) -> dict[str, Any]:
    found = measure_cost(here)
    return audit.add("cost", here, {**asdict(found), "missed": found.broken})


def _compared(audit: Audit, here: AuditStation, plan: Plan) -> list[Comparison]:
    """Runs a plan, with a line on stderr now and then."""
    done: list[Comparison] = []
    states: list[Measured] = []
    started = last = time.monotonic()
    try:
        for comparison, state in run_plan(here, plan):
            done.append(comparison)
            states.append(state)
            now = time.monotonic()
            if now - last >= EVERY_S or len(done) in (1, plan.comparisons):
                last, left = now, (now - started) / len(done) * (plan.comparisons - len(done))
                typer.echo(f"{plan.name}: {len(done)} of {plan.comparisons}, {left / 60:.0f} min left", err=True)
    finally:
        audit.comparisons += [{"part": plan.name, **asdict(comparison)} for comparison in done]
        audit.launches += launch_rows(plan, states)
    return done


def _worst(codes: Sequence[int]) -> int:
    """Broken before too few before kept."""
    return max(codes, key=SEVERITY.index, default=TOO_FEW)
