"""Rounds and samples inside one process: what a launch does once it is pinned.

Needs PyTorch and NumPy only. A launch builds every variant anew, warms each, then runs its rounds: each round gives
every variant one turn on the same prompts; a turn is one untimed call, which brings back the caches that the
others emptied, and a few timed ones. No prompt is asked twice of a variant within a launch.
"""

import copy
import gc
import os
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot import checkpoint
from chatbot.model import PRESETS, Chatbot
from chatbot.variants import BASELINE, VARIANTS, Reply, Workload
from ray_jobs import checks, orders, statistics
from ray_jobs.timing import Reading, Timer, timer_for

ROUNDS = 20  # of a launch, rounded up to whole squares; fewer where a call is slow
CALLS = 3  # timed ones of a turn; more where a call is fast
MOST_CALLS = 9
TURN_NS = 5_000_000  # what the timed calls of a fast variant's turn should come to
WARMUP_CALLS = 6  # a profiling JIT settles after its second call; the rest fills the caches


@dataclass(frozen=True)
class Weights:
    """Where a launch takes the model from: a checkpoint's path on this machine, or a preset's random weights."""

    path: str | None = None
    preset: str | None = None

    def chatbot(self) -> Chatbot:
        """A fresh copy on the CPU."""
        if self.path is not None:
            return checkpoint.load(Path(self.path)).chatbot
        assert self.preset is not None
        return Chatbot.random(PRESETS[self.preset], checkpoint.SEED)


@dataclass(frozen=True)
class Launch:
    """Which launch of a trial this is, and what follows from that."""

    index: int
    seed: int  # of the trial; the orders and the prompts follow from it and the index
    rounds: int | None = None  # None: found from the first calls, to last about ``seconds``
    calls: int | None = None
    seconds: float = 12.0  # for the rounds
    attempt: int = 1

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.index])


@dataclass(frozen=True)
class Samples:
    """One array per column, a row per call, in the order in which the calls were made."""

    variant: NDArray[np.int16]  # index into the launch's variants
    phase: NDArray[np.int8]  # index into PHASES
    round: NDArray[np.int32]  # -1 in the warm-up
    position: NDArray[np.int16]  # of the variant's turn in its round; in the warm-up, of its building
    call: NDArray[np.int32]  # within the turn, 0 the untimed one
    start_ns: NDArray[np.int64]  # since the launch's first sample
    wall_ns: NDArray[np.int64]
    device_ns: NDArray[np.int64]  # -1 where the device has no clock of its own
    cpu_ns: NDArray[np.int64]
    involuntary_switches: NDArray[np.int32]


PHASES = ("warmup", "refresh", "timed")
WARMUP, REFRESH, TIMED = range(3)


@dataclass(frozen=True)
class VariantFacts:
    """What a launch found out about one variant."""

    prepare_s: float | None = None
    program: str | None = None  # identity of the timed program
    kind: str | None = None
    replies: int = 0
    identical: int = 0
    failed: str | None = None  # it could not be prepared or run
    invalid: str | None = None  # it is not what its label says, or answers otherwise than it promises


@dataclass(frozen=True)
class LaunchResult:
    """Everything that a launch brings home."""

    launch: Launch
    variants: tuple[str, ...]
    built: tuple[str, ...]  # in this order
    rounds: int
    calls: int
    facts: Mapping[str, VariantFacts]
    samples: Samples
    machine: Mapping[str, Any] = field(default_factory=dict)  # what the process ran on

    def log_speedups(self) -> dict[str, float]:
        """ln(baseline / variant) of each valid variant but the baseline."""
        timed = self.samples.phase == TIMED
        columns = (self.samples.variant[timed], self.samples.round[timed], self.samples.wall_ns[timed])
        turns = statistics.turn_medians(*columns, shape=(self.rounds, len(self.variants)))
        logs = statistics.log_speedups(turns, self.variants.index(BASELINE))
        sound = [f.failed is None and f.invalid is None for f in map(self.facts.__getitem__, self.variants)]
        return {v: float(r) for v, r, ok in zip(self.variants, logs, sound, strict=True) if ok and v != BASELINE}


