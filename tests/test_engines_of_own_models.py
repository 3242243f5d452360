"""An engine that can't take a model of one's own is skipped with the reason, and costs its own row alone."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quirks
import torch
from launches import made_trial

from chatbot import cache
from chatbot.variants import (
    BASELINE,
    CONTROL,
    Compiled,
    UnavailableError,
    Workload,
    export_aoti,
    exported,
    openvino_runtime,
)
from ray_jobs.measure import launch as measure
from ray_jobs.measure.launch import Alone
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.trial import Factory, Inputs
from ray_jobs.process.server import Loss, LossKind
from ray_jobs.process.trial import run_trial
from ray_jobs.process.untimed import Alive, Part, compiled

NO_POOL = np.zeros((0, 8), dtype=np.int64)


def facts_of(model: str, *names: str) -> dict[str, VariantFacts]:
    workload, launch = Workload(batch=2, model=model), Launch(0, 1, rounds=4, calls=2)
    result = measure.measure(workload, (BASELINE, CONTROL, *names), Factory(model), NO_POOL, launch)
    return dict(result.facts)


@pytest.mark.usefixtures("emulated_bf16")
def test_an_operator_that_a_precision_lacks_is_a_reason_to_skip() -> None:
    facts = facts_of("quirks:spectrum", "bf16")["bf16"]
    assert facts.failed is None
    assert "bf16 can't take this model: Unsupported dtype BFloat16" in str(facts.skipped)


@pytest.mark.usefixtures("emulated_bf16")
def test_a_buffer_in_another_precision_is_the_models_own_and_no_wrong_label() -> None:
    for name, facts in facts_of("quirks:scaled", "torchscript", "torchscript-frozen", "bf16", "int8").items():
        assert (name, facts.failed, facts.skipped, facts.invalid) == (name, None, None, None)


def test_a_variant_that_keeps_what_the_model_does_not_is_still_found_out() -> None:
    found = facts_of("quirks:scaled", "quirks:HALVED")["quirks:HALVED"]
    assert found.invalid == "it is labelled float32 but holds float16, float32, float64"


def test_each_variant_is_tried_alone_and_one_that_ends_its_process_is_skipped() -> None:
    asked = []

    def alone(name: str, timeout_s: float, compare_s: float) -> Alone | Loss:
        asked.append(name)
        return Loss(LossKind.DIED, "it was killed by SIGSEGV") if name == "torchscript" else Alone(100.0)

    names = (BASELINE, CONTROL, "torchscript", "compile", "native", "cuda-graph", "bf16")
    trial = made_trial(workload=Workload(model="quirks:spectrum"), variants=names)
    found: dict[str, VariantFacts] = {}

    def tried() -> Iterator[Alive]:
        found.update((yield from compiled(trial, alone, lambda: 0.0)))

    said = list(tried())
    reason = "preparing it for this model ended its process: it was killed by SIGSEGV"
    assert found == {"torchscript": VariantFacts(skipped=reason)}
    assert asked == ["torchscript", "bf16", "compile"]  # who compiles last, as it may use up the time
    parts = [(Part.TRYING, "torchscript"), (Part.TRYING, "bf16"), (Part.COMPILING, "compile")]
    assert said == [Alive(*one) for one in parts]


@pytest.mark.process
def test_a_converter_that_crashes_costs_its_own_row() -> None:
    model = "quirks:crashes_when_traced"
    trial = made_trial(workload=Workload(model=model), variants=(BASELINE, CONTROL, "torchscript"), memory=False)
    work = run_trial(trial, Inputs(Factory(model), {8: NO_POOL}))
    first = next(one for one in work if isinstance(one, LaunchResult))
    work.close()  # type: ignore[attr-defined]
    assert "SIGSEGV in torchscript" in str(first.facts["torchscript"].skipped)
    assert all(first.facts[name].failed is None and first.facts[name].replies for name in (BASELINE, CONTROL))


ENGINES = {"onnx": "onnx", "onnx-int8": "onnx", "openvino": "openvino", "openvino-int8": "openvino"}  # and their extras


@pytest.mark.parametrize(("name", "extra"), ENGINES.items())
def test_a_missing_exporter_is_skipped_with_the_line_that_installs_it(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "find_spec", lambda package: None if package == "onnxscript" else package)
    found = facts_of("quirks:forms", name)[name]
    assert (found.failed, found.skipped) == (
        None,
        f"onnxscript is not installed: pip install 'latency-matrix[{extra}]'",
    )


def test_what_quantises_is_named_too_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "find_spec", lambda package: None if package == "onnxruntime" else package)
    found = facts_of("quirks:forms", "openvino-int8")["openvino-int8"]
    assert found.skipped == "onnxruntime is not installed: pip install 'latency-matrix[onnx]'"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("name", "package"), [(name, {"onnx": "onnxruntime"}.get(extra, extra)) for name, extra in ENGINES.items()]
)
def test_an_exported_graph_answers_in_the_models_form(name: str, package: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip(package)
    found = facts_of("quirks:forms", name)[name]
    assert (found.failed, found.skipped, found.invalid, found.identical) == (None, None, None, found.replies)
    assert found.replies >= 8


@pytest.mark.usefixtures("kept")
def test_a_graph_is_exported_once_for_all_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    onnx_export = pytest.importorskip("chatbot.variants.onnx_export")
    made = []
    monkeypatch.setattr(onnx_export, "_export", lambda program, path, int8: made.append(path.write_bytes(b"graph")))
    inputs = (torch.rand(1, 3),)
    for weight in (1.0, 1.0, 2.0):
        layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(layer.weight, weight)
        torch.nn.init.zeros_(layer.bias)
        assert onnx_export.graph_of(layer, inputs)[0] == b"graph"
    assert len(made) == 2  # other weights are another graph


def test_a_quantised_product_is_one_operator_that_answers_nearly_the_same(tmp_path: Path) -> None:
    """Both engines compute that one in 8 bits; the five of ONNX Runtime's tool OpenVINO computes in fp32."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from chatbot.variants.onnx_int8 import quantise
    from chatbot.variants.onnx_runtime import session_of

    plain, made = tmp_path / "plain.onnx", tmp_path / "made.onnx"
    plain.write_bytes(two_products(onnx).SerializeToString())
    quantise(plain, made)
    kinds = [node.op_type for node in onnx.load(str(made)).graph.node]
    assert kinds == ["DynamicQuantizeMatMul", "Relu", "DynamicQuantizeMatMul", "Add"]
    x = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    expected, found = (session_of(one.read_bytes(), Workload()).run(None, {"x": x})[0] for one in (plain, made))
    assert 0 < np.abs(expected - found).max() < 0.05 * np.abs(expected).max()


