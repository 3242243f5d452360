"""Answers in other forms than a tensor: what a trace makes of them is compared, or the trace is skipped."""

from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import own_forms
import pytest
import torch

from chatbot.variants import BASELINE, CONTROL
from ray_jobs import close
from ray_jobs.measure import launch as measure
from ray_jobs.measure.answers import in_form
from ray_jobs.measure.result import Launch, VariantFacts
from ray_jobs.measure.trial import Factory

ONE, TWO = torch.ones(2), torch.zeros(2)
NO_POOL = np.zeros((0, 8), dtype=np.int64)


def traced(name: str) -> VariantFacts:
    workload = own_forms.workload(name)
    variants, launch = (BASELINE, CONTROL, "torchscript"), Launch(0, 1, rounds=3, calls=1)
    return measure.measure(workload, variants, Factory(workload.model), NO_POOL, launch).facts["torchscript"]


@pytest.mark.parametrize("name", ["plain_dict", "pair", "listed", "output"])
def test_what_a_trace_hands_back_in_another_class_is_compared_in_the_models(name: str) -> None:
    facts = traced(name)
    assert (facts.failed, facts.skipped, facts.invalid) == (None, None, None)
    assert facts.identical == facts.replies > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scores", "torch.jit.trace can't take this model: Tracer cannot infer type of Scores"),
        ("mixed", "torch.jit.trace can't take this model: Tracer cannot infer type of {'scores'"),
        ("numbered", "torch.jit.trace can't take this model: Only tensors, lists, tuples of tensors, or dictionary of"),
    ],
)
def test_what_can_not_be_traced_for_its_form_is_skipped_with_the_reason(name: str, said: str) -> None:
    facts = traced(name)
    assert (facts.failed, facts.invalid) == (None, None)
    assert str(facts.skipped).startswith(said)


@pytest.mark.parametrize(
    ("answer", "model"),
    [
        ((TWO, ONE), own_forms.Pair(ONE, TWO)),
        ({"scores": TWO, "best": ONE}, own_forms.Output(scores=ONE, best=TWO)),
        ({"best": ONE, "scores": TWO}, own_forms.Scores(ONE, TWO)),
        ({"one": [TWO, (TWO, ONE)]}, OrderedDict(one=(ONE, own_forms.Pair(ONE, TWO)))),
        ((TWO, {"a": ONE}), [ONE, {"a": TWO}]),
    ],
)
def test_an_answer_takes_the_classes_of_the_baselines_and_keeps_its_own_tensors(answer: Any, model: Any) -> None:
    found = in_form(answer, model)
    assert classes(found) == classes(model)
    assert close()(found, answer)
    assert not close()(found, model)


def classes(value: Any) -> Any:
    """The class of a value, with those of its parts."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return type(value), [classes(part) for part in parts]


@pytest.mark.parametrize("answer", [ONE, (ONE,), (ONE, TWO, ONE), {"other": ONE}, MappingProxyType({})])
def test_an_answer_of_another_structure_stays_as_it_is(answer: Any) -> None:
    assert in_form(answer, own_forms.Pair(ONE, TWO)) is answer
