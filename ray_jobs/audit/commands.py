"""``python -m ray_jobs audit [aa | effect | faults | cost]``."""

import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from chatbot import checkpoint
from chatbot.errors import UsageError, one_of
from ray_jobs.audit import faults as planted
from ray_jobs.audit import page
from ray_jobs.audit.comparisons import Plan, compare, launch_rows
from ray_jobs.audit.cost import cost as find_cost
from ray_jobs.audit.plants import DELAYED
from ray_jobs.audit.rates import EXIT, TOO_FEW, Comparison, effects_found, false_verdicts
from ray_jobs.audit.stand import Stand, audit_spec, stand
from ray_jobs.samples import RunDirectory
from ray_jobs.trials import TrialState

app = typer.Typer(
    help="How often is this tool wrong, on this machine? Without a part: all of them, twenty minutes.",
    invoke_without_command=True,
    add_completion=False,
)

LOADS = ("none", "beside", "both")
INTERRUPTED = 130
BROKEN = 1
# Of an audit without a part: enough to see a tool that is wrong often, few enough to wait for.
SHORT_COMPARISONS, SHORT_EFFECTS, SHORT_BUDGET_S = 40, 12, 5.0
FULL_BUDGET_S = 60.0

Model = Annotated[str, typer.Option(help=f"{checkpoint.MODELS}.")]
Budget = Annotated[float, typer.Option(help="Seconds a trial.")]
Precision = Annotated[float, typer.Option(help="Asked half-width of the interval: 0.01 is 1%.")]
Margin = Annotated[float, typer.Option(help="Differences below it are called the same.")]
Seed = Annotated[int, typer.Option(help="Of prompts, orders and the load's timetable.")]
Out = Annotated[str, typer.Option(help="The results root: a folder or any pyarrow.fs URI.")]
RunId = Annotated[str | None, typer.Option(help="The audit's folder in it; a new one by default.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON as the last line of stdout.")]


@dataclass
class Audit:
    """One audit: where it goes, and what it has found so far."""

    directory: RunDirectory
    run_id: str
    started: datetime
    parts: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, stand: Stand, found: dict[str, Any]) -> dict[str, Any]:
        """Keeps and prints what a part came to."""
        self.environment = stand.environment()
        part = {"part": kind, "spec": stand.spec.model_dump(), **found}
        self.parts.append(part)
        typer.echo("\n" + page.section(part))
        self.write()
        return found

    def write(self) -> None:
        """``audit.json``, ``comparisons.parquet``, ``launches.parquet`` and the page."""
        content = {
            "schema_version": 1,
            "run_id": self.run_id,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "command": ["python", "-m", "ray_jobs", *sys.argv[1:]],
            "environment": self.environment,
            "parts": self.parts,
        }
        self.directory.write_json("audit.json", content)
        self.directory.write("summary.md", page.page(content).encode())
        for name, rows in (("comparisons", self.comparisons), ("launches", self.launches)):
            if rows:
                self.directory.write_table(f"{name}.parquet", page.table(rows))


