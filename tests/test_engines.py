"""A program under another program's label is found out, whatever engine executes it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from launches import tiny
from torch import Tensor

from chatbot.variants import VARIANTS, Reply, Workload, onnx_runtime, openvino_runtime, prepared
from chatbot.variants.masked import Greedy, Step
from ray_jobs.measure.program import label_fault, probe_fault, program_of, same_program_faults

pytestmark = pytest.mark.usefixtures("emulated_bf16")

WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")


@pytest.fixture(autouse=True)
def as_a_launch() -> Iterator[None]:
    with torch.inference_mode():
        yield


def fault(name: str, reply: Reply, workload: Workload = WORKLOAD) -> str | None:
    """What is found in a callable that stands under the label of ``name``."""
    return label_fault(name, program_of(reply), workload)


def prepared_as(name: str) -> Reply:
    return prepared(VARIANTS[name], tiny(), WORKLOAD)


@pytest.mark.parametrize(
    ("label", "truth", "said"),
    [
        ("torchscript-frozen", "torchscript", "labelled torchscript-frozen but runs torchscript"),
        ("torchscript", "torchscript-frozen", "labelled torchscript but runs torchscript-frozen"),
        ("bf16", "eager", "labelled bfloat16 but holds float32"),
        ("eager", "bf16", "labelled float32 but holds bfloat16"),
        ("int8", "eager", "labelled float32+qint8 but holds float32"),
        ("int8", "int8-torchscript", "labelled eager but runs torchscript"),
        ("int8-torchscript", "torchscript", "labelled float32+qint8 but holds float32"),
        ("torchscript", "int8-torchscript", "labelled float32 but holds float32, qint8"),
        ("compile", "eager", "labelled inductor but runs eager"),
        ("export-aoti", "torchscript", "labelled aoti but runs torchscript"),
        ("cuda-graph", "eager", "labelled cuda-graph but runs eager"),
    ],
)
def test_a_pytorch_program_under_another_label(label: str, truth: str, said: str) -> None:
    assert fault(label, prepared_as(truth)) == f"it is {said}"


@pytest.mark.parametrize(
    ("label", "truth", "said"),
    [
        ("onnx", "onnx-int8", "labelled float32 but holds float32, qint8"),
        ("onnx-int8", "onnx", "labelled float32+qint8 but holds float32"),
        ("onnx", "eager", "labelled onnxruntime but runs eager"),
        ("openvino", "onnx", "labelled openvino but runs onnxruntime"),
    ],
)
def test_a_session_under_another_label(label: str, truth: str, said: str) -> None:
    pytest.importorskip("onnxruntime")
    assert fault(label, prepared_as(truth)) == f"it is {said}"


def test_a_session_beside_which_modules_answer_is_both() -> None:
    pytest.importorskip("onnxruntime")
    session, search = prepared_as("onnx"), tiny().search()
    reply: Callable[[Tensor, Tensor], Tensor] = lambda p, n: search(p, n, 3)[0] if session is not None else p  # noqa: E731
    assert fault("onnx", reply) == "it is labelled onnxruntime but runs eager+onnxruntime"


def test_a_session_is_on_the_device_of_its_first_provider() -> None:
    pytest.importorskip("onnxruntime")
    on_cuda = replace(WORKLOAD, device="cuda")
    assert fault("onnx", prepared_as("onnx"), on_cuda) == "it is labelled cuda but holds weights on cpu"


def test_one_graph_under_two_names_is_found() -> None:
    pytest.importorskip("onnxruntime")
    programs = {name: program_of(prepared_as("onnx")) for name in ("onnx", "onnx-int8")}
    assert same_program_faults(programs)["onnx-int8"] == "it is the same program as onnx"


def test_openvino_that_computes_in_bf16_is_not_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    compile_model = openvino.Core.compile_model

    def in_bf16(core: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        return compile_model(core, model, device, {**settings, "INFERENCE_PRECISION_HINT": "bf16"})

    monkeypatch.setattr(openvino.Core, "compile_model", in_bf16)
    assert "labelled float32 but holds bfloat16" in (fault("openvino", prepared_as("openvino")) or "")


def test_openvino_that_computes_the_int8_graph_in_8_bits_is_no_fp32_and_no_other_engine() -> None:
    pytest.importorskip("openvino")
    quantised = prepared_as("openvino-int8")
    assert fault("openvino-int8", quantised) is None
    assert fault("openvino", quantised) == "it is labelled float32 but holds float32, qint8"
    assert fault("openvino-int8", prepared_as("openvino")) == "it is labelled float32+qint8 but holds float32"


def test_what_was_given_to_a_compiler_that_does_nothing_runs_eager() -> None:
    step = torch.compile(Step(tiny().decoder).eval(), backend="eager")
    assert program_of(lambda p, n: step(p, n, p, n)[0]).kind == "eager"


def test_what_was_never_compiled_runs_eager() -> None:
    class Untouched(Step):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(*tensors)

    step = torch.compile(Untouched(tiny().decoder).eval())
    assert program_of(lambda p, n: step(p, n, p, n)[0]).kind == "eager"


def test_a_graph_that_is_not_replayed_is_found_by_what_is_called() -> None:
    search = Greedy(tiny(), 3).eval()
    prompts, lengths = torch.full((1, 4), 5), torch.tensor([4])
    assert (
        probe_fault(lambda p, n: search(p), prompts, lengths, "cuda-graph")
        == "it is labelled cuda-graph but calls Greedy"
    )
    assert probe_fault(lambda p, n: search(p), prompts, lengths, "eager") is None


def test_sessions_stay_on_the_threads_that_they_are_given() -> None:
    pytest.importorskip("onnxruntime")
    reply = prepared_as("onnx")
    assert isinstance(reply, onnx_runtime.BoundSession)
    options = reply.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_openvino_stays_on_the_threads_that_it_is_given() -> None:
    pytest.importorskip("openvino")
    reply = prepared_as("openvino")
    assert isinstance(reply, openvino_runtime.Inferring)
    assert reply.compiled_model.get_property("INFERENCE_NUM_THREADS") == 1
