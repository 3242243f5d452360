"""A GPU's speeds, and that a real reply on it takes no less than its limit. Needs neither Ray nor Arrow."""

import pytest
import torch

from chatbot.config import PRESETS
from chatbot.model import Chatbot
from chatbot.variants import Workload, eager
from ray_jobs.measure.roofline import Speeds, limit_of
from ray_jobs.measure.speeds import SIZES, measure_speeds
from ray_jobs.measure.timing import CudaTimer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def found() -> Speeds:
    return measure_speeds("cuda")


def test_memory_is_read_and_products_are_formed_at_some_rate(found: Speeds) -> None:
    assert tuple(size for size, _ in found.read) == SIZES
    assert all(rate > 0 for _, rate in found.read)
    assert found.peak("bfloat16") > found.gflops["float32"], "tensor cores"


def test_a_kernel_that_only_waits_takes_some_time_but_less_than_one_that_reads(
    found: Speeds,
) -> None:
    largest = SIZES[-1] / found.gb_s(SIZES[-1]) / 1e9
    assert 0 < found.stage_s < largest


def test_a_copy_moves_no_more_than_memory_can_be_read(found: Speeds) -> None:
    """A copy reads and writes each byte; a tenth is left to the difference between reading and writing."""
    source = torch.ones(SIZES[-1] // 4, device="cuda")
    target, first, last = torch.empty_like(source), torch.cuda.Event(True), torch.cuda.Event(True)  # type: ignore[no-untyped-call]
    best = float("inf")
    for _ in range(20):
        first.record()
        target.copy_(source)
        last.record()
        last.synchronize()
        best = min(best, first.elapsed_time(last) / 1e3)
    assert 2 * SIZES[-1] / best / 1e9 <= 1.1 * found.gb_s(SIZES[-1])


def test_an_eager_reply_takes_no_less_than_its_limit(found: Speeds) -> None:
    workload = Workload(device="cuda", model="tutorial")
    limit = limit_of(PRESETS["tutorial"], workload, "float32", found)
    assert limit is not None
    with torch.inference_mode():
        reply = eager.prepare(Chatbot.random(PRESETS["tutorial"]).to("cuda"), workload)
        prompts, lengths, timer = torch.full((1, 8), 5, device="cuda"), torch.tensor([8]), CudaTimer()
        walls = [timer.call(reply, prompts, lengths)[1].wall_ns / 1e6 for _ in range(20)]
    assert limit.ms <= min(walls)
