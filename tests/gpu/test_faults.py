"""Planted mistakes on a real GPU, which a CPU can only stand in for. Needs neither Ray nor Arrow."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatbot.config import PRESETS
from chatbot.model import Chatbot
from chatbot.variants import BASELINE, CONTROL, VARIANTS, Prepare, Reply, Variant, Workload, eager
from chatbot.vocabulary import EOS, FIRST_WORD
from ray_jobs.measure import launch as measure
from ray_jobs.measure.interference import ABSENT
from ray_jobs.measure.result import TIMED, Launch, LaunchResult
from ray_jobs.measure.timing import CudaTimer
from ray_jobs.measure.trial import Preset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
WORKLOAD = Workload(device="cuda", prompt_tokens=4, reply_tokens=5, model="tiny")


def prompts(count: int = 400) -> NDArray[np.int64]:
    words = PRESETS["tiny"].vocabulary - FIRST_WORD
    chosen = np.random.default_rng(0).choice(words**3, count, replace=False, shuffle=False)
    columns = [column + FIRST_WORD for column in np.unravel_index(chosen, (words,) * 3)]
    return np.stack([*columns, np.full(count, EOS)], axis=1)


def launch(*variants: str) -> LaunchResult:
    names = (BASELINE, CONTROL, *variants)
    return measure.measure(WORKLOAD, names, Preset("tiny"), prompts(), Launch(0, 1, rounds=4, calls=2))


def enter(patch: pytest.MonkeyPatch, name: str, prepare: Prepare) -> None:
    patch.setitem(VARIANTS, name, Variant(name, name, prepare, exact=True, kind="eager", control_of=BASELINE))


def test_every_variant_is_sound_on_the_gpu() -> None:
    result = launch("torchscript")
    assert {name: (f.failed, f.invalid) for name, f in result.facts.items()} == dict.fromkeys(
        result.variants, (None, None)
    )
    timed = result.samples.phase == TIMED
    assert (result.samples.device_ns[timed] > 0).all()


def test_a_call_is_timed_to_its_end_though_it_returns_at_once() -> None:
    """A missing synchronisation in a variant can't shorten a sample: the timer synchronises the device itself."""
    a = torch.rand(4096, 4096, device="cuda")

    def returns_at_once(_prompts: Tensor, _lengths: Tensor) -> Tensor:
        for _ in range(20):
            a.matmul(a)
        return _prompts

    timer = CudaTimer()
    batch, lengths = torch.zeros((1, 4), dtype=torch.long, device="cuda"), torch.tensor([4])
    for _ in range(3):
        _, reading = timer.call(returns_at_once, batch, lengths)
    assert reading.device_ns is not None
    assert reading.wall_ns >= 0.95 * reading.device_ns


def test_a_variant_left_on_the_cpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_behind(chatbot: Chatbot, workload: Workload) -> Reply:
        inner = eager.prepare(chatbot.to("cpu"), workload)
        return lambda batch, lengths: inner(batch.cpu(), lengths).to("cuda")

    enter(monkeypatch, "left-behind", left_behind)
    assert "holds weights on cpu" in (launch("left-behind").facts["left-behind"].invalid or "")


def test_an_answer_from_another_stream_that_nobody_waited_for_is_not_taken_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device is synchronised, whichever stream the work is on; then the answer is whole, and its time is too."""

    def on_a_stream_of_its_own(chatbot: Chatbot, workload: Workload) -> Reply:
        inner, stream = eager.prepare(chatbot, workload), torch.cuda.Stream()  # type: ignore[no-untyped-call]

        def reply(batch: Tensor, lengths: Tensor) -> Tensor:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                return inner(batch, lengths)

        return reply

    enter(monkeypatch, "own-stream", on_a_stream_of_its_own)
    facts = launch("own-stream").facts["own-stream"]
    assert (facts.failed, facts.invalid) == (None, None)


def test_rounds_tell_of_the_gpu_where_its_library_is_installed() -> None:
    pytest.importorskip("pynvml")
    watched = launch().interference
    assert watched is not None
    assert (watched.gpu_clock_mhz > 0).all()
    assert (watched.gpu_throttle != ABSENT).all()
