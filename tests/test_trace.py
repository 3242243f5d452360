"""Phases, shares, operators side by side, and the timeline: what is derived, from made-up traces and real replies."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import WORKLOAD, made_launch, prompts, tiny
from torch import Tensor, nn
from torch.profiler import profile

from chatbot.variants import VARIANTS, Reply, Workload
from ray_jobs.cluster import events
from ray_jobs.cluster.times import Moments
from ray_jobs.measure.result import Memory
from ray_jobs.measure.trial import Factory
from ray_jobs.process.profile.launches import traced_variants
from ray_jobs.process.profile.phases import CALL, ENCODE, REPLY, STEP, named, networks
from ray_jobs.process.profile.profiler import REPLIES, Operator, Traced, trace_variant
from ray_jobs.process.profile.shares import Shares, kind_of, merged, overlap, shares_of
from ray_jobs.process.trial import Committed, Waiting
from ray_jobs.process.untimed import Alive
from ray_jobs.trace.operators import BETWEEN, disturbance_warning, side_by_side, variant_rows
from ray_jobs.trace.timeline import timeline

BATCH = torch.from_numpy(prompts(1)), torch.tensor([4])
STEPS = WORKLOAD.reply_tokens
PHASES = [REPLY, ENCODE, *(f"{STEP} {number + 1}" for number in range(STEPS))]


def prepared(name: str) -> Reply:
    with torch.inference_mode():
        return VARIANTS[name].prepare(tiny(), WORKLOAD)


def phases_of(reply: Reply) -> list[str]:
    """The named phases that a profiler sees in one reply, in order."""
    with torch.inference_mode():
        found = networks(lambda: reply(*BATCH), STEPS)
        with profile() as profiler, named(found) as phase, phase():
            reply(*BATCH)
    ranges = [event for event in profiler.events() or [] if event.is_user_annotation]
    return [event.name for event in sorted(ranges, key=lambda event: event.time_range.start)]


def test_an_eager_reply_is_told_apart() -> None:
    assert phases_of(prepared("eager")) == PHASES


def test_a_scripted_reply_is_one() -> None:
    assert phases_of(prepared("torchscript")) == [REPLY]


def test_any_callable_is_one_reply() -> None:
    assert phases_of(lambda batch, lengths: batch + 1) == [REPLY]


def test_networks_that_python_calls_are_found_in_traces_too() -> None:
    chatbot = tiny()
    with torch.no_grad():
        example = (torch.full((3, 2), 2), torch.tensor([3, 2]))
        encoder = torch.jit.trace(chatbot.encoder, example, check_trace=False)  # type: ignore[no-untyped-call]
        search = chatbot.search()
        search.encoder = encoder
    assert phases_of(lambda batch, lengths: search(batch, lengths, STEPS)[0]) == PHASES


def test_a_search_that_stops_early_is_one_reply() -> None:
    search = tiny().search()
    assert phases_of(lambda batch, lengths: search(batch, lengths, STEPS - 1)[0]) == [REPLY]


def test_a_model_of_ones_own_is_traced_as_calls_without_what_makes_its_inputs() -> None:
    workload = Workload(batch=2, model="own_models:pair")
    traced = trace_variant(workload, "eager", Factory(workload.model), torch.zeros(0, 8).long().numpy(), "one")
    calls = {one.operator: one.calls for one in traced.operators}
    assert (calls[CALL], calls["aten::linear"], calls["aten::relu"]) == (REPLIES, 2 * REPLIES, REPLIES)
    assert not {REPLY, ENCODE, "aten::randn", "aten::normal_"} & calls.keys()
    assert traced.shares is not None
    assert traced.shares.kernel_ms > 0
    assert (traced.shares.encode_ms, traced.shares.decode_ms) == (None, None)


def test_what_needs_the_chatbot_is_not_traced_of_another_model() -> None:
    names = ("eager", "eager-again", "torchscript", "native")
    assert traced_variants(names) == ("eager", "torchscript", "native")
    assert traced_variants(names, own_model=True) == ("eager", "torchscript")


def test_nothing_stays_hooked() -> None:
    reply, chatbot = prepared("eager"), tiny()
    search = chatbot.search()
    phases_of(lambda batch, lengths: search(batch, lengths, STEPS)[0])
    assert not search.encoder._forward_hooks
    assert not search.decoder._forward_pre_hooks
    with torch.inference_mode():
        assert torch.equal(reply(*BATCH), search(*BATCH, STEPS)[0])


def test_a_failing_network_leaves_nothing_behind() -> None:
    class Encoder(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        networks(lambda: Encoder()(BATCH[0]), STEPS)
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("kernel", "addmm mm bmm mul add_ sum max cat _softmax sigmoid_ tanh copy_ index_select fill_ flip sub"),
        ("dispatch", "linear gru matmul t transpose slice narrow unbind select empty clone stack embedding zeros set_"),
    ],
)
def test_operators_are_sorted_by_the_registry(kind: str, names: str) -> None:
    assert {kind_of(f"aten::{name}") for name in names.split()} == {kind}


def test_what_is_no_operator_is_between_them() -> None:
    assert {kind_of(name) for name in ("forward", REPLY, ENCODE, "decode step 3", "nothing::such")} == {"interpreter"}
    assert kind_of("quantized::linear_dynamic") == "kernel"


def event(name: str, start: float, length: float, category: str = "cpu_op", row: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": length, "pid": 1, "tid": row}


def reply_of(length: float = 1000) -> dict[str, Any]:
    return event(REPLY, 0, length, "user_annotation")


def test_a_moment_belongs_to_the_innermost_operator() -> None:
    made = [
        reply_of(),
        event(ENCODE, 0, 500, "user_annotation"),
        event("forward", 50, 900),
        event("aten::linear", 100, 300),
        event("aten::t", 110, 50),
        event("aten::addmm", 200, 150),
        event("aten::empty", 210, 40),
        event("aten::mul", 700, 100),
        event("aten::mul", 100, 800, row=2),  # another thread
    ]
    shares = shares_of(made, "cpu")
    assert (shares.kernel_ms, shares.dispatch_ms) == pytest.approx((0.110 + 0.100, 0.150 + 0.040))
    assert shares.interpreter_ms == pytest.approx(1 - 0.4)
    assert (shares.reply_ms, shares.encode_ms, shares.decode_ms) == (1, 0.5, None)


def test_the_fastest_reply_is_taken_apart() -> None:
    slow = event(REPLY, 2000, 5000, "user_annotation")
    assert shares_of([slow, event("aten::mul", 2000, 4000), reply_of()], "cpu").interpreter_ms == 1


def test_on_a_gpu_the_device_is_the_kernels_and_a_launch_is_dispatch() -> None:
    made = [
        reply_of(),
        event("aten::addmm", 0, 400),
        event("gemm", 300, 200, "kernel", row=7),
        event("gemm", 400, 200, "kernel", row=8),  # another stream, over the first
        event("Memcpy DtoH", 950, 100, "gpu_memcpy", row=7),  # its end lies outside
    ]
    shares = shares_of(made, "cuda")
    assert shares.kernel_ms == pytest.approx(0.3 + 0.05)
    assert shares.dispatch_ms == pytest.approx(0.3)
    assert shares.interpreter_ms == pytest.approx(0.35)


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1])), max_size=12)


@given(spans, st.integers(0, 60), st.integers(0, 20))
def test_a_union_covers_what_any_of_its_spans_does(parts: list[tuple[int, int]], start: int, length: int) -> None:
    union = merged(parts)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(union))
    covered = {at for a, b in parts for at in range(a, b)}
    assert overlap((start, start + length), union) == len(covered & set(range(start, start + length)))


@given(st.lists(st.tuples(st.integers(0, 90), st.sampled_from(["aten::mul", "aten::t", "forward"])), max_size=8))
def test_the_three_kinds_add_up_to_the_reply(starts: list[tuple[int, str]]) -> None:
    nested = [event(name, start, 100 - start) for start, name in starts]
    shares = shares_of([reply_of(100), *nested], "cpu")
    assert shares.kernel_ms + shares.dispatch_ms + shares.interpreter_ms == pytest.approx(shares.reply_ms)


def traced(variant: str, shares: Shares | None, *operators: tuple[str, str, int, float]) -> Traced:
    made = tuple(Operator(name, kind, calls, us, us, None, 1000) for name, kind, calls, us in operators)
    return Traced(variant, b"", replies=2, operators=made, shares=shares, untraced_ms=3.0)


EAGER = traced("eager", Shares(4, 2, 1, 1, 1, 3), ("aten::mul", "kernel", 4, 4000), (REPLY, "interpreter", 2, 1000))
SCRIPTED = traced("torchscript", Shares(3, 2, 0.75, 0.25, None, None), ("aten::add", "kernel", 2, 6000))


def test_operators_stand_side_by_side_per_reply() -> None:
    first, second, third = side_by_side(EAGER, SCRIPTED)
    assert (first.operator, first.left.calls, first.right.calls, first.right.self_ms) == ("aten::add", 0, 1, 3)
    assert (second.operator, second.left.self_ms, second.left.calls, second.left.memory_kb) == ("aten::mul", 2, 2, 0.5)
    assert (third.operator, third.left.self_ms, third.right.self_ms) == (BETWEEN, 0.5, 0)


def test_a_sentence_says_what_a_variant_saves_and_where() -> None:
    eager, scripted = variant_rows("t", [EAGER, SCRIPTED])
    assert (eager.kernel_share, eager.overhead_share, eager.operators) == (0.5, 0.5, 2)
    assert "50% of eager's reply is kernels" in str(eager.sentence)
    assert "at most 2.00 times" in str(eager.sentence)
    assert scripted.sentence == (
        "torchscript saves 1.00 of 4.00 ms a reply in the trace: "
        "interpreter -0.75 ms, dispatch -0.25 ms, kernel +0.00 ms"
    )


def test_what_is_unknown_is_null_and_said() -> None:
    _, hidden, lost = variant_rows("t", [EAGER, traced("eager", None), Traced("torchscript", failed="it died")])
    assert (hidden.kernel_share, hidden.reply_ms, hidden.untraced_ms) == (None, None, 3.0)
    assert "outside of PyTorch's operators" in str(hidden.sentence)
    assert (lost.status, lost.reason, lost.sentence, lost.reply_ms) == ("failed", "it died", None, None)


def test_a_trace_that_took_far_longer_than_before_it_is_said() -> None:
    slow, sound = variant_rows("t", [traced("eager", Shares(7, 2, 4, 1, 1, 3)), EAGER])
    assert "2.3 times as long" in str(disturbance_warning(slow))
    assert disturbance_warning(sound) is None


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def launch_done(trial: str, index: int, elapsed_s: float) -> events.Event:
    committed = Committed.of(made_launch({"eager": 1.0}, index))
    return events.Event(
        trial, events.LaunchDone(Committed(index, committed.rounds, committed.calls, {}, elapsed_s), None)
    )


def moments_of(*heard: tuple[float, events.Event, float], began: float = 1000.0) -> dict[str, Any]:
    clock = Clock()
    moments = Moments(clock=clock)
    for after, one, launch_s in heard:
        clock.now = began + after
        moments.take(one.outcome, launch_s)
    again = Moments.of_record(moments.record()).record()
    assert again == moments.record()
    return {"moments": again}


def record(station: str, **more: Any) -> dict[str, Any]:
    return {"station": station, "status": "done", "reason": None, "launches": 2, **more}


WHOLE = (
    (0.0, events.Event("t", events.TrialStarted()), 0.0),
    (2.0, events.Event("t", Alive()), 0.0),
    (2.5, events.Event("t", Waiting("core-1 is held by another")), 0.0),
    (9.0, launch_done("t", 0, 3.0), 3.0),
    (11.9, launch_done("t", 1, 6.0), 3.0),  # news of the first came late: they do not overlap
    (13.0, events.Event("t", Memory()), 0.0),
    (13.5, events.Event("t", events.TrialEnded(None)), 0.0),
)


def test_a_worker_that_shows_that_it_lives_is_no_moment_of_its_own() -> None:
    alive = events.Event("t", Alive())
    heard = (*WHOLE[:3], (8.0, alive, 0.0), *WHOLE[3:5], (12.5, alive, 0.0), (13.0, alive, 0.0), *WHOLE[5:])
    assert moments_of(*heard) == moments_of(*WHOLE)


def slices_of(trials: dict[str, Any]) -> dict[int, list[tuple[str, float, float]]]:
    made = timeline({"run_id": "r", "started": "then", "trials": trials})
    rows: dict[int, list[tuple[str, float, float]]] = {}
    for one in made["traceEvents"]:
        if one["ph"] == "X":
            rows.setdefault(one["tid"], []).append((one["name"], one["ts"] / 1e6, (one["ts"] + one["dur"]) / 1e6))
    return rows


def test_a_trial_is_a_slice_that_holds_its_launches_and_waits() -> None:
    rows = slices_of({"t": record("a:cpu", **moments_of(*WHOLE))})
    assert rows == {
        1: [
            ("t", 0, 13.5),
            ("waiting for its worker", 0, 2),
            ("waiting: core-1 is held by another", 2, 6),
            ("launch 0", 6, 9),
            ("launch 1", 9, 11.9),
            ("memory", 11.9, 13),
            ("ending", 13, 13.5),
        ]
    }


def test_each_station_has_a_row_and_one_clock() -> None:
    both = {
        "t": record("b:cpu", **moments_of(*WHOLE)),
        "u": record("a:cpu", **moments_of(*WHOLE, began=1004.0)),
        "never": record("c:cpu", moments=None),
    }
    rows = slices_of(both)
    assert rows[1][0] == ("u", 4, 17.5)
    assert rows[2][0] == ("t", 0, 13.5)
    assert len(rows) == 2


def test_a_lost_worker_and_a_resumed_driver_make_attempts_of_their_own() -> None:
    heard = (
        (0.0, events.Event("t", events.TrialStarted()), 0.0),
        (1.0, events.Event("t", Alive()), 0.0),
        (3.0, launch_done("t", 0, 2.0), 2.0),
        (4.0, events.Event("t", events.WorkerLost(1, "killed")), 0.0),
        (50.0, events.Event("t", events.TrialStarted()), 0.0),  # much later
        (51.0, events.Event("t", Alive()), 0.0),
        (53.0, launch_done("t", 1, 4.0), 2.0),
        (53.0, events.Event("t", events.TrialEnded(None)), 0.0),
    )
    (slices,) = slices_of({"t": record("a:cpu", **moments_of(*heard))}).values()
    assert [one for one in slices if one[0] == "t"] == [("t", 0, 4), ("t", 50, 53)]
    assert ("worker lost", 3, 4) in slices
    assert ("launch 1", 51, 53) in slices


def test_a_run_from_before_times_were_kept_has_no_timeline() -> None:
    with pytest.raises(ValueError, match="has no times"):
        timeline({"run_id": "r", "started": "then", "trials": {"t": {"station": "a", "status": "done"}}})
