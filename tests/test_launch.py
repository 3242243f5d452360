"""One launch in this process: what is asked of whom and when, and what becomes of variants that misbehave."""

import dataclasses
import functools
import itertools
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from launches import ALL, WORKLOAD, altered, enter, first_token_changed, prompts, tiny, watching
from torch import Tensor

from chatbot import checkpoint
from chatbot.model import Chatbot
from chatbot.variants import BASELINE, CONTROL, VARIANTS, Reply, UnavailableError, Workload, torchscript
from chatbot.vocabulary import Vocabulary
from ray_jobs.measure import launch as measure
from ray_jobs.measure.orders import building_order, up_to_multiple
from ray_jobs.measure.result import REFRESH, TIMED, WARMUP, Launch, LaunchResult, VariantFacts
from ray_jobs.measure.rounds import CALLS, MOST_CALLS, MOST_WARMUP_CALLS, ROUNDS, TURN_NS, WARMUP_CALLS, Prompts, size
from ray_jobs.measure.timing import CpuTimer, Reading, timer_for
from ray_jobs.measure.trial import Checkpoint, Preset

TINY = Preset("tiny")
SHORT = Launch(index=1, seed=7, rounds=6, calls=3)
SIZES = st.dictionaries(st.text(max_size=3), st.floats(1e3, 1e11), min_size=2, max_size=8)


@pytest.fixture(autouse=True)
def gradients_restored() -> Iterator[None]:
    """A launch turns them off for its whole process."""
    yield
    torch.set_grad_enabled(True)


def run(
    variants: tuple[str, ...] = ALL, launch: Launch = SHORT, workload: Workload = WORKLOAD, pool: int = 200
) -> LaunchResult:
    return measure.measure(workload, variants, TINY, prompts(pool), launch)


@dataclasses.dataclass(frozen=True)
class Watched:
    """A launch, and the prompts of each call of each variant in order; the last call is the check after the rounds."""

    result: LaunchResult
    asked: Mapping[str, list[bytes]]
    order: list[str]

    def warm_ups(self, name: str) -> int:
        """How many calls the variant had before the rounds."""
        samples = self.result.samples
        return int(((samples.phase == WARMUP) & (samples.variant == ALL.index(name))).sum())


@pytest.fixture(scope="module", params=[1, 2], ids=["one prompt a call", "two prompts a call"])
def watched(request: pytest.FixtureRequest) -> Watched:
    """A launch of every entry of the table, each watched."""
    asked: dict[str, list[bytes]] = {name: [] for name in ALL}
    order: list[str] = []

    def saw(name: str, batch: Tensor) -> None:
        asked[name].append(batch.numpy().tobytes())
        order.append(name)

    with pytest.MonkeyPatch.context() as patch:
        for name in ALL:
            enter(patch, name, watching(name, saw), like=name)
        workload = dataclasses.replace(WORKLOAD, batch=request.param)
        return Watched(run(workload=workload), asked, order)


def columns(result: LaunchResult, *names: str) -> list[tuple[int, ...]]:
    """The samples' rows, of these columns."""
    return list(zip(*(getattr(result.samples, name).tolist() for name in names), strict=True))


# What is asked of whom and when


def test_every_variant_has_every_call_of_every_round_once(watched: Watched) -> None:
    rows = columns(watched.result, "variant", "phase", "round", "call")
    expected = {(v, WARMUP, -1, call) for v, name in enumerate(ALL) for call in range(watched.warm_ups(name))}
    for v, r in np.ndindex(3, 6):
        expected |= {(v, REFRESH, r, 0), *((v, TIMED, r, call) for call in (1, 2, 3))}
    assert len(rows) == len(set(rows))
    assert set(rows) == expected


def test_every_call_that_was_made_is_a_sample_and_no_other(watched: Watched) -> None:
    names = [ALL[v] for (v,) in columns(watched.result, "variant")]
    assert names == watched.order[: len(names)]
    assert sorted(watched.order[len(names) :]) == sorted(ALL), "one more of each, to look at how it works"


