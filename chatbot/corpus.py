"""Dialogue corpora -> (prompt, reply) pairs, normalised and filtered as the tutorial does.

Three sources: ``chitchat`` (the ``chitchat-dataset`` package, MIT), the Cornell Movie-Dialogs Corpus from
a path (it may not be redistributed), and a two-column TSV. A message is one line of one speaker; a
conversation is a list of messages in order; a pair is a message and its answer.
"""

import ast
import csv
import importlib.util
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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
_PUNCTUATION = re.compile(r"([.!?])")
_NOT_LETTERS = re.compile(r"[^a-zA-Z.!?]+")


class Pair(NamedTuple):
    """A normalised prompt and the reply that a person gave to it."""

    prompt: str
    reply: str


class Corpus(NamedTuple):
    """What a source holds: ``messages`` in conversation order, and ``pairs`` of any length (both normalised)."""

    name: str
    messages: tuple[str, ...]
    pairs: tuple[Pair, ...]


def normalise(text: str) -> str:
    """Lower-case ASCII words and ``.!?`` apart by single spaces, as ``normalizeString`` of the tutorial.

    Accents are stripped by NFD decomposition; everything but letters and ``.!?`` becomes a space. Idempotent.
    """
    lower = text.lower()
    if not lower.isascii():
        lower = "".join(c for c in unicodedata.normalize("NFD", lower) if unicodedata.category(c) != "Mn")
    return _NOT_LETTERS.sub(" ", _PUNCTUATION.sub(r" \1", lower)).strip()


def words_of(sentence: str) -> list[str]:
    """The words of a normalised sentence, split at single spaces.

    As in the tutorial the empty sentence (a message of digits, say) has one word, the empty one: its published
    pair and word counts hold only so.
    """
    return sentence.split(" ")


