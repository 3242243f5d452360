"""Models of which variants convert the named parts, while the loop around them stays Python."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_loops
import pytest
import torch
from launches import made_trial
from own_loops import STEPS, WIDTH, WORDS
from torch import nn

from chatbot.variants import BASELINE, CONTROL, UnavailableError, Workload, parts, variant_named
from chatbot.variants.converted_parts import Direct
from chatbot.variants.parts import loop_behind, loop_of, recorded
from ray_jobs.driver.inputs import identity_of, inputs_of, parts_of
from ray_jobs.matrix.rows import Status, rows_of
from ray_jobs.measure import contract, custom_model
from ray_jobs.measure import launch as measure
from ray_jobs.measure.operators import counted, counted_loop
from ray_jobs.measure.program import program_of
from ray_jobs.measure.result import Launch, LaunchResult
from ray_jobs.measure.roofline import PRECISIONS
from ray_jobs.measure.subject import OwnSubject
from ray_jobs.measure.tokens import token_times
from ray_jobs.measure.trial import Factory, Place
from ray_jobs.process.profile.profiler import trace_variant
from ray_jobs.report.anonymous import own_names
from ray_jobs.spec import read_spec

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NO_POOL = np.zeros((0, 8), dtype=np.int64)
QUICK = ("torchscript", "torchscript-frozen", "torchscript-optimized", "int8", "int8-torchscript")
EXACT = QUICK[:3]


def launched(model: str, *names: str, index: int = 0) -> LaunchResult:
    workload, launch = Workload(batch=2, model=model), Launch(index, 1, rounds=4, calls=2)
    return measure.measure(workload, (BASELINE, CONTROL, *names), Factory(model), NO_POOL, launch)


def subject(model: str) -> OwnSubject:
    return OwnSubject(Factory(model), Workload(batch=2, model=model), 0)


def refusal(name: str) -> str:
    found = contract.ask(name, [Workload(model=name)], 60.0)
    assert isinstance(found, contract.Refusal)
    assert "\n" not in found.reason
    return found.reason


@pytest.mark.parametrize("model", ["greedy", "by_name", "growing", "sized"])
def test_each_variant_converts_the_parts_and_answers_as_it_promises(model: str) -> None:
    facts = launched(f"own_loops:{model}", *EXACT, "bf16").facts
    for name in (BASELINE, CONTROL, *EXACT):
        if name == "torchscript-optimized" and facts[name].skipped:
            assert "finds nothing to rewrite" in str(facts[name].skipped)
            continue
        one = facts[name]
        assert (name, one.failed, one.skipped, one.invalid) == (name, None, None, None)
        assert one.kind == variant_named(name).kind
        assert one.identical == one.replies >= 8
    assert facts["bf16"].failed is None


def test_a_part_without_anything_to_quantise_stays_as_it_is_beside_one_with() -> None:
    with torch.inference_mode():
        reply = subject("own_loops:growing").fresh()(variant_named("int8"))
    loop = loop_behind(reply)
    assert loop is not None
    assert program_of(reply).dtypes == {"float32", "qint8"}
    with pytest.raises(UnavailableError, match="no linear or recurrent layer"), torch.inference_mode():
        subject("own_loops:bare").fresh()(variant_named("int8"))


def test_tensors_in_order_meet_the_converted_part_alone() -> None:
    with torch.inference_mode():
        loop = loop_behind(subject("own_loops:greedy").fresh()(variant_named("torchscript")))
    assert loop is not None
    assert all(isinstance(part, Direct) for part in loop.parts.values())
    assert all(isinstance(program, torch.jit.ScriptModule) for program in loop.programs)
    assert loop.module.decoder.start == own_loops.Decoder.start  # type: ignore[union-attr]


def test_one_program_answers_a_growing_sequence_and_each_size_has_its_own_where_none_can() -> None:
    with torch.inference_mode():
        growing, sized = (subject(f"own_loops:{name}") for name in ("growing", "sized"))
        one = loop_behind(growing.fresh()(variant_named("torchscript")))
        many = loop_behind(sized.fresh()(variant_named("torchscript")))
    assert one is not None
    assert many is not None
    assert (len(one.programs), len(many.programs)) == (2, 3)
    assert len(growing.calls["net"]) == STEPS


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("cached", "its part 'step' is given a Cache, which is no tensor"),
        ("odd", "a Hidden in the model's answer is no tensor"),
    ],
)
def test_what_no_conversion_sees_is_a_reason_to_skip(model: str, why: str) -> None:
    facts = launched(f"own_loops:{model}", "torchscript", "int8").facts
    assert (facts[BASELINE].failed, facts[CONTROL].invalid, facts[CONTROL].identical >= 8) == (None, None, True)
    for name in ("torchscript", "int8"):
        assert (facts[name].failed, why in str(facts[name].skipped)) == (None, True), facts[name]


def test_a_call_of_another_size_than_the_first_is_a_reason_to_skip() -> None:
    facts = launched("own_loops:late", "torchscript").facts
    assert facts["torchscript"].failed is None
    assert "in a form or size that its first calls had not" in str(facts["torchscript"].skipped)
    assert facts[CONTROL].identical >= 8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_part", "has no part 'decode'; submodules are: decoder, "),
        ("nested_parts", "names parts that are not apart, 'decoder' and 'decoder.gru': name one of them"),
        ("twice", "names parts that are not apart, 'decoder' and 'decoder'"),
        ("one_string", "holds 'encoder' as its parts, not a tuple of names of submodules"),
        ("uncalled", "does not call its part 'spare' in a call: call it as self.spare(...), or name another"),
    ],
)
def test_parts_that_can_not_be_measured_are_one_line(name: str, said: str) -> None:
    assert said in refusal(f"own_loops:{name}")


def test_first_and_further_tokens_are_what_a_clock_says() -> None:
    """A clock that moves by 1 ms in the encoder and 10 in each call of the decoder."""
    now = [0]
    model = own_loops.Greedy().eval()

    def slow(module: nn.Module, ms: int) -> None:
        module.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + ms * 1_000_000))

    slow(model.encoder, 1)
    slow(model.decoder, 10)
    reply = parts.reply_of(loop_of(model, ("encoder", "decoder")))
    asked: Any = ((torch.zeros(1, 6, dtype=torch.long),), torch.empty(0))
    times = token_times(reply, asked, "cpu", clock=lambda: now[0])
    assert times is not None
    assert (times.first_ms, times.further_ms) == (11.0, 10.0)
    assert token_times(parts.reply_of(loop_of(model, ("decoder", "encoder"))), asked, "cpu") is None  # called once
    assert token_times(lambda inputs, _: inputs, asked, "cpu") is None
    assert type(model.decoder) is own_loops.Decoder  # as it was


def test_rows_say_when_tokens_come() -> None:
    workload = Workload(batch=2, model="own_loops:greedy")
    trial = made_trial("greedy", workload=workload, variants=(BASELINE, CONTROL, "torchscript"))
    rows = rows_of(trial, Place(), Status.DONE, None, [launched("own_loops:greedy", "torchscript")])
    for row in rows:
        assert (row.first_token_ms or 0) > 0 < (row.per_token_ms or 0)
    trial = made_trial("whole", workload=workload, variants=(BASELINE, CONTROL))
    for row in rows_of(trial, Place(), Status.DONE, None, [launched("own_loops:whole")]):
        assert (row.first_token_ms, row.per_token_ms) == (None, None)


def test_calls_are_recorded_once_for_each_form_and_size() -> None:
    model = custom_model.load("own_loops:greedy")
    workload = Workload(batch=2, model="own_loops:greedy")
    asked = [custom_model.inputs_of(model, i, workload) for i in (0, 1)]
    calls = recorded(loop_of(model.module, model.parts), asked)
    assert {name: len(found) for name, found in calls.items()} == {"encoder": 1, "decoder": 1}
    token, state, outputs = calls["decoder"][0].tensors
    assert (token.shape, state.shape, outputs.shape) == ((2, 1), (1, 2, WIDTH), (2, 6, WIDTH))


@torch.inference_mode()
def test_the_limit_counts_each_weight_once_a_call_of_a_part() -> None:
    batch, own = 2, subject("own_loops:greedy")
    reply = own.fresh()(variant_named(BASELINE))
    loop, asked = loop_behind(reply), own.questions.next()
    assert loop is not None
    found = counted_loop(loop, lambda: reply(*asked), asked)
    gru, out = 2 * 3 * WIDTH * WIDTH, WORDS * WIDTH
    assert [name for name, _ in found.calls] == ["encoder", *["decoder"] * STEPS]
    rows = {name: one.matrices - gru - (out if name == "decoder" else 0) for name, one in found.calls}
    assert rows["decoder"] in (WIDTH, 2 * WIDTH)  # of the embedding, one for each distinct token
    each = 2 * batch * (gru + out + 2 * 6 * WIDTH)
    assert [one.flops for name, one in found.calls if name == "decoder"] == [each] * STEPS
    assert found.calls[0][1].flops == 2 * batch * 6 * gru
    assert found.whole.flops == sum(one.flops for _, one in found.calls)
    assert found.whole.matrices < sum(one.matrices for _, one in found.calls)
    assert counted(lambda: reply(*asked), asked) == found.whole


@torch.inference_mode()
def test_what_is_read_again_may_come_from_a_cache_of_what_was_read_since() -> None:
    own = subject("own_loops:greedy")
    reply = own.fresh()(variant_named(BASELINE))
    loop, asked = loop_behind(reply), own.questions.next()
    assert loop is not None
    found, float32 = counted_loop(loop, lambda: reply(*asked), asked), PRECISIONS["float32"]
    around, encode, first, *others = found.phases(float32)
    everything = found.whole.size(float32)
    assert {one.reads[0].working_set for one in (around, encode, first)} == {everything}
    assert all(one.reads[0].working_set == one.reads[0].size < everything for one in others)


def test_a_trace_names_the_parts() -> None:
    traced = trace_variant(
        Workload(model="own_loops:greedy"), "torchscript", Factory("own_loops:greedy"), NO_POOL, "greedy"
    )
    phases = {one.operator: one.calls for one in traced.operators if "::" not in one.operator}
    assert phases["call"] == phases["encoder"] == phases["decoder 1"] == phases[f"decoder {STEPS}"] == 5
    assert f"decoder {STEPS + 1}" not in phases


@pytest.mark.process
def test_parts_stand_in_the_run_and_are_of_the_models_identity() -> None:
    named, whole = (read_spec(None, {"model": f"own_loops:{name}"}) for name in ("greedy", "whole"))
    inputs, taken_whole = inputs_of(named), inputs_of(whole)
    assert (parts_of(inputs), parts_of(taken_whole)) == (("encoder", "decoder"), ())
    assert isinstance(inputs.model, Factory)
    other = replace(inputs, model=replace(inputs.model, parts=("decoder",)))
    assert identity_of(inputs, named)["model"] != identity_of(other, named)["model"]
    assert {"encoder", "decoder"} <= own_names(named.model_dump(), parts_of(inputs))


@pytest.mark.filterwarnings("ignore")  # tracing reads every attribute, those that transformers is about to drop too
@pytest.mark.parametrize("name", ["torchscript", "torchscript-frozen", "int8"])
def test_generate_of_hugging_face(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from models import generating

    for key, small in {"n_embd": 32, "n_layer": 2, "vocab_size": 200}.items():
        monkeypatch.setitem(generating.GPT2, key, small)
    model, workload = "models.generating:gpt2", Workload(batch=2, model="models.generating:gpt2")
    found = contract.examine(model, [workload], 600.0)
    assert found.parts == ("model.transformer", "model.lm_head")
    with torch.inference_mode():
        own = subject(model)
        reply, asked = own.fresh()(variant_named(name)), own.questions.next()
        loop, times, baseline = (
            loop_behind(reply),
            token_times(reply, asked, "cpu"),
            own.fresh()(variant_named(BASELINE)),
        )
        assert loop is not None
        assert (len(loop.programs), times is not None) == (2, True)  # one for all lengths
        if variant_named(name).exact:
            assert torch.equal(reply(*asked), baseline(*asked))
    assert len(own.calls["model.transformer"]) == generating.WRITTEN


def test_an_engine_in_8_bits_takes_a_part_without_products_as_it_is() -> None:
    pytest.importorskip("onnxscript")
    with torch.inference_mode():
        reply = subject("own_loops:greedy").fresh()(variant_named("onnx-int8"))
    found = program_of(reply)
    assert found.kind == "onnxruntime"
    assert found.dtypes == {"float32", "qint8"}
