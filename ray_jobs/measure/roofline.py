"""The least time of a reply: the bytes it must read and the FLOPs it must do, at the station's own speeds.

The roofline model (Williams, Waterman and Patterson, *Roofline: an insightful visual performance model for multicore
architectures*, CACM 52(4), 2009), phase by phase: a phase lasts at least as long as its slowest resource needs, or as
its stages need to follow each other. A step waits for the one before, so phases add up. docs/method.md, "The limit",
says what is counted and what is not.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np

from chatbot.config import Config
from chatbot.variants import Workload, variant_named

UNKNOWN = "unknown"  # the kind of a program that can't be looked into
# Of the latency. The usual kernels run at half of the limit's speeds (a matrix-vector product of PyTorch reads at half
# of the bandwidth): below a quarter, even at that speed, most of the time is spent on something else.
EXPLAINED = 0.25
DISTURBED = "bound unknown: the machine was disturbed, and waiting for it looks like overhead"
BEYOND = 1.05  # of the limit, above which it was not one


class Bound(StrEnum):
    """The resource that limits a program."""

    MEMORY = "memory"
    COMPUTE = "compute"
    LATENCY = "latency"  # of stages that wait for each other
    OVERHEAD = "overhead"


@dataclass(frozen=True)
class Precision:
    """The bytes of a program's numbers in memory, and the type it multiplies in."""

    weight: int  # an element of a matrix
    scale: int  # for each row of a matrix
    other: int  # an element of a bias, an embedding or a state
    product: str  # the type whose peak rate counts

    def matrix(self, rows: int, columns: int) -> int:
        """Bytes of a matrix."""
        return rows * (columns * self.weight + self.scale)

    def vector(self, count: int) -> int:
        """Bytes of anything but a weight matrix."""
        return count * self.other


PRECISIONS = {
    "float32": Precision(4, 0, 4, "float32"),
    "bfloat16": Precision(2, 0, 2, "bfloat16"),
    "float16": Precision(2, 0, 2, "float16"),
    "int16": Precision(2, 4, 4, "float32"),
    "int8": Precision(1, 4, 4, "int8"),
    "qint8": Precision(1, 4, 4, "int8"),
}


@dataclass(frozen=True)
class Read:
    """Bytes read, and the size of the working set that they are reread from, which decides the cache they come from."""

    size: int
    working_set: int


@dataclass(frozen=True)
class Phase:
    """A part of a reply that waits for the previous one."""

    times: int
    reads: tuple[Read, ...]  # at the same time
    flops: int  # a multiplication and an addition are two
    stages: int = 0  # at least, each of which needs all that the one before has computed


PhasesIn = Callable[[Precision], tuple[Phase, ...]]  # a call in some precision


@dataclass(frozen=True)
class Speeds:
    """The measured speeds of a station with the threads of a trial."""

    read: tuple[tuple[int, float], ...]  # (bytes of a working set, GB/s), growing
    gflops: Mapping[str, float]  # of large matrix products, by their type; of int8 on a CPU a bound
    stage_s: float = 0.0  # of a stage that does nothing but wait for the one before; 0: not worth counting

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Speeds":
        """From a record that ``dataclasses.asdict`` and JSON made."""
        read = tuple((int(size), float(rate)) for size, rate in record["read"])
        return cls(read, dict(record["gflops"]), float(record.get("stage_s", 0.0)))

    def gb_s(self, working_set: float) -> float:
        """Read bandwidth, interpolated between sizes over the logarithm, constant beyond them.

        A smaller working set is read at least as fast as a larger one, which corrects values measured too low.
        """
        sizes, rates = np.array(self.read).T
        rates = np.maximum.accumulate(rates[::-1])[::-1]
        return float(np.interp(np.log(working_set), np.log(sizes), rates))

    def seconds(self, read: "Read") -> float:
        """The least time of reading: any part may stay in the caches that hold it, while the rest is read past them."""
        rounds = max(1.0, read.size / read.working_set)
        each = read.size / rounds
        kept = [0.0, *(size for size, _ in self.read if size < each), each]
        rest = self.gb_s(read.working_set)
        return 1e-9 * rounds * min(part / self.gb_s(part or 1) + (each - part) / rest for part in kept)

    def peak(self, product: str) -> float:
        """GFLOP/s in a type; narrow weights can be multiplied in float32 too."""
        return max(self.gflops.get(product, 0.0), self.gflops["float32"])


