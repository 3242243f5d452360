"""Programs that are not what they are called, and replies that are not what was promised."""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import WORKLOAD, enter, prompts, tiny
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, CONTROL, VARIANTS, Compiled, Reply, Workload, eager, torchscript
from chatbot.vocabulary import EOS, PAD, SOS, Vocabulary
from ray_jobs.measure import replies as checks
from ray_jobs.measure.replies import (
    TIE_TOLERANCE,
    Program,
    ReplyCheck,
    check_replies,
    compare,
    first_difference,
    label_fault,
    probe_fault,
    program_of,
    same_program_faults,
    written,
)

TOKENS = st.integers(0, 6)  # EOS among them
LIKELIEST, RUNNER_UP = 20, 30
# What a machine without other packages, a compiler or a GPU can prepare at once; tests/test_engines.py has the others.
QUICK = [name for name, variant in VARIANTS.items() if not variant.needs and "cpu" in variant.devices]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As a launch runs."""
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Wrapper:
    """A callable dataclass around anything."""

    inner: Any

    def __call__(self, batch: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = self.inner(batch, lengths, 5)[0]
        return tokens


class Plain:
    """A callable object with an attribute."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def reply(self, batch: Tensor, lengths: Tensor) -> Tensor:
        tokens: Tensor = self.inner(batch, lengths, 5)[0]
        return tokens

    __call__ = reply


def ask(search: Any, batch: Tensor, lengths: Tensor) -> Tensor:
    tokens: Tensor = search(batch, lengths, 5)[0]
    return tokens


def ask_last(batch: Tensor, lengths: Tensor, search: Any) -> Tensor:
    return ask(search, batch, lengths)


def in_a_closure(search: Any) -> Reply:
    return lambda batch, lengths: ask(search, batch, lengths)


def in_a_default(search: Any) -> Reply:
    def reply(batch: Tensor, lengths: Tensor, search: Any = search) -> Tensor:
        return ask(search, batch, lengths)

    return reply


def in_containers(search: Any) -> Reply:
    kept = {"searches": [(search,)]}
    return lambda batch, lengths: ask(kept["searches"][0][0], batch, lengths)


def in_a_wrapped_function(search: Any) -> Reply:
    inner = in_a_closure(search)

    @functools.wraps(inner)
    def reply(batch: Tensor, lengths: Tensor) -> Tensor:
        return inner(batch, lengths)

    return reply


HIDING: dict[str, Callable[[Any], Reply]] = {
    "closure": in_a_closure,
    "default": in_a_default,
    "containers": in_containers,
    "wrapped function": in_a_wrapped_function,
    "partial argument": lambda search: functools.partial(ask, search),
    "partial keyword": lambda search: functools.partial(ask_last, search=search),
    "partial of a closure": lambda search: functools.partial(in_a_closure(search)),
    "bound method": lambda search: Plain(search).reply,
    "bound method of the module": lambda search: search.__call__,
    "callable object": Plain,
    "dataclass": Wrapper,
    "dataclass in a dataclass": lambda search: Wrapper(Wrapper(search)),
}


# Programs


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_program_finds_eager_modules_wherever_they_are(hide: Callable[[Any], Reply]) -> None:
    search = tiny().search()
    program = program_of(hide(search))
    assert program.kind == "eager"
    assert program.devices == {"cpu"}
    assert program.dtypes == {"float32"}
    assert program.objects == {id(search)}
    assert not program.training


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_program_finds_scripts_wherever_they_are(hide: Callable[[Any], Reply]) -> None:
    search = torchscript.script(tiny(), "cpu")
    program = program_of(hide(search))
    assert program.kind == "torchscript"
    assert program.devices == {"cpu"}
    assert program.dtypes == {"float32"}
    assert program.objects == {id(search)}


