"""Estimates how long a trial takes, from the latest similar run, else from the bytes that a reply reads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatbot import checkpoint, corpus
from chatbot.config import Config
from chatbot.variants import BASELINE, VARIANTS, Variant, Workload, is_own
from ray_jobs.matrix.rows import Status
from ray_jobs.measure.orders import up_to_multiple
from ray_jobs.measure.replies import LEAST_COMPARED
from ray_jobs.measure.roofline import PRECISIONS, moved_bytes, phases_of
from ray_jobs.measure.rounds import CALLS, MOST_CALLS, ROUNDS, TURN_NS, WARMUP_CALLS
from ray_jobs.measure.trial import compiling_s, untimed_s
from ray_jobs.report.text import counted
from ray_jobs.results import schema
from ray_jobs.spec import Spec
from ray_jobs.statistics import LEAST_LAUNCHES

BYTES_PER_S = 10e9  # what one thread's fp32 matrix-vector products read from memory
OVERHEAD_S = 150e-6  # of a step's small operations in Python
LAUNCH_S = 0.8  # fork, weights, scripting and comparing replies, at small size
START_S = 7.0  # of a trial: a worker and a fork server that import torch, and the launches for memory and limit


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

    Raises UsageError where the model or the corpus can't be used.
    """
    trials = f"{counted(len(spec.plan()), 'trial')} of {', '.join(spec.variants)} on each station"
    if is_own(spec.model):
        for workload in spec.plan():
            sizes = f"{workload.device}, batch {workload.batch}, threads {workload.threads}"
            why = "a model of your own: the budget decides, unless the least number of launches takes longer"
            yield f"{sizes}: about {spec.budget:.0f} s a station ({why})"
        yield f"up to {compiling_s(spec.budget):.0f} s more a trial to try each variant on it once, and to compile"
        yield f"{trials}; nothing was run"
        return
    config = checkpoint.open_model(spec.model).chatbot.config
    corpus.load(spec.corpus)
    low = high = 0.0
    for workload in spec.plan():
        time = estimate(spec, workload, config, root)
        low, high = low + time.least_s, high + time.most_s
        sizes = f"batch {workload.batch}, prompt {workload.prompt_tokens}, reply {workload.reply_tokens}"
        yield f"{workload.device}, {sizes}, threads {workload.threads}: {time.text}"
    if compiling := [
        name for name in spec.variants if _entry(name).cached and {*_entry(name).devices} & {*spec.device}
    ]:
        names = ", ".join(compiling)
        yield f"up to {compiling_s(spec.budget):.0f} s more a trial to compile {names}, unless kept from before"
    yield f"{trials}: {low:.0f} to {high:.0f} s; nothing was run"


def estimate(spec: Spec, workload: Workload, config: Config, root: str) -> Duration:
    """The time of one trial of a spec."""
    known = _latest(spec, workload, root)
    if known is not None:
        seconds, run_id = known
        return Duration(seconds, seconds, f"run {run_id}")
    reply_s = reply_seconds(config, workload)
    present = [variant for variant in map(_entry, spec.variants) if workload.device in variant.devices]
    variants = len(present)
    calls = min(MOST_CALLS, max(CALLS, int(TURN_NS / 1e9 / reply_s)))
    round_s = variants * (1 + calls) * reply_s
    launches = up_to_multiple(LEAST_LAUNCHES, len(spec.variants))
    rounds = min(up_to_multiple(ROUNDS, variants), int(0.9 * spec.budget / launches / round_s) // variants * variants)
    prepare_s = sum(variant.prepare_s for variant in present)
    launch_s = LAUNCH_S + prepare_s + variants * WARMUP_CALLS * reply_s + max(variants, rounds) * round_s
    approximate = sum(not variant.exact for variant in present)
    asked = LEAST_COMPARED / workload.batch * (1 + approximate) if approximate else 0
    alone_s = START_S + min(prepare_s + asked * reply_s, untimed_s(spec.budget))
    least = alone_s + launches * launch_s
    return Duration(least, max(least, spec.budget + alone_s), "estimated from the bytes read", alone_s)


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
    if "://" in root or not Path(root).is_dir():
        return None
    asked = spec.model_dump(mode="json")
    for path in sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            run = schema.current(json.loads(path.read_text()), str(path.parent))
            same = all(run["spec"][key] == asked[key] for key in ("variants", "precision", "budget"))
            done = [trial for trial in run["trials"].values() if trial["status"] == Status.DONE]
            trials = [trial for trial in done if schema.known(Workload, trial["workload"]) == workload]
            like = [trial["seconds"] for trial in trials if trial["seconds"]]
            if same and like:
                return sum(like) / len(like), run["run_id"]
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return None