class _Log:
    """Samples as they come; lists of plain integers, turned into arrays after the last call."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.readings: list[Reading] = []

    def add(self, where: tuple[int, int, int, int, int], reading: Reading) -> None:
        self.rows.append(where)
        self.readings.append(reading)

    def samples(self) -> Samples:
        where = np.array(self.rows, dtype=np.int64).reshape(-1, 5).T
        start, wall, device, cpu, switches = (
            np.array([-1 if value is None else value for value in column], dtype=np.int64)
            for column in (zip(*self.readings, strict=True) if self.readings else ((),) * 5)
        )
        return Samples(
            variant=where[0].astype(np.int16),
            phase=where[1].astype(np.int8),
            round=where[2].astype(np.int32),
            position=where[3].astype(np.int16),
            call=where[4].astype(np.int32),
            start_ns=start - start.min(initial=start[0] if len(start) else 0),
            wall_ns=wall,
            device_ns=device,
            cpu_ns=cpu,
            involuntary_switches=switches.astype(np.int32),
        )


def measure(
    workload: Workload, variants: Sequence[str], weights: Weights, pool: NDArray[np.int64], launch: Launch
) -> LaunchResult:
    """Runs one launch in this process.

    Args:
        workload: what is asked of the variants.
        variants: their names, the baseline among them; indices in the samples refer to this order.
        weights: the model.
        pool: (N, T) distinct prompts; a launch draws its own from them.
        launch: which one this is.
    """
    torch.set_grad_enabled(False)
    rng = launch.rng()
    prompts = Prompts(pool[rng.permutation(len(pool))], workload)
    built = [variants[i] for i in orders.building_order(len(variants), launch.index, launch.seed)]
    facts: dict[str, VariantFacts] = {}
    log = _Log()
    with torch.inference_mode():
        judge = weights.chatbot().to(workload.device)
        replies = _prepare_all(built, judge, workload, facts)
        timer = timer_for(workload.device)
        typical_ns = _warm_up(replies, prompts, timer, log, facts, list(variants))
        rounds, calls = launch.rounds, launch.calls
        if rounds is None or calls is None:
            rounds, calls = size(typical_ns, launch.seconds, len(variants))
        rounds = prompts.most_rounds(orders.up_to_multiple(rounds, len(replies)), calls, len(replies))
        present = [i for i, name in enumerate(variants) if name in replies]
        turns = [[present[i] for i in row] for row in orders.round_orders(len(present), rounds, rng)]
        answers, broken = _run_rounds(turns, calls, [replies.get(name) for name in variants], prompts, timer, log)
        for i, fault in broken.items():
            facts[variants[i]] = replace(facts[variants[i]], failed=fault)
        _require_baseline(answers, variants, facts)
        _check_all(variants, answers, prompts.asked(calls, rounds), judge, workload, facts)
    return LaunchResult(launch, tuple(variants), tuple(built), rounds, calls, facts, log.samples())


def measure_memory(workload: Workload, variant: str, weights: Weights, pool: NDArray[np.int64]) -> float:
    """Peak memory in MB of this process, which prepares one variant alone and asks it a few prompts.

    On the CPU the resident set, Python and PyTorch included; on CUDA what the allocator held.
    """
    with torch.inference_mode():
        prompts = Prompts(pool, workload)
        reply = VARIANTS[variant].prepare(weights.chatbot().to(workload.device), workload)
        for _ in range(WARMUP_CALLS):
            reply(*prompts.next())
    if workload.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


class Prompts:
    """Batches of prompts, none given twice."""

    def __init__(self, pool: NDArray[np.int64], workload: Workload) -> None:
        rows = len(pool) // workload.batch * workload.batch
        if not rows:
            raise ValueError(f"{len(pool)} prompts do not make a batch of {workload.batch}")
        batches = torch.from_numpy(np.ascontiguousarray(pool[:rows])).to(workload.device)
        self._batches = [b.contiguous() for b in torch.split(batches, workload.batch)]
        self._lengths = torch.full((workload.batch,), pool.shape[1])
        self._used = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """(prompts (B, T), lengths (B,)). Raises IndexError when all were given."""
        batch = self._batches[self._used]
        self._used += 1
        return batch, self._lengths

    def most_rounds(self, rounds: int, calls: int, variants: int) -> int:
        """As many whole squares of rounds, up to ``rounds``, as the unused prompts suffice for."""
        possible = (len(self._batches) - self._used) // (1 + calls) // variants * variants
        if not possible:
            raise ValueError(
                f"{len(self._batches)} batches of prompts do not suffice for {variants} rounds of {1 + calls} calls"
            )
        return min(rounds, possible)

    def asked(self, calls: int, rounds: int) -> list[Tensor]:
        """The batches of the timed calls of the last ``rounds``, in order."""
        first = self._used - rounds * (1 + calls)
        return [self._batches[first + r * (1 + calls) + c] for r in range(rounds) for c in range(1, 1 + calls)]


def size(typical_ns: Mapping[str, float], seconds: float, variants: int) -> tuple[int, int]:
    """(rounds, calls) of a launch whose rounds should last about ``seconds``, given each variant's typical call."""
    calls = int(np.clip(TURN_NS / min(typical_ns.values()), CALLS, MOST_CALLS))
    round_s = sum(typical_ns.values()) * (1 + calls) / 1e9
    affordable = int(seconds / round_s) // variants * variants
    return max(variants, min(orders.up_to_multiple(ROUNDS, variants), affordable)), calls


