"""Replies that are not what was promised."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import WORKLOAD, enter, prompts, tiny
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import Workload, eager, torchscript
from chatbot.vocabulary import EOS, PAD, SOS
from ray_jobs.measure import replies as checks
from ray_jobs.measure.replies import (
    TIE_TOLERANCE,
    ReplyCheck,
    check_replies,
    compare_replies,
    first_difference,
    written,
)

TOKENS = st.integers(0, 6)  # EOS among them
LIKELIEST, RUNNER_UP = 20, 30


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As a launch runs."""
    with torch.no_grad():
        yield


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
        "it continues after the end of a reply, where the workload stops"
    )


@given(st.lists(st.lists(TOKENS, min_size=6, max_size=6), min_size=1, max_size=4))
def test_a_reply_is_written_up_to_and_including_its_first_end(rows: list[list[int]]) -> None:
    expected = [row.index(EOS) + 1 if EOS in row else len(row) for row in rows]
    assert written(torch.tensor(rows)).tolist() == expected


@given(st.lists(st.tuples(*[st.lists(TOKENS, min_size=5, max_size=5)] * 2), min_size=1, max_size=6))
def test_a_comparison_counts_each_reply_once(pairs: list[tuple[list[int], list[int]]]) -> None:
    found = compare_replies(np.array([reply for reply, _ in pairs]), np.array([expected for _, expected in pairs]))
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