def test_a_search_over_traced_networks_is_of_both_kinds() -> None:
    script, search = torchscript.script(tiny(), "cpu"), tiny().search()
    search.encoder = script.encoder
    assert program_of(in_a_closure(search)).kind == "eager+torchscript"


def test_two_networks_side_by_side_are_both_found() -> None:
    bot, script = tiny(), torchscript.script(tiny(), "cpu")
    program = program_of(functools.partial(ask, [bot, script]))
    assert program.kind == "eager+torchscript"
    assert program.objects == {id(bot.encoder), id(bot.decoder), id(script)}


def test_a_script_in_a_plain_list_of_an_eager_module_is_found() -> None:
    search = tiny().search()
    search.spare = [torchscript.script(tiny(), "cpu")]  # type: ignore[assignment]
    assert program_of(in_a_closure(search)).kind == "eager+torchscript"


class Engine:
    """A program that is not made of PyTorch's modules, and shows what it executes."""

    def __init__(self, identity: str = "graph-1", weights: int = 1, dtype: str = "float32") -> None:
        self.compiled = Compiled("native", frozenset({"cpu"}), frozenset({dtype}), identity, frozenset({weights}))

    def __call__(self, batch: Tensor, lengths: Tensor, steps: int) -> tuple[Tensor]:
        return (torch.zeros(len(batch), steps, dtype=torch.long),)


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_program_finds_compiled_programs_wherever_they_are(hide: Callable[[Any], Reply]) -> None:
    program = program_of(hide(Engine()))
    assert program.kind == "native"
    assert program.devices == {"cpu"}
    assert program.dtypes == {"float32"}
    assert label_fault(BASELINE, program, WORKLOAD) == "it is labelled eager but runs native"


def test_a_compiled_program_beside_modules_is_both() -> None:
    engine, search = Engine(dtype="qint8"), tiny().search()
    program = program_of(lambda batch, lengths: ask(engine, batch, lengths) + ask(search, batch, lengths))
    assert program.kind == "eager+native"
    assert program.dtypes == {"float32", "qint8"}


@pytest.mark.parametrize("other", [Engine("graph-1", weights=2), Engine("graph-2", weights=1)])
def test_two_compiled_programs_of_one_code_or_one_memory_are_the_same_program(other: Engine) -> None:
    programs = {"eager": program_of(in_a_closure(Engine())), "torchscript": program_of(in_a_closure(other))}
    assert same_program_faults(programs)["torchscript"] == "it is the same program as eager"
    apart = {**programs, "torchscript": program_of(in_a_closure(Engine("graph-2", weights=2)))}
    assert not same_program_faults(apart)


def test_a_callable_without_modules_is_unknown() -> None:
    program = program_of(lambda batch, lengths: batch)
    assert program.kind == "unknown"
    assert not program.objects
    assert label_fault(BASELINE, program, WORKLOAD) == "it is labelled eager but runs unknown"


def test_callables_without_modules_are_told_apart_by_their_code() -> None:
    programs = [program_of(f) for f in (lambda b, n: b, lambda b, n: b + n, lambda x, y: x)]
    assert programs[0].identity != programs[1].identity
    assert programs[0].identity == programs[2].identity


# Labels


def fault_of(label: str, reply: Reply) -> str | None:
    return label_fault(label, program_of(reply), WORKLOAD)


@pytest.mark.parametrize("name", QUICK)
def test_every_entry_of_the_table_is_what_its_label_says(name: str) -> None:
    assert fault_of(name, VARIANTS[name].prepare(tiny(), WORKLOAD)) is None


def test_a_script_labelled_eager_is_a_fault() -> None:
    reply = torchscript.prepare(tiny(), WORKLOAD)
    assert fault_of("eager", reply) == "it is labelled eager but runs torchscript"


def test_an_eager_program_labelled_torchscript_is_a_fault() -> None:
    assert fault_of("torchscript", eager.prepare(tiny(), WORKLOAD)) == "it is labelled torchscript but runs eager"


