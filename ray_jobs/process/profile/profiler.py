"""One launch that traces: a variant alone in a fresh pinned process, warmed up, then profiled for a few replies."""

import gzip
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from chatbot.variants import Reply, Workload, prepared, variant_named
from chatbot.variants.parts import loop_behind
from ray_jobs.measure.gpu import require_float32
from ray_jobs.measure.rounds import WARMUP_CALLS
from ray_jobs.measure.subject import subject_of
from ray_jobs.measure.timing import timer_for
from ray_jobs.measure.trial import Factory, ModelSource, mode_of
from ray_jobs.process.profile.phases import CALL, REPLY, named, named_parts, networks
from ray_jobs.process.profile.shares import Shares, kind_of, shares_of

REPLIES = 5  # in a trace
VISIBLE = ("eager", "torchscript")  # kinds of program that compute in operators, which a profiler sees
COMPILED = ("Torch-Compiled Region", "## Call CompiledFxGraph")  # how the names of what hides its kernels begin
PRIVATE = ("host_name", "traceName")  # keys of a trace that tell of the machine it was made on


@dataclass(frozen=True)
class Operator:
    """One operator of a trace with all its calls, as ``torch.profiler`` sums them; phases are included."""

    operator: str
    kind: str  # of its own time: kernel, dispatch or interpreter
    calls: int
    self_cpu_us: float
    total_cpu_us: float
    self_device_us: float | None  # None without a device
    self_memory_bytes: int  # taken less given back, on the workload's device


@dataclass(frozen=True)
class Kernel:
    """One kernel, or kind of copy, of a GPU with all its runs; operators hold this time as their own too."""

    kernel: str
    calls: int
    device_us: float


@dataclass(frozen=True)
class Traced:
    """The result of a tracing launch; all but ``variant`` is empty if it ``failed``."""

    variant: str
    content: bytes = b""  # a gzipped Chrome trace
    replies: int = 0
    operators: tuple[Operator, ...] = ()
    shares: Shares | None = None  # None: it computes outside of operators, where a profiler does not look
    untraced_ms: float | None = None  # the median of as many replies, just before
    failed: str | None = None
    kernels: tuple[Kernel, ...] = ()  # none on a CPU


def trace_variant(workload: Workload, variant: str, source: ModelSource, pool: NDArray[np.int64], trial: str) -> Traced:
    """Traces one variant in this process; ``pool`` are prompts (N, T), ``trial`` is written into the trace."""
    require_float32()
    with mode_of(source):
        reply, batches = _subject(workload, variant, source, pool)
        timer = timer_for(workload.device)
        for _ in range(WARMUP_CALLS):
            timer.call(reply, *next(batches))
        readings = [timer.call(reply, *next(batches))[1] for _ in range(REPLIES)]
        phases = _phases(reply, lambda: reply(*next(batches)), workload)
        with profile(activities=_activities(workload)):  # the first one prepares the profiler itself
            _answer(reply, *next(batches), workload)
        recording = profile(activities=_activities(workload), record_shapes=True, profile_memory=True)
        asked = [next(batches) for _ in range(REPLIES)]  # made here: the operators that make them are not the model's
        with phases as phase, recording as profiler:
            for batch in asked:
                with phase():
                    _answer(reply, *batch, workload)
    trace = _exported(profiler)
    trace["otherData"] = {"trial": trial, "variant": variant, **vars(workload), "torch": torch.__version__}
    return Traced(
        variant,
        content=zipped(trace),
        replies=REPLIES,
        operators=_operators(profiler.key_averages(), workload.device),
        shares=_shares(variant, trace["traceEvents"], workload.device),
        untraced_ms=median(reading.wall_ns for reading in readings) / 1e6,
        kernels=_kernels(profiler.key_averages()),
    )


