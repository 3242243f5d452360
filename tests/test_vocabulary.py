"""Words to tokens and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.corpus import Corpus, Pair
from chatbot.vocabulary import EOS, PAD, SOS, Vocabulary

WORD = st.text("abcdefghijklmnopqrstuvwxyz.!?", min_size=1, max_size=6)
VOCABULARIES = st.lists(WORD, min_size=1, max_size=30, unique=True).map(lambda words: Vocabulary(tuple(words)))


@given(VOCABULARIES, st.data())
def test_decoding_gives_back_the_encoded_words(vocabulary: Vocabulary, data: st.DataObject) -> None:
    sentence = data.draw(st.lists(st.sampled_from(vocabulary.words)))
    assert vocabulary.decode(vocabulary.encode(sentence)) == " ".join(sentence)


@given(VOCABULARIES, st.data())
def test_nothing_after_the_first_eos_is_decoded(vocabulary: Vocabulary, data: st.DataObject) -> None:
    sentence = data.draw(st.lists(st.sampled_from(vocabulary.words)))
    rest = data.draw(st.lists(st.integers(0, len(vocabulary) - 1)))
    assert vocabulary.decode([*vocabulary.encode(sentence), *rest]) == " ".join(sentence)


@given(VOCABULARIES)
def test_every_word_has_its_own_token_between_the_special_ones_and_the_size(vocabulary: Vocabulary) -> None:
    tokens = [vocabulary.encode([word])[0] for word in vocabulary.words]
    assert tokens == list(range(3, len(vocabulary)))
    assert len(vocabulary) == len(vocabulary.words) + 3


@given(VOCABULARIES, st.lists(WORD, max_size=12))
def test_split_known_keeps_every_word_once_and_in_order(vocabulary: Vocabulary, words: list[str]) -> None:
    known, unknown = vocabulary.split_known(" ".join(words))
    asked = words or [""]  # the empty sentence has one word, the empty one
    assert known == [word for word in asked if word in vocabulary.words]
    assert unknown == [word for word in asked if word not in vocabulary.words]
    assert vocabulary.knows(" ".join(words)) == (unknown == [])


def test_special_tokens_are_the_tutorials() -> None:
    assert (PAD, SOS, EOS) == (0, 1, 2)


def test_encoding_ends_with_eos() -> None:
    assert Vocabulary(("hello", "there")).encode(["there", "hello"]) == [4, 3, EOS]


def test_pad_and_sos_are_not_written() -> None:
    assert Vocabulary(("hello", "there")).decode([SOS, 3, PAD, 4, PAD]) == "hello there"


def test_encoding_an_unknown_word_raises_key_error() -> None:
    with pytest.raises(KeyError, match="goodbye"):
        Vocabulary(("hello",)).encode(["hello", "goodbye"])


def test_of_pairs_keeps_frequent_words_in_order_of_first_occurrence() -> None:
    pairs = [Pair("b a", "c b"), Pair("a d", "b")]
    assert Vocabulary.of_pairs(pairs, 2).words == ("b", "a")
    assert Vocabulary.of_pairs(pairs, 1).words == ("b", "a", "c", "d")


def test_most_frequent_fills_the_asked_size_with_the_commonest_words() -> None:
    source = Corpus("toy", ("a b c", "b c", "c"), ())
    assert Vocabulary.most_frequent(source, 5).words == ("c", "b")
    assert len(Vocabulary.most_frequent(source, 5)) == 5