@contextmanager
def _audit(kind: str, out: str, run_id: str | None) -> Iterator[Audit]:
    """A new audit's directory; what was found by the time of an interrupt is written."""
    name = run_id or f"audit-{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    directory = RunDirectory.named(out, name)
    audit = Audit(directory, name, datetime.now(UTC))
    with directory.created():
        try:
            yield audit
        except KeyboardInterrupt:
            audit.write()
            typer.echo(f"ray_jobs: interrupted; what was found is in {directory.shown}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        audit.write()
    typer.echo(f"\n{directory.shown}: summary.md, audit.json" + (", comparisons.parquet" if audit.comparisons else ""))


@app.callback()
def everything(context: typer.Context, out: Out = "results") -> None:
    """How often is this tool wrong, on this machine?

    Without a part: identical programs, quiet and beside a load, a known slowdown of 2%, planted mistakes, and the cost
    of it all, in about twenty minutes. Exits 0 when every promise is kept, 1 when one is broken, 3 when there were too
    few comparisons to tell.
    """
    if context.invoked_subcommand is not None:
        return
    codes = []
    with _audit("all", out, None) as audit:
        with stand(audit_spec("small", SHORT_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            for beside_load in (False, True):
                plan = Plan(SHORT_COMPARISONS, beside_load=beside_load, with_peers=True)
                codes.append(EXIT[_aa(audit, here, plan)["promise"]])
            codes.append(EXIT[_effect(audit, here, Plan(SHORT_EFFECTS, percent=2))["promise"]])
            codes.append(_faults(audit, here))
        with stand(audit_spec("tutorial", FULL_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            codes.append(BROKEN if _cost(audit, here)["missed"] else 0)
    raise typer.Exit(_worst(codes))


@app.command()
def aa(
    comparisons: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    load: Annotated[str, typer.Option(help="none, beside or both: a background load on every core.")] = "none",
    model: Model = "small",
    budget: Budget = 5.0,
    precision: Precision = 0.01,
    margin: Margin = 0.02,
    seed: Seed = 0,
    peers: Annotated[bool, typer.Option(help="Also what a user would write instead.")] = True,
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
    with _audit("aa", out, run_id) as audit, stand(spec, audit.run_id) as here:
        for beside_load in [False] * (load != "beside") + [True] * (load != "none"):
            plan = Plan(comparisons, beside_load=beside_load, with_peers=peers)
            found[plan.name] = _aa(audit, here, plan)
    if as_json:
        first, *others = found.values()
        typer.echo(json.dumps({**first, "parts": found} if others else first))
    raise typer.Exit(_worst([EXIT[part["promise"]] for part in found.values()]))


@app.command()
def effect(
    percent: Annotated[int, typer.Option(help=f"The slowdown: {', '.join(map(str, DELAYED))}.")] = 2,
    comparisons: Annotated[int, typer.Option(min=1, help="How many.")] = 40,
    load: Annotated[str, typer.Option(help="none or beside.")] = "none",
    model: Model = "small",
    budget: Budget = FULL_BUDGET_S,
    precision: Precision = 0.01,
    margin: Margin = 0.02,
    seed: Seed = 0,
    out: Out = "results",
    run_id: RunId = None,
    as_json: Json = False,
) -> None:
    """Make one of two identical programs slower by a known share: how often is it found, and is the figure right?

    Exits 0 where a slowdown of 2% or more is found 9 times in 10 without bias, 1 where it is not, 3 where there were
    too few comparisons to tell.
    """
    if percent not in DELAYED:
        raise UsageError(f"percent is {percent}; choose from: {', '.join(map(str, DELAYED))}")
    if load not in LOADS[:2]:
        raise one_of("load", load, LOADS[:2])
    spec = audit_spec(model, budget, precision, margin, seed)
    with _audit("effect", out, run_id) as audit, stand(spec, audit.run_id) as here:
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
    with _audit("faults", out, run_id) as audit, stand(spec, audit.run_id) as here:
        code = _faults(audit, here)
    if as_json:
        typer.echo(json.dumps(audit.parts[0]["faults"]))
    raise typer.Exit(code)


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
    with _audit("cost", out, run_id) as audit, stand(spec, audit.run_id) as here:
        found = _cost(audit, here)
    if as_json:
        typer.echo(json.dumps(found))
    raise typer.Exit(BROKEN if found["missed"] else 0)


def _aa(audit: Audit, here: Stand, plan: Plan) -> dict[str, Any]:
    done = _compared(audit, here, plan)
    return audit.add(plan.name, here, false_verdicts(done, here.spec.margin))


def _effect(audit: Audit, here: Stand, plan: Plan) -> dict[str, Any]:
    return audit.add(plan.name, here, effects_found(_compared(audit, here, plan), plan.percent))


def _faults(audit: Audit, here: Stand) -> int:
    verdicts = []
    for number, fault in enumerate(planted.FAULTS):
        verdict = planted.plant(here, fault, number)
        verdicts.append(verdict)
        typer.echo(f"{number + 1}/{len(planted.FAULTS)} {verdict.fault}: {verdict.by}", err=True)
    audit.add("faults", here, {"faults": [asdict(verdict) for verdict in verdicts]})
    return 0 if planted.promise(verdicts) else BROKEN


def _cost(audit: Audit, here: Stand) -> dict[str, Any]:
    found = find_cost(here)
    return audit.add("cost", here, {**asdict(found), "missed": found.broken})


def _compared(audit: Audit, here: Stand, plan: Plan) -> list[Comparison]:
    """Runs a plan, with a line on stderr now and then."""
    done: list[Comparison] = []
    states: list[TrialState] = []
    started = last = time.monotonic()
    try:
        for comparison, state in compare(here, plan):
            done.append(comparison)
            states.append(state)
            now = time.monotonic()
            if now - last >= page.EVERY_S or len(done) in (1, plan.comparisons):
                last, left = now, (now - started) / len(done) * (plan.comparisons - len(done))
                typer.echo(f"{plan.name}: {len(done)} of {plan.comparisons}, {left / 60:.0f} min left", err=True)
    finally:
        audit.comparisons += [{"part": plan.name, **asdict(comparison)} for comparison in done]
        audit.launches += launch_rows(plan, states)
    return done


def _worst(codes: Sequence[int]) -> int:
    """Broken before too few before kept."""
    return BROKEN if BROKEN in codes else max(codes, default=EXIT[TOO_FEW])