def _subject(
    workload: Workload, variant: str, source: ModelSource, pool: NDArray[np.int64]
) -> tuple[Reply, Iterator[tuple[Any, Tensor]]]:
    """A variant's callable, and what to ask it, for ever."""
    if isinstance(source, Factory):
        subject = subject_of(source, pool, workload)
        return subject.fresh()(variant_named(variant)), iter(subject.questions.next, None)
    return prepared(variant_named(variant), source.load().to(workload.device), workload), _batches(pool, workload)


def _phases(
    reply: Reply, call: Callable[[], object], workload: Workload
) -> AbstractContextManager[Callable[[], AbstractContextManager[None]]]:
    """What names the phases of a call: the chatbot's networks, or the parts that an own model names."""
    if not workload.own_model:
        return named(networks(call, workload.reply_tokens), REPLY)
    loop = loop_behind(reply)
    return named(None, CALL) if loop is None else named_parts(loop, call)


def _answer(reply: Reply, prompts: Any, lengths: Tensor, workload: Workload) -> None:
    reply(prompts, lengths)
    if workload.device == "cuda":
        torch.cuda.synchronize()


def _batches(pool: NDArray[np.int64], workload: Workload) -> Iterator[tuple[Tensor, Tensor]]:
    """(prompts (B, T), lengths (B,)), for ever."""
    rows = np.resize(pool, (max(len(pool) // workload.batch, 1) * workload.batch, pool.shape[1]))
    prompts = torch.from_numpy(np.ascontiguousarray(rows)).to(workload.device)
    lengths = torch.full((workload.batch,), pool.shape[1])
    batches = [batch.clone() for batch in torch.split(prompts, workload.batch)]
    return ((batch, lengths) for batch in itertools.cycle(batches))


def _activities(workload: Workload) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if workload.device == "cuda" else [])]


def _exported(profiler: profile) -> dict[str, Any]:
    """The Chrome trace as plain values, without facts about the machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        content: dict[str, Any] = json.loads(path.read_bytes())
    return {key: value for key, value in content.items() if key not in PRIVATE}


def zipped(trace: Mapping[str, Any]) -> bytes:
    """A trace as the bytes of a ``.json.gz``, the same for the same trace."""
    return gzip.compress(json.dumps(trace, separators=(",", ":"), allow_nan=False).encode(), mtime=0)


def _operators(events: Iterable[Any], device: str) -> tuple[Operator, ...]:
    """The rows of ``key_averages()`` that are of the CPU: what ran on the device is in its operators' device time.

    A phase has the device time of its kernels too, which are its operators'.
    """
    on_device = device == "cuda"
    found = [
        Operator(
            operator=str(one.key),
            kind=kind_of(str(one.key)),
            calls=int(one.count),
            self_cpu_us=float(one.self_cpu_time_total),
            total_cpu_us=float(one.cpu_time_total),
            self_device_us=_device_us(one) if on_device else None,
            self_memory_bytes=int(one.self_device_memory_usage if on_device else one.self_cpu_memory_usage),
        )
        for one in events
        if one.device_type == DeviceType.CPU
    ]
    return tuple(sorted(found, key=lambda one: (-one.self_cpu_us, one.operator)))


def _device_us(one: Any) -> float:
    return 0.0 if one.is_user_annotation else float(one.self_device_time_total)


def _kernels(events: Iterable[Any]) -> tuple[Kernel, ...]:
    """The rows of ``key_averages()`` that are a device's, but for its copies of the phases."""
    rows = [one for one in events if one.device_type != DeviceType.CPU and not one.is_user_annotation]
    found = [Kernel(str(one.key), int(one.count), float(one.self_device_time_total)) for one in rows]
    return tuple(sorted(found, key=lambda one: (-one.device_us, one.kernel)))


def _shares(variant: str, events: Sequence[Mapping[str, Any]], device: str) -> Shares | None:
    hidden = any(str(event.get("name", "")).startswith(COMPILED) for event in events)
    if hidden or variant_named(variant).kind not in VISIBLE:
        return None
    return shares_of(events, device)
