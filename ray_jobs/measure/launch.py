"""One launch, once it is pinned: prepares every variant, warms each up, runs the rounds, checks the replies.

Needs PyTorch and NumPy only.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot.variants import BASELINE, Reply, Workload, variant_named
from ray_jobs import machine
from ray_jobs.measure import busy, dynamo, gpu, orders, steps
from ray_jobs.measure.dynamo import Compilation
from ray_jobs.measure.method import METHOD
from ray_jobs.measure.program import Program
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.rounds import WARMUP_CALLS, Log, Prompts, Questions, WarmUp, run_rounds, warm_up
from ray_jobs.measure.subject import Subject, subject_of
from ray_jobs.measure.timing import floor_ns, timer_for
from ray_jobs.measure.trial import Factory, ModelSource, mode_of, present
from ray_jobs.measure.watch import watch_for


def measure(
    workload: Workload,
    variants: Sequence[str],
    model: ModelSource,
    pool: NDArray[np.int64],
    launch: Launch,
    share: tuple[int, ...] | None = None,
    left_out: Mapping[str, VariantFacts] = MappingProxyType({}),
) -> LaunchResult:
    """Runs one launch in this process, all of it in the model's mode: see ``mode_of``.

    Code compiled for tensors of one mode would be recompiled for those of another, within a timed call.

    Args:
        workload: sizes of the calls.
        variants: their names, the baseline among them; indices in the samples refer to this order.
        model: where it comes from.
        pool: (N, T) distinct prompts; a launch draws its own from them. A model from a factory needs none.
        launch: number, orders and sizes of this launch.
        share: the station's cores, where others of the machine belong to other trials.
        left_out: variants that are not run, and why.
    """
    with mode_of(model):
        return _measured(workload, variants, model, pool, launch, share, left_out)


def _measured(
    workload: Workload,
    variants: Sequence[str],
    model: ModelSource,
    pool: NDArray[np.int64],
    launch: Launch,
    share: tuple[int, ...] | None,
    left_out: Mapping[str, VariantFacts],
) -> LaunchResult:
    gpu.require_float32()
    busy.enter(variants)
    rng = launch.rng()
    own = pool[rng.permutation(len(pool))]
    built = _built(workload, variants, launch)
    facts: steps.Facts = dict(left_out)
    log = Log()
    card = gpu.own_device() if workload.device == "cuda" else None
    sentinels = [steps.sentinels(workload)]
    subject = subject_of(model, own, workload, launch.index)
    prompts = subject.questions
    replies = _prepare_all([name for name in built if name not in left_out], subject, workload, facts)
    timer = timer_for(workload.device)
    floor = floor_ns(timer)
    warm = warm_up(replies, variants, prompts, timer, log)
    for name, found in warm.items():
        steps.take_warm_up(name, found, facts)
    replies = {name: reply for name, reply in replies.items() if not (warm[name].failed or warm[name].skipped)}
    steps.require_baseline(replies, facts)
    prompts.start_rounds()
    rounds, calls = _sizes(launch, {name: warm[name] for name in replies}, prompts)
    present = [i for i, name in enumerate(variants) if name in replies]
    turns = [[present[i] for i in row] for row in orders.round_orders(len(present), rounds, rng)]
    ordered = [replies.get(name) for name in variants]
    judged = steps.judge_of(subject, variants)
    answers = run_rounds(turns, calls, ordered, prompts, timer, log, watch_for(card, share), judged)
    sentinels.append(steps.sentinels(workload))
    steps.take_answers(variants, answers, facts)
    steps.require_baseline([variants[i] for i in answers.replies], facts)
    expected = answers.replies[variants.index(BASELINE)]
    steps.check_all(variants, answers.replies, expected, subject, (calls, rounds), facts)
    left = {variants[i]: replies[variants[i]] for i in answers.replies}
    steps.probe_all(left, prompts.last(), workload, facts, isinstance(model, Factory) and model.gradients)
    steps.tell_tokens(left, prompts.last(), workload, facts)
    return LaunchResult(
        launch,
        tuple(variants),
        tuple(built),
        rounds,
        calls,
        facts,
        log.samples(),
        interference=answers.interference,
        sentinel_ns=tuple(machine for machine, _ in sentinels),
        method=METHOD.version,
        machine={"timing_floor_ns": floor, **steps.gpu_facts(card, [device for _, device in sentinels])},
    )


def _built(workload: Workload, variants: Sequence[str], launch: Launch) -> list[str]:
    """The order of building: balanced over those that can run here, then the others, which are skipped at once."""
    able = present(workload, variants)
    order = [able[i] for i in orders.building_order(len(able), launch.index, launch.seed)]
    return [*order, *(name for name in variants if name not in able)]


def _prepare_all(built: Sequence[str], subject: Subject, workload: Workload, facts: steps.Facts) -> dict[str, Reply]:
    """Prepares each variant from its own copy of the weights; notes failures and wrong labels."""
    programs: dict[str, Program] = {}
    found = {name: steps.prepare(name, subject, workload, facts, programs) for name in built}
    steps.examine(programs, workload, facts)
    return {name: reply for name, reply in found.items() if reply is not None}


def _sizes(launch: Launch, warm: Mapping[str, WarmUp], prompts: Questions) -> tuple[int, int]:
    """(rounds, timed calls of a turn), as asked or by the time that is left: rounds of which each order is balanced."""
    rounds, calls = steps.sizes(launch, warm)
    calls = prompts.most_calls(calls, len(warm))
    return prompts.most_rounds(rounds, calls, len(warm)), calls


@dataclass(frozen=True)
class Alone:
    """Untimed findings of a process that ran a single variant."""

    peak_mb: float
    tokens: NDArray[np.int64] | None = None  # (N, S): its replies to the first prompts of the pool
    compiled: Compilation | None = None  # where Dynamo takes its program apart
    prepare_mb: float | None = None  # the peak of preparing alone


def measure_alone(
    workload: Workload,
    variant: str,
    model: ModelSource,
    pool: NDArray[np.int64],
    compared: int = 0,
    compare_s: float = math.inf,
) -> Alone:
    """Measures the peak memory in MB of preparing and calling one variant in this process; then collects its replies.

    Before that, it finds out what Dynamo compiled of it.

    On the CPU it is the resident set, including Python and PyTorch; on CUDA what the allocator held while it answered
    (the context and the libraries, 300 to 500 MB, are not in it; what preparing took and gave back isn't either, but in
    ``prepare_mb``, which no source of the weights is part of: that is on the CPU).
    ``compared`` is the number of prompts to answer, in whole batches, as far as the pool and ``compare_s`` seconds go.
    """
    with mode_of(model):
        return _alone(workload, variant, model, pool, compared, compare_s)


def _alone(
    workload: Workload,
    variant: str,
    model: ModelSource,
    pool: NDArray[np.int64],
    compared: int,
    compare_s: float,
) -> Alone:
    gpu.require_float32()
    busy.enter([variant])
    busy.at(0)
    subject, counts = subject_of(model, pool, workload), dynamo.Counted()
    if workload.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    reply = subject.fresh()(variant_named(variant))
    prepare_mb = _peak_mb(workload.device)
    if workload.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARMUP_CALLS):
        reply(*subject.questions.next())
    peak_mb = _peak_mb(workload.device)
    compiled = None
    if variant_named(variant).kind == dynamo.KIND:
        compiled = counts.found(partial(reply, *subject.questions.next()))
    batches = Prompts(pool, workload).first(compared) if compared else []
    tokens = list(_answers(reply, batches, subject.questions.lengths, compare_s))
    return Alone(peak_mb, np.concatenate(tokens) if tokens else None, compiled, prepare_mb)


def _peak_mb(device: str) -> float:
    """The most that was held: on CUDA by the allocator, since that was reset; else by this process, ever."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def _answers(
    reply: Reply,
    batches: Iterable[Tensor],
    lengths: Tensor,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[NDArray[np.int64]]:
    """(batch, S) replies to one batch after the other, until the time is over."""
    end = clock() + seconds
    for batch in batches:
        yield reply(batch, lengths).clone().cpu().numpy()
        if clock() >= end:
            return


def machine_facts() -> dict[str, Any]:
    """The machine and settings of this process as they are, not as requested."""
    return {
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
        "settings": machine.settings(os.environ),
    }