def test_traced_networks_under_an_eager_search_are_neither() -> None:
    search = tiny().search()
    search.decoder = torchscript.script(tiny(), "cpu").decoder
    for label in ("eager", "torchscript"):
        assert fault_of(label, in_a_closure(search)) == f"it is labelled {label} but runs eager+torchscript"


def test_half_weights_labelled_float32_are_a_fault() -> None:
    bot = tiny()
    bot.decoder.out.half()  # one layer is enough
    assert fault_of("eager", eager.prepare(bot, WORKLOAD)) == "it is labelled float32 but holds float16, float32"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_int8_weights_labelled_float32_are_a_fault() -> None:
    layers = {torch.nn.GRU, torch.nn.Linear}
    search = torch.ao.quantization.quantize_dynamic(tiny().search(), layers, dtype=torch.qint8).eval()  # type: ignore[no-untyped-call]
    assert fault_of("eager", in_a_closure(search)) is not None


def test_float32_weights_labelled_half_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "half", eager.prepare, like="eager", dtype="float16")
    assert fault_of("half", eager.prepare(tiny(), WORKLOAD)) == "it is labelled float16 but holds float32"


def test_training_mode_is_a_fault() -> None:
    bot = tiny()
    reply = eager.prepare(bot, WORKLOAD)
    bot.decoder.embedding_dropout.train()
    assert fault_of("eager", reply) == "it runs in training mode, with dropout on"


def test_weights_on_another_device_are_a_fault() -> None:
    assert (
        fault_of("eager", eager.prepare(tiny().to("meta"), WORKLOAD)) == "it is labelled cpu but holds weights on meta"
    )


def test_one_network_on_another_device_is_a_fault() -> None:
    bot = tiny()
    bot.encoder.gru.to("meta")
    assert fault_of("eager", eager.prepare(bot, WORKLOAD)) == "it is labelled cpu but holds weights on cpu, meta"


def test_a_buffer_on_another_device_is_a_fault() -> None:
    search = tiny().search()
    search.register_buffer("mask", torch.zeros(1, device="meta"))
    assert fault_of("eager", in_a_closure(search)) == "it is labelled cpu but holds weights on cpu, meta"


# The same program twice


def prepared(name: str) -> Program:
    return program_of(VARIANTS[name].prepare(tiny(), WORKLOAD))


def test_the_tables_variants_are_different_programs_and_a_declared_control() -> None:
    replies = {name: VARIANTS[name].prepare(tiny(), WORKLOAD) for name in QUICK}
    assert same_program_faults({name: program_of(reply) for name, reply in replies.items()}) == {}


def test_one_callable_under_two_names_is_a_fault_of_both() -> None:
    program = prepared("torchscript")
    faults = same_program_faults({"eager": program, "torchscript": program})
    assert faults == {
        "eager": "it is the same program as torchscript",
        "torchscript": "it is the same program as eager",
    }


def test_one_callable_as_baseline_and_control_is_a_fault_though_declared() -> None:
    program = prepared(BASELINE)
    assert same_program_faults({BASELINE: program, CONTROL: program}).keys() == {BASELINE, CONTROL}


def test_one_module_in_two_callables_is_a_fault_though_declared() -> None:
    search = tiny().search()
    programs = {BASELINE: program_of(in_a_closure(search)), CONTROL: program_of(Wrapper(search))}
    assert same_program_faults(programs).keys() == {BASELINE, CONTROL}


def test_baseline_and_control_on_one_copy_of_the_weights_are_a_fault() -> None:
    bot = tiny()  # each gets a search of its own, but both time the same networks
    replies = {name: eager.prepare(bot, WORKLOAD) for name in (BASELINE, CONTROL)}
    faults = same_program_faults({name: program_of(reply) for name, reply in replies.items()})
    assert faults.keys() == {BASELINE, CONTROL}


