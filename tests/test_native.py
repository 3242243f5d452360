"""The compiled engine: the baseline's replies, a proved screen, any instructions, and what a lacking compiler says."""

import ctypes
import gc
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from disk import WHOLE, steps_of
from hypothesis import given
from hypothesis import strategies as st
from launches import WORKLOAD, enter, tiny
from profiles import examples
from torch import Tensor

from chatbot import cache, checkpoint, compiler, corpus
from chatbot.config import ATTENTIONS, Config
from chatbot.model import Chatbot
from chatbot.native import build, pack
from chatbot.native.engine import BYTES, Engine
from chatbot.prompts import prompt_pool
from chatbot.variants import BASELINE, VARIANTS, Prepare, UnavailableError, Workload, native
from chatbot.vocabulary import EOS, FIRST_WORD, PAD
from ray_jobs.measure.program import label_fault, program_of, same_program_faults
from ray_jobs.measure.replies import check_replies, first_difference

pytestmark = pytest.mark.process

COMPILES = any(map(shutil.which, compiler.COMPILERS))
needs_compiler = pytest.mark.skipif(not COMPILES, reason=f"no C++ compiler: none of {', '.join(compiler.COMPILERS)}")
NARROWER = {  # instructions, and flags for no more than those
    "avx512": ("-march=skylake-avx512",),
    "avx2": ("-march=haswell",),
    "plain": ("-march=x86-64",),
}
NEEDED = {"avx512": "avx512bw", "avx2": "avx2"}  # of /proc/cpuinfo
SUMS = Path(__file__).parent / "support" / "sums.cpp"
VOCABULARY = 61
REPLY = 6
PROMPTS = 500
LEAST_IDENTICAL = 0.995  # of an approximate variant's replies: what the fastest near-exact one must keep


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As a launch runs."""
    with torch.no_grad():
        yield


def lively(config: Config, seed: int) -> Chatbot:
    """Random weights, larger than usual: what a reply says then hangs on every layer and prompt token."""
    bot = Chatbot.random(config, seed)
    for part in (bot.encoder, bot.decoder):
        for parameter in part.parameters():
            if parameter is not bot.encoder.embedding.weight:
                parameter.mul_(2.5)
    return bot


def ragged(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """A padded batch of random words, each prompt with EOS at its end."""
    rng = torch.Generator().manual_seed(seed)
    prompts = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(prompts, lengths, strict=True):
        row[:length] = torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=rng)
        row[length - 1] = EOS
    return prompts, torch.tensor(lengths)


CONFIGS = st.builds(
    lambda hidden, layers, decoder_layers, attention: Config(
        hidden, layers, min(decoder_layers, 2 * layers), 0.0, attention, VOCABULARY
    ),
    st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 100])),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(ATTENTIONS),
)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@needs_compiler
@examples(50)
@given(CONFIGS, LENGTHS, st.integers(1, 3), st.integers(0, 10**6))
def test_the_engine_answers_as_the_eager_network_whatever_its_sizes(
    config: Config, lengths: list[int], threads: int, seed: int
) -> None:
    bot = lively(config, seed)
    prompts, sizes = ragged(lengths, seed)
    replies = Engine(bot, "float32", REPLY, threads)(prompts, sizes)
    expected = bot.search()(prompts, sizes, REPLY)[0]
    for row, size in enumerate(lengths):  # alone, as the judge of ties takes a prompt without padding
        workload = Workload(prompt_tokens=size, reply_tokens=REPLY)
        one = slice(row, row + 1)
        check = check_replies("native", [replies[one]], [expected[one]], [prompts[one, :size]], bot, workload)
        assert first_difference(replies[row], expected[row]) is None or check.fault is None, check.fault


def test_lively_networks_say_different_things_to_different_prompts() -> None:
    bot = lively(Config(20, 2, 2, 0.0, "dot", VOCABULARY), 1)
    replies = bot.search()(*ragged([5] * 8, 2), REPLY)[0]
    assert len({tuple(reply) for reply in replies.tolist()}) == 8
    assert len(replies.unique()) >= 8


@needs_compiler
@pytest.mark.parametrize("precision", ["float32", BYTES])
def test_an_engine_answers_batches_of_any_shape_one_after_the_other(precision: str) -> None:
    bot = lively(Config(33, 2, 1, 0.0, "general", VOCABULARY), 5)
    engine = Engine(bot, precision, REPLY, threads=2)
    for lengths in ([3], [7, 2, 5, 5, 1], [1, 1], [4, 6, 2]):
        prompts, sizes = ragged(lengths, 7)
        alone = [engine(prompts[i : i + 1, :size], sizes[i : i + 1])[0] for i, size in enumerate(lengths)]
        assert torch.equal(engine(prompts, sizes), torch.stack(alone))


@needs_compiler
def test_a_reply_is_not_overwritten_by_the_next_call() -> None:
    engine = Engine(lively(Config(20, 1, 1, 0.0, "dot", VOCABULARY), 3), "float32", REPLY)
    first, second = (engine(*ragged([4], seed)) for seed in (1, 2))
    assert first.data_ptr() != second.data_ptr()
    assert not torch.equal(first, second)


@needs_compiler
@pytest.mark.parametrize(("prompt", "length"), [([5, EOS], 3), ([5, EOS], 0), ([50, EOS], 2), ([-1, EOS], 2)])
def test_what_would_be_read_outside_of_the_memory_is_refused(prompt: list[int], length: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        Engine(tiny(), "float32", REPLY)(torch.tensor([prompt]), torch.tensor([length]))


@needs_compiler
def test_an_engine_that_is_dropped_ends_its_threads() -> None:
    before = len(os.listdir("/proc/self/task"))
    engine = Engine(tiny(), "float32", REPLY, threads=3)
    engine(torch.tensor([[5, EOS]]), torch.tensor([2]))
    assert len(os.listdir("/proc/self/task")) == before + 2
    del engine
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == before


# The screen


def with_output_layer(weight: Tensor, bias: Tensor) -> Engine:
    bot = Chatbot.random(Config(weight.size(1), 1, 1, 0.0, "dot", len(weight)))
    bot.decoder.out.weight.copy_(weight)
    bot.decoder.out.bias.copy_(bias)
    return Engine(bot, "float32", REPLY)


@needs_compiler
@examples(40)
@given(
    st.integers(1, 90),
    st.integers(4, 150),
    st.floats(-8, 0),
    st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    st.sampled_from([1e-20, 1e-3, 1.0]),
    st.integers(0, 10**6),
)
def test_the_screened_token_is_the_likeliest_by_brute_force_even_among_near_ties(
    hidden: int, words: int, spread: float, bias_size: float, input_size: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    one = torch.randn(hidden, generator=rng)
    weight = one + 10**spread * torch.randn(words, hidden, generator=rng)  # rows as alike as the spread is small
    bias = bias_size * torch.randn(words, generator=rng)
    inputs = input_size * torch.randn(7, hidden, generator=rng)
    tokens = with_output_layer(weight, bias).likeliest(inputs)
    logits = inputs.double() @ weight.double().t() + bias.double()
    missed = logits.amax(1) - logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    # What summing in 32 bits may lose, of any order.
    rounding = (
        (hidden + 2) * 2.0**-23 * (inputs.double().abs() @ weight.double().abs().t() + bias.double().abs()).amax(1)
    )
    assert bool((missed <= rounding).all())


@needs_compiler
def test_of_equal_logits_the_first_token_is_taken_and_rows_of_padding_never_are() -> None:
    weight = -torch.ones(45, 10)  # every logit is far below 0, where a padded row's would lie
    engine = with_output_layer(weight, torch.full((45,), -100.0))
    assert engine.likeliest(torch.ones(3, 10)).tolist() == [0, 0, 0]
    assert engine.recomputed == 3 * 45


@needs_compiler
def test_of_logits_that_lie_apart_few_are_computed_in_32_bits() -> None:
    rng = torch.Generator().manual_seed(0)
    engine = with_output_layer(torch.randn(2000, 100, generator=rng), torch.zeros(2000))
    engine.likeliest(torch.randn(50, 100, generator=rng))
    assert 50 <= engine.recomputed < 50 * 4


# The end of a reply


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("likely", [0.6, 1.3])  # then half of the replies end, or all of them
@pytest.mark.parametrize("precision", ["float32", BYTES])
def test_told_to_stop_it_ends_each_reply_at_its_eos(precision: str, likely: float, threads: int) -> None:
    bot = lively(Config(33, 2, 2, 0.0, "dot", VOCABULARY), 5)
    prompts, sizes = ragged([3, 7, 2, 5, 5, 1, 6, 4], 7)
    bot.decoder.out.bias[EOS] += likely
    whole = Engine(bot, precision, 12, threads)(prompts, sizes)
    ends = (whole == EOS).int()
    assert len(set(ends.argmax(1).tolist())) > 2, "nothing to tell apart"
    stopped = Engine(bot, precision, 12, threads, stop_at_eos=True)(prompts, sizes)
    assert torch.equal(stopped, whole.masked_fill(ends.cumsum(1) - ends > 0, PAD))


@needs_compiler
def test_told_to_stop_it_works_no_longer_than_the_longest_reply() -> None:
    bot = lively(Config(33, 2, 2, 0.0, "dot", VOCABULARY), 5)
    bot.decoder.out.bias[EOS] = 1000.0
    engine = Engine(bot, "float32", REPLY, stop_at_eos=True)
    assert engine(*ragged([4], 1)).tolist() == [[EOS] + [PAD] * (REPLY - 1)]
    assert engine.recomputed == 1  # a step computes one logit at least


# The shipped model


@pytest.fixture(scope="module")
def small() -> checkpoint.Trained:
    return checkpoint.open_model("small")


@pytest.fixture(scope="module")
def asked(small: checkpoint.Trained) -> tuple[Tensor, Tensor]:
    """500 real prompts, and the eager network's replies."""
    pool = torch.from_numpy(prompt_pool(corpus.load(), small.vocabulary, 8, PROMPTS))
    assert len(pool) == PROMPTS
    with torch.no_grad():
        replies = [small.chatbot.search()(some, torch.full((len(some),), 8), 10)[0] for some in torch.split(pool, 50)]
    return pool, torch.cat(replies)