def test_each_variant_is_warmed_with_no_fewer_and_no_more_calls_than_stated(watched: Watched) -> None:
    assert all(WARMUP_CALLS <= watched.warm_ups(name) <= MOST_WARMUP_CALLS for name in ALL)


def test_each_variant_stands_equally_often_in_each_place_of_the_rounds(watched: Watched) -> None:
    turns = {(v, r, p) for v, phase, r, p in columns(watched.result, "variant", "phase", "round", "position") if phase}
    assert Counter((v, p) for v, _, p in turns) == dict.fromkeys(np.ndindex(3, 3), 2)


def test_a_variants_turn_is_not_interrupted(watched: Watched) -> None:
    in_rounds = [row for row in columns(watched.result, "phase", "round", "position", "call") if row[0] != WARMUP]
    assert [row[1:] for row in in_rounds] == [(r, p, c) for r, p, c in np.ndindex(6, 3, 4)]


def test_all_variants_get_the_same_prompts_in_the_same_round(watched: Watched) -> None:
    assert watched.asked[BASELINE][-25:] == watched.asked[CONTROL][-25:] == watched.asked["torchscript"][-25:]


def test_all_variants_are_warmed_with_the_same_prompts(watched: Watched) -> None:
    warmed = sorted((watched.asked[name][: watched.warm_ups(name)] for name in ALL), key=len)
    assert all(calls == warmed[-1][: len(calls)] for calls in warmed)


@pytest.mark.parametrize("name", ALL)
def test_no_prompt_is_asked_twice_of_a_variant_while_it_is_timed(name: str, watched: Watched) -> None:
    width = 4 * 8  # bytes of a prompt
    *batches, check = watched.asked[name]
    each = [batch[i : i + width] for batch in batches for i in range(0, len(batch), width)]
    assert len(batches) == watched.warm_ups(name) + 6 * 4
    assert len(each) == len(set(each))
    assert check == batches[-1]


def test_samples_start_one_after_the_other_has_ended(watched: Watched) -> None:
    starts, walls = watched.result.samples.start_ns, watched.result.samples.wall_ns
    assert starts[0] == 0
    assert (walls > 0).all()
    assert (starts[1:] >= starts[:-1] + walls[:-1]).all()


def test_a_cpu_has_no_device_time_but_cpu_time(watched: Watched) -> None:
    samples = watched.result.samples
    assert (samples.device_ns == -1).all()
    assert (samples.cpu_ns > 0).all()
    assert (samples.involuntary_switches >= 0).all()


def test_variants_are_built_and_warmed_in_the_launchs_building_order(watched: Watched) -> None:
    built = tuple(ALL[i] for i in building_order(3, SHORT.index, SHORT.seed))
    assert watched.result.built == built
    warmed = [(ALL[v], p) for v, phase, p in columns(watched.result, "variant", "phase", "position") if phase == WARMUP]
    assert list(dict.fromkeys(warmed)) == [(name, place) for place, name in enumerate(built)]


def test_sound_variants_are_neither_failed_nor_invalid(watched: Watched) -> None:
    batch = len(watched.asked[BASELINE][0]) // 32
    assert watched.result.facts.keys() == set(ALL)
    for name, facts in watched.result.facts.items():
        assert (facts.failed, facts.invalid) == (None, None)
        assert facts.kind == VARIANTS[name].kind
        assert facts.replies == facts.identical == 6 * (1 + 3) * batch
        assert facts.prepare_s is not None
        assert facts.prepare_s > 0


def test_the_machine_is_watched_in_every_round(watched: Watched) -> None:
    told = watched.result.interference
    assert told is not None
    assert (told.round_ns > 0).all()
    assert len(told.round_ns) == len(watched.result.kept_rounds) == 6
    samples = watched.result.samples
    for number, lasted in enumerate(told.round_ns.tolist()):
        assert lasted >= samples.wall_ns[samples.round == number].sum()


def test_the_sentinel_runs_before_and_after(watched: Watched) -> None:
    before, after = watched.result.sentinel_ns
    assert min(before, after) > 0


def test_slow_calls_of_the_warm_up_are_among_its_calls(watched: Watched) -> None:
    for name, facts in watched.result.facts.items():
        assert facts.settled == (facts.warmup_calls is not None)
        assert facts.warmup_calls is None or 0 <= facts.warmup_calls < watched.warm_ups(name)