@pytest.mark.parametrize("kind", ["eager", "torchscript"])
def test_the_same_program_prepared_twice_under_undeclared_names_is_a_fault(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, "other", VARIANTS[kind].prepare, like=kind, control_of=None)
    replies = {name: VARIANTS[name].prepare(tiny(), WORKLOAD) for name in (kind, "other")}
    faults = same_program_faults({name: program_of(reply) for name, reply in replies.items()})
    assert faults == {kind: "it is the same program as other", "other": f"it is the same program as {kind}"}


def test_the_same_script_in_other_python_is_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "other", torchscript.prepare)
    scripts = [torchscript.script(tiny(), "cpu") for _ in range(2)]
    programs = {"torchscript": program_of(in_a_closure(scripts[0])), "other": program_of(Wrapper(scripts[1]))}
    assert same_program_faults(programs).keys() == {"torchscript", "other"}


# Replies


@given(st.lists(TOKENS, min_size=1, max_size=8), st.data())
def test_first_difference_is_the_first_one_up_to_the_baselines_first_eos(
    baseline: list[int], data: st.DataObject
) -> None:
    reply = data.draw(st.lists(TOKENS, min_size=len(baseline), max_size=len(baseline)))
    end = baseline.index(EOS) + 1 if EOS in baseline else len(baseline)
    expected = next((step for step in range(end) if reply[step] != baseline[step]), None)
    assert first_difference(torch.tensor(reply), torch.tensor(baseline)) == expected


@pytest.mark.parametrize(
    ("reply", "baseline", "step"),
    [
        ([5, EOS, 7], [5, EOS, 9], None),
        ([5, 6, 7], [5, EOS, 7], 1),  # it goes on where the baseline ends
        ([5, EOS, 7], [5, 6, 7], 1),  # it ends where the baseline goes on
        ([EOS, 6, 7], [EOS, 8, EOS], None),
        ([4, 6, 7], [5, 6, 7], 0),
        ([5, 6, 8], [5, 6, 7], 2),
    ],
)
def test_first_difference_ends_with_the_baselines_eos(reply: list[int], baseline: list[int], step: int | None) -> None:
    assert first_difference(torch.tensor(reply), torch.tensor(baseline)) == step


def leaning(gap: float) -> Chatbot:
    """A chatbot that always answers LIKELIEST, whose logit is ``gap`` above RUNNER_UP's; all others are far below."""
    bot = tiny()
    bot.decoder.out.weight.zero_()
    bot.decoder.out.bias.fill_(-10.0)
    bot.decoder.out.bias[LIKELIEST], bot.decoder.out.bias[RUNNER_UP] = gap, 0.0
    return bot


def judged(
    name: str, judge: Chatbot, change: Callable[[Tensor], object] = lambda tokens: None, batch: int = 2
) -> tuple[int, int, str | None]:
    """(replies, identical, fault) of three calls that answer as ``judge`` does, but for a change to the second."""
    workload = Workload(batch=batch, prompt_tokens=4, reply_tokens=5)
    asked = list(torch.split(torch.from_numpy(prompts(3 * batch)), batch))
    reply = eager.prepare(judge, workload)
    baselines = [reply(b, torch.full((batch,), 4)) for b in asked]
    replies = [tokens.clone() for tokens in baselines]
    change(replies[1])
    check = check_replies(name, replies, baselines, asked, judge, workload)
    return check.replies, check.identical, check.fault


def put(value: int, *where: int) -> Callable[[Tensor], object]:
    """Writes a token at (row, step)."""

    def change(tokens: Tensor) -> None:
        tokens[where] = value

    return change