def identical(engine: Engine, asked: tuple[Tensor, Tensor]) -> int:
    """How many replies are the eager network's."""
    prompts, expected = asked
    replies = torch.cat([engine(some, torch.full((len(some),), 8)) for some in torch.split(prompts, 10)])
    return sum(first_difference(mine, theirs) is None for mine, theirs in zip(replies, expected, strict=True))


@needs_compiler
@pytest.mark.parametrize(("precision", "least"), [("float32", 1.0), (BYTES, LEAST_IDENTICAL)])
def test_the_shipped_model_answers_real_prompts_alike(
    precision: str, least: float, small: checkpoint.Trained, asked: tuple[Tensor, Tensor]
) -> None:
    assert identical(Engine(small.chatbot, precision, 10), asked) >= least * PROMPTS


def require(instructions: str) -> None:
    """Skips on a CPU without these."""
    needed = NEEDED.get(instructions)
    if needed and f" {needed} " not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this CPU has no {needed.upper()}")


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these flags choose among x86's instructions")
@pytest.mark.parametrize("instructions", ["as here", *NARROWER])
def test_sums_of_integers_are_exact_with_any_instructions(instructions: str, tmp_path: Path) -> None:
    """Of one vector and of several, at the largest weights and values that there can be."""
    require(instructions)
    flags = (*build.FLAGS, *NARROWER.get(instructions, build.NATIVE), f"-I{build.SOURCES}")
    path = tmp_path / "sums.so"
    subprocess.run([*compiler.command(compiler.COMPILERS), *flags, SUMS, "-o", path], check=True)
    functions = ctypes.CDLL(str(path))
    draw = torch.Generator().manual_seed(3)
    for columns in (8, 512, 1000):
        numbers = torch.randint(-128, 128, (pack.PANEL, columns), generator=draw).float()
        numbers[0], numbers[1], numbers[-1], numbers[-2] = -128, 127, -128, 127
        inputs = torch.randn(6, columns, generator=draw)
        inputs[0], inputs[5] = 1.0, -1.0
        packed = pack.interleaved(pack.Arena(words=bool(functions.in_words())), numbers)
        values, sums = torch.zeros(6, columns, dtype=torch.int16), torch.zeros(6, pack.PANEL, dtype=torch.int32)
        places = [one.data_ptr() for one in (packed, inputs, values, sums)]
        panel, x, whole, out = map(ctypes.c_void_p, places)
        functions.panel_sums(panel, x, 6, columns, whole, out)
        exact = (values.long() @ (numbers.long() + 128).T + 2**31) % 2**32 - 2**31  # it wraps at 32 bits
        assert torch.equal(sums.long(), exact)


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these flags choose among x86's instructions")
@pytest.mark.parametrize("instructions", NARROWER)
def test_other_instructions_give_the_same_replies(
    instructions: str, small: checkpoint.Trained, asked: tuple[Tensor, Tensor]
) -> None:
    require(instructions)
    some = asked[0][:100], asked[1][:100]
    for precision in ("float32", BYTES):
        narrow = Engine(small.chatbot, precision, 10, machine=NARROWER[instructions])
        assert narrow.instructions == instructions
        lengths = torch.full((100,), 8)
        same = (narrow(some[0], lengths) == Engine(small.chatbot, precision, 10)(some[0], lengths)).all(1)
        assert same.sum() >= 99  # of float32 sums in another order, one may decide a tie
        assert identical(narrow, some) >= 98


