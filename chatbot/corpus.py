"""Dialogue corpora -> (prompt, reply) pairs, normalised and filtered as the tutorial does.

Three sources: ``chitchat`` (the ``chitchat-dataset`` package, MIT), the Cornell Movie-Dialogs Corpus or another
of ConvoKit's from a path (Cornell's may not be redistributed), and two columns of text. A message is one line of
one speaker; a pair is a message and its answer.
"""

import csv
import importlib.util
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from chatbot.conversations import Message, lines_of, of_convokit, of_movie_files
from chatbot.errors import UsageError

MAX_LENGTH = 10  # a side of a pair has strictly fewer words (tutorial)
MIN_COUNT = 3  # a pair with a rarer word is dropped (tutorial)

# Words that must not be learnt or repeated: the default corpus holds a handful of messages with them.
PROFANE = frozenset(
    "ass asshole assholes bastard bastards bitch bitches bitching bullshit cock cunt cunts damn damned "
    "dick dickhead dicks fag faggot fuck fucked fucker fuckers fuckin fucking fucks goddamn motherfucker "
    "nigga niggas nigger niggers penis piss pissed porn pussy shit shits shitty slut sluts tits vagina whore "
    "whores wtf".split()
)
_EMAIL_LIKE = re.compile(r"\S@\S|https?://|www\.", re.IGNORECASE)
_WORD = re.compile(r"[.!?][a-z]*|[a-z]+")


class Pair(NamedTuple):
    """A normalised prompt and the reply that a person gave."""

    prompt: str
    reply: str


class Corpus(NamedTuple):
    """A corpus: ``messages`` in conversation order, and ``pairs`` of any length (both normalised).

    ``notice`` is one line for the person who trains on it, or empty.
    """

    name: str
    messages: tuple[str, ...]
    pairs: tuple[Pair, ...]
    notice: str = ""


def normalise(text: str) -> str:
    """Lower-case ASCII words and ``.!?`` apart by single spaces, as ``normalizeString`` of the tutorial.

    Accents are stripped by NFD decomposition; everything but letters and ``.!?`` becomes a space. Idempotent.
    """
    lower = text.lower()
    if not lower.isascii():
        lower = "".join(c for c in unicodedata.normalize("NFD", lower) if unicodedata.category(c) != "Mn")
    return " ".join(_WORD.findall(lower))


def words_of(sentence: str) -> list[str]:
    """The words of a normalised sentence, split at single spaces.

    As in the tutorial the empty sentence (a message of digits, say) has one word, the empty one: its published
    pair and word counts hold only so.
    """
    return sentence.split(" ")


def load(source: str = "chitchat") -> Corpus:
    """The corpus named ``chitchat``, or read from a path.

    A path is a ``.tsv`` or ``.txt`` file (prompt, tab, reply; the tutorial's ``formatted_movie_lines.txt`` is one), a
    ConvoKit ``utterances.jsonl``, or a folder that holds one, or that holds ``movie_lines.txt`` and
    ``movie_conversations.txt``.

    Raises:
        UsageError: nothing usable is there; one line says what was expected.
    """
    if source == "chitchat":
        return _chitchat()
    path = Path(source).expanduser()
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name too long to exist
        return _cornell_folder(path)
    if not os.path.isfile(path):
        raise UsageError(
            f"no corpus {source!r}; give 'chitchat', a .tsv or .txt, a ConvoKit utterances.jsonl, or a Cornell folder"
        )
    if path.suffix == ".jsonl":
        return _corpus(path.name, of_convokit(path))
    if path.suffix in (".tsv", ".txt"):
        return _two_columns(path)
    raise UsageError(f"corpus {source!r} has an unknown form; give a .txt, .tsv or .jsonl file, or a Cornell folder")


def short_pairs(pairs: Iterable[Pair], max_length: int = MAX_LENGTH) -> list[Pair]:
    """The pairs with strictly fewer than ``max_length`` words on each side."""
    return [p for p in pairs if all(len(words_of(side)) < max_length for side in p)]


def trim(pairs: list[Pair], min_count: int = MIN_COUNT) -> list[Pair]:
    """The pairs in which every word occurs at least ``min_count`` times in ``pairs``."""
    counts = count_words(pairs)
    return [p for p in pairs if all(counts[word] >= min_count for side in p for word in words_of(side))]


def count_words(pairs: Iterable[Pair]) -> Counter[str]:
    """Counts each word, in order of first occurrence."""
    return Counter(word for pair in pairs for side in pair for word in words_of(side))


