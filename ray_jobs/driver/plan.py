"""Estimates how long a trial takes, from the latest similar run, else from the bytes that a reply reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from chatbot import checkpoint, corpus
from chatbot.config import Config
from chatbot.variants import BASELINE, CONTROL, VARIANTS, Variant, Workload, is_own
from ray_jobs.driver import revisions
from ray_jobs.driver.promise import Earlier, Promise, promise
from ray_jobs.matrix.rows import Row, Status
from ray_jobs.measure.cold import STARTS
from ray_jobs.measure.method import METHOD, version_in
from ray_jobs.measure.orders import up_to_multiple
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.roofline import PRECISIONS, moved_bytes, phases_of
from ray_jobs.measure.rounds import CALLS, MOST_CALLS, ROUNDS, TURN_NS, WARMUP_CALLS
from ray_jobs.measure.trial import SIDE_S, cold_s, compiling_s, rounds_s, untimed_s
from ray_jobs.report.text import counted
from ray_jobs.results import schema
from ray_jobs.scenario import Load, ReplicaKind, Through
from ray_jobs.sides import sides_of
from ray_jobs.spec import Spec
from ray_jobs.statistics import LEAST_LAUNCHES

BUDGET_DECIDES = "the budget decides, unless the least number of launches takes longer"
BYTES_PER_S = 10e9  # what one thread's fp32 matrix-vector products read from memory
OVERHEAD_S = 150e-6  # of a step's small operations in Python
# Of that guess; between them lie the eager latencies of the runs make-matrix, variants-tutorial and seed.
QUICK, SLOW = 0.5, 1.25
LAUNCH_S = 0.3  # fork, weights and scripting, at small size
COLD_START_S = 2.5  # a new process that imports torch and answers once
START_S = 7.0  # of a trial: a worker and a fork server that import torch, and the launches for memory and limit
# A variant's reply over eager's; of those that are not here, as long as eager's. Of the run variants-tutorial.
OF_EAGER = {
    "torchscript": 0.93,
    "torchscript-frozen": 0.93,
    "torchscript-optimized": 0.73,
    "export-aoti": 0.92,
    "bf16": 0.60,
    "int8": 0.17,
    "int8-torchscript": 0.09,
    "native": 0.14,
    "native-int8": 0.05,
    "onnx": 0.36,
    "onnx-int8": 0.10,
    "openvino": 0.37,
}


@dataclass(frozen=True)
class Duration:
    """Seconds that a trial takes, compiling aside: at least, at most (the budget ends it), and where that is from."""

    least_s: float
    most_s: float
    source: str
    untimed_s: float | None = None  # of it before and after the launches; None: not known

    @property
    def text(self) -> str:
        """The duration as a person reads it."""
        span = f"{self.least_s:.0f} s" if self.least_s == self.most_s else f"{self.least_s:.0f} to {self.most_s:.0f} s"
        parts = (
            "" if self.untimed_s is None else f", {self.untimed_s:.0f} s of it for starting, memory, replies and limits"
        )
        return f"{span} a station{parts} ({self.source})"


def plan_lines(spec: Spec, root: str) -> Iterator[str]:
    """Every trial and its time, and their sum; runs no code of the user's own.

    Raises UsageError where the model, the corpus or a revision can't be used.
    """
    sides = revisions.resolved(sides_of(spec.against), spec.model)
    against = f", each also with {'; '.join(side.name for side in sides[1:])}" if sides else ""
    count = counted(len(spec.plan()) * len(spec.loads), "trial")
    trials = f"{count} of {', '.join(spec.variants)}{against} on each station"
    if is_own(spec.model):
        for workload, load in product(spec.plan(), spec.loads):
            sizes = f"{workload.device}, batch {workload.batch}, threads {workload.threads}{_asked(load)}"
            yield f"{sizes}: about {spec.budget:.0f} s a station (a model of your own: {BUDGET_DECIDES})"
        yield f"up to {compiling_s(spec.budget):.0f} s more a trial to try each variant on it once, and to compile"
        yield f"up to {untimed_s(spec.budget):.0f} s more a trial for each variant's memory, and for limits"
        yield f"{trials}; nothing was run"
        return
    config = checkpoint.open_model(spec.model).chatbot.config
    corpus.load(spec.corpus)
    low = high = 0.0
    for workload, load in product(spec.plan(), spec.loads):
        time = estimate(spec, workload, config, root) if load is None else _under_load(spec)
        low, high = low + time.least_s, high + time.most_s
        sizes = f"batch {workload.batch}, prompt {workload.prompt_tokens}, reply {workload.reply_tokens}"
        yield f"{workload.device}, {sizes}, threads {workload.threads}{_asked(load)}: {time.text}"
        if load is None and (told := promised(spec, workload, root)) is not None:
            yield f"  {told.text}"
    if compiling := [
        name for name in spec.variants if _entry(name).cached and {*_entry(name).devices} & {*spec.device}
    ]:
        names = ", ".join(compiling)
        yield f"up to {compiling_s(spec.budget):.0f} s more a trial to compile {names}, unless kept from before"
    yield f"{trials}: {low:.0f} to {high:.0f} s; nothing was run"


def _asked(load: Load | None) -> str:
    if load is None:
        return ""
    who = counted(load.replicas, str(load.kind), "processes" if load.kind == ReplicaKind.PROCESS else "threads")
    together = "" if load.max_batch == 1 else f" of up to {load.max_batch} requests at once"
    behind = " behind Ray Serve" if load.through == Through.SERVE else ""
    return f", {load.scenario} with {who}{together}{behind}{f' within {load.slo}' if load.slo else ''}"


def _under_load(spec: Spec) -> Duration:
    """How long windows are follows from what each variant turns out to hold."""
    return Duration(spec.budget, spec.budget, BUDGET_DECIDES)


def estimate(spec: Spec, workload: Workload, config: Config, root: str) -> Duration:
    """The time of one trial of a spec."""
    known = _latest(spec, workload, root)
    if known is not None:
        seconds, run_id = known
        return Duration(seconds, seconds, f"run {run_id}")
    reply_s = reply_seconds(config, workload)
    low, guess, high = (typical(spec, workload, share * reply_s) for share in (QUICK, 1.0, SLOW))
    return Duration(low.least_s, max(low.least_s, high.most_s), guess.source, guess.untimed_s)


def typical(spec: Spec, workload: Workload, reply_s: float) -> Duration:
    """The time of one trial where an eager reply takes ``reply_s``: least where the precision is soon reached.

    Within 25% of the committed runs, whose eager latency is known; how fast another machine is can only be guessed.
    """
    present = _present(spec, workload)
    sides = len(sides_of(spec.against))
    turns = present * max(1, sides)
    variants = len(turns)
    calls = min(MOST_CALLS, max(CALLS, int(TURN_NS / 1e9 / reply_s)))
    turn_s = reply_s * sum(OF_EAGER.get(name, 1.0) for name, _ in turns)
    launches = up_to_multiple(LEAST_LAUNCHES, variants)
    affordable = int(rounds_s(spec.budget, launches, sides) / ((1 + calls) * turn_s)) // variants * variants
    rounds = max(variants, min(up_to_multiple(ROUNDS, variants), affordable))
    prepare_s = sum(variant.prepare_s for _, variant in turns)
    launch_s = LAUNCH_S + SIDE_S * sides + prepare_s + (WARMUP_CALLS + rounds * (1 + calls)) * turn_s
    untimed = START_S + _alone_s(spec, workload, reply_s, present) + _cold_s(spec, present)
    least = untimed + launches * launch_s
    return Duration(least, max(least, spec.budget + untimed), "estimated from the bytes read", untimed)


def _present(spec: Spec, workload: Workload) -> list[tuple[str, Variant]]:
    """The variants that run on the workload's device."""
    return [(name, variant) for name in spec.variants if workload.device in (variant := _entry(name)).devices]


