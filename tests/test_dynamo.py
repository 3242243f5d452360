"""What torch.compile compiled of a program, told from Dynamo's counters and a profile of untimed calls."""

import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from launches import prompts
from torch import Tensor, nn

from chatbot.variants import Workload
from ray_jobs.driver.resume import _found
from ray_jobs.matrix.rows import Status, rows_of
from ray_jobs.measure import dynamo
from ray_jobs.measure import launch as measure
from ray_jobs.measure.dynamo import Compilation, Counted, outside_of
from ray_jobs.measure.result import Memory
from ray_jobs.measure.rounds import Log, Prompts, run_rounds
from ray_jobs.measure.timing import CpuTimer
from ray_jobs.measure.trial import Place, Preset

BROKEN = Compilation(3, 2, "nn.GRU is left to eager by Dynamo", 0.6)


def event(key: str, us: float) -> SimpleNamespace:
    return SimpleNamespace(key=key, cpu_time_total=us)


def test_the_time_outside_is_what_no_compiled_graph_takes_of_a_call() -> None:
    events = [event(dynamo.CALL, 100.0), event("## Call CompiledFxGraph f1 ##", 25.0), event("aten::gru", 50.0)]
    assert outside_of([*events, event("## Call CompiledFxGraph f2 ##", 15.0)]) == pytest.approx(0.6)
    assert outside_of(events[::2]) == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{dynamo.RECURRENT}\n  Hint: none\n\n  Developer debug context: LSTM(128, 256, batch_first=True)\n\n more",
            "nn.LSTM is left to eager by Dynamo",
        ),
        ("Data-dependent branching.\n  Explanation: Detected it.", "Dynamo: Data-dependent branching"),
        ("", "Dynamo: it says no reason"),
    ],
)
def test_a_break_is_told_by_the_layer_or_by_dynamos_own_first_line(text: str, said: str) -> None:
    assert dynamo._in_words(text) == said


@pytest.mark.parametrize(
    ("found", "recompiled", "said"),
    [
        (BROKEN, 0, "3 graphs, 2 breaks: nn.GRU is left to eager by Dynamo"),
        (Compilation(0, 1, "Dynamo: it can't", 1.0), 0, "no graphs, 1 break: Dynamo: it can't"),
        (Compilation(0, 0, None, 1.0), None, "no graphs, no breaks: nothing of it was compiled"),
        (Compilation(2, 0, None, 0.3), 0, None),  # encoder and decoder step, whole
        (None, None, None),
    ],
)
def test_what_is_not_one_graph_is_a_warning(
    found: Compilation | None, recompiled: int | None, said: str | None
) -> None:
    assert dynamo.warnings(found, recompiled) == ([] if said is None else [said])


def test_what_was_compiled_within_the_rounds_is_a_warning() -> None:
    (said,) = dynamo.warnings(None, 2)
    assert said.startswith("Dynamo looked at 2 functions anew within the rounds, which its calls paid for")


class Recurrent(nn.Module):
    """Layers around one that Dynamo leaves to eager."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gru, self.last = nn.Linear(4, 4), nn.GRU(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.gru(self.first(x).relu())[0])
        return answer


def test_counts_are_of_what_is_compiled_from_then_on() -> None:
    with torch.inference_mode():
        x = torch.rand(3, 1, 4)
        torch.compile(nn.Linear(4, 4), backend="eager")(x)
        counted, model = Counted(), torch.compile(Recurrent().eval(), backend="eager")
        model(x)
        found = counted.found(partial(model, x))
    assert found == Compilation(0, 1, "nn.GRU is left to eager by Dynamo", 1.0)


class Noisy(nn.Module):
    """Says something between two parts, each of which is a graph."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        print(end="")
        return y * 2


def test_a_break_between_two_graphs_is_counted_with_both() -> None:
    counted, model = Counted(), torch.compile(Noisy().eval(), backend="eager")
    with torch.inference_mode():
        model(torch.rand(2, 3))
        found = counted.found(partial(model, torch.rand(2, 3)))
    assert (found.graphs, found.breaks) == (2, 1)
    assert str(found.why).startswith("Dynamo: ")


def test_whole_graphs_have_no_break() -> None:
    counted, model = Counted(), torch.compile(nn.Sequential(nn.Linear(3, 5), nn.ReLU()).eval(), backend="eager")
    with torch.inference_mode():
        model(torch.rand(2, 3))
        found = counted.found(partial(model, torch.rand(2, 3)))
    assert (found.graphs, found.breaks, found.why) == (1, 0, None)


def test_what_dynamo_looks_at_in_a_turn_is_its_variants_and_is_read_outside_of_the_timed_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters: defaultdict[str, Counter[str]] = defaultdict(Counter)
    events: list[str] = []

    class Utils:
        @property
        def counters(self) -> defaultdict[str, Counter[str]]:
            events.append("read")
            return counters

    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", Utils())

    def clock() -> int:
        events.append("clock")
        return len(events)

    def steady(batch: Tensor, lengths: Tensor) -> Tensor:
        return batch

    def compiling(batch: Tensor, lengths: Tensor) -> Tensor:
        counters["frames"]["total"] += 1
        return batch

    source = Prompts(prompts(40), Workload(prompt_tokens=4))
    watch = SimpleNamespace(read=lambda: None)
    answers = run_rounds([[0, 1], [1, 0]], 2, [steady, compiling], source, CpuTimer(clock), Log(), watch)
    assert dict(answers.recompiled) == {0: 0, 1: 6}
    assert events == ["read", *["clock"] * 6, "read"] * 4


def test_nothing_is_imported_to_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert dynamo.looked_at() == 0
    assert "torch._dynamo.utils" not in sys.modules


def test_a_row_has_what_was_compiled_as_columns_and_its_warning_also_after_a_resume() -> None:
    from test_rows import ODD, TRIAL, launches, with_facts

    memory = Memory({ODD: 1.0}, compiled={ODD: BROKEN})
    record = {"peak_memory_mb": {}, "compiled": {ODD: asdict(BROKEN)}}
    assert _found(record)[0].compiled == memory.compiled
    made = with_facts(launches(), ODD, recompiled=1)
    rows = {row.variant: row for row in rows_of(TRIAL, Place(), Status.DONE, None, made, memory)}
    row = rows[ODD]
    assert (row.graphs, row.graph_breaks, row.recompiles, row.outside_compiled) == (3, 2, 10, 0.6)
    assert row.warnings[-2] == "3 graphs, 2 breaks: nn.GRU is left to eager by Dynamo"
    assert "looked at 10 functions anew" in row.warnings[-1]
    others = [one for name, one in rows.items() if name != ODD]
    assert {(one.graphs, one.graph_breaks, one.recompiles, one.outside_compiled) for one in others} == {(None,) * 4}


def test_what_is_no_program_of_dynamos_is_not_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "_outside", lambda call: 1 / 0)
    workload = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
    assert measure.measure_alone(workload, "eager", Preset("tiny"), prompts(20)).compiled is None


@pytest.mark.slow
def test_a_compiled_chatbot_is_two_whole_graphs_with_a_loop_outside() -> None:
    workload = Workload(prompt_tokens=4, reply_tokens=3, model="tiny")
    found = measure.measure_alone(workload, "compile", Preset("tiny"), prompts(20)).compiled
    assert found is not None
    assert (found.graphs, found.breaks, found.why) == (2, 0, None)
    assert 0 < (found.outside or 0) < 1
