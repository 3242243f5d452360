"""``audit``: how often is this tool wrong? One command a part."""

import json
from typing import Annotated

import typer

from chatbot.errors import UsageError, one_of
from chatbot.variants import MODELS, is_own
from ray_jobs.audit.plan import DELAYED, FULL_BUDGET_S, MOST, Plan, audit_spec
from ray_jobs.cli.options import FAILED, ROOT, Json, Out, RunId

app = typer.Typer(
    help="How often is this tool wrong, on this machine? Without a part: all of them, half an hour.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)

LOADS = ("none", "beside", "both")

Model = Annotated[str, typer.Option(help=f"{MODELS}.")]
Budget = Annotated[float, typer.Option(help="Maximum seconds per trial.")]
PrecisionOption = Annotated[float, typer.Option(help="Half-width of the interval to reach: 0.01 is 1%.")]
Margin = Annotated[float, typer.Option(help="Speedups within this margin of 1 are called the same.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of a launch.")]
Sides = Annotated[bool, typer.Option("--sides", help="Compare two sides of a trial, each a process of its own.")]
Slo = Annotated[
    str | None,
    typer.Option(help="Compare by the requests a second that hold this bound, as p90=5ms, instead of call by call."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the interrupted audit called --run-id; give the same flags.")
]
Seed = Annotated[int, typer.Option(help="Seed for prompts, orders and the load's timetable.")]


@app.callback()
def everything(context: typer.Context, out: Annotated[str | None, typer.Option(help=ROOT)] = None) -> None:
    """How often is this tool wrong, on this machine?

    Without a part: identical programs, quiet and beside a load, a known slowdown of 2%, planted mistakes, and the cost
    of it all, in about half an hour. Exits 0 when every promise is kept, 1 when one is broken, 3 when there were
    too few comparisons to tell, as there often are in so short an audit: a single false verdict among its forty is more
    than the promise can bear, though within it.
    """
    if context.invoked_subcommand is not None:
        if out is not None:
            raise UsageError(f"give --out behind {context.invoked_subcommand}")
        return
    from ray_jobs.audit.parts import everything as run_all

    raise typer.Exit(run_all(out or "results"))


@app.command()
def aa(
    comparisons: Annotated[int, typer.Option(min=1, max=MOST, help="Number of comparisons.")] = 200,
    load: Annotated[str, typer.Option(help="Background load on every core: none, beside or both.")] = "none",
    model: Model = "small",
    budget: Budget = 5.0,
    precision: PrecisionOption = 0.01,
    margin: Margin = 0.02,
    seed: Seed = 0,
    threads: Threads = 1,
    sides: Sides = False,
    slo: Slo = None,
    peers: Annotated[bool, typer.Option(help="Also time with the tools that a user would reach for.")] = True,
    out: Out = "results",
    run_id: RunId = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Compare identical programs: how often are they called different?

    Exits 0 where the rate's 95% interval reaches below 5% and ends under 10%, 1 where it lies above 5%, 3 where there
    were too few comparisons to tell. With --sides the same environment is compared with itself, as base-again is.
    """
    if load not in LOADS:
        raise one_of("load", load, LOADS)
    _require_one_way(sides, slo)
    spec = audit_spec(model, budget, precision, margin, seed, threads, slo)
    asked = spec.loads[0]
    peers = peers and not sides and asked is None and not is_own(model)
    found = {}
    from ray_jobs.audit import parts, rates

    both = [False] * (load != "beside") + [True] * (load != "none")
    plans = [Plan(comparisons, beside_load=one, with_peers=peers, of_sides=sides, load=asked) for one in both]
    with parts.begun("aa", spec, out, run_id, plans, resume) as (audit, here):
        for plan in plans:
            found[plan.name] = parts.aa(audit, here, plan)
    promise = parts.worst_promise(found)
    if as_json:
        first, *others = found.values()
        typer.echo(json.dumps({**first, "promise": promise, "parts": found} if others else first))
    raise typer.Exit(rates.EXIT[promise])


def _require_one_way(sides: bool, slo: str | None) -> None:
    if sides and slo is not None:
        raise UsageError("sides are compared call by call: leave out --sides or --slo")


@app.command()
def effect(
    percent: Annotated[int, typer.Option(help=f"The slowdown: {', '.join(map(str, DELAYED))}.")] = 2,
    comparisons: Annotated[int, typer.Option(min=1, max=MOST, help="Number of comparisons.")] = 40,
    load: Annotated[str, typer.Option(help="Background load on every core: none or beside.")] = "none",
    model: Model = "small",
    budget: Budget = FULL_BUDGET_S,
    precision: PrecisionOption = 0.01,
    margin: Margin = 0.02,
    seed: Seed = 0,
    threads: Threads = 1,
    sides: Sides = False,
    slo: Slo = None,
    out: Out = "results",
    run_id: RunId = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Slow one of two identical programs down by a known share: how often is it found, and is the figure right?

    Exits 0 where a slowdown of 2% or more is found 9 times in 10 without bias, 1 where it is not, 3 where there were
    too few comparisons to tell. With --sides one program is slowed down in one of two sides.
    """
    if percent not in DELAYED:
        raise UsageError(f"percent is {percent}; choose from: {', '.join(map(str, DELAYED))}")
    if load not in LOADS[:2]:
        raise one_of("load", load, LOADS[:2])
    _require_one_way(sides, slo)
    spec = audit_spec(model, budget, precision, margin, seed, threads, slo)
    from ray_jobs.audit import parts, rates

    plan = Plan(comparisons, percent, beside_load=load == "beside", of_sides=sides, load=spec.loads[0])
    with parts.begun("effect", spec, out, run_id, [plan], resume) as (audit, here):
        found = parts.effect(audit, here, plan)
    if as_json:
        typer.echo(json.dumps(found))
    raise typer.Exit(rates.EXIT[found["promise"]])


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
    from ray_jobs.audit import parts

    with parts.begun("faults", spec, out, run_id) as (audit, here):
        code = parts.faults(audit, here)
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
    from ray_jobs.audit.folder import make_again

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
    from ray_jobs.audit import parts

    with parts.begun("cost", spec, out, run_id) as (audit, here):
        found = parts.cost(audit, here)
    if as_json:
        typer.echo(json.dumps(found))
    raise typer.Exit(FAILED if found["missed"] else 0)
