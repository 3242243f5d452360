"""What a launch on a GPU rests on, held without one: memory layouts, arithmetic, and PyTorch's own sources."""

import ast
import contextlib
import copy
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cudnn
import pytest
import torch
from launches import enter, prompts, tiny
from torch import nn
from torch._C._autograd import DeviceType
from torch._dynamo.utils import counters
from torch._inductor import utils as inductor_utils
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.utils import cpp_extension

from chatbot.model import Chatbot
from chatbot.variants import (
    BASELINE,
    CONTROL,
    VARIANTS,
    Prepare,
    Reply,
    UnavailableError,
    Workload,
    bf16,
    cuda_graph,
    eager,
    export_aoti,
    masked,
    prepared,
    torchscript,
)
from chatbot.variants.inductor import example
from ray_jobs.measure import launch as measure
from ray_jobs.measure.program import label_fault, program_of, same_program_faults, scattered
from ray_jobs.measure.result import Launch
from ray_jobs.measure.timing import CudaTimer, Reading, floor_ns
from ray_jobs.measure.trial import Preset
from ray_jobs.process.profile import profiler
from ray_jobs.process.profile.shares import ON_DEVICE, kind_of, shares_of

WORKLOAD = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
TINY = Preset("tiny")


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
    reply = bf16.prepare(bot, replace(WORKLOAD, device="cuda"))
    assert not scattered(reply)
    alone = bf16.prepare_module(nn.GRU(4, 4), (), replace(WORKLOAD, device="cuda"))
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
def test_only_the_calls_of_tf32_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if one fails: the variants of a launch share the switches."""
    torch.backends.cudnn.allow_tf32 = False
    saw: list[tuple[bool, bool]] = []

    def look(*_: object) -> None:
        saw.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    bot, on_cuda = tiny(), replace(WORKLOAD, device="cuda")
    reply = prepared(VARIANTS["tf32"], bot, on_cuda)
    bot.decoder.register_forward_hook(look)
    asked = prompts(3)[:1]
    tokens = reply(torch.from_numpy(asked), torch.tensor([4]))
    look()
    with pytest.raises(IndexError):
        reply(torch.full((1, 4), 10**6), torch.tensor([4]))
    look()
    assert saw == [(True, True)] * 3 + [(False, False)] * 2
    assert torch.equal(tokens, eager.prepare(bot, WORKLOAD)(torch.from_numpy(asked), torch.tensor([4])))


def test_tf32_is_another_program_than_eager_and_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = replace(WORKLOAD, device="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UnavailableError, match=r"TF32 needs compute capability 8\.0; this GPU has 7\.5"):
        prepared(VARIANTS["tf32"], tiny(), on_cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    programs = {"tf32": prepared(VARIANTS["tf32"], tiny(), on_cuda), BASELINE: eager.prepare(tiny(), WORKLOAD)}
    assert same_program_faults({name: program_of(reply) for name, reply in programs.items()}) == {}
    assert label_fault("tf32", program_of(programs["tf32"]), WORKLOAD) is None


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


def test_inductors_advice_to_use_tf32_does_not_end_the_tests_on_a_gpu() -> None:
    """Our filters make warnings errors; on every GPU since Ampere, Inductor warns that TF32 is off."""
    source = (Path(torch.__file__).parent / "_inductor/compile_fx.py").read_text()
    said = re.findall(r'"(TensorFloat32 tensor cores [^"]*)"', source)
    filters = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["filterwarnings"]
    ours = [one.split(":")[1] for one in filters if "TensorFloat32" in one]
    assert len(said) == 1
    assert len(ours) == 1
    assert re.match(ours[0], said[0])


def test_make_test_gpu_names_the_packages_that_its_tests_import() -> None:
    loaded = [*Path("tests/gpu").glob("*.py"), Path("tests/conftest.py"), *Path("tests/support").glob("profiles.py")]
    found = {name.split(".")[0] for path in loaded for name in imported(ast.parse(path.read_text()))}
    ours = {"chatbot", "ray_jobs", "torch", "profiles", "skips"}
    needed = found - ours - set(sys.stdlib_module_names) | {"pytest-timeout"}  # the marker "timeout" is its
    line = next(line for line in Path("Makefile").read_text().splitlines() if line.startswith("test-gpu:"))
    assert needed == set(line.partition("pip install ")[2].split())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_without_a_toolkit_export_aoti_is_skipped_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_aoti, "require_compiler", lambda device: None)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with pytest.raises(UnavailableError, match="no CUDA toolkit: install one and let CUDA_HOME"):
        export_aoti.prepare(tiny(), replace(WORKLOAD, device="cuda"))


@pytest.mark.parametrize("skips", [0, 1])
def test_a_compiled_search_that_replays_no_graph_is_not_called_one(skips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor does without a CUDA graph where it can't make one, and only its log tells."""

    def compile_(search: nn.Module, **_: object) -> nn.Module:
        counters["inductor"]["cudagraph_skips"] += skips
        return search

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(cuda_graph, "require_compiler", lambda device: None)
    monkeypatch.setattr(cuda_graph, "compiling", lambda workload: contextlib.nullcontext())
    before = counters["inductor"]["cudagraph_skips"]
    if skips:
        with pytest.raises(RuntimeError, match="replays no CUDA graph"):
            cuda_graph.prepare_compiled(tiny(), WORKLOAD)
    else:
        assert cuda_graph.prepare_compiled(tiny(), WORKLOAD)(*example(WORKLOAD)).shape == (1, 3)
    counters["inductor"]["cudagraph_skips"] = before


TRACE = json.loads(Path("tests/data/cuda-trace.json").read_text())["traceEvents"]  # made by hand, as it says itself


