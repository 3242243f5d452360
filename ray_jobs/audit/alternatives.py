"""The usual benchmarks, on the same callables: each a function that runs in a fresh pinned process."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import benchmark

from chatbot.variants import BASELINE, CONTROL, Reply, Workload, variant_named
from ray_jobs.measure.rounds import Prompts
from ray_jobs.measure.trial import ChatbotSource
from ray_jobs.process.server import LaunchServer, Request, TrialError

MEAN_OF = 100
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class PeerResult:
    """One comparison of two identical programs by other means."""

    speedup: float | None  # None: the process was lost
    seconds: float | None  # of both timings, their preparation aside


def torch_benchmark(reply: Reply, prompts: Tensor, lengths: Tensor) -> float:
    """The median of PyTorch's own timer, which runs until its interquartile range is below a tenth of the median.

    As it is by default, which for calls of some ms may be as few as four of them. Source:
    https://docs.pytorch.org/docs/stable/benchmark_utils.html, ``adaptive_autorange``.
    """
    given = {"reply": reply, "prompts": prompts, "lengths": lengths}
    timer = benchmark.Timer("reply(prompts, lengths)", globals=given, num_threads=torch.get_num_threads())
    return float(timer.adaptive_autorange().median)


def plain_mean(reply: Reply, prompts: Tensor, lengths: Tensor) -> float:
    """The mean of a hundred calls, without a warm-up, as in the table that this project grew from."""
    start = time.perf_counter()
    for _ in range(MEAN_OF):
        reply(prompts, lengths)
    return (time.perf_counter() - start) / MEAN_OF


PEERS: dict[str, Callable[[Reply, Tensor, Tensor], float]] = {
    "torch_benchmark": torch_benchmark,
    "mean_of_100": plain_mean,
}


def one_after_the_other(
    peer: str, workload: Workload, source: ChatbotSource, pool: NDArray[np.int64], seed: int
) -> PeerResult:
    """Prepares the baseline and its control, times the one, then the other: speedup and the seconds of both."""
    torch.set_grad_enabled(False)
    with torch.inference_mode():
        batch, lengths = Prompts(np.random.default_rng(seed).permutation(pool), workload).next()
        replies = [
            variant_named(name).prepare(source.load().to(workload.device), workload) for name in (BASELINE, CONTROL)
        ]
        start = time.perf_counter()
        first, second = (PEERS[peer](reply, batch, lengths) for reply in replies)
    return PeerResult(first / second, time.perf_counter() - start)


def ask(
    server: LaunchServer,
    peer: str,
    cores: tuple[int, ...],
    workload: Workload,
    source: ChatbotSource,
    pool: NDArray[np.int64],
    seed: int,
) -> PeerResult:
    """Runs a peer in a fresh process pinned as a launch is."""
    work = partial(one_after_the_other, peer, workload, source, pool, seed)
    result = None
    with suppress(TrialError):
        result = server.run(Request(work, cores, workload.threads, TIMEOUT_S))
    return result if isinstance(result, PeerResult) else PeerResult(None, None)