@dataclass(frozen=True)
class Limit:
    """The least time of a call (a batch of replies)."""

    ms: float
    memory_ms: float  # if sums took no time
    compute_ms: float  # if reading took no time
    moved_mb: float
    gflop: float
    int8_share: float  # of the bytes, that int8 weights would move
    stages: int = 0
    latency_ms: float = 0.0  # if stages did nothing but wait for each other


def phases_of(config: Config, workload: Workload, precision: Precision) -> tuple[Phase, ...]:
    """The encoder, the decoder's first step, and its others."""
    encoder, again = _encoder(config, workload, precision)
    before, each = _attention(config, workload, precision)
    once, step = encoder + before, _decoder(config, workload, precision) + each
    whole = once.size + step.size
    # A layer's state at a position needs the whole of the one before; a step's layers, concat and out need each other.
    # What every block of a kernel can compute for itself, attention and the likeliest token, is no stage.
    positions, each_step = config.encoder_layers * workload.prompt_tokens, config.decoder_layers + 2
    return (
        Phase(1, (Read(once.size, whole), again), once.flops, positions),
        Phase(1, (Read(step.size, whole),), step.flops, each_step),  # the encoder has emptied the caches
        Phase(workload.reply_tokens - 1, (Read(step.size, step.size),), step.flops, each_step),
    )


@dataclass(frozen=True)
class _Count:
    """Bytes that are read, and FLOPs."""

    size: int
    flops: int

    def __add__(self, other: "_Count") -> "_Count":
        return _Count(self.size + other.size, self.flops + other.flops)


def _encoder(config: Config, workload: Workload, precision: Precision) -> tuple[_Count, Read]:
    """The first reads, and the repeated reads.

    In each layer two directions of W_ih (3H, H), in upper layers (3H, 2H), and of W_hh (3H, H), each with a bias (3H).
    W_ih meets all T positions at once; W_hh waits for the state (B, H), and is read again at each of the other T - 1.
    """
    wide, positions = config.hidden, workload.prompt_tokens * workload.batch  # H, T x B
    widths = [wide] + [2 * wide] * (config.encoder_layers - 1)
    recurrent = precision.matrix(3 * wide, wide) + precision.vector(3 * wide)
    size = sum(2 * (precision.matrix(3 * wide, width) + precision.vector(3 * wide) + recurrent) for width in widths)
    size += precision.vector(positions * wide)  # embedding rows
    flops = sum(2 * 2 * positions * 3 * wide * (width + wide) for width in widths)
    steps = 2 * config.encoder_layers * (workload.prompt_tokens - 1)
    return _Count(size, flops), Read(steps * recurrent, recurrent)


def _decoder(config: Config, workload: Workload, precision: Precision) -> _Count:
    """A step without its attention: W_ih and W_hh (3H, H) of each layer, concat (H, 2H), out (V, H), each with a bias.

    In addition the embedding's row and a state of each layer, (B, H) each.
    """
    wide, words, layers, batch = config.hidden, config.vocabulary, config.decoder_layers, workload.batch
    size = layers * 2 * (precision.matrix(3 * wide, wide) + precision.vector(3 * wide))
    size += precision.matrix(wide, 2 * wide) + precision.vector(wide)
    size += precision.matrix(words, wide) + precision.vector(words)
    size += precision.vector((1 + layers) * batch * wide)
    return _Count(size, 2 * batch * wide * (layers * 2 * 3 * wide + 2 * wide + words))


