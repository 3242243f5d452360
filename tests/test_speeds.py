"""A station's speeds, held against other ways to read and to multiply in the same run."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from chatbot.config import Config
from chatbot.model import Chatbot
from chatbot.variants import Workload
from ray_jobs.measure import speeds
from ray_jobs.measure.roofline import Speeds, limit_of

pytestmark = pytest.mark.alone

SIZES = (1 << 16, 1 << 20, 1 << 22, 1 << 25)
ALTERNATIONS = 5


@pytest.fixture(scope="module")
def found() -> Speeds:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speeds, "SIZES", SIZES)
        return speeds.measure_speeds("cpu")


def best_s(call: Callable[[], object], seconds: float = 0.1) -> float:
    """The shortest of as many calls as fit, and of ten at least."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    end = time.perf_counter() + seconds
    best = min(once() for _ in range(10))
    while time.perf_counter() < end:
        best = min(best, once())
    return best


def ratio_of_bests(ours: Callable[[], float], others: Callable[[], float]) -> float:
    """Of two rates, by turns: whoever computes here for a while disturbs a turn of both, not the best of one."""
    turns = [(ours(), others()) for _ in range(ALTERNATIONS)]
    return max(our for our, _ in turns) / max(other for _, other in turns)


def rate_of_reading() -> float:
    """GB/s."""
    return speeds._read_curve("cpu")[0][1]


def rate_of_products() -> float:
    """GFLOP/s."""
    return speeds._product_rate(torch.float32, "cpu")


def test_each_size_and_type_is_told(found: Speeds) -> None:
    assert tuple(size for size, _ in found.read) == SIZES
    assert all(rate > 0 for _, rate in found.read)
    assert set(found.gflops) >= {"float32", "bfloat16"}
    assert found.stage_s == 0, "of a GPU alone"


@pytest.mark.parametrize("size", SIZES[1:])
def test_it_reads_as_fast_as_numpy(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A dot product of a vector with itself, which is two thirds as fast where the caches hold it."""
    monkeypatch.setattr(speeds, "SIZES", (size,))
    numbers = np.ones(size // 4, dtype=np.float32)
    assert 0.7 < ratio_of_bests(rate_of_reading, lambda: size / best_s(lambda: np.dot(numbers, numbers)) / 1e9) < 2


def test_its_unit_is_that_of_a_plain_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a vector so long that starting the call does not count, in huge pages as what it is held against."""
    monkeypatch.setattr(speeds, "SIZES", SIZES[-1:])
    numbers = torch.from_numpy(np.ones(SIZES[-1] // 4, dtype=np.float32))
    assert 0.75 < ratio_of_bests(rate_of_reading, lambda: SIZES[-1] / best_s(lambda: numbers.sum()) / 1e9) < 1.33


def test_it_multiplies_as_fast_as_a_width_that_is_tried() -> None:
    """The best of several widths, so not slower than that of 256 (calls of 0.5 ms), and little faster."""
    square = torch.ones((256, 256))
    assert 0.8 < ratio_of_bests(rate_of_products, lambda: 2 * 256**3 / best_s(lambda: square @ square) / 1e9) < 1.6


def test_a_small_working_set_is_read_faster_than_its_calls_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once a call, 64 KiB are mostly the call."""
    monkeypatch.setattr(speeds, "SIZES", SIZES[:1])
    part = torch.ones(SIZES[0] // 4)
    assert ratio_of_bests(rate_of_reading, lambda: SIZES[0] / best_s(lambda: part.sum()) / 1e9) > 1.5


def test_a_type_without_a_product_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "PRODUCTS", {"float32": torch.float32, "bool": torch.bool})
    monkeypatch.setattr(speeds, "PRODUCT_S", 0.001)
    assert "bool" not in speeds._product_rates("cpu")


def test_a_real_reply_takes_no_less_than_its_limit(found: Speeds) -> None:
    """A decoder of a few large matrices, which are read at the memory's speed as far as PyTorch can."""
    config = Config(hidden=512, encoder_layers=1, decoder_layers=2, vocabulary=2000)
    workload = Workload(prompt_tokens=4, reply_tokens=4)
    limit = limit_of(config, workload, "float32", found)
    assert limit is not None
    search, prompts, lengths = Chatbot.random(config).search(), torch.full((1, 4), 5), torch.tensor([4])
    with torch.inference_mode():
        seconds = best_s(lambda: search(prompts, lengths, 4))
    assert limit.ms <= 1.05 * seconds * 1e3
    assert limit.ms > 0.1 * seconds * 1e3, "of matrices this large, reading is most of the work"
