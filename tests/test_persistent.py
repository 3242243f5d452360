"""The persistent kernel on an emulated GPU, its plan of shared memory, its driver, and its machine code by NVRTC."""

import ctypes
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulated
import pytest
import torch
from emulated import CARD, THREADS, Emulated
from launches import tiny
from test_fused import ragged
from test_native import VOCABULARY, lively
from test_native import ragged as of_lengths
from test_triton import tied
from torch import Tensor

from chatbot import cache, checkpoint, compiler
from chatbot.config import PRESETS, Config
from chatbot.model import Chatbot
from chatbot.persistent import build, driver, nvrtc
from chatbot.persistent.engine import Engine, Task
from chatbot.persistent.plan import Card, DoesNotFitError, plan
from chatbot.variants import VARIANTS, UnavailableError, Workload, persistent, prepared
from chatbot.vocabulary import EOS, FIRST_WORD, PAD
from ray_jobs.measure.program import label_fault, probe_fault, program_of
from ray_jobs.measure.replies import check_replies

COMPILES = any(map(shutil.which, compiler.COMPILERS))
needs_compiler = pytest.mark.skipif(not COMPILES, reason=f"no C++ compiler: none of {', '.join(compiler.COMPILERS)}")
H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), multiprocessors=132, shared_bytes=227 * 1024)
H100_PLAN = plan(Config(), 1, 8, H100)
A100 = Card("NVIDIA A100-SXM4-80GB", (8, 0), multiprocessors=108, shared_bytes=163 * 1024)