def _attention(config: Config, workload: Workload, precision: Precision) -> tuple[_Count, _Count]:
    """Once per reply, and per step: energies and context are products of a state (B, H) or a weight with (T, B, H).

    ``general`` and ``concat`` have a matrix (H, H) for the encoder's outputs (T, B, H), which does not depend on the
    step. ``concat`` has another for the decoder's state, and v (H,).
    """
    wide, batch, positions = config.hidden, workload.batch, workload.prompt_tokens * workload.batch
    outputs = precision.vector(positions * wide)
    before, each = _Count(0, 0), _Count(outputs, 2 * 2 * positions * wide)
    if config.attention != "dot":
        before += _Count(precision.matrix(wide, wide), 2 * positions * wide * wide)
        each += _Count(outputs, 0)  # what the matrix has made of them
    if config.attention == "general":
        before += _Count(precision.vector(wide), 0)
    if config.attention == "concat":
        each += _Count(precision.matrix(wide, wide) + 2 * precision.vector(wide), 2 * batch * wide * wide)
    return before, each


def moved_bytes(phases: Iterable[Phase]) -> int:
    """All bytes read."""
    return sum(phase.times * read.size for phase in phases for read in phase.reads)


def _precision(dtype: str) -> Precision | None:
    """The narrowest type of a label with several: if all weights had it, the limit would still hold."""
    known = [PRECISIONS.get(name) for name in dtype.split("+")]
    if any(precision is None for precision in known):
        return None
    return min((precision for precision in known if precision is not None), key=lambda precision: precision.weight)


def limit_of(config: Config, workload: Workload, dtype: str, speeds: Speeds) -> Limit | None:
    """The limit of the chatbot with weights of this type; None for an unknown type.

    It is also None if replies may stop early: the number of steps is not known in advance.
    """
    return None if workload.stop_at_eos else limit(partial(phases_of, config, workload), dtype, speeds)


def limit(phases_in: PhasesIn, dtype: str, speeds: Speeds, product: str | None = None) -> Limit | None:
    """The limit of a program with weights of this type; None for an unknown type.

    ``product`` is the type it multiplies in, where the weights' does not tell; None too where its rate is not known.
    """
    precision = _precision(dtype)
    if precision is None or (product is not None and product not in speeds.gflops):
        return None
    phases = phases_in(precision)
    peak = speeds.peak(product or precision.product)
    memory = [1e3 * max(map(speeds.seconds, phase.reads)) for phase in phases]  # ms
    compute = [1e-6 * phase.flops / peak for phase in phases]
    latency = [1e3 * phase.stages * speeds.stage_s for phase in phases]
    times = [phase.times for phase in phases]
    moved = moved_bytes(phases)
    return Limit(
        ms=sum(n * max(needed) for n, *needed in zip(times, memory, compute, latency, strict=True)),
        memory_ms=sum(n * ms for n, ms in zip(times, memory, strict=True)),
        compute_ms=sum(n * ms for n, ms in zip(times, compute, strict=True)),
        moved_mb=moved / 1e6,
        gflop=sum(phase.times * phase.flops for phase in phases) / 1e9,
        int8_share=moved_bytes(phases_in(PRECISIONS["int8"])) / moved,
        stages=sum(phase.times * phase.stages for phase in phases),
        latency_ms=sum(n * ms for n, ms in zip(times, latency, strict=True)),
    )


def limits_of(config: Config, workload: Workload, variants: Iterable[str], speeds: Speeds) -> dict[str, Limit]:
    """The limits of the variants whose program is known to be the chatbot's, in a known precision."""
    return {} if workload.stop_at_eos else limits(partial(phases_of, config, workload), variants, speeds)