@pytest.fixture(scope="module")
def traces() -> Mapping[str, list[tuple[str, bytes]]]:
    """Who was asked what, call by call, in launches that differ."""
    launches = {
        "first": SHORT,
        "again": dataclasses.replace(SHORT, attempt=2),
        "next": dataclasses.replace(SHORT, index=2),
        "seed": dataclasses.replace(SHORT, seed=8),
    }
    found: dict[str, list[tuple[str, bytes]]] = {label: [] for label in launches}
    for label, launch in launches.items():
        with pytest.MonkeyPatch.context() as patch:
            for name in (BASELINE, CONTROL):
                saw = functools.partial(lambda trace, n, b: trace.append((n, b.numpy().tobytes())), found[label])
                enter(patch, name, watching(name, saw), like=name)
            run((BASELINE, CONTROL), launch)
    return found


def in_rounds(trace: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Without the warm-up, whose length is the machine's, and the check of each of two variants at the end."""
    return trace[-(6 * 4 * 2) - 2 : -2]


def test_a_lost_launch_orders_the_same_again(traces: Mapping[str, list[tuple[str, bytes]]]) -> None:
    again, first = ([name for name, _ in in_rounds(traces[label])] for label in ("again", "first"))
    assert again == first


@pytest.fixture
def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted timer's first calls are those of the warm-up."""
    monkeypatch.setattr(measure, "floor_ns", lambda timer: 0)


class Scripted(CpuTimer):
    """Calls that take these ns, then 1000 each."""

    def __init__(self, walls_ns: list[int]) -> None:
        super().__init__()
        object.__setattr__(self, "walls_ns", iter(walls_ns))

    def call(self, reply: Reply, batch: Tensor, lengths: Tensor) -> tuple[Tensor, Reading]:
        tokens, reading = super().call(reply, batch, lengths)
        return tokens, reading._replace(wall_ns=next(self.walls_ns, 1000))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_floor")
def test_a_lost_launch_asks_the_same_again_however_long_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, list[tuple[str, bytes]]] = {}
    for warm_up in (6, 12):
        falling = [10**9 // 2**i for i in range(warm_up)]
        monkeypatch.setattr(measure, "timer_for", functools.partial(lambda walls, _: Scripted(walls), falling))
        asked[warm_up] = []
        saw = functools.partial(lambda trace, n, b: trace.append((n, b.numpy().tobytes())), asked[warm_up])
        with pytest.MonkeyPatch.context() as patch:
            for name in (BASELINE, CONTROL):
                enter(patch, name, watching(name, saw), like=name)
            run((BASELINE, CONTROL))
    assert len(asked[6]) < len(asked[12])
    assert in_rounds(asked[6]) == in_rounds(asked[12])


@pytest.mark.parametrize("other", ["next", "seed"])
def test_launches_differ_in_their_prompts_and_in_their_orders(
    other: str, traces: Mapping[str, list[tuple[str, bytes]]]
) -> None:
    for part in (0, 1):
        assert [call[part] for call in in_rounds(traces[other])] != [call[part] for call in in_rounds(traces["first"])]


def test_speedups_are_of_every_valid_variant_but_the_baseline(watched: Watched) -> None:
    assert watched.result.log_speedups().keys() == {CONTROL, "torchscript"}


def test_a_launch_without_a_size_finds_one_that_lasts_the_asked_seconds() -> None:
    brief = run((BASELINE, CONTROL), Launch(0, seed=7, seconds=1e-9))
    assert brief.rounds == 2  # one square, as short as it gets
    ample = run(
        (BASELINE, CONTROL), Launch(0, seed=7, seconds=60.0), pool=ROUNDS * (1 + MOST_CALLS) + MOST_WARMUP_CALLS
    )
    assert ample.rounds == ROUNDS
    assert CALLS <= ample.calls <= MOST_CALLS


def test_a_launch_has_no_more_rounds_than_it_has_prompts_for() -> None:
    pool = MOST_WARMUP_CALLS + 9 * 4
    result = run((BASELINE, CONTROL), dataclasses.replace(SHORT, rounds=20), pool=pool)
    set_aside = max(WARMUP_CALLS, pool // 4)
    assert result.rounds == (pool - set_aside) // 4 // 2 * 2 < 20


def test_a_launch_runs_without_gradients() -> None:
    modes: list[tuple[bool, bool]] = []

    def saw(_: str, __: Tensor) -> None:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    with pytest.MonkeyPatch.context() as patch:
        enter(patch, BASELINE, watching(BASELINE, saw), like=BASELINE)
        run((BASELINE, CONTROL))
    assert set(modes) == {(False, True)}


# Of each case on its input in a fork of it, as a launch is one of its server's: what was compiled in each part.
COMPILATIONS = """
import json, os, sys, torch
import numpy as np
from torch._dynamo.utils import counters  # not public; the only place that counts what Dynamo compiled
from chatbot.variants import Workload
from ray_jobs.measure import launch as measure
from ray_jobs.measure.result import Launch
from ray_jobs.measure.trial import Checkpoint, Factory, Preset
torch.set_num_threads(1)
pool = np.array(json.loads(sys.stdin.readline()))
counts = {}
def counting(name):
    work = getattr(measure, name)
    def counted(*args):
        before = counters["stats"]["unique_graphs"]
        try:
            return work(*args)
        finally:
            counts[name] = counters["stats"]["unique_graphs"] - before
    setattr(measure, name, counted)
for part in ("_prepare_all", "warm_up", "run_rounds"):
    counting(part)
for number, (kind, name, variants, stop) in enumerate(json.loads(sys.stdin.readline())):
    if os.fork():
        if os.wait()[1]:
            sys.exit(1)
        continue
    workload = Workload(prompt_tokens=4, reply_tokens=5, stop_at_eos=stop, model=name)
    launch = Launch(index=1, seed=7, rounds=len(variants), calls=3)
    source = {"preset": Preset, "factory": Factory}[kind](name)
    found = measure.measure(workload, variants, source, pool, launch)
    reasons = {name: facts.failed or facts.skipped for name, facts in found.facts.items()}
    with open(f"{number}.json", "w") as file:
        json.dump([counts, reasons], file)
    sys.exit(0)
"""
COMPILE = (BASELINE, CONTROL, "compile")
COMPILING = {
    "chatbot": ("preset", "tiny", COMPILE, False),
    "chatbot that stops": ("preset", "tiny", COMPILE, True),
    "own model": ("factory", "own_models:kept", COMPILE, False),
}
AHEAD_OF_TIME_TOO = ("preset", "tiny", (*COMPILE, "export-aoti"), False)  # two minutes

Compiling = tuple[str, str, tuple[str, ...], bool]  # what gives the weights, its name, variants, stop_at_eos
Counts = tuple[dict[str, int], dict[str, str | None]]  # of each part; why a variant was not measured


def compilations(folder: Path, cases: Sequence[Compiling]) -> list[Counts]:
    """What was compiled for each case, in a process of its own."""
    given = f"{json.dumps(prompts(80).tolist())}\n{json.dumps(cases)}\n"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMPILATIONS]
    done = subprocess.run(
        command, input=given, env=env, cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(cases))]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counts]:
    """All cases of a process that has imported PyTorch and its compiler once."""
    found = compilations(tmp_path_factory.mktemp("compiled"), list(COMPILING.values()))
    return dict(zip(COMPILING, found, strict=True))