def same(bot: Chatbot, prompts: Tensor, lengths: Tensor, steps: int = 10, **how: Any) -> int:
    """Asserts that the kernel's replies are eager's, but for ties within the arithmetic's noise; how many are equal."""
    replies = emulated.replies(bot, prompts, steps, **how)
    expected = bot.search()(prompts, lengths, steps)[0]
    differing = (replies != expected).any(1).nonzero().flatten().tolist()
    for row in differing:  # alone: the judge of ties takes a prompt without padding
        size, one = int(lengths[row]), slice(row, row + 1)
        workload = Workload(prompt_tokens=size, reply_tokens=steps)
        check = check_replies("native", [replies[one]], [expected[one]], [prompts[one, :size]], bot, workload)
        assert check.fault is None, check.fault
    return len(prompts) - len(differing)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As a launch runs."""
    with torch.no_grad():
        yield


# Replies


@needs_compiler
@pytest.mark.process
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("config", "batch", "card"),
    [
        (Config(hidden=32, vocabulary=VOCABULARY), 1, CARD),
        (Config(hidden=32, vocabulary=VOCABULARY, attention="general"), 6, CARD),
        (Config(hidden=30, encoder_layers=3, decoder_layers=1, vocabulary=VOCABULARY), 2, CARD),
        (
            Config(hidden=9, encoder_layers=1, decoder_layers=1, vocabulary=VOCABULARY),
            3,
            replace(CARD, multiprocessors=30),
        ),
        (
            Config(hidden=33, encoder_layers=2, decoder_layers=4, vocabulary=VOCABULARY),
            5,
            replace(CARD, multiprocessors=1),
        ),
    ],
)
def test_its_replies_are_eagers_whatever_the_sizes(config: Config, batch: int, card: Card, backwards: bool) -> None:
    """Backwards, what one block, warp or thread needs of another is there only if a barrier comes between."""
    bot = lively(config, seed=3)
    for seed in range(3):
        same(bot, *ragged(batch, 6, VOCABULARY, seed), card=card, backwards=backwards)


@needs_compiler
@pytest.mark.process
def test_its_replies_to_500_prompts_are_eagers_together_and_some_alone() -> None:
    bot = lively(Config(hidden=32, vocabulary=200), seed=5)
    prompts, lengths = ragged(500, 8, 200)
    assert same(bot, prompts, lengths) >= 498
    for row in range(20):
        same(bot, prompts[row : row + 1, : int(lengths[row])], lengths[row : row + 1])
    assert len(bot.search()(prompts, lengths, 10)[0].unique(dim=0)) > 100


@needs_compiler
@pytest.mark.process
def test_its_replies_of_the_shipped_weights_are_eagers() -> None:
    """On as many blocks as an A100 has multiprocessors."""
    bot = checkpoint.open_model("small").chatbot
    prompts, lengths = ragged(5, 8, bot.config.vocabulary)
    assert same(bot, prompts, lengths, card=A100) >= 4
    assert same(bot, prompts[:1], lengths[:1], card=A100) == 1


@needs_compiler
@pytest.mark.process
@pytest.mark.parametrize("bias", [0.0, -0.0, -7.5, 7.5])
def test_of_equal_logits_the_first_word_wins_whatever_their_sign(bias: float) -> None:
    bot = tied(bias)
    prompts, lengths = ragged(3, 4, bot.config.vocabulary)
    expected = bot.search()(prompts, lengths, 3)[0].tolist()
    assert emulated.replies(bot, prompts, 3).tolist() == expected == [[FIRST_WORD + 2] * 3] * 3


@needs_compiler
@pytest.mark.process
def test_zeros_of_either_sign_are_equal() -> None:
    bot = tied(0.0)
    bot.decoder.out.bias[FIRST_WORD + 2] = -0.0
    prompts, lengths = ragged(2, 4, bot.config.vocabulary)
    assert torch.equal(emulated.replies(bot, prompts, 3), bot.search()(prompts, lengths, 3)[0])


@needs_compiler
@pytest.mark.process
def test_where_memory_is_scarce_prompts_take_turns() -> None:
    """The least memory that holds the weights has one slot: each prompt is then worked on alone."""
    bot = lively(Config(hidden=32, vocabulary=VOCABULARY), seed=3)
    batch = ragged(5, 6, VOCABULARY)
    slots = []
    for kb in range(1, 40):
        card = replace(CARD, multiprocessors=20, shared_bytes=kb * 1024)
        try:
            slots.append(plan(bot.config, 5, 6, card, THREADS).slots)
        except DoesNotFitError:
            continue
        same(bot, *batch, card=card)
    assert slots[0] == 1
    assert slots[-1] == 32
    assert slots == sorted(slots)


@needs_compiler
@pytest.mark.process
@pytest.mark.parametrize("likely", [0.6, 1.3])  # then half of the replies end, or all of them
def test_told_to_stop_it_ends_each_reply_at_its_eos(likely: float) -> None:
    bot = lively(Config(hidden=33, vocabulary=VOCABULARY), 5)
    prompts, _ = of_lengths([3, 7, 2, 5, 5, 1, 6, 4], 7)
    bot.decoder.out.bias[EOS] += likely
    whole = emulated.replies(bot, prompts, 12)
    ends = (whole == EOS).int()
    assert len(set(ends.argmax(1).tolist())) > 2, "nothing to tell apart"
    stopped = emulated.replies(bot, prompts, 12, stop=True)
    assert torch.equal(stopped, whole.masked_fill(ends.cumsum(1) - ends > 0, PAD))


@needs_compiler
@pytest.mark.process
def test_told_to_stop_it_works_no_longer_than_the_longest_reply() -> None:
    bot, launch = tiny(), Emulated()
    bot.decoder.out.bias[EOS] = 1000.0
    made = plan(bot.config, 1, 4, CARD, THREADS)
    replies = [Engine(bot, made, launch, 9, stop)(ragged(1, 4, 50)[0], torch.tensor([4])) for stop in (False, True)]
    assert [reply.tolist() for reply in replies] == [[[EOS] * 9], [[EOS] + [PAD] * 8]]
    assert launch.barriers == 4 + 3


@needs_compiler
@pytest.mark.process
def test_a_second_call_is_not_answered_from_the_first_nor_overwrites_it() -> None:
    bot = lively(Config(hidden=16, vocabulary=VOCABULARY), 4)
    engine = Engine(bot, plan(bot.config, 3, 4, CARD, THREADS), Emulated(), 5)
    batches = [ragged(3, 4, VOCABULARY, seed) for seed in range(2)]
    expected = [bot.search()(prompts, lengths, 5)[0] for prompts, lengths in batches]
    found = [engine(prompts, lengths) for prompts, lengths in batches]
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert not torch.equal(*found)


@needs_compiler
@pytest.mark.process
def test_a_task_has_the_same_fields_on_both_sides() -> None:
    assert emulated.library().task_size() == ctypes.sizeof(Task)
    source = (build.SOURCES / build.ENTRY).read_text()
    struct = re.sub(r"//.*", "", re.search(r"struct Task \{(.*?)\n\};", source, re.DOTALL).group(1))  # type: ignore[union-attr]
    names = [name for line in struct.split(";") for name in re.findall(r"(\w+)(?:\[3\])?\s*(?:,|$)", line.strip())]
    assert names == [name for name, *_ in Task._fields_]


# Shared memory


@pytest.mark.process
def test_the_tutorials_weights_find_room_in_an_h100_and_take_56_barriers() -> None:
    """16 steps of the encoder, and 10 times two cells, attention with the layer behind it, and choice."""
    whole, fewer = (plan(Config(vocabulary=words), 1, 8, H100) for words in (7836, 6103))
    assert whole.shared_bytes <= H100.shared_bytes
    assert 4 * whole.decoder_floats == 209_216  # bytes: 104 rows of 500, 4 records of 4, and biases
    assert 4 * whole.encoder_floats == 96_256  # 2 layers of 8 units
    assert fewer.slots > whole.slots >= 4
    launch, bot = Emulated(), Chatbot.random(Config(hidden=8, vocabulary=20))
    if COMPILES:
        Engine(bot, plan(bot.config, 1, 8, CARD, THREADS), launch, 10)(ragged(1, 8, 20)[0], torch.tensor([8]))
        assert launch.barriers == 2 * 8 + 10 * 4


def test_no_two_parts_of_a_plan_overlap() -> None:
    for card in (H100, A100, replace(H100, shared_bytes=140 * 1024)):
        for batch in (1, 3, 64):
            made = plan(PRESETS["small"], batch, 8, card)
            starts = [made.encoder_at + made.encoder_floats, made.x_at, made.sums_at, made.scores_at, made.best_at]
            assert made.decoder_floats <= made.x_at
            assert starts == sorted(starts)
            assert all(at % 4 == 0 for at in (*starts, made.concat_at, made.out_at, made.encoder_at, made.floats))
            assert made.best_at + 2 * made.slots * made.threads // 32 <= made.floats <= card.shared_bytes / 4


def test_a_gpu_without_the_memory_is_told_the_figures() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        plan(Config(), 1, 8, A100)
    assert str(refused.value) == (
        "it keeps all weights in shared memory, which takes 256 KB in each of 108 multiprocessors, 28 MB in all; "
        "NVIDIA A100-SXM4-80GB has 163 KB in each, 18 MB"
    )
    assert plan(PRESETS["small"], 1, 8, A100).slots >= 4


def test_an_older_gpu_is_told_what_it_lacks() -> None:
    with pytest.raises(DoesNotFitError, match=r"needs compute capability 8\.0; V100 has 7\.0"):
        plan(PRESETS["tiny"], 1, 8, Card("V100", (7, 0), 80, 96 * 1024))


# The driver


class FakeDriver:
    """As much of CUDA's driver as is asked; its kernel is the emulated one."""

    def __init__(self, card: Card, fails: str = "", resident: int = 1) -> None:
        self.card, self.fails, self.resident = card, fails, resident
        self.asked: list[tuple[Any, ...]] = []
        self.attributes = {16: card.multiprocessors, 75: card.capability[0], 76: card.capability[1], 95: 1}
        self.attributes[97] = card.shared_bytes

    def __getattr__(self, name: str) -> Any:
        if name[:2] != "cu":
            raise AttributeError(name)

        def called(*arguments: Any) -> int:
            self.asked.append((name, *arguments))
            answer = getattr(self, f"do_{name}", None)
            if answer is not None:
                answer(*(getattr(one, "_obj", one) for one in arguments))
            return 700 if name == self.fails else 0

        return called

    def do_cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:  # noqa: N802
        name.value = self.card.name.encode()

    def do_cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> None:  # noqa: N802
        value.value = self.attributes[number]

    def do_cuOccupancyMaxActiveBlocksPerMultiprocessor(self, value: Any, *_: Any) -> None:  # noqa: N802
        value.value = self.resident

    def do_cuGetErrorString(self, code: int, text: Any) -> None:  # noqa: N802
        text.value = b"an illegal memory access was encountered"

    def do_cuLaunchCooperativeKernel(self, function: Any, *given: Any) -> None:  # noqa: N802
        blocks, *ones, threads, _, _, shared, stream, arguments = given
        assert (ones, threads, stream.value) == ([1, 1], THREADS, 77)
        task = ctypes.cast(arguments[0], ctypes.POINTER(Task)).contents
        emulated.library().emulate(ctypes.byref(task), blocks, shared // 4, 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver(CARD)
    planned = partial(plan, threads=THREADS)
    monkeypatch.setattr(driver, "library", lambda: made)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(build, "identity", lambda capability: "of the sources")
    monkeypatch.setattr(build, "cubin", lambda capability: b"machine code")
    monkeypatch.setattr(persistent, "plan", planned)
    return made


SHORT = Workload(device="cuda", batch=3, prompt_tokens=4, reply_tokens=5)


@needs_compiler
@pytest.mark.process
def test_prepared_it_launches_all_blocks_at_once_on_pytorchs_stream(device: FakeDriver) -> None:
    bot = lively(Config(hidden=16, vocabulary=VOCABULARY), 4)
    prompts, lengths = ragged(3, 4, VOCABULARY)
    with torch.inference_mode():
        reply = prepared(VARIANTS["persistent"], bot, SHORT)
        assert torch.equal(reply(prompts, lengths), bot.search()(prompts, lengths, 5)[0])
        assert probe_fault(reply, prompts, lengths, "persistent") is None
    names = [name for name, *_ in device.asked]
    assert names[-2:] == ["cuLaunchCooperativeKernel"] * 2
    assert names.count("cuModuleLoadData") == 1
    attribute = next(asked for asked in device.asked if asked[0] == "cuFuncSetAttribute")
    launched = device.asked[-1]
    assert attribute[2:] == (8, launched[8])
    assert launched[2] == CARD.multiprocessors
    with pytest.raises(ValueError, match="compiled for 3 prompts of 4 tokens"):
        reply(prompts[:1], lengths[:1])


def test_its_program_is_what_its_entry_says(device: FakeDriver) -> None:
    replies = [prepared(VARIANTS["persistent"], tiny(), SHORT) for _ in range(2)]
    program, again = map(program_of, replies)
    assert label_fault("persistent", program, replace(SHORT, device="cpu")) is None
    assert (program.kind, *program.dtypes, program.identity) == ("persistent", "float32", again.identity)
    assert not program.weights & again.weights


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("cuModuleLoadData", r"cuModuleLoadData: an illegal memory access was encountered \(700\)"),
        ("cuCtxGetDevice", "cuCtxGetDevice: an illegal memory access"),
    ],
)
def test_what_the_driver_refuses_skips_it_with_the_drivers_words(device: FakeDriver, fails: str, reason: str) -> None:
    device.fails = fails
    with pytest.raises(UnavailableError, match=reason):
        prepared(VARIANTS["persistent"], tiny(), SHORT)