def load(source: str = "chitchat") -> Corpus:
    """The corpus named ``chitchat``, or read from a path.

    A path is a ``.tsv`` file (prompt, tab, reply), a ConvoKit ``utterances.jsonl``, or a folder that holds
    one, or that holds ``movie_lines.txt`` and ``movie_conversations.txt``.

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
            f"no corpus {source!r}; give 'chitchat', a .tsv, a ConvoKit utterances.jsonl, or a Cornell folder"
        )
    if path.suffix == ".jsonl":
        return _corpus(path.name, _convokit(path))
    if path.suffix == ".tsv":
        return _tsv(path)
    raise UsageError(f"corpus {source!r} has an unknown form; give a .tsv or .jsonl file, or a Cornell folder")


def short_pairs(pairs: Iterable[Pair], max_length: int = MAX_LENGTH) -> list[Pair]:
    """The pairs with strictly fewer than ``max_length`` words on each side."""
    return [p for p in pairs if all(len(words_of(side)) < max_length for side in p)]


def trim(pairs: list[Pair], min_count: int = MIN_COUNT) -> list[Pair]:
    """The pairs in which every word occurs at least ``min_count`` times in ``pairs``."""
    counts = count_words(pairs)
    return [p for p in pairs if all(counts[word] >= min_count for side in p for word in words_of(side))]


def count_words(pairs: Iterable[Pair]) -> Counter[str]:
    """How often each word occurs, in order of first occurrence."""
    return Counter(word for pair in pairs for side in pair for word in words_of(side))


def _corpus(name: str, conversations: Iterable[list[str]]) -> Corpus:
    """Pairs every message with the next one of its conversation, as the tutorial does."""
    messages: list[str] = []
    pairs: list[Pair] = []
    for conversation in conversations:
        lines = [(line.strip(), normalise(line)) for line in conversation]
        messages.extend(normal for _, normal in lines if normal)
        pairs.extend(Pair(a, b) for (raw, a), (answer, b) in pairwise(lines) if raw and answer)
    if not pairs:
        raise UsageError(f"corpus {name!r} holds no pair of consecutive messages")
    return Corpus(name, tuple(messages), tuple(pairs))


def _clean(message: str) -> str:
    """The normalised message; empty where it holds a profane word or something like an e-mail or web address."""
    normal = normalise(message)
    return "" if _EMAIL_LIKE.search(message) or not PROFANE.isdisjoint(words_of(normal)) else normal


def _chitchat() -> Corpus:
    """Human chats (Myers et al., BYU; MIT).

    A turn is several messages of one speaker: the last of a turn is paired with the first of the next.
    """
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise UsageError("the default corpus is not installed; run: pip install chitchat-dataset")
    # Read as data: importing the package would run its code for one open().
    conversations = json.loads(Path(spec.origin).with_name("dataset.json").read_text(encoding="utf-8"))
    messages: list[str] = []
    pairs: list[Pair] = []
    for conversation in conversations.values():
        turns = [[_clean(message["text"]) for message in turn] for turn in conversation["messages"] if turn]
        messages.extend(text for turn in turns for text in turn if text)
        for turn, answer in pairwise(turns):
            if turn[-1] and answer[0]:
                pairs.append(Pair(turn[-1], answer[0]))
    return Corpus("chitchat", tuple(messages), tuple(pairs))


def _tsv(path: Path) -> Corpus:
    pairs: list[Pair] = []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                if len(row) != 2:
                    raise UsageError(
                        f"{path} line {number}: {len(row)} columns where two were expected (prompt, tab, reply)"
                    )
                pairs.append(Pair(normalise(row[0]), normalise(row[1])))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path} is not UTF-8 text in two columns: {error}") from None
    usable = tuple(p for p in pairs if p.prompt and p.reply)
    if not usable:
        raise UsageError(f"{path} holds no pair of a prompt and a reply")
    return Corpus(path.name, tuple(side for pair in usable for side in pair), usable)


def _cornell_folder(path: Path) -> Corpus:
    if (path / "utterances.jsonl").is_file():
        return _corpus(path.name, _convokit(path / "utterances.jsonl"))
    lines, conversations = path / "movie_lines.txt", path / "movie_conversations.txt"
    if lines.is_file() and conversations.is_file():
        return _corpus(path.name, _movie_files(lines, conversations))
    raise UsageError(f"{path} holds neither utterances.jsonl nor movie_lines.txt with movie_conversations.txt")


def _convokit(path: Path) -> Iterator[list[str]]:
    """ConvoKit's layout: a JSON object a line with ``id``, ``conversation_id``, ``text`` (and ``reply-to``, unused).

    The lines of a conversation stand last first; as in the tutorial the order is turned round.
    """
    conversations: dict[str, list[str]] = {}
    with path.open(encoding="iso-8859-1") as file:  # as the tutorial opens it; \\u escapes carry the rest
        for number, line in enumerate(file, 1):
            try:
                utterance = json.loads(line)
                key, text = utterance["conversation_id"], utterance["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UsageError(
                    f"{path} line {number}: not a ConvoKit utterance (id, conversation_id, text)"
                ) from None
            conversations.setdefault(str(key), []).insert(0, str(text or ""))
    yield from conversations.values()


def _movie_files(lines: Path, conversations: Path) -> Iterator[list[str]]:
    """The older layout: fields separated by `` +++$+++ ``, ISO-8859-1, conversations as lists of line ids."""
    texts: dict[str, str] = {}
    for row in _fields(lines):
        if len(row) >= 5:
            texts[row[0]] = row[4]
        elif len(row) == 4:  # a line without text
            texts[row[0].strip()] = ""
        else:
            raise UsageError(f"{lines}: {len(row)} fields where five were expected, separated by ' +++$+++ '")
    for row in _fields(conversations):
        try:
            ids = [str(key) for key in ast.literal_eval(row[3].strip())]
        except (IndexError, ValueError, SyntaxError, TypeError):
            raise UsageError(
                f"{conversations}: no list of line ids in the fourth field, as in \"['L1', 'L2']\""
            ) from None
        # An id that the lines do not have ends the exchange there: its neighbours did not answer each other.
        run: list[str] = []
        for key in ids:
            if key in texts:
                run.append(texts[key])
            else:
                yield run
                run = []
        yield run


def _fields(path: Path) -> Iterator[list[str]]:
    with path.open(
        encoding="iso-8859-1", newline="\n"
    ) as file:  # text may hold \x85 and lone \r, which are not line ends
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n").split(" +++$+++ ")