def compiled_no_more(found: Counts, variants: tuple[str, ...]) -> None:
    counts, reasons = found
    if reasons["compile"] is not None:
        pytest.skip(reasons["compile"])
    assert {reasons[name] for name in variants} == {None}
    assert counts["_prepare_all"] > 0
    assert (counts["warm_up"], counts["run_rounds"]) == (0, 0)


@pytest.mark.process
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", COMPILING)
def test_nothing_is_compiled_once_the_variants_are_prepared(case: str, compiled: dict[str, Counts]) -> None:
    compiled_no_more(compiled[case], COMPILE)


@pytest.mark.process
@pytest.mark.slow
def test_nothing_is_compiled_then_ahead_of_time_either(tmp_path: Path) -> None:
    (found,) = compilations(tmp_path, [AHEAD_OF_TIME_TOO])
    compiled_no_more(found, AHEAD_OF_TIME_TOO[2])


def test_each_variant_has_a_copy_of_the_weights_of_its_own() -> None:
    seen: list[Chatbot] = []
    prepare_eager = VARIANTS[BASELINE].prepare

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        seen.append(chatbot)
        return prepare_eager(chatbot, workload)

    with pytest.MonkeyPatch.context() as patch:
        for name in (BASELINE, CONTROL):
            enter(patch, name, prepare, like=name)
        run((BASELINE, CONTROL))
    addresses = [{p.data_ptr() for part in (bot.encoder, bot.decoder) for p in part.parameters()} for bot in seen]
    assert len(seen) == 2
    assert addresses[0].isdisjoint(addresses[1])
    assert all(bot.encoder.embedding is bot.decoder.embedding for bot in seen)


