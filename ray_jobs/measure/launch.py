"""One launch, once it is pinned: prepares every variant, warms each up, runs the rounds, checks the replies.

Needs PyTorch and NumPy only.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot.variants import BASELINE, Reply, UnavailableError, Workload, variant_named
from ray_jobs import machine
from ray_jobs.measure import busy, dynamo, gpu, orders
from ray_jobs.measure.dynamo import Compilation
from ray_jobs.measure.program import (
    Program,
    label_fault,
    probe_fault,
    program_of,
    same_program_faults,
    scattered,
)
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts, one_line
from ray_jobs.measure.rounds import WARMUP_CALLS, Log, Prompts, Questions, WarmUp, calls_held, run_rounds, size, warm_up
from ray_jobs.measure.subject import Subject, subject_of
from ray_jobs.measure.timing import floor_ns, timer_for
from ray_jobs.measure.tokens import token_times
from ray_jobs.measure.trial import Factory, ModelSource, mode_of, present
from ray_jobs.measure.watch import sentinel_ns, watch_for

Facts = dict[str, VariantFacts]


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
    facts: Facts = dict(left_out)
    log = Log()
    card = gpu.own_device() if workload.device == "cuda" else None
    sentinels = [_sentinels(workload)]
    subject = subject_of(model, own, workload, launch.index)
    prompts = subject.questions
    replies = _prepare_all([name for name in built if name not in left_out], subject, workload, facts)
    timer = timer_for(workload.device)
    floor = floor_ns(timer)
    warm = warm_up(replies, variants, prompts, timer, log)
    for name, found in warm.items():
        told = replace(facts[name], failed=found.failed, skipped=found.skipped)
        facts[name] = replace(told, warmup_calls=found.calls, settled=found.calls is not None)
    replies = {name: reply for name, reply in replies.items() if not (warm[name].failed or warm[name].skipped)}
    _require_baseline([variants.index(name) for name in replies], variants, facts)
    prompts.start_rounds()
    rounds, calls = _sizes(launch, {name: warm[name] for name in replies}, prompts)
    present = [i for i, name in enumerate(variants) if name in replies]
    turns = [[present[i] for i in row] for row in orders.round_orders(len(present), rounds, rng)]
    ordered = [replies.get(name) for name in variants]

    def judged(given: Mapping[int, list[Any]]) -> bool:
        return subject.judged({variants[i]: told for i, told in given.items()})

    answers = run_rounds(turns, calls, ordered, prompts, timer, log, watch_for(card, share), judged)
    sentinels.append(_sentinels(workload))
    for i, fault in answers.broken.items():
        facts[variants[i]] = replace(facts[variants[i]], failed=fault)
    for i, looked_at in answers.recompiled.items():
        if facts[variants[i]].kind == dynamo.KIND:
            facts[variants[i]] = replace(facts[variants[i]], recompiled=looked_at)
    for i, reason in answers.skipped.items():
        facts[variants[i]] = replace(facts[variants[i]], skipped=reason)
    _require_baseline(answers.replies, variants, facts)
    _check_all(variants, answers.replies, subject, (calls, rounds), facts)
    gradients = isinstance(model, Factory) and model.gradients
    _probe_all({variants[i]: replies[variants[i]] for i in answers.replies}, prompts.last(), workload, facts, gradients)
    _tell_tokens({variants[i]: replies[variants[i]] for i in answers.replies}, prompts.last(), workload, facts)
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
        machine={"timing_floor_ns": floor, **_gpu_facts(card, [device for _, device in sentinels])},
    )


def _built(workload: Workload, variants: Sequence[str], launch: Launch) -> list[str]:
    """The order of building: balanced over those that can run here, then the others, which are skipped at once."""
    able = present(workload, variants)
    order = [able[i] for i in orders.building_order(len(able), launch.index, launch.seed)]
    return [*order, *(name for name in variants if name not in able)]


def _sizes(launch: Launch, warm: Mapping[str, WarmUp], prompts: Questions) -> tuple[int, int]:
    """(rounds, timed calls of a turn), as asked or by the time that is left: rounds of which each order is balanced."""
    rounds, calls, variants = launch.rounds, launch.calls, len(warm)
    if rounds is None or calls is None:
        rounds, calls = size({name: one.typical_ns for name, one in warm.items()}, launch.seconds, variants)
    calls = calls_held(calls, sum(one.answer_bytes for one in warm.values()))
    return prompts.most_rounds(orders.up_to_multiple(rounds, variants), calls, variants), calls


def _sentinels(workload: Workload) -> tuple[int, int | None]:
    """The times in ns of fixed computations on the machine and, on CUDA, on its GPU."""
    return sentinel_ns(), gpu.sentinel_ns() if workload.device == "cuda" else None


def _gpu_facts(card: gpu.Device | str | None, sentinels: Sequence[int | None]) -> dict[str, Any]:
    return {} if card is None else {"gpu": {**gpu.gpu_facts(card), "sentinel_ns": sentinels}}


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


def _prepare_all(built: Sequence[str], subject: Subject, workload: Workload, facts: Facts) -> dict[str, Reply]:
    """Prepares each variant from its own copy of the weights; notes failures and wrong labels."""
    replies: dict[str, Reply] = {}
    programs: dict[str, Program] = {}
    for name in built:
        busy.on(name)
        prepare = subject.fresh()
        start = time.perf_counter()
        try:
            replies[name] = prepare(variant_named(name))
            if workload.device == "cuda":
                torch.cuda.synchronize()
        except UnavailableError as error:
            facts[name] = VariantFacts(skipped=str(error))
            continue
        except Exception as error:
            facts[name] = VariantFacts(failed=f"could not be prepared: {one_line(error)}")
            continue
        prepare_s = time.perf_counter() - start
        programs[name] = program = program_of(replies[name])
        apart = workload.device == "cuda" and scattered(replies[name])
        facts[name] = VariantFacts(prepare_s, program.identity, program.kind, scattered=apart)
    held = programs[BASELINE].dtypes if workload.own_model and BASELINE in programs else frozenset()
    for name, program in programs.items():
        facts[name] = replace(facts[name], invalid=label_fault(name, program, workload, held))
    for name, fault in same_program_faults(programs).items():
        facts[name] = replace(facts[name], invalid=fault)
    return replies


def _require_baseline(left: Container[int], variants: Sequence[str], facts: Mapping[str, VariantFacts]) -> None:
    if variants.index(BASELINE) not in left:
        raise RuntimeError(f"the baseline {BASELINE} {facts[BASELINE].failed or facts[BASELINE].skipped}")


def _check_all(
    variants: Sequence[str],
    answers: Mapping[int, list[Any]],
    subject: Subject,
    shape: tuple[int, int],
    facts: Facts,
) -> None:
    baseline = answers[variants.index(BASELINE)]
    for i, replies in answers.items():
        name = variants[i]
        check = subject.check(name, replies, baseline, shape)
        invalid = facts[name].invalid or check.fault
        facts[name] = replace(
            facts[name],
            replies=check.replies,
            identical=check.identical,
            tokens=check.tokens,
            differing=check.differing,
            invalid=invalid,
        )


def _probe_all(
    replies: Mapping[str, Reply],
    asked: tuple[Any, Tensor],
    workload: Workload,
    facts: Facts,
    gradients: bool,
) -> None:
    """Calls each variant once more, after all timing, to examine how it works."""
    for name, reply in replies.items():
        busy.on(name)
        kind, own = facts[name].kind, workload.own_model
        fault = facts[name].invalid or probe_fault(reply, *asked, kind, text=own, gradients=gradients)
        facts[name] = replace(facts[name], invalid=fault)
    busy.at(None)


def _tell_tokens(replies: Mapping[str, Reply], asked: tuple[Any, Tensor], workload: Workload, facts: Facts) -> None:
    """When each variant's tokens come, in calls of their own."""
    for name, reply in replies.items():
        if facts[name].invalid is None:
            busy.on(name)
            times = token_times(reply, asked, workload.device)
            if times is not None:
                facts[name] = replace(facts[name], first_token_ms=times.first_ms, further_token_ms=times.further_ms)
    busy.at(None)


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
