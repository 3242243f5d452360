"""The two layouts of Cornell's Movie-Dialogs Corpus -> conversations; the newer one is every ConvoKit corpus's."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from chatbot.errors import UsageError

_LINE_IDS = re.compile(r"\[\s*((['\"])[^'\"]*\2[\s,]*)*\]")  # with commas, or without as in one republished form


class Message(NamedTuple):
    """A message as it was written, and the place in its conversation of the one that it answers, if any."""

    text: str
    answers: int | None


def _in_turn(texts: Iterable[str]) -> list[Message]:
    """A conversation in which each message answers the one before it."""
    return [Message(text, i - 1 if i else None) for i, text in enumerate(texts)]


def of_convokit(path: Path) -> Iterator[list[Message]]:
    """ConvoKit's: a JSON object a line with ``id``, ``conversation_id``, ``text``, ``reply-to`` and ``timestamp``."""
    conversations: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines_of(path, _encoding(path)), 1):
        if not line.strip():
            continue
        try:
            utterance = json.loads(line)
            kept = {key: utterance.get(key) for key in ("id", "reply-to", "reply_to", "timestamp")}
            conversations.setdefault(str(utterance["conversation_id"]), []).append(
                {**kept, "text": str(utterance["text"] or "")}
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UsageError(f"{path} line {number}: not a ConvoKit utterance (id, conversation_id, text)") from None
    yield from map(_ordered, conversations.values())


def _ordered(utterances: list[dict[str, Any]]) -> list[Message]:
    """Orders a conversation by its reply links, else by its timestamps, else as in the file.

    Cornell's movie corpus stands last line first, every other of ConvoKit's first line first.
    """
    parents = [u["reply-to"] if u["reply-to"] is not None else u["reply_to"] for u in utterances]
    if any(parent is not None for parent in parents):
        return _by_replies([u["text"] for u in utterances], [u["id"] for u in utterances], parents)
    with suppress(TypeError, ValueError):  # not each has one
        utterances = sorted(utterances, key=lambda u: float(u["timestamp"]))
    return _in_turn(u["text"] for u in utterances)


def _by_replies(texts: list[str], ids: list[Any], parents: list[Any]) -> list[Message]:
    """Puts each message after the one that it answers; an answer to a missing message starts anew."""
    place = {str(key): i for i, key in enumerate(ids)}
    answers = [None if parent is None else place.get(str(parent)) for parent in parents]
    depths: dict[int, int] = {}
    for start in range(len(texts)):
        chain: list[int] = []
        i: int | None = start
        while i is not None and i not in depths:
            depths[i] = 0  # replaced below; a circle of replies ends here
            chain.append(i)
            i = answers[i]
        depth = -1 if i is None else depths[i]
        for j in reversed(chain):
            depth += 1
            depths[j] = depth
    order = sorted(range(len(texts)), key=lambda i: (depths[i], i))
    now_at = {old: new for new, old in enumerate(order)}
    return [Message(texts[old], None if (p := answers[old]) is None else now_at[p]) for old in order]


def of_movie_files(lines: Path, conversations: Path) -> Iterator[list[Message]]:
    """The older layout: fields separated by `` +++$+++ ``, conversations as lists of line ids."""
    texts: dict[str, str] = {}
    for row in _fields(lines):
        if len(row) >= 5:
            texts[row[0]] = row[4]
        elif len(row) == 4:  # a line without text
            texts[row[0].strip()] = ""
        else:
            raise UsageError(f"{lines}: {len(row)} fields where five were expected, separated by ' +++$+++ '")
    for row in _fields(conversations):
        if len(row) < 4 or not _LINE_IDS.fullmatch(row[3].strip()):
            raise UsageError(f"{conversations}: no list of line ids in the fourth field, as in \"['L1', 'L2']\"")
        # An id that the lines do not have ends the exchange there: its neighbours did not answer each other.
        run: list[str] = []
        for key in re.findall(r"['\"]([^'\"]*)['\"]", row[3]):
            if key in texts:
                run.append(texts[key])
            else:
                yield _in_turn(run)
                run = []
        yield _in_turn(run)


def _fields(path: Path) -> Iterator[list[str]]:
    for line in lines_of(path, _encoding(path)):
        if line.strip():
            yield line.rstrip("\r\n").split(" +++$+++ ")


def lines_of(path: Path, encoding: str) -> Iterator[str]:
    """Yields the lines of a file. Raises UsageError if it can't be read."""
    try:
        with path.open(encoding=encoding, newline="\n") as file:  # \x85 and a lone \r are text, not line ends
            yield from file
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None


def _encoding(path: Path) -> str:
    """UTF-8, with a byte order mark or without, where the file is that; else ISO-8859-1, Cornell's own."""
    try:
        for _ in lines_of(path, "utf-8"):
            pass
    except UnicodeDecodeError:
        return "iso-8859-1"
    return "utf-8-sig"
