"""The steps of a launch, whether one process takes them all or the processes of several sides take turns at them.

Each notes in ``facts`` what it finds out about a variant.
"""

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chatbot.variants import BASELINE, Reply, UnavailableError, Workload, variant_named
from ray_jobs.measure import busy, dynamo, gpu, orders
from ray_jobs.measure.program import Program, label_fault, probe_fault, program_of, same_program_faults, scattered
from ray_jobs.measure.result import Launch, VariantFacts, one_line
from ray_jobs.measure.rounds import Answers, WarmUp, calls_held, size
from ray_jobs.measure.subject import Subject
from ray_jobs.measure.tokens import token_times
from ray_jobs.measure.watch import sentinel_ns

Facts = dict[str, VariantFacts]


def sentinels(workload: Workload) -> tuple[int, int | None]:
    """The times in ns of fixed computations on the machine and, on CUDA, on its GPU."""
    return sentinel_ns(), gpu.sentinel_ns() if workload.device == "cuda" else None


def gpu_facts(card: gpu.Device | str | None, sentinels: Sequence[int | None]) -> dict[str, Any]:
    """What is known of the GPU; nothing on the CPU."""
    return {} if card is None else {"gpu": {**gpu.gpu_facts(card), "sentinel_ns": sentinels}}


def prepare(
    name: str, subject: Subject, workload: Workload, facts: Facts, programs: dict[str, Program]
) -> Reply | None:
    """Prepares a variant from its own copy of the weights; None where it can't be."""
    busy.on(name)
    prepare = subject.fresh()
    start = time.perf_counter()
    try:
        reply = prepare(variant_named(name))
        if workload.device == "cuda":
            torch.cuda.synchronize()
    except UnavailableError as error:
        facts[name] = VariantFacts(skipped=str(error))
        return None
    except Exception as error:
        facts[name] = VariantFacts(failed=f"could not be prepared: {one_line(error)}")
        return None
    prepare_s = time.perf_counter() - start
    programs[name] = program = program_of(reply)
    apart = workload.device == "cuda" and scattered(reply)
    facts[name] = VariantFacts(prepare_s, program.identity, program.kind, scattered=apart)
    return reply


def examine(programs: Mapping[str, Program], workload: Workload, facts: Facts) -> None:
    """Holds the prepared programs against their labels, and against each other."""
    held = programs[BASELINE].dtypes if workload.own_model and BASELINE in programs else frozenset()
    for name, program in programs.items():
        facts[name] = replace(facts[name], invalid=label_fault(name, program, workload, held))
    for name, fault in same_program_faults(programs).items():
        facts[name] = replace(facts[name], invalid=fault)


def take_warm_up(name: str, found: WarmUp, facts: Facts) -> None:
    """Notes how a variant's warm-up went."""
    told = replace(facts[name], failed=found.failed, skipped=found.skipped)
    facts[name] = replace(told, warmup_calls=found.calls, settled=found.calls is not None)


def sizes(launch: Launch, warm: Mapping[Any, WarmUp]) -> tuple[int, int]:
    """(rounds, timed calls of a turn), as asked or by the time that is left; ``warm``: of whatever takes turns."""
    rounds, calls = launch.rounds, launch.calls
    if rounds is None or calls is None:
        rounds, calls = size({name: one.typical_ns for name, one in warm.items()}, launch.seconds, len(warm))
    calls = calls_held(calls, sum(one.answer_bytes for one in warm.values()))
    return orders.up_to_multiple(rounds, len(warm)), calls


def require_baseline(left: Container[str], facts: Mapping[str, VariantFacts]) -> None:
    """Raises RuntimeError where the baseline is not among those left."""
    if BASELINE not in left:
        raise RuntimeError(f"the baseline {BASELINE} {facts[BASELINE].failed or facts[BASELINE].skipped}")


def judge_of(subject: Subject, variants: Sequence[str]) -> Callable[[Mapping[int, list[Any]]], bool]:
    """The subject's ``judged``, by the variants' indices."""
    return lambda given: subject.judged({variants[i]: told for i, told in given.items()})


def take_answers(variants: Sequence[str], answers: Answers, facts: Facts) -> None:
    """Notes which variants broke in the rounds, and what Dynamo looked at."""
    for i, fault in answers.broken.items():
        facts[variants[i]] = replace(facts[variants[i]], failed=fault)
    for i, looked_at in answers.recompiled.items():
        if facts[variants[i]].kind == dynamo.KIND:
            facts[variants[i]] = replace(facts[variants[i]], recompiled=looked_at)
    for i, reason in answers.skipped.items():
        facts[variants[i]] = replace(facts[variants[i]], skipped=reason)


def check_all(
    variants: Sequence[str],
    answers: Mapping[int, list[Any]],
    expected: list[Any],
    subject: Subject,
    shape: tuple[int, int],
    facts: Facts,
) -> None:
    """Compares every variant's answers with those ``expected`` of the baseline."""
    for i, replies in answers.items():
        name = variants[i]
        check = subject.check(name, replies, expected, shape)
        invalid = facts[name].invalid or check.fault
        facts[name] = replace(
            facts[name],
            replies=check.replies,
            identical=check.identical,
            tokens=check.tokens,
            differing=check.differing,
            invalid=invalid,
        )


def invalid(facts: VariantFacts, fault: str) -> VariantFacts:
    """The facts with a fault, unless another was found before."""
    return replace(facts, invalid=facts.invalid or fault)


def probe_all(
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


def tell_tokens(replies: Mapping[str, Reply], asked: tuple[Any, Tensor], workload: Workload, facts: Facts) -> None:
    """When each variant's tokens come, in calls of their own."""
    for name, reply in replies.items():
        if facts[name].invalid is None:
            busy.on(name)
            times = token_times(reply, asked, workload.device)
            if times is not None:
                facts[name] = replace(facts[name], first_token_ms=times.first_ms, further_token_ms=times.further_ms)
    busy.at(None)