# What is timed is what it is called


@needs_compiler
@pytest.mark.parametrize(
    ("label", "prepare", "holds"),
    [("native", native.prepare_int8, "float32, int16, qint8"), ("native-int8", native.prepare, "float32, qint8")],
)
def test_the_precision_is_read_from_the_weights(
    label: str, prepare: Prepare, holds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, "lying", prepare, like=label)
    fault = label_fault("lying", program_of(prepare(tiny(), WORKLOAD)), WORKLOAD)
    assert fault == f"it is labelled {VARIANTS[label].dtype} but holds {holds}"
    assert label_fault(label, program_of(VARIANTS[label].prepare(tiny(), WORKLOAD)), WORKLOAD) is None


@needs_compiler
def test_an_engine_under_another_kinds_name_is_a_fault() -> None:
    program = program_of(native.prepare(tiny(), WORKLOAD))
    assert label_fault(BASELINE, program, WORKLOAD) == "it is labelled eager but runs native"


@needs_compiler
def test_two_engines_of_one_precision_are_the_same_program_and_of_two_are_not() -> None:
    replies = [
        native.prepare(tiny(), WORKLOAD),
        native.prepare_int8(tiny(), WORKLOAD),
        native.prepare(tiny(), WORKLOAD),
    ]
    exact, approximate, again = map(program_of, replies)
    assert same_program_faults({"native": exact, "native-int8": approximate}) == {}
    assert same_program_faults({"native": exact, "native-int8": again}).keys() == {"native", "native-int8"}


