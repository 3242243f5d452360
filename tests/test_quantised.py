"""Narrow arithmetic on CPUs of every instruction set: replies stay right, or a reason says why it can't run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from chatbot import compiler
from chatbot.checkpoint import SHIPPED, Trained, load
from chatbot.config import ATTENTIONS, PRESETS, Config
from chatbot.corpus import words_of
from chatbot.model import Chatbot
from chatbot.variants import BASELINE, VARIANTS, UnavailableError, Workload, bf16, int8, prepared
from ray_jobs.measure.program import label_fault, program_of
from ray_jobs.measure.replies import first_difference

ASKED = [
    f"{start} {verb} {what} {end}"
    for start in ("do you", "i don t", "why do we", "what kind of people")
    for verb in ("like", "watch")
    for what in ("movies", "the dog", "music")
    for end in ("?", "at home .")
]
RIGHT = 0.9  # of the replies


@pytest.fixture(scope="module")
def small() -> Trained:
    return load(SHIPPED)


@pytest.fixture(scope="module")
def expected(small: Trained) -> list[Tensor]:
    return replies(BASELINE, small)


def replies(name: str, trained: Trained) -> list[Tensor]:
    """The reply (S,) to each prompt; the test is skipped where this machine lacks what the variant needs."""
    try:
        return answers(name, trained)
    except UnavailableError as error:
        pytest.skip(str(error))


def answers(name: str, trained: Trained) -> list[Tensor]:
    """As ``replies``. Raises UnavailableError."""
    with torch.inference_mode():
        reply = prepared(VARIANTS[name], trained.chatbot, Workload())
        prompts = [torch.tensor([trained.vocabulary.encode(words_of(text))]) for text in ASKED]
        return [reply(prompt, torch.tensor([prompt.size(1)]))[0].clone() for prompt in prompts]


def share(name: str, trained: Trained, expected: list[Tensor]) -> float:
    """The part of a variant's replies that are the baseline's."""
    pairs = zip(replies(name, trained), expected, strict=True)
    return sum(first_difference(*pair) is None for pair in pairs) / len(expected)


@pytest.mark.parametrize("name", ["int8", "int8-torchscript", "onnx-int8"])
def test_nine_of_ten_replies_of_the_shipped_chatbot_stay_right(
    name: str, small: Trained, expected: list[Tensor]
) -> None:
    assert share(name, small, expected) >= RIGHT


@pytest.mark.parametrize(
    "config", [*(Config(hidden=24, attention=a, vocabulary=50) for a in ATTENTIONS), PRESETS["small"]]
)
def test_no_two_products_of_the_int8_graph_leave_16_bits(config: Config) -> None:
    """A CPU without VNNI adds two of an activation (at most 255) and a weight in 16 bits, which saturate."""
    onnx = pytest.importorskip("onnx")
    from chatbot.variants.onnx_graph import greedy_graph

    model = greedy_graph(Chatbot.random(config), int8=True)
    weights = [onnx.numpy_helper.to_array(w) for w in model.graph.initializer if w.data_type == onnx.TensorProto.INT8]
    assert len(weights) >= 2 * (2 * config.encoder_layers + config.decoder_layers) + 2
    for weight in weights:  # (in, out)
        largest = np.sort(np.abs(weight.astype(np.int64)), axis=0)[-2:]
        assert 255 * largest.sum(0).max() <= np.iinfo(np.int16).max
        assert largest.max() >= 60, "most of the bits that are left are used"


# bfloat16


def pretend(flags: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This CPU has these flags alone."""
    (folder / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t\t: none\n\nprocessor\t: 1\n")
    monkeypatch.setattr(compiler, "CPUINFO", folder / "cpuinfo")


@pytest.mark.parametrize(
    "flags", ["flags\t\t: fpu avx2 avx512f avx512_vnni", "Features\t: fp asimd asimddp", "model\t: 1"]
)
def test_bf16_is_skipped_where_the_cpu_only_emulates_it(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(flags, tmp_path, monkeypatch)
    with pytest.raises(UnavailableError, match="this CPU has no bfloat16 arithmetic"):
        prepared(VARIANTS["bf16"], Chatbot.random(PRESETS["tiny"]), Workload(model="tiny"))
    with pytest.raises(UnavailableError, match="this CPU has no bfloat16 arithmetic"):
        bf16.prepare_module(torch.nn.Linear(2, 2), (torch.ones(1, 2),), Workload(model="own:made"))
    bf16.require_hardware("cuda")


@pytest.mark.parametrize("flags", ["flags\t\t: avx2 avx512_bf16", "flags\t\t: amx_bf16", "Features\t: asimd bf16"])
@pytest.mark.parametrize("used", [True, False])
def test_bf16_runs_where_the_cpu_has_it_and_pytorch_uses_it(
    flags: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(flags, tmp_path, monkeypatch)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: used)
    if used:
        assert callable(prepared(VARIANTS["bf16"], Chatbot.random(PRESETS["tiny"]), Workload(model="tiny")))
    else:
        with pytest.raises(UnavailableError, match="ONEDNN_MAX_CPU_ISA"):
            bf16.require_hardware("cpu")


# Less than this CPU has, and less than PyTorch had

FORCED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
ELSEWHERE = """
import json, sys, torch
from pathlib import Path
from typing import Any
sys.path[:0] = sys.argv[2:]
from chatbot import compiler
compiler.CPUINFO = Path(sys.argv[1])
import test_quantised as tests
from chatbot.variants import UnavailableError, bf16
torch.set_num_threads(1)
found = {"capability": torch.backends.cpu.get_cpu_capability()}
try:
    bf16.require_hardware("cpu")
except UnavailableError as error:
    found["bf16"] = str(error)
small = tests.load(tests.SHIPPED)
expected = tests.replies("eager", small)
found |= {name: tests.share(name, small, expected) for name in ("torchscript", "int8-torchscript")}
print(json.dumps(found))
"""


@pytest.mark.process
@pytest.mark.skipif("avx2" not in compiler.cpu_flags(), reason="this CPU has no AVX2")
def test_forced_to_avx2_replies_stay_right_and_bf16_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: avx2 avx512_bf16 amx_bf16\n\n")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "cpuinfo"), *sys.path]
    done = subprocess.run(
        command, env={**os.environ, **FORCED}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["capability"] == "AVX2"
    assert "ONEDNN_MAX_CPU_ISA" in found["bf16"]
    assert found["torchscript"] == 1
    assert found["int8-torchscript"] >= RIGHT


def hide_quantize_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.ao.quantization", "torch.ao.nn.quantized", "torch.ao.nn.quantized.dynamic"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("name", ["int8", "int8-torchscript"])
def test_int8_replies_alike_where_pytorch_has_no_quantize_dynamic_any_more(
    name: str, small: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytorchs = replies(name, small)
    hide_quantize_dynamic(monkeypatch)
    ours = answers(name, small)
    assert all(torch.equal(a, b) for a, b in zip(ours, pytorchs, strict=True))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["int8", "int8-torchscript"])
def test_our_own_int8_is_labelled_as_it_is(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_quantize_dynamic(monkeypatch)
    chatbot, workload = Chatbot.random(Config(hidden=24, attention=attention, vocabulary=50)), Workload(batch=2)
    with torch.inference_mode():
        assert label_fault(name, program_of(prepared(VARIANTS[name], chatbot, workload)), workload) is None


class Mixed(nn.Module):
    """A model of one's own with every layer that is quantised, and one that inherits from such and is not."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent, self.attention = recurrent, nn.MultiheadAttention(16, 2)
        self.parts = nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Values (T, B, 8), the sequences of length T or of these lengths (B,)."""
        packed = values if lengths is None else pack_padded_sequence(values, lengths, enforce_sorted=False)
        found, last = self.recurrent(packed)
        found = found if lengths is None else pad_packed_sequence(found)[0]
        return self.parts(self.attention(found, found, found)[0]), last


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 5, 3])])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_own_models_are_quantised_alike_without_quantize_dynamic(
    kind: type[nn.RNNBase], lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model = Mixed(kind(8, 8, 2, bidirectional=True, dropout=0.5)).eval()  # type: ignore[arg-type]
    inputs, workload = (torch.randn(5, 3, 8), *([] if lengths is None else [lengths])), Workload(model="own:made")
    with torch.inference_mode():
        expected = int8.prepare_module(model, inputs, workload)(*inputs)
        hide_quantize_dynamic(monkeypatch)
        for prepare in (int8.prepare_module, int8.prepare_module_script):
            torch.testing.assert_close(prepare(model, inputs, workload)(*inputs), expected, rtol=0, atol=0)


def test_what_our_own_int8_does_not_take_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_quantize_dynamic(monkeypatch)
    inputs, workload = (torch.ones(5, 3, 8),), Workload(model="own:made")
    for recurrent in (nn.GRU(8, 8, bias=False), nn.LSTM(8, 8, proj_size=4)):
        with pytest.raises(UnavailableError, match="biases and without projections"):
            int8.prepare_module(recurrent, inputs, workload)
    with pytest.raises(UnavailableError, match="no linear or recurrent layer"):
        int8.prepare_module(nn.ReLU(), inputs, workload)
    monkeypatch.delattr(torch, "quantize_per_tensor")
    with pytest.raises(UnavailableError, match=r"no quantize_per_tensor\); onnx-int8 and openvino-int8"):
        int8.prepare_module(nn.Linear(8, 8), inputs, workload)