def test_weights_come_from_a_checkpoint_or_a_preset(tmp_path: Path) -> None:
    words = Vocabulary(tuple(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(47)))
    bot = Chatbot.random(tiny().config, seed=3)
    checkpoint.save(checkpoint.Trained("toy", bot, words), tmp_path / "toy.pt")
    loaded = Checkpoint(str(tmp_path / "toy.pt")).load()
    assert all(torch.equal(a, b) for a, b in zip(loaded.encoder.parameters(), bot.encoder.parameters(), strict=True))
    assert loaded.encoder is not Checkpoint(str(tmp_path / "toy.pt")).load().encoder
    assert torch.equal(TINY.load().decoder.out.weight, tiny().decoder.out.weight)


# Variants that misbehave


def raising(message: str, after: int | None = None) -> Any:
    """A variant that can't be prepared or, where ``after`` is given, not answer after so many calls."""

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        reply = torchscript.prepare(chatbot, workload)
        calls = 0
        if after is None:
            raise NotImplementedError(message)

        def fails(batch: Tensor, lengths: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > after:
                raise NotImplementedError(message)
            return reply(batch, lengths)

        return fails

    return prepare


def facts_of_a(prepare: Any, patch: pytest.MonkeyPatch, **entry: Any) -> tuple[VariantFacts, LaunchResult]:
    """What a launch says of a variant like TorchScript between baseline and control; those must be sound."""
    enter(patch, "odd", prepare, **entry)
    result = run((BASELINE, "odd", CONTROL))
    for name in (BASELINE, CONTROL):
        assert (result.facts[name].failed, result.facts[name].invalid) == (None, None)
    assert "odd" not in result.log_speedups()
    timed = [(v, r, c) for v, phase, r, c in columns(result, "variant", "phase", "round", "call") if phase]
    assert {row for row in timed if row[0] != 1} == {(v, r, c) for v in (0, 2) for r in range(6) for c in range(4)}
    return result.facts["odd"], result


def test_a_variant_that_cant_be_prepared_has_failed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, result = facts_of_a(raising("no such\nkernel"), monkeypatch)
    assert facts.failed == "could not be prepared: NotImplementedError: no such"
    assert not (result.samples.variant == 1).any()


def test_a_variant_that_lacks_something_is_skipped_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        raise UnavailableError("no C++ compiler; install g++")

    facts, result = facts_of_a(prepare, monkeypatch)
    assert (facts.skipped, facts.failed) == ("no C++ compiler; install g++", None)
    assert not (result.samples.variant == 1).any()


def test_a_variant_that_cant_answer_has_failed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, result = facts_of_a(raising("no such kernel", after=0), monkeypatch)
    assert facts.failed == "could not answer: NotImplementedError: no such kernel"
    assert not (result.samples.variant == 1).any()


def test_a_variant_that_fails_in_its_warm_up_has_no_timed_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, result = facts_of_a(raising("too hot", after=2), monkeypatch)
    assert facts.failed == "could not answer: NotImplementedError: too hot"
    assert set(result.samples.phase[result.samples.variant == 1].tolist()) <= {WARMUP}


def test_places_are_balanced_among_those_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _, result = facts_of_a(raising("gone"), monkeypatch)
    turns = {(v, r, p) for v, phase, r, p in columns(result, "variant", "phase", "round", "position") if phase}
    assert Counter((v, p) for v, _, p in turns) == dict.fromkeys([(0, 0), (0, 1), (2, 0), (2, 1)], 3)


@pytest.mark.parametrize(("after", "where"), [(None, "could not be prepared"), (0, "could not answer")])
def test_without_its_baseline_a_launch_stops(after: int | None, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, BASELINE, raising("no memory", after), like=BASELINE)
    with pytest.raises(RuntimeError, match=f"^the baseline eager {where}: NotImplementedError: no memory$"):
        run((BASELINE, CONTROL))


def test_a_variant_that_answers_differently_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, _ = facts_of_a(altered("torchscript", first_token_changed), monkeypatch)
    assert facts.invalid == "it promises the baseline's replies but one differs at step 1"
    assert facts.failed is None


def test_an_approximate_variant_may_answer_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def now_and_then(tokens: Tensor) -> Tensor:
        return tokens if next(calls) % 3 else first_token_changed(tokens)

    enter(monkeypatch, "nearly", altered("torchscript", now_and_then), exact=False)
    result = run((BASELINE, "nearly", CONTROL))
    facts = result.facts["nearly"]
    assert (facts.invalid, facts.replies) == (None, 24)
    assert 12 <= facts.identical < 24
    assert result.log_speedups().keys() == {"nearly", CONTROL}


def test_an_approximate_variant_that_always_answers_differently_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, _ = facts_of_a(altered("torchscript", first_token_changed), monkeypatch, exact=False)
    assert facts.invalid == "only 0 of its 24 replies are the baseline's"
    assert (facts.replies, facts.identical) == (24, 0)


def test_a_variant_that_says_less_than_was_asked_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, _ = facts_of_a(altered("torchscript", lambda tokens: tokens[:, :-1]), monkeypatch)
    assert facts.invalid == "a reply has shape (1, 4) instead of (1, 5)"


def test_a_variant_that_answers_with_unknown_tokens_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, _ = facts_of_a(altered("torchscript", lambda tokens: tokens + 1000), monkeypatch)
    assert facts.invalid is not None


def test_a_variant_that_runs_something_else_than_its_label_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, _ = facts_of_a(torchscript.prepare, monkeypatch, kind="eager")
    assert facts.invalid == "it is labelled eager but runs torchscript"
    assert facts.kind == "torchscript"


def test_a_variant_that_hands_out_the_baselines_program_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "alias", VARIANTS[BASELINE].prepare, like=BASELINE)
    result = run((BASELINE, CONTROL, "alias"))
    assert result.facts["alias"].invalid is not None
    assert result.facts["alias"].invalid.startswith("it is the same program as eager")