def test_where_not_all_blocks_can_run_at_once_it_is_skipped(device: FakeDriver) -> None:
    device.resident = 0
    with pytest.raises(UnavailableError, match="no multiprocessor can run 64 threads with"):
        prepared(VARIANTS["persistent"], tiny(), SHORT)
    device.attributes[95] = 0
    with pytest.raises(UnavailableError, match="a made-up GPU can't launch all blocks of a kernel at once"):
        prepared(VARIANTS["persistent"], tiny(), SHORT)


def test_a_model_that_does_not_fit_is_skipped_before_anything_is_compiled(
    device: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(build, "cubin")
    with pytest.raises(UnavailableError, match="KB in each of 7 multiprocessors"):
        prepared(VARIANTS["persistent"], Chatbot.random(PRESETS["small"]), SHORT)


def test_concat_attention_is_skipped_with_the_reason() -> None:
    bot = Chatbot.random(Config(hidden=16, vocabulary=50, attention="concat"))
    with pytest.raises(UnavailableError, match="no kernel for concat attention"):
        prepared(VARIANTS["persistent"], bot, SHORT)


def test_without_a_driver_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libnosuch.so")
    driver.library.cache_clear()
    with pytest.raises(driver.DriverError, match="no CUDA driver: libnosuch"):
        driver.library()


# Machine code


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    return tmp_path / "cache"


def test_machine_code_is_kept_under_all_that_it_was_built_from(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, int]] = []

    def compiled(source: str, headers: dict[str, str], capability: tuple[int, int], flags: Any) -> nvrtc.Cubin:
        built.append(capability)
        return nvrtc.Cubin(f"code of {capability}".encode(), "")

    monkeypatch.setattr(nvrtc, "compiled", compiled)
    for capability in ((9, 0), (9, 0), (8, 0)):
        assert build.cubin(capability) == f"code of {capability}".encode()
    assert built == [(9, 0), (8, 0)]
    assert len(list(anew.glob("persistent-*.cubin"))) == 2
    assert {path.suffix for path in anew.iterdir()} == {".cubin"}
    monkeypatch.setattr(nvrtc, "version", lambda: "13.1")
    build.cubin((9, 0))
    assert len(built) == 3


