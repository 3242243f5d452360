"""What a launch on a GPU rests on, held without one: memory layouts, arithmetic, and PyTorch's own sources."""

import copy
from collections.abc import Iterator

import cudnn
import pytest
import torch
from launches import enter, prompts, tiny
from torch import nn

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, CONTROL, Prepare, Reply, Workload, bf16, eager, torchscript
from ray_jobs.measure import launch as measure
from ray_jobs.measure.program import scattered
from ray_jobs.measure.result import Launch, Weights
from ray_jobs.measure.timing import CudaTimer, Reading, floor_ns

WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
TINY = Weights(preset="tiny")


@pytest.fixture
def _laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn.lay_out(monkeypatch)


@pytest.fixture
def _as_torch_is() -> Iterator[None]:
    """Puts back what a launch sets for the life of its process."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


def run() -> None:
    measure.measure(WORKLOAD, (BASELINE, CONTROL), TINY, prompts(200), Launch(0, 1, rounds=2, calls=1))


@pytest.mark.usefixtures("_laid_out")
def test_each_variant_gets_grus_whose_weights_are_in_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying a GRU on the GPU takes its weights apart; then cuDNN copies all of them at each call."""
    bots: list[Chatbot] = []

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        bots.append(chatbot)
        return eager.prepare(chatbot, workload)

    for name in (BASELINE, CONTROL):
        enter(monkeypatch, name, prepare, like=name)
    run()
    assert [cudnn.buffers(part.gru) for bot in bots for part in (bot.encoder, bot.decoder)] == [1] * 4
    assert len({next(part.gru.parameters()).data_ptr() for bot in bots for part in (bot.encoder, bot.decoder)}) == 4


@pytest.mark.usefixtures("_laid_out")
def test_bfloat16_grus_have_their_weights_in_one_buffer_too() -> None:
    bot = tiny()
    reply = bf16.prepare(bot, WORKLOAD)
    assert not scattered(reply)
    alone = bf16.prepare_module(nn.GRU(4, 4), (), WORKLOAD)
    assert cudnn.buffers(alone) == 1
    assert bot.encoder.gru.weight_ih_l0.dtype == torch.float32


@pytest.mark.usefixtures("_laid_out")
@pytest.mark.parametrize("prepare", [eager.prepare, torchscript.prepare])
def test_weights_that_lie_apart_are_noticed_in_modules_and_scripts(prepare: Prepare) -> None:
    bot = tiny()
    assert not scattered(prepare(bot, WORKLOAD))
    apart = copy.deepcopy(bot.encoder)
    assert scattered(prepare(Chatbot(bot.config, apart, bot.decoder), WORKLOAD))


@pytest.mark.usefixtures("_as_torch_is")
@pytest.mark.parametrize("alone", [False, True])
def test_grus_and_products_compute_in_the_same_float32(alone: bool) -> None:
    if alone:
        measure.measure_alone(WORKLOAD, BASELINE, TINY, prompts(20))
    else:
        run()
    assert torch.backends.cudnn.rnn.fp32_precision != "tf32"  # type: ignore[attr-defined]
    assert measure.machine_facts()["tf32"] is False


@pytest.mark.usefixtures("_as_torch_is")
def test_a_models_own_tf32_is_told() -> None:
    assert measure.machine_facts()["tf32"] is True


class FakeDevice:
    """Stands in for ``torch.cuda``: tells what was asked of it, in order; an event is a ms of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        device = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.at = 0.0

            def record(self) -> None:
                device.asked.append("record")
                self.at = len(device.asked)

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

            def synchronize(self) -> None:
                device.asked.append("wait")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.asked.append("synchronize"))

    def clock(self) -> int:
        self.asked.append("clock")
        return len(self.asked)


def test_a_sample_on_a_gpu_holds_the_call_its_last_event_and_a_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch)
    timer = CudaTimer(device.clock)

    def reply(prompts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        device.asked.append("call")
        return prompts

    _, reading = timer.call(reply, torch.empty(0), torch.empty(0))
    assert device.asked == ["synchronize", "record", "clock", "call", "record", "synchronize", "clock"]
    assert (reading.wall_ns, reading.device_ns) == (4, 3_000_000)


def test_what_timing_adds_is_the_median_of_calls_that_do_nothing() -> None:
    walls = iter([9, *range(50)])

    class Slow(CudaTimer):
        def __init__(self) -> None: ...

        def call(self, reply: Reply, prompts: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Reading]:
            return reply(prompts, lengths), Reading(0, next(walls), None, 0, 0)

    assert floor_ns(Slow()) == 24