def test_no_two_products_of_a_quantised_graph_leave_16_bits(tmp_path: Path) -> None:
    """See test_quantised: where a CPU has no VNNI, two of an activation (at most 255) and a weight are added in 16."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from chatbot.variants.onnx_int8 import quantise

    plain, made = tmp_path / "plain.onnx", tmp_path / "made.onnx"
    plain.write_bytes(two_products(onnx).SerializeToString())
    quantise(plain, made)
    held = onnx.load(str(made)).graph.initializer
    weights = [onnx.numpy_helper.to_array(one) for one in held if one.data_type == onnx.TensorProto.INT8 and one.dims]
    largest = max(int(np.abs(weight.astype(np.int64)).max()) for weight in weights)
    assert 60 <= largest <= np.iinfo(np.int16).max // (2 * 255)


def two_products(onnx: Any) -> Any:
    """A product, and one with a bias whose weight stands transposed: x (3, 16) -> y (3, 4)."""
    random, helper = np.random.default_rng(0), onnx.helper
    held = {"a": (16, 8), "b": (4, 8), "c": (4,)}
    given = [
        onnx.numpy_helper.from_array(random.normal(size=size).astype(np.float32), name) for name, size in held.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b", "c"], ["y"], transB=1),
    ]
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        for name, size in (("x", [3, 16]), ("y", [3, 4]))
    )
    graph = helper.make_graph(nodes, "two", [x], [y], initializer=given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_what_openvino_computes_in_fp32_is_not_called_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Compiled("openvino", frozenset({"cpu"}), frozenset({"float32"}), "")
    monkeypatch.setattr(openvino_runtime, "engine_of", lambda model: shown)
    openvino_runtime._require_precision(False, object())
    with pytest.raises(UnavailableError, match="computes the quantised products of this model in fp32"):
        openvino_runtime._require_precision(True, object())


def test_what_has_no_product_is_not_quantised() -> None:
    pytest.importorskip("onnxscript")
    found = facts_of("quirks:adding", "onnx-int8")["onnx-int8"]
    assert found.skipped == "this model has no product with constant weights to quantise"


def test_an_answer_that_holds_an_object_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"a Box in the model's answer is no tensor"):
        exported.exported(quirks.Boxed(), (torch.rand(1),))


def test_what_torch_can_not_export_is_told_by_its_own_first_sentence() -> None:
    with pytest.raises(
        UnavailableError, match=r"torch\.export can't take this model: Could not guard on data-dependent"
    ):
        exported.exported(quirks.Branching(), (torch.rand(1),))


@torch.inference_mode()
def test_a_module_made_in_inference_mode_is_exported_with_its_tied_weights() -> None:
    program, form = exported.exported(quirks.Forms(), (torch.rand(2, 16), torch.rand(3)))
    assert program.state_dict["module.out.weight"] is program.state_dict["module.back.weight"]
    answer = form([torch.zeros(1), torch.ones(1), torch.zeros(()), torch.zeros(2)])
    assert list(answer) == ["scores", "input", "none", "two", "size"]
    assert (answer["input"], answer["none"], answer["size"]) == (torch.ones(1), None, 16)


def test_a_compiled_library_is_kept_by_program_and_shapes_and_given_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = []

    def running(name: str, weights: Mapping[str, torch.Tensor], build: object) -> Callable[..., list[torch.Tensor]]:
        names.append(name)
        return lambda x: [x @ weights["module.weight"].T + weights["module.bias"]]

    monkeypatch.setattr(export_aoti, "require_compiler", lambda device: None)
    monkeypatch.setattr(export_aoti, "_surroundings", lambda workload: {"threads": workload.threads})
    monkeypatch.setattr(export_aoti, "_running", running)
    asked = [(2, 1), (2, 1), (3, 1), (2, 2)]
    for batch, threads in asked:
        layer, x = torch.nn.Linear(3, 2), torch.rand(batch, 3)
        answer = export_aoti.prepare_module(layer, (x,), Workload(threads=threads))
        assert torch.allclose(answer(x), layer(x), atol=1e-5)
    assert names[0] == names[1]  # other weights, the same library
    assert len({*names}) == 3
