"""Words <-> token indices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from chatbot.corpus import MIN_COUNT, Corpus, Pair, count_words, words_of

PAD, SOS, EOS = 0, 1, 2  # tutorial
FIRST_WORD = 3


@dataclass(frozen=True)
class Vocabulary:
    """The known words; word ``i`` has token ``i + 3``, after PAD, SOS and EOS."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        """V: the number of tokens, the three special ones counted."""
        return len(self.words) + FIRST_WORD

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words, FIRST_WORD)}

    @classmethod
    def of_pairs(cls, pairs: Iterable[Pair], min_count: int = MIN_COUNT) -> "Vocabulary":
        """The words that occur at least ``min_count`` times, in order of first occurrence (tutorial)."""
        return cls(tuple(word for word, n in count_words(pairs).items() if n >= min_count))

    @classmethod
    def most_frequent(cls, corpus: Corpus, size: int) -> "Vocabulary":
        """The ``size - 3`` most frequent words of a corpus, so that random weights of that size read real prompts."""
        counts = count_words(Pair(message, "") for message in corpus.messages)
        del counts[""]
        return cls(tuple(word for word, _ in counts.most_common(size - FIRST_WORD)))

    def knows(self, sentence: str) -> bool:
        """Tells whether every word of a normalised sentence is known."""
        return all(map(self._index.__contains__, words_of(sentence)))

    def split_known(self, sentence: str) -> tuple[list[str], list[str]]:
        """(known words, unknown words) of a normalised sentence, each in order."""
        words = words_of(sentence)
        return [w for w in words if w in self._index], [w for w in words if w not in self._index]

    def encode(self, words: Sequence[str]) -> list[int]:
        """The tokens of known words, EOS at the end. Raises KeyError for an unknown word."""
        return [self._index[word] for word in words] + [EOS]

    def decode(self, tokens: Iterable[int]) -> str:
        """The words up to the first EOS, joined by spaces; PAD and SOS have none."""
        words = []
        for token in tokens:
            if token == EOS:
                break
            if token >= FIRST_WORD:
                words.append(self.words[token - FIRST_WORD])
        return " ".join(words)