def _alone_s(spec: Spec, workload: Workload, reply_s: float, present: Sequence[tuple[str, Variant]]) -> float:
    """Of each variant in a process of its own: preparing it, before the launches too if it compiles, and replies."""
    kept_s = sum(variant.prepare_s for _, variant in present if variant.cached)
    prepare_s = sum(variant.prepare_s for _, variant in present)
    approximate = [OF_EAGER.get(name, 1.0) for name, variant in present if not variant.exact]
    asked_s = LEAST_COMPARED / workload.batch * (1 + sum(approximate)) * reply_s if approximate else 0.0
    return kept_s + min(prepare_s + asked_s, untimed_s(spec.budget))


def _cold_s(spec: Spec, present: Sequence[tuple[str, Variant]]) -> float:
    """Of cold starts, where they are asked for."""
    if not spec.cold:
        return 0.0
    starting = [variant for name, variant in present if name != CONTROL]
    each = [(1 + STARTS) * (COLD_START_S + variant.prepare_s) + STARTS * COLD_START_S for variant in starting]
    return min(sum(each), cold_s(spec.budget))


def _entry(name: str) -> Variant:
    """A variant's entry; a plan imports none of the user's own, and takes it to cost what the baseline does."""
    return VARIANTS.get(name, VARIANTS[BASELINE])