# Compiling


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing loaded."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    build.library.cache_clear()
    yield tmp_path / "cache"
    build.library.cache_clear()


def reason() -> str:
    with pytest.raises(UnavailableError) as refused:
        native.prepare(tiny(), WORKLOAD)
    return str(refused.value)


@pytest.mark.usefixtures("anew")
def test_without_a_compiler_the_variant_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert reason() == "no C++ compiler (c++, g++, clang++): install g++ or clang, or set CXX"
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert reason() == "no C++ compiler (/no/such/compiler): install g++ or clang, or set CXX"


def test_a_compiler_that_fails_is_quoted(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'engine.cpp:1:1: error: no C++ here' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert reason() == f"{broken} can't compile the engine: engine.cpp:1:1: error: no C++ here"
    assert list(anew.iterdir()) == []


@pytest.fixture
def pretended(anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Sets a compiler that is this shell script when asked to compile."""

    def make(script: str) -> Path:
        compiler = tmp_path / "c++"
        compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo "c++ 1.0"\n{script}\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        return compiler

    return make


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_slow_compiler_costs_its_variant_and_leaves_nothing(
    anew: Path, tmp_path: Path, pretended: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretended(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(compiler, "_end", time.monotonic() + 0.5)
    assert reason() == f"{made} did not compile the engine in 0 s"
    assert not alive(int((tmp_path / "child").read_text())), "what the compiler started has ended too"
    assert [path.suffix for path in anew.iterdir()] == [".slow"]
    (tmp_path / "child").unlink()
    monkeypatch.setattr(compiler, "_end", time.monotonic() + 0.4)
    assert reason().endswith("did not compile the engine in 0 s")
    assert not (tmp_path / "child").exists(), "it is not tried again in as little time"
    later = time.time() - build.FORGET_S - 1
    os.utime(next(anew.iterdir()), (later, later))
    monkeypatch.setattr(compiler, "_end", time.monotonic() + 0.4)
    reason()
    assert (tmp_path / "child").exists(), "it is, an hour later"


def test_a_compiler_that_does_not_tell_its_version_is_given_up(
    pretended: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretended("")
    made.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(compiler, "VERSION_S", 0.1)
    assert reason() == f"{made} did not tell its version in 0 s"


def test_a_compiler_speaks_english_whatever_the_locale(
    pretended: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pretended('[ "$LC_ALL" = C ] && echo "engine.cpp:1:1: error: no" >&2 || echo "Fehler: nein" >&2; exit 1')
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert reason() == f"{made} can't compile the engine: engine.cpp:1:1: error: no"


def test_what_killed_builds_left_is_removed_after_an_hour(anew: Path, pretended: Callable[[str], Path]) -> None:
    pretended("echo 'error: no' >&2; exit 1")
    for name, age_s in (("old", build.FORGET_S + 9), ("new", 9)):
        left = anew / f"{build.BUILDING}{name}"
        left.mkdir(parents=True)
        (left / "half.so").touch()
        os.utime(left, (time.time() - age_s,) * 2)
    anew.chmod(0o700)
    reason()
    assert [path.name for path in anew.iterdir()] == [f"{build.BUILDING}new"]


def test_a_compiled_library_and_its_name_are_on_the_disk(
    pretended: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended('for made; do :; done; echo "no library" > "$made"')
    steps = steps_of(monkeypatch)
    assert reason().startswith("the compiled engine can't be loaded")
    assert steps == WHOLE


@needs_compiler
def test_a_launcher_of_the_compiler_and_half_a_library_are_no_obstacle(
    anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``CXX="ccache g++"``; and a file cut off by a power failure is built once more."""
    launcher = tmp_path / "ccache"
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("CXX", f"{launcher} {Path(compiler.command(compiler.COMPILERS)[0]).name}")
    (tmp_path / build.ENTRY).write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    identity = build._identity(compiler.command(compiler.COMPILERS), (*build.FLAGS, *build.NATIVE))
    library = cache.folder() / f"engine-{identity}.so"
    library.write_bytes(b"\x7fELF half of a library")
    assert build.library().functions.one() == 1
    assert [path.name for path in anew.iterdir()] == [library.name]


@needs_compiler
def test_processes_that_compile_at_once_leave_one_whole_library(anew: Path) -> None:
    program = "from chatbot.native.build import library; print(library().identity)"
    command = [sys.executable, "-c", program]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in racing]
    assert [process.returncode for process in racing] == [0, 0]
    assert said[0] == said[1]
    assert [path.name for path in anew.iterdir()] == [f"engine-{said[0].strip()}.so"]
    made = next(anew.iterdir()).stat().st_mtime_ns
    assert build.library().identity == said[0].strip()
    assert next(anew.iterdir()).stat().st_mtime_ns == made
