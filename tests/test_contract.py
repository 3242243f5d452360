"""What is asked of a user's own model before anything is measured: each quirk has its line."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launches import made_trial
from torch import nn

from chatbot.errors import UsageError
from chatbot.variants import BASELINE, CONTROL, Workload
from ray_jobs import close
from ray_jobs.driver.inputs import identity_of, inputs_of, with_cases
from ray_jobs.driver.trials import trial_id
from ray_jobs.measure import contract, custom_model
from ray_jobs.measure.contract import Findings
from ray_jobs.measure.launch import measure
from ray_jobs.measure.result import Launch, VariantFacts
from ray_jobs.measure.roofline import Speeds
from ray_jobs.measure.trial import Factory, Inputs
from ray_jobs.process import untimed
from ray_jobs.process.profile.profiler import trace_variant
from ray_jobs.report.anonymous import own_names
from ray_jobs.spec import read_spec, spec_of

ANOTHER_MODULE = """
from torch import nn, rand
from helper import WIDTH
from ray_jobs import OwnModel

def factory():
    return OwnModel(nn.Linear(16, WIDTH), lambda i, w: (rand(w.batch, 16),))
"""


def examined(name: str) -> Findings:
    model = f"own_quirks:{name}"
    return contract.examine(model, [Workload(batch=2, model=model)], 60.0)


def launched(name: str, gradients: bool = False) -> dict[str, VariantFacts]:
    model = f"own_quirks:{name}"
    workload, launch = Workload(batch=2, model=model), Launch(0, 1, rounds=2, calls=1)
    source = Factory(model, gradients=gradients)
    return dict(measure(workload, (BASELINE, CONTROL), source, np.zeros((0, 8), dtype=np.int64), launch).facts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("counts", "keeps state from call to call (its 'calls' changes): start each call from the same state"),
        ("remembers", "keeps state from call to call (its 'cache' grows with each): start each call"),
        ("depends", "keeps state from call to call (its answers depend on it): start each call"),
        ("dropout", "answers the same inputs differently (dropout without training=self.training, sampling)"),
        ("samples", "answers the same inputs differently"),
        ("spoils", "changes its inputs in place, which the next variant reads: work on a copy"),
        ("grows", "inputs(1, workload) of 'own_quirks:grows' are (3, 16) float32, but inputs(0, workload) (2, 16)"),
        (
            "unseeded",
            "inputs(0, workload) of 'own_quirks:unseeded' differ from one time to the next: draw them with torch",
        ),
        ("runs_out", "failed: list index out of range; the index grows large, so use i % len(data)"),
        ("generator", "answers with a generator, which computes after the call: return a list"),
        ("nothing", "answers with Box: return a tensor"),
        ("all_nan", "answers with NaN alone"),
        ("unlike", "has a same(answer, baselines) that is False of an answer and itself"),
        ("nan_unlike", "its answer holds NaN, which ray_jobs.close() takes as equal to NaN"),
        ("fails", "can't answer inputs(0, workload): RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("lazy_unreached", "do not reach a LazyLinear without weights"),
    ],
)
def test_what_can_not_be_measured_is_refused_with_the_way_out(name: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        examined(name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("plain", None),
        ("tupled", None),
        ("named", None),
        ("buffer_float64", None),
        ("buffer_float16", None),
        ("nan_inputs", None),
        ("no_parameters", None),
        ("uncopied", None),
        ("lazy", None),
        ("some_nan", "25.0% of the numbers in the model's answer are NaN"),
        ("boxed", "the model's answer holds Box, which can't be compared and are not"),
        ("gradients", contract.GRADIENTS),
    ],
)
def test_what_is_unusual_but_legal_is_accepted_and_measured(name: str, warned: str | None) -> None:
    found = examined(name)
    assert found.warnings == ((warned,) if warned else ())
    facts = launched(name, found.gradients)
    for variant in (BASELINE, CONTROL):
        assert (facts[variant].failed, facts[variant].skipped) == (None, None)
        if not name.startswith("buffer"):
            assert facts[variant].invalid is None
        assert facts[variant].identical == facts[variant].replies > 0


def test_a_model_that_needs_gradients_is_told_from_one_that_fails() -> None:
    assert examined("gradients").gradients
    assert not examined("plain").gradients


def test_a_model_that_computes_gradients_is_traced() -> None:
    source = Factory("own_quirks:gradients", gradients=True)
    workload = Workload(batch=2, model=source.name)
    assert trace_variant(workload, BASELINE, source, np.zeros((0, 8), dtype=np.int64), "trial").operators


def test_a_model_that_computes_gradients_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untimed, "measure_speeds", lambda _: Speeds(((1 << 28, 20.0),), {"float32": 100.0}))
    source = Factory("own_quirks:gradients", gradients=True)
    trial = made_trial(workload=Workload(batch=2, model=source.name), variants=(BASELINE, CONTROL))
    found = untimed.run_limits(trial, Inputs(source, {8: np.zeros((0, 8), dtype=np.int64)}))
    assert found.lost is None
    assert found.of[BASELINE].moved_mb > 0


def test_a_factory_that_takes_much_of_a_launch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 20.0])
    monkeypatch.setattr("ray_jobs.measure.contract.time.monotonic", lambda: next(ticks))
    model = "own_quirks:plain"
    (warning,) = contract.examine(model, [Workload(model=model)], 60.0).warnings
    assert warning == "the factory takes 20 s of the 60 s that each launch may take"


def test_weights_are_known_by_their_values_names_and_shapes() -> None:
    assert examined("plain").weights == examined("plain").weights
    one = nn.Linear(2, 2)
    known = contract.hashes(one)
    with torch.no_grad():
        one.bias[0] += 1e-7 + one.bias[0].abs()
    assert contract.hashes(one)["weight"] == known["weight"]
    assert contract.hashes(one)["bias"] != known["bias"]
    flat = nn.Linear(4, 1, bias=False)
    flat.weight = nn.Parameter(one.weight.detach().reshape(1, 4))
    assert contract.hashes(flat)["weight"] != known["weight"]


def test_a_helper_is_code_of_the_model_and_a_comment_changes_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    def found(helper: str, comment: str = "") -> Findings:
        for name in ("helper", "brought"):
            sys.modules.pop(name, None)
        (tmp_path / "helper.py").write_text(helper)
        (tmp_path / "brought.py").write_text(ANOTHER_MODULE + comment)
        return contract.examine("brought:factory", [Workload(model="brought:factory")], 60.0)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first, commented, helped = found("WIDTH = 4\n"), found("WIDTH = 4\n", "# well\n"), found("WIDTH = 2 + 2\n")
    assert first.weights == commented.weights == helped.weights
    assert len({first.code, commented.code, helped.code}) == 3
    assert found("WIDTH = 5\n").weights != first.weights


def test_keyword_arguments_reach_the_module_by_name() -> None:
    workload = Workload(batch=2, model="own_quirks:named")
    model = custom_model.ready(custom_model.load(workload.model), workload)
    mask, values = custom_model.inputs_of(model, 0, workload)
    assert (mask.shape, values.shape) == ((2, 1), (2, 16))
    inner = model.module.module
    assert isinstance(inner, nn.Module)
    assert torch.equal(model.module(mask, values)["scores"], inner(values, mask=mask)["scores"])


def test_the_cases_of_a_factory_become_workloads_of_their_own() -> None:
    spec = read_spec(None, {"model": "own_quirks:cases"})
    found = contract.examine(spec.model, spec.plan(), 60.0)
    assert found.cases == ("short", "long")
    all_of_them = with_cases(spec, Inputs(Factory(spec.model, cases=found.cases), {}))
    workloads = all_of_them.plan()
    assert [one.model for one in workloads] == ["own_quirks:cases#short", "own_quirks:cases#long"]
    assert [trial_id(one, None) for one in workloads] == ["cpu-b1-t1-short@none", "cpu-b1-t1-long@none"]
    facts = launched("cases#long")
    assert facts[CONTROL].identical == facts[CONTROL].replies > 0
    assert spec_of(all_of_them.model_dump(mode="json")) == all_of_them
    assert {"short", "own_quirks:cases#long"} <= own_names(all_of_them.model_dump())


def test_some_of_the_cases_are_asked_alone() -> None:
    spec = read_spec(None, {"model": "own_quirks:cases", "cases": "long"})
    assert contract.examine(spec.model, spec.plan(), 60.0).cases == ("long",)
    named = Workload(model="own_quirks:cases#short")
    assert contract.examine(named.model, [named], 60.0).cases == ("short",)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("cases#middle", "model 'own_quirks:cases' has no case 'middle'; choose from: short, long"),
        ("plain#short", "model 'own_quirks:plain' has no cases: leave 'short' out"),
        ("misnamed", "names its cases ['a b']: use letters, digits and underscores"),
    ],
)
def test_a_case_that_is_not_there_is_one_line(model: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        examined(model)
    assert said in str(refused.value)


def test_the_chatbot_has_no_cases() -> None:
    with pytest.raises(UsageError, match="cases are of a model of your own"):
        read_spec(None, {"cases": "short"})


NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-4}, True),
        ({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-2}, False),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, False),
        ([torch.ones(2)], (torch.ones(2),), True),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2)), False),
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), True),
        (torch.tensor([1.0, NAN]), torch.tensor([NAN, 1.0]), False),
        (torch.ones(2), torch.ones(1, 2), False),
        (torch.tensor([3]), torch.tensor([4]), False),
        ((torch.ones(2), 3), (torch.ones(2), 4), False),
    ],
)
def test_close_compares_structure_and_numbers(one: object, other: object, said: bool) -> None:
    assert close()(one, other) is said


def test_close_of_logits_wants_the_same_choice_or_a_tie() -> None:
    same, expected = close(argmax=True), torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0002, 0.0]])
    assert same(expected * 7, expected)
    assert same(torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]), expected)  # the second row's two best tie
    assert not same(torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]), expected)


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "timeout", "said"),
    [
        ("crashes", 60.0, "ends the process that it is made and asked in: it was killed by SIGSEGV in the factory"),
        ("fills", 60.0, "ends the process that it is made and asked in: it was killed by SIGKILL"),
        ("loops", 0.5, "was not made and asked within 0.5 s, a launch's time, in which it was busy with the factory"),
        ("spoils", 60.0, "changes its inputs in place"),
        ("plain", 60.0, None),
    ],
)
def test_a_model_is_asked_in_a_process_of_its_own(name: str, timeout: float, said: str | None) -> None:
    start, spec = time.monotonic(), read_spec(None, {"model": f"own_quirks:{name}", "launch_timeout": timeout})
    if said is None:
        inputs = inputs_of(spec)
        assert isinstance(inputs.model, Factory)
        assert inputs.model.weights
        assert {"model", "model_code"} <= identity_of(inputs, spec).keys()
        return
    with pytest.raises(UsageError) as refused:
        inputs_of(spec)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - start < 60


def test_several_cases_are_not_one_model() -> None:
    with pytest.raises(UsageError, match="has several cases; name one: own_quirks:cases#short, own_quirks:cases#long"):
        custom_model.load("own_quirks:cases")