def test_a_variant_that_spoils_its_prompts_fails_and_spoils_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not turn the prompts into ones that are easy for those that come after it."""
    seen: list[bytes] = []

    def saw(_: str, batch: Tensor) -> None:
        seen.append(batch.numpy().tobytes())

    def spoil(_: str, batch: Tensor) -> None:
        batch.fill_(5)

    for name in (BASELINE, CONTROL):
        enter(monkeypatch, name, watching(name, saw), like=name)
    enter(monkeypatch, "spoiler", watching("torchscript", spoil))
    facts = run((BASELINE, CONTROL, "spoiler")).facts["spoiler"]
    assert "it changes its inputs" in str(facts.failed)
    assert len(set(seen)) > 1
    assert set(seen) <= {row.tobytes() for row in prompts(200)}


def test_a_variant_that_fills_its_answers_in_later_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        reply = torchscript.prepare(chatbot, workload)
        owed: list[tuple[Tensor, Tensor]] = []

        def later(batch: Tensor, lengths: Tensor) -> Tensor:
            for answer, said in owed:
                answer.copy_(said)
            tokens = reply(batch, lengths)
            owed[:] = [(torch.zeros_like(tokens), tokens)]
            return owed[0][0]

        return later

    facts, _ = facts_of_a(prepare, monkeypatch)
    assert facts.invalid == "it promises the baseline's replies but one differs at step 1"


def test_a_variant_that_handles_text_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    def spell(tokens: Tensor) -> Tensor:
        "_".join(["a", "b"])
        return tokens

    facts, _ = facts_of_a(altered("torchscript", spell), monkeypatch)
    assert facts.invalid == "it handles text inside the timed call: str.join"


@pytest.mark.usefixtures("no_floor")
def test_a_variant_that_never_settles_is_valid_but_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = [2 ** (60 - i) for i in range(MOST_WARMUP_CALLS)]
    monkeypatch.setattr(measure, "timer_for", lambda _: Scripted(falling))
    result = run((BASELINE, CONTROL))
    first, second = (result.facts[name] for name in result.built)
    assert (first.settled, first.warmup_calls, first.failed, first.invalid) == (False, None, None, None)
    assert (second.settled, second.warmup_calls) == (True, 0)


# The timed region


def test_the_clock_is_read_twice_and_only_the_reply_stands_between() -> None:
    """Every call, of Python or C, between the two readings is counted."""
    ran: list[str] = []

    def clock() -> int:
        return 7

    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        return batch

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            ran.append(frame.f_code.co_name if event == "call" else arg.__name__)

    timer, batch = CpuTimer(clock), torch.zeros(1)
    sys.setprofile(profile)
    try:
        timer.call(reply, batch, batch)
    finally:
        sys.setprofile(None)
    first, last = ran.index("clock"), len(ran) - 1 - ran[::-1].index("clock")
    assert ran[first : last + 1] == ["clock", "reply", "clock"]


def test_a_reading_is_what_the_clock_said_around_the_reply() -> None:
    said: list[str] = []
    times = iter([1000, 1250])

    def clock() -> int:
        said.append("clock")
        return next(times)

    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        said.append("reply")
        return batch + lengths

    tokens, reading = CpuTimer(clock).call(reply, torch.tensor([1]), torch.tensor([2]))
    assert said == ["clock", "reply", "clock"]
    assert tokens.tolist() == [3]
    assert (reading.start_ns, reading.wall_ns, reading.device_ns) == (1000, 250, None)


def test_a_reading_counts_the_cpu_time_of_the_reply() -> None:
    def busy(batch: Tensor, lengths: Tensor) -> Tensor:
        return torch.tensor(sum(range(300_000)))

    timer, nothing = CpuTimer(), torch.zeros(1)
    _, idle = timer.call(lambda batch, lengths: batch, nothing, nothing)
    _, worked = timer.call(busy, nothing, nothing)
    assert worked.cpu_ns > 10 * idle.cpu_ns
    assert worked.involuntary_switches >= 0


def test_a_cpu_has_the_timer_without_synchronisation() -> None:
    assert timer_for("cpu") == CpuTimer()


# Sizes and prompts


@given(SIZES, st.floats(0.1, 70.0))
def test_a_launchs_size_is_as_many_whole_squares_as_fit_its_seconds(
    typical: dict[str, float], affordable: float
) -> None:
    n = len(typical)
    calls = size(typical, 1.0, n)[1]
    round_s = sum(typical.values()) * (1 + calls) / 1e9
    assume(abs(affordable - round(affordable)) > 1e-6)
    rounds, again = size(typical, affordable * round_s, n)
    assert again == calls
    assert CALLS <= calls <= MOST_CALLS
    assert rounds == max(n, min(up_to_multiple(ROUNDS, n), int(affordable) // n * n))


@given(SIZES, st.floats(0.01, 1.0))
def test_faster_variants_get_no_fewer_calls(typical: dict[str, float], share: float) -> None:
    faster = {name: ns * share for name, ns in typical.items()}
    assert size(faster, 1.0, len(typical))[1] >= size(typical, 1.0, len(typical))[1]


@pytest.mark.parametrize(
    ("typical_ns", "calls"),
    [(TURN_NS, CALLS), (TURN_NS / 2, 2), (TURN_NS / MOST_CALLS, MOST_CALLS), (TURN_NS / 1000, MOST_CALLS)],
)
def test_the_slowest_variants_turn_decides_the_calls(typical_ns: float, calls: int) -> None:
    assert size({"slow": typical_ns, "fast": typical_ns / 100}, 1.0, 2)[1] == calls


@given(st.integers(1, 40), st.integers(1, 5))
def test_prompts_are_never_given_twice_and_come_to_an_end(count: int, batch: int) -> None:
    workload = dataclasses.replace(WORKLOAD, batch=batch)
    if count < batch:
        with pytest.raises(ValueError, match=f"{count} prompts do not make a batch of {batch}"):
            Prompts(prompts(count), workload)
        return
    source = Prompts(prompts(count), workload)
    given_out: list[tuple[int, ...]] = []
    for _ in range(count // batch):
        asked, lengths = source.next()
        assert asked.shape == (batch, 4)
        assert lengths.tolist() == [4] * batch
        given_out += map(tuple, asked.tolist())
    assert len(set(given_out)) == len(given_out)
    assert set(given_out) <= set(map(tuple, prompts(count).tolist()))
    with pytest.raises(IndexError):
        source.next()


@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_most_rounds_are_whole_squares_that_the_prompts_suffice_for(
    left: int, wanted: int, calls: int, variants: int
) -> None:
    source = Prompts(prompts(left + 2), WORKLOAD)
    source.next(), source.next()
    square = variants * (1 + calls)
    if left < square:
        with pytest.raises(ValueError, match="do not suffice"):
            source.most_rounds(wanted, calls, variants)
    else:
        assert source.most_rounds(wanted, calls, variants) == min(wanted, left // square * variants)


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 12))
def test_calls_are_as_many_as_make_a_square_of_rounds_possible(left: int, calls: int, variants: int) -> None:
    source = Prompts(prompts(left + 2), WORKLOAD)
    source.next(), source.next()
    most = source.most_calls(calls, variants)
    assert 1 <= most <= calls
    if left >= 2 * variants:
        assert source.most_rounds(variants, most, variants) == variants
        assert most == calls or left < variants * (2 + most), "one more would not have sufficed"


def test_asked_are_the_batches_of_the_last_rounds() -> None:
    source = Prompts(prompts(40), WORKLOAD)
    source.next()
    rounds = [[source.next()[0] for _ in range(4)] for _ in range(3)]
    every = [batch.tolist() for batches in rounds for batch in batches]
    assert [batch.tolist() for batch in source.asked(calls=3, rounds=3)] == every


# Memory


def resident(field: str) -> int:
    """Bytes, as the kernel says: VmRSS now, VmHWM at most."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def test_peak_memory_is_of_this_process() -> None:
    before = resident("VmHWM") / 1e6
    peak = measure.measure_alone(WORKLOAD, BASELINE, TINY, prompts(20)).peak_mb
    assert before <= peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 * 1.01


