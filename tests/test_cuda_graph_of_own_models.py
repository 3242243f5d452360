"""CUDA graphs of any module, with a capture that a CPU can make: fresh answers, their form, and what is refused."""

import contextlib
from typing import Any

import captures
import pytest
import quirks
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from chatbot.variants import VARIANTS, UnavailableError, Workload, cuda_graph, prepared_module
from ray_jobs.measure.program import label_fault, probe_fault, program_of

ON_GPU = Workload(device="cuda", batch=2, model="quirks:forms")
NO_LENGTHS = torch.zeros(0)


@pytest.fixture(autouse=True)
def _launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    captures.without_a_gpu(monkeypatch)
    with torch.inference_mode():
        yield


def captured(module: nn.Module, *inputs: Tensor) -> Any:
    return prepared_module(VARIANTS["cuda-graph"], module.eval(), inputs, ON_GPU)


def asked(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 16, generator=draw), torch.rand(3, generator=draw)


def test_a_graph_answers_new_inputs_in_the_models_form_and_keeps_earlier_answers() -> None:
    model = quirks.Forms().eval()
    reply = captured(model, *asked(0))
    answers = [reply(asked(seed), NO_LENGTHS) for seed in (1, 2)]
    for seed, answer in zip((1, 2), answers, strict=True):
        expected = model(*asked(seed))
        assert quirks.same_forms(answer, expected)
        assert torch.allclose(answer["scores"], expected["scores"], atol=1e-6)
        assert torch.equal(answer["two"][1], expected["two"][1])


def test_a_graph_is_what_its_label_says_and_calls_no_module() -> None:
    reply = captured(quirks.Scaled(), torch.rand(2, 16))
    program = program_of(reply)
    assert (program.kind, "cuda" in program.devices) == ("cuda-graph", True)
    held = frozenset({"float32", "float64"})
    assert "holds weights on cpu" in str(label_fault("cuda-graph", program, ON_GPU, held))  # the stand-in's are there
    assert probe_fault(reply, (torch.rand(2, 16),), NO_LENGTHS, program.kind, text=True) is None


def test_a_graph_takes_no_other_shape_than_it_was_captured_for() -> None:
    reply = captured(quirks.Adding(), torch.rand(2, 16))
    with pytest.raises(ValueError, match=r"captured for \[torch.Size\(\[2, 16\]\)\], not for"):
        reply((torch.rand(1, 16),), NO_LENGTHS)


def test_a_model_that_reads_a_number_back_is_skipped_with_the_reason() -> None:
    with pytest.raises(UnavailableError, match=f"a CUDA graph can't take this model: CUDA error: {captures.REFUSED}$"):
        captured(quirks.Branching(), torch.rand(2, 16))


def test_a_model_whose_answer_holds_an_object_is_skipped_with_the_reason() -> None:
    with pytest.raises(UnavailableError, match="a Box in the model's answer is no tensor"):
        captured(quirks.Boxed(), torch.rand(2, 16))


class Overwriting(nn.Module):
    """Stands in for what Inductor captured: every answer lies in the same memory."""

    def __init__(self, module: nn.Module, skips: int) -> None:
        super().__init__()
        self.module, self.skips, self.buffer = module, skips, torch.zeros(2, 4)

    def forward(self, x: Tensor) -> Any:
        counters["inductor"]["cudagraph_skips"] += self.skips
        return {"scores": self.buffer.copy_(self.module(x)), "size": 4}


@pytest.mark.parametrize("skips", [0, 1])
def test_a_compiled_graph_keeps_earlier_answers_and_is_skipped_where_there_is_none(
    skips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: dict[str, object] = {}

    def compile_(module: nn.Module, **how: object) -> nn.Module:
        asked_for.update(how)
        return Overwriting(module, skips)

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(cuda_graph, "require_compiler", lambda device: None)
    monkeypatch.setattr(cuda_graph, "compiling", lambda workload: contextlib.nullcontext())
    monkeypatch.setitem(counters, "inductor", counters["inductor"].copy())
    model, variant = nn.Linear(16, 4), VARIANTS["compile-cudagraph"]
    if skips:
        with pytest.raises(UnavailableError, match="Inductor replays no CUDA graph of this model"):
            prepared_module(variant, model, (torch.rand(2, 16),), ON_GPU)
        return
    reply: Any = prepared_module(variant, model, (torch.rand(2, 16),), ON_GPU)
    x = torch.rand(2, 16)
    first = reply((x,), NO_LENGTHS)
    reply((x + 1,), NO_LENGTHS)
    assert torch.allclose(first["scores"], model(x))
    assert first["size"] == 4
    assert asked_for == {"dynamic": False, "mode": "reduce-overhead"}