def _prepare_all(
    built: Sequence[str], source: Chatbot, workload: Workload, facts: dict[str, VariantFacts]
) -> dict[str, Reply]:
    """Prepares each variant from its own copy of the weights; what can't be, or is mislabelled, is noted."""
    replies: dict[str, Reply] = {}
    programs: dict[str, checks.Program] = {}
    for name in built:
        own = Chatbot(source.config, copy.deepcopy(source.encoder), copy.deepcopy(source.decoder))
        own.decoder.embedding = own.encoder.embedding  # shared, as deepcopy of each part alone would not keep it
        start = time.perf_counter()
        try:
            replies[name] = VARIANTS[name].prepare(own, workload)
        except Exception as error:
            facts[name] = VariantFacts(failed=f"could not be prepared: {one_line(error)}")
            continue
        prepare_s = time.perf_counter() - start
        programs[name] = program = checks.program_of(replies[name])
        fault = checks.label_fault(name, program, workload)
        facts[name] = VariantFacts(prepare_s, program.identity, program.kind, invalid=fault)
    for name, fault in checks.same_program_faults(programs).items():
        facts[name] = replace(facts[name], invalid=fault)
    return replies


def _warm_up(
    replies: dict[str, Reply],
    prompts: Prompts,
    timer: Timer,
    log: _Log,
    facts: dict[str, VariantFacts],
    variants: list[str],
) -> dict[str, float]:
    """A few calls of each variant on the same prompts; one that raises is noted and dropped. Returns median ns."""
    batches = [prompts.next() for _ in range(WARMUP_CALLS)]
    typical: dict[str, float] = {}
    for place, name in enumerate(list(replies)):
        own = [(batch.clone(), lengths) for batch, lengths in batches]
        walls = []
        try:
            for call, (batch, lengths) in enumerate(own):
                _, reading = timer.call(replies[name], batch, lengths)
                log.add((variants.index(name), WARMUP, -1, place, call), reading)
                walls.append(reading.wall_ns)
            if not all(torch.equal(given, kept) for (given, _), (kept, _) in zip(own, batches, strict=True)):
                raise ValueError("it changes its prompts, which the other variants read after it")
        except Exception as error:
            facts[name] = replace(facts[name], failed=f"could not answer: {one_line(error)}")
            del replies[name]
            continue
        typical[name] = float(np.median(walls[len(walls) // 2 :]))
    _require_baseline([i for i, name in enumerate(variants) if name in replies], variants, facts)
    return typical


def _require_baseline(left: Container[int], variants: Sequence[str], facts: Mapping[str, VariantFacts]) -> None:
    if variants.index(BASELINE) not in left:
        raise RuntimeError(f"the baseline {BASELINE} {facts[BASELINE].failed}")


def _run_rounds(
    turns: list[list[int]], calls: int, replies: list[Reply | None], prompts: Prompts, timer: Timer, log: _Log
) -> tuple[dict[int, list[Tensor]], dict[int, str]]:
    """The measurement. Returns each variant's timed replies in order, and why a variant that raised is left out."""
    answers: dict[int, list[Tensor]] = {i: [] for i, reply in enumerate(replies) if reply is not None}
    broken: dict[int, str] = {}
    gc.collect()
    gc.disable()
    try:
        for number, order in enumerate(turns):
            batches = [prompts.next() for _ in range(1 + calls)]
            for position, i in enumerate(order):
                reply = replies[i]
                if reply is None or i in broken:
                    continue
                try:
                    for call, (batch, lengths) in enumerate(batches):
                        tokens, reading = timer.call(reply, batch, lengths)
                        log.add((i, TIMED if call else REFRESH, number, position, call), reading)
                        if call:
                            answers[i].append(tokens)
                except Exception as error:
                    broken[i] = f"could not answer: {one_line(error)}"
                    del answers[i]
            gc.collect(0)
    finally:
        gc.enable()
    return answers, broken


def _check_all(
    variants: Sequence[str],
    answers: dict[int, list[Tensor]],
    asked: list[Tensor],
    judge: Chatbot,
    workload: Workload,
    facts: dict[str, VariantFacts],
) -> None:
    baseline = answers[variants.index(BASELINE)]
    for i, replies in answers.items():
        name = variants[i]
        check = checks.check_replies(name, replies, baseline, asked, judge, workload)
        invalid = facts[name].invalid or check.fault
        facts[name] = replace(facts[name], replies=check.replies, identical=check.identical, invalid=invalid)


def one_line(error: BaseException) -> str:
    """The kind and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def machine_facts() -> dict[str, Any]:
    """What this process ran on, as it is, not as it was asked for."""
    return {
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
