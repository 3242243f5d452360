"""The Triton kernels, on NumPy and under Triton's own interpreter: their replies are eager's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import triton_stub
from launches import tiny
from test_fused import ragged
from torch import Tensor

from chatbot.checkpoint import open_model
from chatbot.config import Config
from chatbot.model import Chatbot
from chatbot.variants import VARIANTS, UnavailableError, Workload, prepared, triton_graph
from chatbot.variants.triton_graph import TritonGreedy
from chatbot.vocabulary import FIRST_WORD

SHORT = Workload(batch=3, prompt_tokens=4, reply_tokens=3)


@torch.inference_mode()
def both(bot: Chatbot, workload: Workload, rows: int = 16, words: int = 32) -> tuple[Tensor, Tensor]:
    """The kernels' replies and eager's, to the same ragged prompts."""
    prompts, lengths = ragged(workload.batch, workload.prompt_tokens, bot.config.vocabulary)
    expected = bot.search()(prompts, lengths, workload.reply_tokens)[0]
    return TritonGreedy(bot, workload, rows, words).eval()(prompts), expected


@pytest.mark.parametrize(
    ("config", "rows", "words"),
    [
        (Config(hidden=32, vocabulary=200), 32, 256),
        (Config(hidden=20, vocabulary=50, attention="general"), 4, 16),  # no block divides what it is a part of
        (Config(hidden=12, encoder_layers=3, decoder_layers=1, vocabulary=40), 8, 8),
    ],
)
def test_its_kernels_give_eagers_replies_to_ragged_prompts(
    config: Config, rows: int, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton_stub.install(monkeypatch)
    replies, expected = both(Chatbot.random(config), SHORT, rows, words)
    assert replies.tolist() == expected.tolist()


@pytest.mark.slow  # half a minute
def test_its_replies_to_500_prompts_are_eagers(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_stub.install(monkeypatch)
    many = Workload(batch=500, prompt_tokens=8, reply_tokens=10)
    replies, expected = both(Chatbot.random(Config(hidden=32, vocabulary=200)), many, 32, 256)
    assert replies.tolist() == expected.tolist()


def test_its_replies_of_the_shipped_weights_are_eagers(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_stub.install(monkeypatch)
    few = Workload(batch=5, prompt_tokens=8, reply_tokens=10)
    replies, expected = both(open_model("small").chatbot, few, 64, 1024)
    assert replies.tolist() == expected.tolist()


def test_vectors_that_are_longer_than_a_block_are_read_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_stub.install(monkeypatch)
    monkeypatch.setattr(triton_graph, "MOST_COLUMNS", 8)
    replies, expected = both(Chatbot.random(Config(hidden=20, vocabulary=50)), SHORT)
    assert replies.tolist() == expected.tolist()


@pytest.mark.parametrize("bias", [0.0, -7.5, 7.5])
def test_of_equal_logits_the_first_word_wins_whatever_their_sign(bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    triton_stub.install(monkeypatch)
    bot = tied(bias)
    replies, expected = both(bot, SHORT, words=4)
    assert replies.tolist() == expected.tolist() == [[FIRST_WORD + 2] * 3] * 3


def tied(bias: float) -> Chatbot:
    """A chatbot whose last words all have this logit, and the ones before less."""
    bot = tiny()
    with torch.no_grad():
        bot.decoder.out.weight.zero_()
        bot.decoder.out.bias.fill_(bias)[: FIRST_WORD + 2] = bias - 0.001
    return bot


def test_a_second_call_is_not_answered_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_stub.install(monkeypatch)
    bot = Chatbot.random(Config(hidden=16, vocabulary=50))
    with torch.inference_mode():
        search = TritonGreedy(bot, SHORT, 16, 64).eval()
        for seed in range(2):
            prompts, lengths = ragged(3, 4, 50, seed)
            assert search(prompts).tolist() == bot.search()(prompts, lengths, 3)[0].tolist()


def test_a_tutorial_reply_is_56_launches_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell for each layer and token, and for each step one attention and one choice; PyTorch adds five kernels."""
    language = triton_stub.install(monkeypatch)
    both(Chatbot.random(Config(hidden=8, vocabulary=20)), Workload(), 8, 32)
    assert language.launches == 2 * 8 + 10 * (2 + 1 + 1)


def test_concat_attention_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_graph, "require_compiler", lambda device: None)
    bot = Chatbot.random(Config(hidden=16, vocabulary=50, attention="concat"))
    with pytest.raises(UnavailableError, match="no kernel for concat attention"):
        prepared(VARIANTS["triton-graph"], bot, replace(SHORT, device="cuda"))


PROGRAM = """
import json
from test_triton import SHORT, both, tied
from chatbot.config import Config
from chatbot.model import Chatbot
from dataclasses import replace
few = replace(SHORT, batch=2, prompt_tokens=3, reply_tokens=2)
sizes = Config(hidden=12, encoder_layers=1, decoder_layers=1, vocabulary=20)
print(json.dumps([[a.tolist(), b.tolist()] for a, b in (both(Chatbot.random(sizes), few), both(tied(-7.5), few))]))
"""


@pytest.mark.process
@pytest.mark.skipif(find_spec("triton") is None, reason="could not import 'triton': pip install triton")
def test_under_tritons_interpreter_its_kernels_give_eagers_replies() -> None:
    path = os.pathsep.join(["tests", "tests/support", *filter(None, sys.path)])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for replies, expected in json.loads(done.stdout):
        assert replies == expected


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from chatbot.variants import triton_kernels as kernels
cell = dict(INDEX=0x7FFFFFFF, PAD=0, ROWS=4, COLUMNS=512)
whole = dict(step="i32", tokens="i32", batch="i32", inputs="i32", hidden="i32", words="i32", keys="*i64")
for kernel, constants in (
    (kernels.cell, {**cell, "KEYS": False, "INDEXED": True, "FIRST": False, "MASKED": True}),
    (kernels.cell, {**cell, "KEYS": False, "INDEXED": False, "FIRST": True, "MASKED": True, "step": 1, "batch": 1}),
    (kernels.cell, {**cell, "KEYS": True, "INDEXED": True, "FIRST": False, "MASKED": False, "batch": 1, "tokens": 1}),
    (kernels.cell, {**cell, "KEYS": True, "INDEXED": False, "FIRST": False, "MASKED": False}),
    (kernels.attend, dict(PAD=0, TOKENS=8, ROWS=4, COLUMNS=512, batch=1)),
    (kernels.choose, dict(INDEX=0x7FFFFFFF, ROWS=16, COLUMNS=512)),
):
    names = kernel.arg_names
    types = {**dict.fromkeys(names, "*fp32"), **whole, "index": "*i64", "prompts": "*i64"}
    types.update(dict.fromkeys(constants, "constexpr"))
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, {name: types[name] for name in names}, places)
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    print(kernel.__name__, len(made.asm["cubin"]))
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(find_spec("triton") is None, reason="could not import 'triton': pip install triton")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_its_kernels_compile_for_a_gpu_without_one(capability: str, tmp_path: Path) -> None:
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", COMPILE, capability]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