def reply_seconds(config: Config, workload: Workload) -> float:
    """Roughly how long an eager reply takes: weights read once a step, and each step's overhead."""
    read = moved_bytes(phases_of(config, workload, PRECISIONS["float32"]))
    steps = workload.prompt_tokens + workload.reply_tokens
    # A batch reads the weights once for all; its arithmetic shows from a few prompts on.
    return read / BYTES_PER_S / workload.threads * max(1.0, workload.batch / 16) + steps * OVERHEAD_S


def _latest(spec: Spec, workload: Workload, root: str) -> tuple[float, str] | None:
    """(mean seconds of its trials like this one, run id) of the newest local run with the same demands."""
    for path, run, like in _alike(spec, workload, root, ("variants", "precision", "budget")):
        return sum(seconds for _, seconds in like) / len(like), str(run.get("run_id", path.name))
    return None


def promised(spec: Spec, workload: Workload, root: str) -> Promise | None:
    """What a trial will tell, by the worst station of the newest local run like it, whatever precision that was asked.

    The budget decides how long launches are, so it must be the same. None without such a run.
    """
    block = len(_present(spec, workload)) * max(1, len(sides_of(spec.against)))
    for path, run, like in _alike(spec, workload, root, ("variants", "budget")):
        try:
            rows = [schema.known(Row, row) for row in schema.renamed(json.loads((path / "matrix.json").read_text()))]
        except (ValueError, TypeError, OSError):
            continue
        told = [
            Earlier.of(str(run.get("run_id", path.name)), (row for row in rows if row.trial_id == trial), seconds)
            for trial, seconds in like
        ]
        if known := [one for one in told if one is not None]:
            worst = max(known, key=lambda one: one.scatter)
            return promise(worst, spec.precision, spec.budget, block)
    return None


def _alike(
    spec: Spec, workload: Workload, root: str, keys: Sequence[str]
) -> Iterator[tuple[Path, dict[str, Any], list[tuple[str, float]]]]:
    """(folder, run.json, (trial, seconds) of each like this one) of local runs with these keys and this method.

    The newest first.
    """
    if "://" in root or not Path(root).is_dir():
        return
    asked = spec.model_dump(mode="json")
    for path in sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            run = schema.current(json.loads(path.read_text()), str(path.parent))
            same = all(run["spec"][key] == asked[key] for key in keys)
            same = same and run["spec"].get("against", []) == asked["against"] and version_in(run) == METHOD.version
            same = same and run["spec"].get("cold", False) == asked["cold"]
            alike = {name: trial for name, trial in run["trials"].items() if "load" not in trial}
            done = {name: trial for name, trial in alike.items() if trial["status"] == Status.DONE}
            mine = [n for n, trial in done.items() if schema.known(Workload, trial["workload"]) == workload]
            like = [(name, float(done[name]["seconds"])) for name in mine if done[name]["seconds"]]
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            continue
        if same and like:
            yield path.parent, run, like
