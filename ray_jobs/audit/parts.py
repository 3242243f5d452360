"""The parts of an audit, run one after the other on a station of its own."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer

from ray_jobs.audit import detection as planted
from ray_jobs.audit.comparisons import launch_rows, run_plan
from ray_jobs.audit.cost import measure_cost
from ray_jobs.audit.folder import Audit, new_audit
from ray_jobs.audit.page import EVERY_S
from ray_jobs.audit.plan import FULL_BUDGET_S, Plan, audit_spec
from ray_jobs.audit.rates import EXIT, Comparison, Promise, effects_found, false_verdicts
from ray_jobs.audit.station import AuditStation, audit_station
from ray_jobs.spec import Spec

BROKEN, TOO_FEW = EXIT[Promise.BROKEN], EXIT[Promise.TOO_FEW]
SEVERITY = (0, TOO_FEW, BROKEN)
# Of an audit without a part: enough to see a tool that is wrong often, few enough to wait for.
SHORT_COMPARISONS, SHORT_EFFECTS, SHORT_BUDGET_S = 40, 12, 5.0


@contextmanager
def begun(
    kind: str, spec: Spec, out: str, run_id: str | None, plans: Sequence[Plan] = (), resume: bool = False
) -> Iterator[tuple[Audit, AuditStation]]:
    """An audit, new or one that goes on, and the station that it has to itself. Raises UsageError."""
    asked = {"kind": kind, "spec": spec.model_dump(mode="json"), "plans": [asdict(plan) for plan in plans]}
    with new_audit(kind, out, run_id, asked, resume) as audit, audit_station(spec, audit.run_id) as here:
        yield audit, here


def worst_promise(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The worst promise of several parts, which decides the exit code."""
    return max((str(part["promise"]) for part in found.values()), key=lambda promise: SEVERITY.index(EXIT[promise]))


def everything(out: str) -> int:
    """Runs every part briefly and returns the exit code."""
    codes = []
    with new_audit("all", out, None) as audit:
        with audit_station(audit_spec("small", SHORT_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            for beside_load in (False, True):
                plan = Plan(SHORT_COMPARISONS, beside_load=beside_load, with_peers=True)
                codes.append(EXIT[aa(audit, here, plan)["promise"]])
            codes.append(faults(audit, here))
        with audit_station(audit_spec("small", FULL_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            codes.append(EXIT[effect(audit, here, Plan(SHORT_EFFECTS, percent=2))["promise"]])
        with audit_station(audit_spec("tutorial", FULL_BUDGET_S, 0.01, 0.02, 0), audit.run_id) as here:
            codes.append(BROKEN if cost(audit, here)["missed"] else 0)
    return worst(codes)


def aa(audit: Audit, here: AuditStation, plan: Plan) -> dict[str, Any]:
    """Compares identical programs; returns the findings as in ``audit.json``."""
    done = _compared(audit, here, plan)
    return audit.add(plan.name, here, false_verdicts(done, here.spec.margin))


def effect(audit: Audit, here: AuditStation, plan: Plan) -> dict[str, Any]:
    """Compares a program with a slower one; returns the findings."""
    return audit.add(plan.name, here, effects_found(_compared(audit, here, plan), plan.percent))


def faults(audit: Audit, here: AuditStation) -> int:
    """Plants every mistake and returns the exit code."""
    found: list[planted.Detection] = []
    try:
        for number, fault in enumerate(planted.FAULTS):
            found.append(planted.plant(here, fault, number))
            typer.echo(f"{number + 1}/{len(planted.FAULTS)} {fault.name}: {found[-1].by}", err=True)
    finally:
        audit.add("faults", here, {"faults": [asdict(one) for one in found]})
    return 0 if all(one.caught for one in found) else BROKEN


def cost(audit: Audit, here: AuditStation) -> dict[str, Any]:
    """Measures what honesty costs; returns the findings."""
    found = measure_cost(here)
    return audit.add("cost", here, {**asdict(found), "missed": found.broken})


def _compared(audit: Audit, here: AuditStation, plan: Plan) -> list[Comparison]:
    """Runs what is left of a plan, with a line on stderr now and then."""
    done = audit.earlier(plan.name)
    before = len(done)
    started = last = time.monotonic()
    for comparison, state in run_plan(here, plan, before):
        done.append(comparison)
        audit.keep(plan.name, comparison, launch_rows(plan, comparison.number, state))
        if comparison.speedup is None and all(one.speedup is None for one in done):  # and no end of waiting for it
            why = comparison.reason or "there is no interval"
            typer.echo(f"{plan.name}: comparison {len(done)} has no speedup: {why}", err=True)
        if (now := time.monotonic()) - last >= EVERY_S or len(done) in (1, plan.comparisons):
            last, left = now, (now - started) / (len(done) - before) * (plan.comparisons - len(done))
            typer.echo(f"{plan.name}: {len(done)} of {plan.comparisons}, {left / 60:.0f} min left", err=True)
            audit.write()  # a killed one goes on from here
    return done


def worst(codes: Sequence[int]) -> int:
    """The worst of some promises: broken, then too few, then kept."""
    return max(codes, key=SEVERITY.index, default=TOO_FEW)
