"""Real prompts of exactly the requested number of tokens."""

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chatbot.corpus import Corpus, words_of
from chatbot.errors import UsageError
from chatbot.vocabulary import Vocabulary


def prompt_pool(corpus: Corpus, vocabulary: Vocabulary, tokens: int, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Up to ``count`` distinct prompts, (N, tokens), each ending in EOS, which is counted.

    Uses messages of that length if there are enough; otherwise joins consecutive messages and cuts them to length.
    Only messages whose words are all known count.

    Raises:
        UsageError: the corpus holds no such prompt.
    """
    if tokens < 2:
        raise UsageError(f"prompt_tokens is {tokens}; at least 2, a word and EOS")
    known = [words_of(message) for message in corpus.messages if message and vocabulary.knows(message)]
    random.Random(seed).shuffle(whole := sorted({tuple(words) for words in known if len(words) == tokens - 1}))
    chosen = dict.fromkeys(whole[:count])
    for prompt in _joined(known, tokens - 1):
        if len(chosen) >= count:
            break
        chosen[prompt] = None
    if not chosen:
        raise UsageError(f"corpus {corpus.name!r} holds no prompt of {tokens} tokens whose words the model knows")
    return np.array([vocabulary.encode(words) for words in chosen], dtype=np.int64)


def _joined(messages: list[list[str]], length: int) -> Iterator[tuple[str, ...]]:
    """Joins each message with those after it, cut to ``length`` words."""
    for start in range(len(messages)):
        words: list[str] = []
        for message in messages[start:]:
            words += message
            if len(words) >= length:
                yield tuple(words[:length])
                break