def _corpus(name: str, conversations: Iterable[list[Message]]) -> Corpus:
    """Pairs every message with those that answer it."""
    written: list[str] = []
    messages: list[str] = []
    pairs: list[Pair] = []
    for conversation in conversations:
        lines = [(message.text.strip(), normalise(message.text)) for message in conversation]
        written.extend(raw for raw, _ in lines)
        messages.extend(normal for _, normal in lines if normal)
        for message, (answer, normal) in zip(conversation, lines, strict=True):
            if message.answers is not None and answer and lines[message.answers][0]:
                pairs.append(Pair(lines[message.answers][1], normal))
    notice = _notice(name, written)
    if not pairs:
        raise UsageError(f"corpus {name!r} holds no pair of consecutive messages")
    return Corpus(name, tuple(messages), tuple(pairs), notice)


def _notice(name: str, written: Sequence[str]) -> str:
    """A line about what normalising loses of a text; empty if that is next to nothing.

    Raises:
        UsageError: more than half of the messages are in another script, so that nothing would be learnt but silence.
    """
    texts = [text for text in written if any(c.isalpha() for c in text)]
    bare = sum(not any(c.isalpha() for c in normalise(text)) for text in texts)
    if 2 * bare > len(texts):
        raise UsageError(
            f"corpus {name!r}: {bare:,} of {len(texts):,} messages hold no letter from a to z, "
            "and words are made of those alone; give a text in the Latin alphabet (accents are stripped)"
        )
    torn = Counter(c for text in texts if not text.isascii() for c in text.lower() if _is_torn_out(c))
    if not torn:
        return ""
    letters = ", ".join(c for c, _ in torn.most_common(5))
    return f"{sum(torn.values()):,} letters are not from a to z even without accents ({letters}); each splits its word"


def _is_torn_out(letter: str) -> bool:
    return not letter.isascii() and letter.isalpha() and not normalise(letter)


def _clean(message: str) -> str:
    """The normalised message; empty where it holds a profane word or something like an e-mail or web address."""
    normal = normalise(message)
    # Looking for signs of an address first takes an eighth of the time.
    signs = "@" in message or "://" in message or "www." in message.lower()
    return "" if (signs and _EMAIL_LIKE.search(message)) or not PROFANE.isdisjoint(words_of(normal)) else normal


def _chitchat() -> Corpus:
    """Human chats (Myers et al., BYU; MIT).

    A turn is several messages of one speaker: the last of a turn is paired with the first of the next.
    """
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise UsageError("the default corpus is not installed; run: pip install chitchat-dataset")
    # Read as data: importing the package would run its code for one open().
    return _read_chitchat(Path(spec.origin).with_name("dataset.json"))


@cache
def _read_chitchat(path: Path) -> Corpus:
    conversations = json.loads(path.read_text(encoding="utf-8"))
    messages: list[str] = []
    pairs: list[Pair] = []
    for conversation in conversations.values():
        turns = [[_clean(message["text"]) for message in turn] for turn in conversation["messages"] if turn]
        messages.extend(text for turn in turns for text in turn if text)
        for turn, answer in pairwise(turns):
            if turn[-1] and answer[0]:
                pairs.append(Pair(turn[-1], answer[0]))
    return Corpus("chitchat", tuple(messages), tuple(pairs))


def _two_columns(path: Path) -> Corpus:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(lines_of(path, "utf-8-sig"), delimiter="\t", quoting=csv.QUOTE_NONE):
            rows.append(row)
            if len(row) != 2:
                wrong = f"{len(row)} columns where two were expected (prompt, tab, reply)"
                raise UsageError(f"{path} line {len(rows)}: {wrong}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not UTF-8 text in two columns: {error}") from None
    notice = _notice(path.name, [side for row in rows for side in row])
    pairs = (Pair(normalise(prompt), normalise(reply)) for prompt, reply in rows)
    usable = tuple(p for p in pairs if p.prompt and p.reply)
    if not usable:
        raise UsageError(f"{path} holds no pair of a prompt and a reply")
    return Corpus(path.name, tuple(side for pair in usable for side in pair), usable, notice)


def _cornell_folder(path: Path) -> Corpus:
    if (path / "utterances.jsonl").is_file():
        return _corpus(path.name, of_convokit(path / "utterances.jsonl"))
    lines, conversations = path / "movie_lines.txt", path / "movie_conversations.txt"
    if lines.is_file() and conversations.is_file():
        return _corpus(path.name, of_movie_files(lines, conversations))
    raise UsageError(f"{path} holds neither utterances.jsonl nor movie_lines.txt with movie_conversations.txt")