def test_peak_memory_shows_what_a_variant_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resident("VmHWM")
    hungry = before - resident("VmRSS") + 200_000_000

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        torch.ones(hungry, dtype=torch.uint8)  # gone again at once, but it was there
        return torchscript.prepare(chatbot, workload)

    enter(monkeypatch, "hungry", prepare)
    peak = measure.measure_alone(WORKLOAD, "hungry", TINY, prompts(20)).peak_mb
    assert peak - before / 1e6 == pytest.approx(200, abs=60)


@pytest.mark.parametrize(("asked", "given"), [(0, None), (5, 6), (6, 6), (1000, 20)])
def test_a_variant_alone_answers_whole_batches_of_the_first_prompts(asked: int, given: int | None) -> None:
    workload = dataclasses.replace(WORKLOAD, batch=2)
    alone = measure.measure_alone(workload, BASELINE, TINY, prompts(20), compared=asked)
    if given is None:
        assert alone.tokens is None
        return
    expected = tiny().search()(torch.from_numpy(prompts(20)[:given]), torch.full((given,), 4), 5)[0]
    assert alone.tokens is not None
    assert alone.tokens.tolist() == expected.tolist()


def test_machine_facts_are_of_this_process() -> None:
    facts = measure.machine_facts()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["cores"]