@pytest.fixture
def approximate(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a variant that promises only nearly the same replies."""
    enter(monkeypatch, "nearly", torchscript.prepare, exact=False)
    return "nearly"


def test_identical_replies_are_counted_by_prompt() -> None:
    assert judged("torchscript", tiny()) == (6, 6, None)


def test_an_exact_variant_with_one_other_token_breaks_its_promise() -> None:
    found = judged("torchscript", leaning(1.0), put(RUNNER_UP, 1, 2))
    assert found == (0, 0, "it promises the baseline's replies but one differs at step 3")


def test_at_a_tie_an_exact_variant_may_choose_the_other_token() -> None:
    assert judged("torchscript", leaning(0.0), put(RUNNER_UP, 1, 2)) == (6, 5, None)


@pytest.mark.parametrize(("gap", "tie"), [(TIE_TOLERANCE / 2, True), (TIE_TOLERANCE * 2, False)])
def test_a_tie_is_a_matter_of_the_stated_tolerance(gap: float, tie: bool) -> None:
    fault = judged("torchscript", leaning(gap), put(RUNNER_UP, 0, 0))[2]
    assert (fault is None) == tie


def test_a_tie_excuses_only_the_tokens_that_tie() -> None:
    assert judged("torchscript", leaning(0.0), put(5, 1, 2))[2] is not None


def test_a_reply_that_the_baselines_networks_like_better_is_no_tie() -> None:
    """Then it is the baseline's own reply that is not what its networks say: nothing is known of the variant."""
    bot, batch = leaning(1.0), torch.from_numpy(prompts(1))
    own, other = (torch.full((1, 5), token) for token in (LIKELIEST, RUNNER_UP))
    check = check_replies("torchscript", [own], [other], [batch], bot, WORKLOAD)
    assert check.fault is not None


def runners_up(bot: Chatbot, prompt: Tensor) -> list[tuple[int, float]]:
    """At each step of the reply to a prompt (1, T): the second likeliest token, and how far its logit is behind."""
    outputs, hidden = bot.encoder(prompt.t(), torch.tensor([prompt.size(1)]))
    token, found = torch.tensor([[SOS]]), []
    for _ in range(WORKLOAD.reply_tokens):
        logits, hidden = bot.decoder(token, hidden[: bot.config.decoder_layers], outputs, (prompt == PAD).t())
        best, second = logits[0].topk(2).indices.tolist()
        found.append((second, float(logits[0, best] - logits[0, second])))
        token = torch.tensor([[best]])
    return found


@pytest.mark.parametrize("step", range(WORKLOAD.reply_tokens))
@pytest.mark.parametrize(("share", "tie"), [(1.01, True), (0.99, False)])
def test_a_tie_is_judged_after_what_was_said_before(
    step: int, share: float, tie: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = tiny()
    second, gap = runners_up(bot, torch.from_numpy(prompts(6))[2:3])[step]
    monkeypatch.setattr(checks, "TIE_TOLERANCE", share * gap)
    assert (judged("torchscript", bot, put(second, 0, step))[2] is None) == tie


def test_differences_after_the_first_eos_are_ignored() -> None:
    bot = leaning(1.0)
    bot.decoder.out.bias[EOS] = 5.0  # it only ever says EOS
    assert judged("torchscript", bot, put(RUNNER_UP, 0, 1)) == (6, 6, None)
    assert judged("torchscript", bot, put(RUNNER_UP, 0, 0))[2] is not None


def test_a_reply_that_stops_early_is_a_fault() -> None:
    assert judged("torchscript", tiny(), lambda tokens: tokens.resize_(2, 4)) == (
        0,
        0,
        "a reply has shape (2, 4) instead of (2, 5)",
    )


def test_a_reply_for_too_few_prompts_is_a_fault_even_of_an_approximate_variant(approximate: str) -> None:
    fault = judged(approximate, tiny(), lambda tokens: tokens.resize_(1, 5))[2]
    assert fault == "a reply has shape (1, 5) instead of (2, 5)"


def test_a_reply_on_another_device_is_a_fault() -> None:
    bot, batch = tiny(), torch.from_numpy(prompts(1))
    expected = eager.prepare(bot, WORKLOAD)(batch, torch.tensor([4]))
    check = check_replies("eager", [expected.to("meta")], [expected], [batch], bot, WORKLOAD)
    assert check.fault == "its replies are on meta, not on cpu"


def test_a_reply_outside_the_vocabulary_is_a_fault() -> None:
    assert judged("torchscript", tiny(), put(10_000, 0, 0))[2] is not None


def test_an_approximate_variant_may_differ_and_is_counted(approximate: str) -> None:
    assert judged(approximate, leaning(1.0), put(RUNNER_UP, 1, 2)) == (6, 5, None)


def test_a_missing_reply_is_not_passed_over() -> None:
    bot, batch = tiny(), torch.from_numpy(prompts(1))
    tokens = eager.prepare(bot, WORKLOAD)(batch, torch.tensor([4]))
    with pytest.raises(ValueError, match="zip"):
        check_replies("eager", [tokens], [tokens, tokens], [batch, batch], bot, WORKLOAD)


@pytest.mark.parametrize(("same", "valid"), [(4, True), (3, True), (2, False), (0, False)])
def test_an_approximate_variant_of_under_half_identical_replies_is_another_chatbot(
    same: int, valid: bool, approximate: str
) -> None:
    bot = leaning(1.0)
    asked = list(torch.split(torch.from_numpy(prompts(6)), 1))
    expected = [eager.prepare(bot, WORKLOAD)(batch, torch.tensor([4])) for batch in asked]
    replies = [tokens if i < same else torch.full_like(tokens, RUNNER_UP) for i, tokens in enumerate(expected)]
    check = check_replies(approximate, replies, expected, asked, bot, WORKLOAD)
    assert check.fault == (None if valid else f"only {same} of its 6 replies are the baseline's")
    assert (check.replies, check.identical) == (6, same)


# Stopping early: replies of the baseline that go on after their end, each in words of its own

LONG = Workload(batch=2, prompt_tokens=4, reply_tokens=7)
SAID = [
    [[5, 6, EOS, 7, 8, 9, 7], [5, EOS, 10, 11, 12, 13, 11]],
    [[6, 6, 6, EOS, 14, 15, 16], [7, 8, 9, 10, 11, 12, 13]],
]


def after_the_end(
    change: Callable[[list[int], int], list[int]], said: list[list[list[int]]] | None = None
) -> str | None:
    """The fault of an exact variant that answers as the baseline up to its EOS (at a step) and then otherwise."""
    baselines = torch.tensor(said or SAID)
    replies = [[change(row, row.index(EOS)) if EOS in row else row for row in batch] for batch in baselines.tolist()]
    asked = list(torch.split(torch.from_numpy(prompts(2 * len(baselines))), 2))
    found = check_replies("torchscript", list(torch.tensor(replies)), list(baselines), asked, tiny(), LONG)
    assert (found.replies, found.identical) == (2 * len(baselines),) * 2
    return found.fault


@pytest.mark.parametrize("fill", [PAD, EOS])
def test_a_variant_that_stops_at_the_end_of_the_sentence_and_fills_up_is_invalid(fill: int) -> None:
    fault = after_the_end(lambda row, end: row[: end + 1] + [fill] * (len(row) - end - 1))
    assert fault == "it stops at the end of the sentence: 3 of 4 replies are filled up, not computed"


def test_a_variant_that_repeats_its_last_word_after_the_end_is_invalid() -> None:
    assert after_the_end(lambda row, end: row[: end + 1] + [row[0]] * (len(row) - end - 1)) is not None


def test_a_variant_that_goes_on_as_the_baseline_is_not_accused() -> None:
    assert after_the_end(lambda row, end: row) is None


def test_a_variant_that_goes_on_in_other_words_is_not_accused() -> None:
    assert after_the_end(lambda row, end: row[: end + 1] + [word + 20 for word in row[end + 1 :]]) is None


def test_a_variant_that_once_goes_on_has_not_stopped() -> None:
    """One of its replies could only come from computing on."""

    def change(row: list[int], end: int) -> list[int]:
        return row[: end + 1] + ([33, 34, 35] if end == 3 else [PAD] * (len(row) - end - 1))

    assert after_the_end(change) is None


def test_two_filled_replies_are_too_few_to_accuse_a_variant() -> None:
    few = [SAID[0], [[6, 6, 6, 7, 14, 15, 16], [7, 8, 9, 10, 11, 12, 13]]]
    assert after_the_end(lambda row, end: row[: end + 1] + [PAD] * (len(row) - end - 1), few) is None


def test_a_baseline_that_itself_repeats_its_end_accuses_nobody() -> None:
    ended = [[[5, EOS, EOS, EOS, EOS, EOS, EOS]] * 2] * 2
    assert after_the_end(lambda row, end: row, ended) is None


def test_a_reply_whose_last_word_is_the_end_has_nothing_to_fill() -> None:
    full = [[[5, 6, 7, 8, 9, 10, EOS]] * 2] * 2
    assert after_the_end(lambda row, end: row[: end + 1], full) is None


def test_a_variant_that_goes_on_with_one_word_of_its_own_is_not_accused() -> None:
    short = [[[5, 6, 7, 8, 9, EOS, 10 + i], [6, 7, 8, 9, 10, EOS, 20 + i]] for i in range(2)]
    assert after_the_end(lambda row, end: [*row[:-1], row[-1] + 5], short) is None


def test_a_variant_that_mostly_goes_on_as_the_baseline_is_not_accused_of_a_few_that_repeat() -> None:
    said = [[[5, 6, EOS, 7 + i, 8, 9, 7], [5, EOS, 10 + i, 11, 12, 13, 11]] for i in range(10)]

    def change(row: list[int], end: int) -> list[int]:
        return [*row[: end + 1], 40, 40, 40, 40] if end == 2 and row[3] < 10 else row

    assert after_the_end(change, said) is None


# One more call, to look at how a variant works

BATCH, LENGTHS = torch.from_numpy(prompts(1)), torch.tensor([4])


@pytest.mark.parametrize("name", QUICK)
def test_every_entry_of_the_table_passes_the_probe(name: str) -> None:
    reply = VARIANTS[name].prepare(tiny(), WORKLOAD)
    with torch.inference_mode():
        assert probe_fault(reply, BATCH, LENGTHS) is None


def test_a_variant_that_records_gradients_is_named() -> None:
    reply = eager.prepare(tiny(), WORKLOAD)

    def recording(batch: Tensor, lengths: Tensor) -> Tensor:
        with torch.enable_grad():
            return reply(batch, lengths)

    fault = probe_fault(recording, BATCH, LENGTHS)
    assert re.fullmatch(r"it records gradients: \d+ tensors kept for a backward pass", fault or "")


def test_a_variant_that_has_gradients_off_itself_is_not_accused_where_they_are_on() -> None:
    reply = eager.prepare(tiny(), WORKLOAD)
    with torch.enable_grad():
        assert probe_fault(torch.no_grad()(reply), BATCH, LENGTHS) is None
        assert probe_fault(reply, BATCH, LENGTHS) is not None


def decodes(batch: Tensor, lengths: Tensor) -> Tensor:
    WORDS.decode([EOS])
    return batch


def joins(batch: Tensor, lengths: Tensor) -> Tensor:
    "_".join(["a", "b"])
    return batch


def matches(batch: Tensor, lengths: Tensor) -> Tensor:
    PATTERN.sub("", "a b")
    return batch


PATTERN, WORDS = re.compile("a"), Vocabulary(("a", "b"))


@pytest.mark.parametrize(
    ("reply", "said"),
    [(decodes, "chatbot.vocabulary.decode"), (joins, "str.join"), (matches, "Pattern.sub")],
)
def test_a_variant_that_handles_text_is_named_with_what_it_called(reply: Reply, said: str) -> None:
    assert probe_fault(reply, BATCH, LENGTHS) == f"it handles text inside the timed call: {said}"


def breaks(batch: Tensor, lengths: Tensor) -> Tensor:
    raise NotImplementedError("only while it is timed")


def test_a_variant_that_answers_only_while_it_is_timed_is_named() -> None:
    assert probe_fault(breaks, BATCH, LENGTHS) == "it answers only while it is timed: NotImplementedError"


@pytest.mark.parametrize("reply", [joins, breaks])
def test_who_watched_before_watches_again_after_the_probe(reply: Reply) -> None:
    def profile(frame: FrameType, event: str, arg: Any) -> None:
        pass

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        probe_fault(reply, BATCH, LENGTHS)
        after = sys.getprofile()
    finally:
        sys.setprofile(before)
    assert after is profile


def test_the_probe_leaves_nothing_watching() -> None:
    seen: list[object] = []
    probe_fault(lambda batch, lengths: seen.append(sys.getprofile()) or batch, BATCH, LENGTHS)  # type: ignore[func-returns-value]
    assert seen != [None]
    assert sys.getprofile() is None


# Where the workload stops at the end of a reply


def stopped(rows: list[list[int]], baselines: list[list[int]]) -> ReplyCheck:
    """One call of a workload that stops at EOS."""
    workload = Workload(batch=len(rows), prompt_tokens=4, reply_tokens=len(rows[0]), stop_at_eos=True)
    asked = torch.from_numpy(prompts(len(rows)))
    return check_replies("torchscript", [torch.tensor(rows)], [torch.tensor(baselines)], [asked], tiny(), workload)


def test_replies_that_stop_are_filled_with_pad_or_eos_and_counted_to_their_end() -> None:
    check = stopped([[7, EOS, PAD, PAD], [7, 8, 9, EOS]], [[7, EOS, EOS, EOS], [7, 8, 9, EOS]])
    assert (check.replies, check.identical, check.fault, check.tokens) == (2, 2, None, 6)


def test_a_reply_that_goes_on_where_the_workload_stops_does_other_work() -> None:
    assert stopped([[7, EOS, 8, 9]], [[7, EOS, PAD, PAD]]).fault == (
        "it goes on behind the end of a reply, where the workload stops"
    )


@given(st.lists(st.lists(TOKENS, min_size=6, max_size=6), min_size=1, max_size=4))
def test_a_reply_is_written_up_to_and_including_its_first_end(rows: list[list[int]]) -> None:
    expected = [row.index(EOS) + 1 if EOS in row else len(row) for row in rows]
    assert written(torch.tensor(rows)).tolist() == expected


@given(st.lists(st.tuples(*[st.lists(TOKENS, min_size=5, max_size=5)] * 2), min_size=1, max_size=6))
def test_a_comparison_counts_each_reply_once(pairs: list[tuple[list[int], list[int]]]) -> None:
    found = compare(np.array([reply for reply, _ in pairs]), np.array([expected for _, expected in pairs]))
    steps = [first_difference(torch.tensor(reply), torch.tensor(expected)) for reply, expected in pairs]
    assert found.differing == tuple(step for step in steps if step is not None)
    assert (found.replies, found.identical) == (len(pairs), len(pairs) - len(found.differing))


def test_steps_that_differ_are_told_of_an_approximate_variant(approximate: str) -> None:
    workload = Workload(batch=2, prompt_tokens=4, reply_tokens=3)
    asked, expected = torch.from_numpy(prompts(2)), torch.full((2, 3), 9)
    reply = expected.clone()
    reply[1, 2] = 8
    check = check_replies(approximate, [reply], [expected], [asked], tiny(), workload)
    assert (check.identical, check.differing, check.tokens) == (1, (2,), 6)
