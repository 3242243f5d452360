"""One launch in the calling process, without Ray, fork or pinning: for a breakpoint in a variant."""

from collections.abc import Iterator

import numpy as np
import torch

from chatbot.errors import UsageError
from ray_jobs.driver.inputs import inputs_of, with_cases
from ray_jobs.measure.launch import measure
from ray_jobs.measure.result import TIMED, Launch, LaunchResult
from ray_jobs.report.text import counted
from ray_jobs.spec import Spec

WARNING = (
    "do not believe these numbers: this process is neither fresh nor pinned, and one launch says nothing of the next"
)
CALLS = 3  # a round has each variant make: enough to see what it does


def in_process(spec: Spec) -> Iterator[str]:
    """Runs the first trial's first launch, one balanced block of rounds, and says what became of each variant.

    Raises:
        UsageError: the model or the corpus can't be used, or the baseline can't run; one line.
    """
    inputs = inputs_of(spec)
    workload, *others = with_cases(spec, inputs).plan()
    sizes = f"batch {workload.batch}, prompt {workload.prompt_tokens}, reply {workload.reply_tokens}"
    left_out = f"; {counted(len(others), 'other workload')} left out" if others else ""
    yield f"one launch in this process: {workload.device}, {sizes}, threads {workload.threads}{left_out}"
    torch.set_num_threads(workload.threads)
    launch = Launch(0, spec.seed, rounds=len(spec.variants), calls=CALLS)
    try:
        result = measure(workload, spec.variants, inputs.model, inputs.pool(workload), launch)
    except RuntimeError as error:
        raise UsageError(f"the launch failed: {error}") from error
    yield from (f"{name}: {_outcome(result, name)}" for name in spec.variants)
    yield WARNING


def _outcome(result: LaunchResult, name: str) -> str:
    facts, samples = result.facts[name], result.samples
    for how in ("skipped", "failed", "invalid"):
        if (reason := getattr(facts, how)) is not None:
            return f"{how}: {reason}"
    ms = samples.wall_ns[(samples.phase == TIMED) & (samples.variant == result.variants.index(name))] / 1e6
    spread = f"median {np.median(ms):.3f} ms of {len(ms)} calls ({ms.min():.3f} to {ms.max():.3f})"
    return f"{spread}, {facts.identical} of {facts.replies} replies identical"