def recorded() -> Any:
    """That trace as ``torch.profiler`` keeps it: all of its events, kernels in the operators that launched them."""
    spans = [one for one in TRACE if one["ph"] == "X"]
    made = {number: event(number, one) for number, one in enumerate(spans)}
    by_operator = {one["args"]["External id"]: made[n] for n, one in enumerate(spans) if one["cat"] in CPU_CATEGORIES}
    for number, one in enumerate(spans):
        if one["cat"] in ON_DEVICE or one["cat"] == "gpu_user_annotation":
            by_operator[one["args"]["External id"]].append_kernel(one["name"], 0, made[number].time_range.elapsed_us())
    events: Any = EventList(made.values(), use_device="cuda")  # type: ignore[no-untyped-call]
    events._build_tree()
    return events.key_averages()


CPU_CATEGORIES = ("cpu_op", "user_annotation")


def named(*categories: str) -> set[str]:
    return {one["name"] for one in TRACE if one.get("cat") in categories}


def event(ident: int, span: dict[str, Any]) -> Any:
    on_device = span["cat"] in ON_DEVICE or span["cat"] == "gpu_user_annotation"
    return FunctionEvent(  # type: ignore[no-untyped-call]
        ident,
        span["name"],
        1,
        span["ts"],
        span["ts"] + span["dur"],
        use_device="cuda",
        stack=[],
        is_user_annotation=span["cat"].endswith("user_annotation"),
        device_type=DeviceType.CUDA if on_device else DeviceType.CPU,
    )


def test_a_kernel_is_no_operator_and_its_time_counts_once() -> None:
    operators = {one.operator: one for one in profiler._operators(recorded(), "cuda")}
    assert {name: one.self_device_us for name, one in operators.items() if one.self_device_us} == {
        "aten::addmm": 34,
        "aten::tanh": 10,
        "aten::copy_": 5,
    }
    assert set(operators) == {
        one["name"] for one in TRACE if one.get("cat") in (*CPU_CATEGORIES, "cuda_runtime", "cuda_driver")
    }
    kernels = profiler._kernels(recorded())
    assert sum(one.device_us for one in kernels) == 49
    assert {(one.kernel, one.calls) for one in kernels} == {
        (one["name"], 1) for one in TRACE if one.get("cat") in ON_DEVICE
    }
    assert {operators[name].kind for name in ("cudaLaunchKernel", "cuLaunchKernelEx", "aten::linear")} == {"dispatch"}


def test_what_the_device_does_is_the_kernels_of_a_trace_and_its_copies_of_phases_are_not() -> None:
    found = shares_of(TRACE, "cuda")
    assert found.reply_ms == 0.2
    assert found.kernel_ms == pytest.approx(0.049)
    assert found.kernel_ms + found.dispatch_ms + found.interpreter_ms == pytest.approx(found.reply_ms)
    assert (found.encode_ms, found.decode_ms) == (0.06, 0.06)


@pytest.mark.parametrize("name", ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync"])
def test_calls_of_the_runtime_and_driver_are_dispatch(name: str) -> None:
    assert kind_of(name) == "dispatch"


@pytest.mark.parametrize("name", ["customReply", "cumulative", "reply", "cudagraph"])
def test_a_phase_that_is_called_like_one_is_not(name: str) -> None:
    assert kind_of(name) == "interpreter"


@pytest.mark.usefixtures("_laid_out")
def test_compiled_variants_read_weights_that_are_aligned_and_share_those_that_are() -> None:
    """Of odd sizes, weights lie anywhere in the one buffer, and Inductor would copy them at each call."""
    odd, even = (nn.GRU(size, size, 2) for size in (5, 8))
    assert any(weight.data_ptr() % masked.ALIGNMENT for weight in odd.parameters())
    for gru in (odd, even):
        held = dict(masked.Weights(gru).named_parameters())
        assert all(weight.data_ptr() % masked.ALIGNMENT == 0 for weight in held.values())
        assert all(torch.equal(held[name], weight) for name, weight in gru.named_parameters())
    assert all(held[name] is weight for name, weight in even.named_parameters())


def test_the_alignment_is_inductors() -> None:
    assert masked.ALIGNMENT == inductor_utils.ALIGNMENT


def asked_for(reply: Reply, saw: list[str]) -> Any:
    """Stands in for what a launch is about: prepares this callable, and asks it something."""

    def prepared(variant: object) -> Reply:
        saw.append("prepare")
        return reply

    questions = SimpleNamespace(next=lambda: example(WORKLOAD), lengths=torch.tensor([4]))
    return SimpleNamespace(fresh=lambda: prepared, questions=questions)


def test_on_a_gpu_peak_memory_is_that_of_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """What preparing took and gave back, a second copy of the weights say, is told apart."""
    saw: list[str] = []

    def reply(prompts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        saw.append("call")
        return prompts

    monkeypatch.setattr(measure, "subject_of", lambda *_: asked_for(reply, saw))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: saw.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5_000_000 if "call" in saw else 9_000_000)
    alone = measure.measure_alone(replace(WORKLOAD, device="cuda"), BASELINE, TINY, prompts(20))
    assert (alone.prepare_mb, alone.peak_mb) == (9.0, 5.0)
    assert saw[:4] == ["reset", "prepare", "reset", "call"]
    assert saw.count("reset") == 2


def test_preparing_on_a_gpu_lasts_until_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    saw: list[str] = []
    reply = eager.prepare(tiny(), WORKLOAD)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: saw.append("synchronize"))

    def clock() -> float:
        saw.append("clock")
        return float(len(saw))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: saw.append("synchronize"))
    monkeypatch.setattr("time.perf_counter", clock)
    measure._prepare_all([BASELINE], asked_for(reply, saw), replace(WORKLOAD, device="cuda"), {})
    assert saw == ["clock", "prepare", "synchronize", "clock"]
