"""Every entry of the table on a real GPU: same replies, its kind, its memory. Needs neither Ray nor Arrow."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chatbot.config import Config
from chatbot.model import Chatbot
from chatbot.variants import VARIANTS, Reply, UnavailableError, Workload, prepared, prepared_module, torchscript
from chatbot.vocabulary import EOS, FIRST_WORD, PAD
from ray_jobs.measure import gpu, launch
from ray_jobs.measure.program import label_fault, probe_fault, program_of, scattered
from ray_jobs.measure.timing import CudaTimer
from ray_jobs.measure.trial import Preset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIG = Config(hidden=64, vocabulary=200)
WORKLOAD = Workload(device="cuda", batch=4, prompt_tokens=6, reply_tokens=7)
ON_CUDA = [name for name, variant in VARIANTS.items() if "cuda" in variant.devices]
GRAPHS = ["cuda-graph", "triton-graph", "compile-cudagraph"]
ONE_SHAPE = [*GRAPHS, "persistent"]


@pytest.fixture(scope="module")
def bot() -> Chatbot:
    """On the GPU, with each GRU's weights in one buffer; moved there as every variant's copy is."""
    gpu.require_float32()
    return Chatbot.random(CONFIG).to("cuda")


def ragged(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four prompts of 6, 2, 5 and 6 tokens, and their lengths."""
    prompts = torch.randint(FIRST_WORD, CONFIG.vocabulary, (4, 6), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([6, 2, 5, 6])
    for row, length in enumerate(lengths.tolist()):
        prompts[row, length - 1] = EOS
        prompts[row, length:] = PAD
    return prompts.to("cuda"), lengths


def reply_of(name: str, bot: Chatbot, workload: Workload = WORKLOAD) -> Reply:
    own = Chatbot.random(CONFIG).to("cuda")  # the same weights: a copy made on the GPU would lie apart
    with torch.inference_mode():
        try:
            reply = prepared(VARIANTS[name], own, workload)
        except UnavailableError as error:
            pytest.skip(str(error))

    def answer(prompts: Tensor, lengths: Tensor) -> Tensor:
        with torch.inference_mode():
            return reply(prompts, lengths)

    return answer


@pytest.mark.parametrize("name", [name for name in ON_CUDA if VARIANTS[name].exact])
def test_an_exact_variant_gives_the_baselines_replies_to_ragged_prompts(name: str, bot: Chatbot) -> None:
    reply = reply_of(name, bot)
    for seed in range(3):
        prompts, lengths = ragged(seed)
        with torch.inference_mode():
            expected = bot.search()(prompts, lengths, 7)[0]
        assert torch.equal(reply(prompts, lengths), expected)


@pytest.mark.parametrize("name", ON_CUDA)
def test_the_timed_program_is_what_its_entry_says(name: str, bot: Chatbot) -> None:
    reply = reply_of(name, bot)
    reply(*ragged())
    program = program_of(reply)
    assert label_fault(name, program, WORKLOAD) is None
    assert program.devices == {"cuda"}
    if VARIANTS[name].kind != "inductor":  # a hook of ours would make it compile anew
        assert probe_fault(reply, *ragged(), program.kind) is None


@pytest.mark.parametrize("name", ["eager", "torchscript", "bf16"])
def test_a_grus_weights_are_in_one_buffer(name: str, bot: Chatbot) -> None:
    assert not scattered(reply_of(name, bot))


@pytest.mark.parametrize("name", ONE_SHAPE)
def test_a_replayed_answer_is_not_overwritten_by_the_next(name: str, bot: Chatbot) -> None:
    reply = reply_of(name, bot)
    first = reply(*ragged(1))
    kept = first.clone()
    reply(*ragged(2))
    torch.cuda.synchronize()
    assert torch.equal(first, kept)


@pytest.mark.parametrize("name", ONE_SHAPE)
def test_a_graph_takes_no_other_shape_than_it_was_captured_for(name: str, bot: Chatbot) -> None:
    reply = reply_of(name, bot)
    with pytest.raises(ValueError, match="compiled for 4 prompts of 6 tokens"):
        reply(torch.full((1, 6), EOS, device="cuda"), torch.tensor([6]))


@pytest.mark.parametrize("name", ONE_SHAPE)
def test_a_graph_allocates_nothing_but_its_answer_once_it_is_captured(name: str, bot: Chatbot) -> None:
    reply, batch = reply_of(name, bot), ragged()
    for _ in range(3):
        reply(*batch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        reply(*batch)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before <= 4096


def test_a_graph_launches_less_from_python_than_the_modules_do(bot: Chatbot) -> None:
    """Device time within wall time: what is left over is what Python takes to launch kernels."""
    timer, batch = CudaTimer(), ragged()

    def wall_ns(name: str) -> float:
        reply = reply_of(name, bot)
        readings = [timer.call(reply, *batch)[1] for _ in range(20)][10:]
        assert all(r.device_ns is not None and 0 < r.device_ns <= 1.05 * r.wall_ns for r in readings)
        return float(np.median([r.wall_ns for r in readings]))

    assert wall_ns("cuda-graph") < wall_ns("eager")


def test_the_events_of_the_timer_enclose_the_work_of_a_call() -> None:
    a = torch.rand(4096, 4096, device="cuda")

    def works(times: int) -> Reply:
        def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
            for _ in range(times):
                a.matmul(a)
            return prompts

        return reply

    timer, batch = CudaTimer(), ragged()
    short, long = ([timer.call(works(n), *batch)[1].device_ns or 0 for _ in range(5)][-1] for n in (5, 20))
    assert 2 * short < long


def test_a_trace_is_bound_to_the_device_that_it_was_made_on(bot: Chatbot) -> None:
    """The GRU's first state is baked in: a search that was traced on the CPU can't follow its weights to the GPU."""
    on_cpu = torchscript.script(bot.copy().to("cpu"), "cpu")
    prompts, lengths = ragged()
    with torch.inference_mode(), pytest.raises(RuntimeError):
        on_cpu.to("cuda")(prompts, lengths, 3)
    with torch.inference_mode():
        traced = torchscript.script(bot, "cuda")(prompts, lengths, 7)[0]
        assert torch.equal(traced, bot.search()(prompts, lengths, 7)[0])


def test_peak_memory_holds_the_weights_and_is_of_the_gpu() -> None:
    words = Config(hidden=16, encoder_layers=1, decoder_layers=1, vocabulary=50).vocabulary  # the tiny preset
    pool: NDArray[np.int64] = np.random.default_rng(0).integers(FIRST_WORD, words, (100, 6))
    workload = Workload(device="cuda", prompt_tokens=6, reply_tokens=3, model="tiny")
    torch.cuda.reset_peak_memory_stats()
    alone = launch.measure_alone(workload, "eager", Preset("tiny"), pool, compared=10)
    assert 0 < alone.peak_mb < 1000
    assert alone.tokens is not None
    assert alone.tokens.shape == (10, 3)


class ReadsBack(nn.Module):
    """Branches on a value, which a capture forbids."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Scores(nn.Module):
    """A model of one's own: scores, and the place of the best in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.net(x)
        return {"scores": scores, "best": scores.argmax(-1)}


@pytest.mark.parametrize("name", ["cuda-graph", "compile-cudagraph"])
def test_a_graph_of_any_module_answers_as_it_does_and_is_not_overwritten(name: str) -> None:
    gpu.require_float32()
    workload, model = Workload(device="cuda", batch=4, model="own:factory"), Scores().eval().to("cuda")
    inputs = [(torch.rand(4, 32, device="cuda"),) for _ in range(3)]
    with torch.inference_mode():
        expected = [model(*one) for one in inputs]
        try:
            reply: Any = prepared_module(VARIANTS[name], copy.deepcopy(model), inputs[0], workload)
        except UnavailableError as error:
            pytest.skip(str(error))
        answers = [reply(one, torch.zeros(0)) for one in inputs]
        torch.cuda.synchronize()
        for answer, wanted in zip(answers, expected, strict=True):
            assert torch.allclose(answer["scores"], wanted["scores"], atol=1e-5)
            assert torch.equal(answer["best"], wanted["best"])
        program = program_of(reply)
        assert label_fault(name, program, workload) is None
        if name == "cuda-graph":
            assert probe_fault(reply, inputs[0], torch.zeros(0), program.kind) is None


def test_a_model_that_no_graph_takes_is_skipped_and_leaves_the_gpu_usable() -> None:
    workload, inputs = Workload(device="cuda", batch=4, model="own:factory"), (torch.rand(4, 32, device="cuda"),)
    with torch.inference_mode():
        with pytest.raises(UnavailableError, match="a CUDA graph can't take this model"):
            prepared_module(VARIANTS["cuda-graph"], ReadsBack(), inputs, workload)
        later: Any = prepared_module(VARIANTS["cuda-graph"], nn.ReLU(), inputs, workload)
        assert torch.equal(later(inputs, torch.zeros(0)), inputs[0])


def test_what_stops_at_the_end_is_skipped_where_a_graph_can_not(bot: Chatbot) -> None:
    stopping = Workload(device="cuda", batch=4, prompt_tokens=6, reply_tokens=7, stop_at_eos=True)
    with pytest.raises(UnavailableError, match="can't stop"):
        prepared(VARIANTS["cuda-graph"], bot, stopping)


@pytest.mark.parametrize("attention", ["dot", "general"])
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_the_persistent_kernel_gives_eagers_replies_to_batches_of_any_size(batch: int, attention: str) -> None:
    """Many in a row on all multiprocessors: a barrier that lets one through too early answers wrong, or hangs."""
    gpu.require_float32()
    sizes = Config(hidden=100, vocabulary=500, attention=attention)
    own, workload = (
        Chatbot.random(sizes).to("cuda"),
        Workload(device="cuda", batch=batch, prompt_tokens=6, reply_tokens=7),
    )
    with torch.inference_mode():
        try:
            reply = prepared(VARIANTS["persistent"], own, workload)
        except UnavailableError as error:
            pytest.skip(str(error))
        for seed in range(20):
            draw = torch.Generator().manual_seed(seed)
            prompts = torch.randint(FIRST_WORD, sizes.vocabulary, (batch, 6), generator=draw)
            prompts[:, -1] = EOS
            expected = own.search()(prompts.to("cuda"), torch.full((batch,), 6), 7)[0]
            assert torch.equal(reply(prompts.to("cuda"), torch.full((batch,), 6)), expected)


def test_the_persistent_kernel_keeps_the_tutorials_weights_where_they_find_room() -> None:
    gpu.require_float32()
    own = Chatbot.random(Config()).to("cuda")
    workload = Workload(device="cuda")
    prompts = torch.randint(FIRST_WORD, 7836, (1, 8), generator=torch.Generator().manual_seed(0)).to("cuda")
    with torch.inference_mode():
        try:
            reply = prepared(VARIANTS["persistent"], own, workload)
        except UnavailableError as error:
            pytest.skip(str(error))
        expected = own.search()(prompts, torch.tensor([8]), 10)[0]
        assert torch.equal(reply(prompts, torch.tensor([8])), expected)


def test_the_persistent_kernel_ends_a_call_when_every_reply_has(bot: Chatbot) -> None:
    workload = Workload(device="cuda", batch=4, prompt_tokens=6, reply_tokens=7, stop_at_eos=True)
    own = Chatbot.random(CONFIG).to("cuda")
    with torch.inference_mode():
        own.decoder.out.bias[EOS] = 1000.0
        try:
            reply = prepared(VARIANTS["persistent"], own, workload)
        except UnavailableError as error:
            pytest.skip(str(error))
        assert reply(*ragged()).tolist() == [[EOS] + [PAD] * 6] * 4
