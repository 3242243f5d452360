"""A station's speeds: read bandwidth by the size of the working set, and the rate of matrix products.

The best of many tries counts: a limit rests on what the machine can do, not on what it does when disturbed.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from chatbot.compiler import cpu_flags
from chatbot.variants.tf32 import rounding
from ray_jobs.measure.roofline import Speeds

SIZES = tuple(round(2 ** (16 + half / 2)) for half in range(25))  # 64 KiB to 256 MiB
CALL_BYTES = 1 << 23  # that one call reads: of a small working set many times, so that starting it does not count
READ_S = 0.02  # for each size, twice: a disturbance seldom lasts from one pass to the next
PRODUCT_S = 0.04  # for each size and type
WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
PRODUCTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
GRAPH_READS, GRAPH_PRODUCTS, GRAPH_STAGES = 20, 2, 200  # calls in one CUDA graph
# The most products of bytes in the time of one in float32, by the CPU's flag. Four times as many fit in a vector, and
# no CPU multiplies more vectors of bytes in a cycle than of floats: vpmaddubsw, VNNI's vpdpbusd, NEON's smull and sdot
# (Intel, *Intrinsics Guide*; Arm, *Architecture Reference Manual*). Arm's smmla forms eight times as many products, AMX
# 2,048 operations a cycle where two AVX-512 units do 64 (Intel, *Optimization Reference Manual*, chapter on AMX).
INT8_PRODUCTS = {"amx_int8": 32.0, "i8mm": 8.0}
INT8_PRODUCTS_OF_VECTORS = 4.0

TOLD_APART = 0.1  # of the smallest read's time: a read that takes less than that longer can't be told from it

Stopwatch = Callable[[], float]  # seconds of one call


def measure_speeds(device: str) -> Speeds:
    """Measures for about two seconds, with as many threads as this process has, on a device kind."""
    with torch.inference_mode():
        return Speeds(_read_curve(device), _product_rates(device), _stage_s(device))


def _read_curve(device: str) -> tuple[tuple[int, float], ...]:
    """(bytes, GB/s). A sum reads as fast as anything else in PyTorch, and nearly as fast as a loop of plain loads."""
    memory = _ones(SIZES[-1] // 4, device)
    reads = {size: _reader(memory, size, device) for size in SIZES}
    best = {size: float("inf") for size in SIZES}
    for _ in range(2):
        for size, (watch, _) in reads.items():
            best[size] = min(best[size], _best(watch, READ_S))
    if device == "cuda":
        return slopes(best)
    return tuple((size, read / best[size] / 1e9) for size, (_, read) in reads.items())


def _ones(count: int, device: str) -> Tensor:
    """(count,) floats; on the CPU NumPy's, which asks for huge pages.

    From pages of 4 KiB, PyTorch's, a virtual machine reads 32 MiB half as fast, and nothing keeps a program to them.
    """
    return torch.from_numpy(np.ones(count, dtype=np.float32)).to(device)


def slopes(seconds: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """(bytes, GB/s) from the seconds of each read, the smallest first, without what every read costs on a GPU.

    A sum is two nodes of a graph, since its semaphores are cleared first: about 2 us whatever it reads, as long as a
    megabyte takes. The smallest read stands for that. A read that hardly takes longer tells nothing; it has the rate
    of the next larger one, and the largest of all at least its plain rate.
    """
    (least, start), *_ = seconds.items()
    found: dict[int, float] = {}
    rate = max(size / taken for size, taken in seconds.items())
    for size, taken in reversed(list(seconds.items())):
        if taken > (1 + TOLD_APART) * start:
            rate = (size - least) / (taken - start)
        found[size] = rate / 1e9
    return tuple(sorted(found.items()))


def _reader(memory: Tensor, size: int, device: str) -> tuple[Stopwatch, int]:
    """Returns a reader of the first ``size`` bytes, and the bytes that one call reads. Each thread reads its share.

    On CUDA each block of a repeated read would take another repetition, all at once, so there it is read once.
    """
    threads = torch.get_num_threads() if device == "cpu" else 1
    repeats = max(1, CALL_BYTES // size) if device == "cpu" else 1
    each = size // 4 // threads
    part = memory[: threads * each].view(threads, 1, each).expand(threads, repeats, each)
    return _stopwatch(lambda: part.sum((1, 2)), device, GRAPH_READS), 4 * part.numel()


def _stage_s(device: str) -> float:
    """Seconds of a kernel that does nothing but wait for the one before, in a graph; 0 on a CPU.

    There a stage ends with a barrier of threads, some hundred ns: a thousandth of what the stages of a reply take.
    """
    if device == "cpu":
        return 0.0
    number = torch.zeros(1, device=device)
    return _best(_stopwatch(lambda: number.add_(1), device, GRAPH_STAGES), READ_S)


def _product_rates(device: str) -> dict[str, float]:
    """GFLOP/s by type. That of int8 on a CPU is a bound: PyTorch's own product may be a hundred times slower."""
    rates = {name: _product_rate(dtype, device) for name, dtype in PRODUCTS.items()}
    if device == "cuda":
        with rounding():
            rates["tf32"] = _product_rate(torch.float32, device)
    if device == "cpu":
        rates["int8"] = max(rates.get("int8", 0.0), int8_products(cpu_flags()) * rates["float32"])
    return {name: rate for name, rate in rates.items() if rate}


def int8_products(flags: frozenset[str]) -> float:
    """The most products of bytes that a CPU with these flags forms in the time of one in float32."""
    return max((INT8_PRODUCTS[flag] for flag in flags & set(INT8_PRODUCTS)), default=INT8_PRODUCTS_OF_VECTORS)


def _product_rate(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of square products, as large as one quick call allows; 0 if there are none of this type."""
    rate = 0.0
    for width in WIDTHS:
        flops = 2.0 * width**3
        if rate and flops / rate / 1e9 > PRODUCT_S:
            break
        try:
            seconds = _best(_stopwatch(_product(width, dtype, device), device, GRAPH_PRODUCTS), PRODUCT_S)
        except RuntimeError:
            break
        rate = max(rate, flops / seconds / 1e9)
    return rate


def _product(width: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    square = torch.ones((width, width), dtype=dtype, device=device)
    if dtype == torch.int8:
        return lambda: torch._int_mm(square, square)
    return lambda: square @ square


def _best(watch: Stopwatch, seconds: float) -> float:
    """The shortest of as many calls as fit, and at least two."""
    end = time.perf_counter() + seconds
    best = min(watch(), watch())
    while time.perf_counter() < end:
        best = min(best, watch())
    return best


def _stopwatch(call: Callable[[], Tensor], device: str, calls: int) -> Stopwatch:
    return _on_cuda(call, calls) if device == "cuda" else _on_cpu(call)


def _on_cpu(call: Callable[[], Tensor]) -> Stopwatch:
    def watch() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return watch


def _on_cuda(call: Callable[[], Tensor], calls: int) -> Stopwatch:
    """Device time of a graph of calls: no call waits for Python."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def watch() -> float:
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / calls

    return watch
