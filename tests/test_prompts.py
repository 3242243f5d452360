"""Prompts of exactly the asked length, from messages whose words are known."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.corpus import Corpus, words_of
from chatbot.errors import UsageError
from chatbot.prompts import prompt_pool
from chatbot.vocabulary import EOS, Vocabulary

KNOWN = ("i", "you", "like", "tea", "rain", "?")
WORDS = Vocabulary(KNOWN)
MESSAGES = st.lists(
    st.lists(st.sampled_from([*KNOWN, "unknown"]), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=30
)


def talk(*messages: str) -> Corpus:
    return Corpus("talk", messages, ())


def pool(messages: Sequence[str], tokens: int, count: int = 100, seed: int = 0) -> list[str]:
    """The prompts as words, each checked for its length and its end."""
    found = prompt_pool(talk(*messages), WORDS, tokens, count, seed)
    assert found.dtype.name == "int64"
    assert found.shape[1] == tokens
    assert found[:, -1].tolist() == [EOS] * len(found)
    return [WORDS.decode(row) for row in found.tolist()]


@given(MESSAGES, st.integers(2, 12), st.integers(1, 20), st.integers(0, 99))
def test_prompts_are_of_the_asked_length_distinct_known_and_no_more_than_asked(
    messages: list[str], tokens: int, count: int, seed: int
) -> None:
    try:
        prompts = pool(messages, tokens, count, seed)
    except UsageError:
        known = [message for message in messages if WORDS.knows(message)]
        assert sum(len(words_of(message)) for message in known) < tokens - 1
        return
    assert 1 <= len(prompts) <= count
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert len(words_of(prompt)) == tokens - 1
        assert set(words_of(prompt)) <= set(KNOWN)


@given(MESSAGES, st.integers(2, 12), st.integers(1, 20), st.integers(0, 99))
def test_prompts_of_the_same_seed_are_the_same(messages: list[str], tokens: int, count: int, seed: int) -> None:
    try:
        first = pool(messages, tokens, count, seed)
    except UsageError:
        with pytest.raises(UsageError):
            pool(messages, tokens, count, seed)
    else:
        assert first == pool(messages, tokens, count, seed)


def test_another_seed_chooses_other_messages() -> None:
    messages = [f"{a} {b} {c}" for a in KNOWN for b in KNOWN for c in KNOWN]
    chosen = {tuple(pool(messages, 4, count=5, seed=seed)) for seed in range(10)}
    assert len(chosen) == 10


def test_whole_messages_come_before_joined_ones() -> None:
    messages = ["i like tea rain", "you like rain", "i", "like", "tea", "you like rain"]
    assert pool(messages, 4, count=1) == ["you like rain"]
    assert pool(messages, 4) == ["you like rain", "i like tea", "like tea you", "tea you like"]


def test_messages_are_joined_in_their_order_where_none_is_long_enough() -> None:
    assert pool(["i like", "tea", "you ?"], 6) == ["i like tea you ?"]


def test_a_message_that_is_too_long_is_cut() -> None:
    assert pool(["i like tea rain ?"], 4) == ["i like tea"]


def test_messages_with_unknown_words_are_left_out() -> None:
    assert pool(["i like cake", "you like tea", "cake ?"], 4) == ["you like tea"]


def test_empty_messages_are_no_words() -> None:
    with_nothing = Vocabulary((*KNOWN, ""))  # the tutorial's vocabulary knows the empty word
    found = prompt_pool(talk("", "i", "", "like tea", ""), with_nothing, 4, 10)
    assert [with_nothing.decode(row) for row in found.tolist()] == ["i like tea"]


def test_a_length_that_nothing_fills_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError) as refusal:
        pool(["i like tea", "you like cake"], 5)
    assert str(refusal.value) == "corpus 'talk' holds no prompt of 5 tokens whose words the model knows"


@pytest.mark.parametrize("tokens", [1, 0, -2])
def test_a_prompt_without_a_word_is_refused(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"^prompt_tokens is {tokens}; at least 2, a word and EOS$"):
        pool(["i like tea"], tokens)