def test_without_nvrtc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "NAMES", ("libnosuch.so",))
    monkeypatch.setattr(nvrtc, "_installed", lambda: iter(()))
    nvrtc.library.cache_clear()
    with pytest.raises(nvrtc.NvrtcError, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.version()


@pytest.mark.parametrize(("own", "order"), [("12.8", ["12", "13"]), ("13.0", ["13", "12"]), (None, ["13", "12"])])
def test_of_several_nvrtcs_that_of_pytorchs_cuda_is_taken(
    own: str | None, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, release in (("cuda_nvrtc", "12"), ("cu13", "13")):
        (tmp_path / "nvidia" / package / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / package / "lib" / f"libnvrtc.so.{release}").touch()
        (tmp_path / "nvidia" / package / "lib" / f"libnvrtc-builtins.so.{release}.0").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.version, "cuda", own)
    assert [Path(one).suffix for one in nvrtc._installed()] == [f".{release}" for release in order]


def has_nvrtc() -> bool:
    try:
        nvrtc.library()
    except nvrtc.NvrtcError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason=nvrtc.MISSING)


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_it_compiles_for_a_gpu_without_one_into_its_registers(capability: tuple[int, int]) -> None:
    """A multiprocessor has 65,536 registers; all shared memory is the plan's."""
    made = build.built(capability)
    assert made.code.startswith(b"\x7fELF")
    spills, registers = re.findall(r"(\d+) bytes spill", made.log), re.search(r"Used (\d+) registers", made.log)
    assert spills == ["0", "0"], made.log
    assert registers is not None
    assert int(registers[1]) * H100_PLAN.threads <= 65_536
    assert "bytes smem" not in made.log


@needs_nvrtc
def test_a_source_that_is_wrong_is_quoted() -> None:
    with pytest.raises(nvrtc.NvrtcError, match=r"NVRTC_ERROR_COMPILATION: reply\.cu\(1\): error: "):
        nvrtc.compiled("nonsense;", {}, (9, 0), ())
    with pytest.raises(nvrtc.NvrtcError, match="NVRTC"):
        nvrtc.compiled("", {}, (1, 0), ())