def limits(phases_in: PhasesIn, variants: Iterable[str], speeds: Speeds) -> dict[str, Limit]:
    """The limits of the variants whose program is known to do what ``phases_in`` counts, in a known precision."""
    entries = [variant_named(name) for name in variants]
    programs = [entry for entry in entries if entry.kind != UNKNOWN]
    known = {entry.name: limit(phases_in, entry.dtype, speeds, entry.product) for entry in programs}
    return {name: found for name, found in known.items() if found is not None}


def columns(
    limit: Limit | None, p50_ms: float | None, batch: int, disturbed: bool = False, own_model: bool = False
) -> dict[str, Any]:
    """The columns of a row about the limit; empty if there is none, or nothing was measured.

    On a ``disturbed`` machine a latency is too long, so what explains a quarter of it explains even more of the
    program's own time; but what looks like overhead may be other processes.
    """
    if limit is None or p50_ms is None:
        return {}
    share, replies = limit.ms / p50_ms, "reply" if batch == 1 else f"{batch} replies"
    told = {"limit_ms": limit.ms, "of_limit": share, "moved_mb": limit.moved_mb}
    bound = bound_of(limit, share)
    if disturbed and bound == Bound.OVERHEAD:
        return {**told, "bound_why": DISTURBED}
    return {**told, "bound": bound, "bound_why": _why(limit, bound, p50_ms, "call" if own_model else replies)}


def bound_of(limit: Limit, share: float) -> Bound:
    """The bound of a program that reaches this share of its limit: the resource that needs longest, if it explains
    a quarter of the latency; else overhead (dispatch, conversions, kernels that are far from the machine's speed).
    """
    if share < EXPLAINED:
        return Bound.OVERHEAD
    needed = {
        Bound.MEMORY: limit.memory_ms,
        Bound.COMPUTE: limit.compute_ms,
        Bound.LATENCY: limit.latency_ms,
    }
    return max(needed, key=needed.__getitem__)


def _why(limit: Limit, bound: Bound, p50_ms: float, replies: str) -> str:
    moved, sums = _size(limit.moved_mb), f"{limit.gflop:.2g} GFLOP"
    spent = f"of {p50_ms:.3g} ms"
    if bound == Bound.OVERHEAD:
        return (
            f"overhead-bound: {moved} and {sums} per {replies} need {limit.ms:.3g} {spent}; "
            "the rest is call overhead, or kernels below the hardware's speed"
        )
    if bound == Bound.COMPUTE:
        rate = limit.gflop / limit.compute_ms * 1e3
        return f"compute-bound: {sums} per {replies} at {rate:.0f} GFLOP/s take {limit.compute_ms:.3g} {spent}"
    if bound == Bound.LATENCY:
        each_us = 1e3 * limit.latency_ms / limit.stages
        return (
            f"latency-bound: {limit.stages} stages per {replies} that wait for each other, {each_us:.2g} us each, take "
            f"{limit.latency_ms:.3g} {spent}; a larger batch costs them no time"
        )
    rate = limit.moved_mb / limit.memory_ms
    smaller = f", int8 would move {_fraction(limit.int8_share)}" if limit.int8_share < 0.95 else ""
    return (
        f"memory-bound: {moved} per {replies} at {rate:.0f} GB/s take {limit.memory_ms:.3g} {spent}; "
        f"scripting can't reduce that{smaller}"
    )


def _size(mb: float) -> str:
    return f"{mb / 1e3:.2f} GB" if mb >= 100 else f"{mb:.3g} MB"


def _fraction(share: float) -> str:
    names = {"a quarter": 0.25, "half": 0.5}
    return next((name for name, value in names.items() if abs(share / value - 1) < 0.1), f"{share:.0%}")


def warning(of_limit: float | None) -> str | None:
    """A sentence if a latency is below its assumed limit."""
    if of_limit is None or of_limit <= BEYOND:
        return None
    return (
        f"faster than its theoretical limit ({of_limit:.0%}): the station's speed was measured too low while something "
        "else was using the machine, or it computes less than the model says, or it keeps weights where they are "
        "computed with, which the limit reads from a cache anew; measure again on a quiet machine"
    )
