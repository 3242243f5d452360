"""Normalising, filtering and the four forms of a corpus."""

import importlib.util
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot import corpus
from chatbot.corpus import Corpus, Pair, normalise, short_pairs, trim
from chatbot.errors import UsageError
from chatbot.vocabulary import Vocabulary

ANY_TEXT = st.text(st.characters()) | st.text("aZé.!? \t\n'İ\u212a\u212b1", max_size=20)
SEPARATOR = " +++$+++ "

# Invented, with the quirks of the real files: accents, an empty text, odd line ends, digits only, one message.
CONVERSATIONS = (
    ("Are you late?", "I'm NEVER late... ever!", "Well -- you were, once.", "Hm."),
    ("Garçon, un café s'il vous plaît", "Voilà, señor."),
    ("Was that all?", "", "So it seems.", "Then let us go"),
    ("A line\x85 with a\rstrange end", "And its answer"),
    ("How many?", "42", "That many?"),
    ("Nobody answers this one",),
)
CONVERSATION_PAIRS = [
    ("are you late ?", "i m never late . . . ever !"),
    ("i m never late . . . ever !", "well you were once ."),
    ("well you were once .", "hm ."),
    ("garcon un cafe s il vous plait", "voila senor ."),
    ("so it seems .", "then let us go"),
    ("a line with a strange end", "and its answer"),
    ("how many ?", ""),  # as in the tutorial: the text was not empty before it was normalised
    ("", "that many ?"),
]


def write_convokit(path: Path, conversations: Sequence[Sequence[str]], ascii_only: bool = True) -> None:
    """Each conversation last line first, all of them interleaved."""
    rows = []
    for number, texts in enumerate(conversations):
        for i, text in reversed(list(enumerate(texts))):
            reply_to = f"L{number}{i - 1}" if i else None
            rows.append(
                (
                    len(texts) - i,
                    {"id": f"L{number}{i}", "conversation_id": f"L{number}0", "text": text, "reply-to": reply_to},
                )
            )
    rows.sort(key=lambda row: row[0])  # stable: the last lines of all, then the ones before them, ...
    lines = [json.dumps(row, ensure_ascii=ascii_only) for _, row in rows]
    path.write_bytes("".join(line + "\n" for line in lines).encode("iso-8859-1"))


def write_movie_files(folder: Path, conversations: Sequence[Sequence[str]], missing: Sequence[str] = ()) -> None:
    """The older layout, its lines in random order; the lines named in ``missing`` are left out."""
    keyed = [(f"L{n}{i}", text) for n, texts in enumerate(conversations) for i, text in enumerate(texts)]
    lines = [SEPARATOR.join((key, "u0", "m0", "SOMEBODY", text)) for key, text in keyed if key not in missing]
    random.Random(0).shuffle(lines)
    (folder / "movie_lines.txt").write_bytes("".join(line + "\n" for line in lines).encode("iso-8859-1"))
    rows = [("u0", "u1", "m0", str([f"L{n}{i}" for i in range(len(texts))])) for n, texts in enumerate(conversations)]
    (folder / "movie_conversations.txt").write_text(
        "".join(SEPARATOR.join(row) + "\n" for row in rows), encoding="ascii"
    )


@pytest.fixture(scope="session")
def chitchat() -> Corpus:
    """The default corpus, read once."""
    return corpus.load()


@pytest.fixture(scope="session")
def chitchat_texts() -> list[str]:
    """Its messages as they were typed."""
    spec = importlib.util.find_spec("chitchat_dataset")
    assert spec is not None
    assert spec.origin is not None
    data = json.loads(Path(spec.origin).with_name("dataset.json").read_text(encoding="utf-8"))
    return [message["text"] for conversation in data.values() for turn in conversation["messages"] for message in turn]


def tutorial_normalize_string(text: str) -> str:
    """``normalizeString`` of the tutorial, step by step."""
    text = text.lower().strip()
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    text = "".join(f" {c}" if c in ".!?" else c for c in text)
    text = "".join(c if c in ".!?" or (c.isascii() and c.isalpha()) else " " for c in text)
    return " ".join(text.split())


@given(ANY_TEXT)
def test_normalise_is_the_tutorials(text: str) -> None:
    assert normalise(text) == tutorial_normalize_string(text)


@given(ANY_TEXT)
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(ANY_TEXT)
def test_normalised_text_holds_only_words_and_marks_apart_by_single_spaces(text: str) -> None:
    assert re.fullmatch(r"(([a-z]+|[.!?][a-z]*)( |$))*", normalise(text)), normalise(text)
    assert normalise(text) == normalise(text).strip()


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("Où êtes-vous?!", "ou etes vous ? !"),
        ("I'm 42.", "i m ."),
        ("  ... ", ". . ."),
        ("İstanbul", "istanbul"),
        ("你好", ""),
        ("a\x85b\u2028c\u00a0d", "a b c d"),
    ],
)
def test_normalise_examples(typed: str, normal: str) -> None:
    assert normalise(typed) == normal


def test_a_short_pair_has_fewer_than_ten_words_on_each_side() -> None:
    nine, ten = " ".join("abcdefghi"), " ".join("abcdefghij")
    pairs = [Pair(nine, nine), Pair(ten, nine), Pair(nine, ten)]
    assert short_pairs(pairs) == [Pair(nine, nine)]


def test_trim_drops_pairs_with_a_word_rarer_than_min_count_on_either_side() -> None:
    pairs = [Pair("a", "a"), Pair("a", "b"), Pair("b", "a"), Pair("c", "a"), Pair("a", "c a")]
    assert trim(pairs, 2) == pairs
    assert trim(pairs[:4], 2) == pairs[:3]


@pytest.mark.parametrize(("min_count", "kept", "tokens"), [(3, 34_350, 6_103), (10, 24_335, 2_374)])
def test_default_corpus_has_the_published_counts(chitchat: Corpus, min_count: int, kept: int, tokens: int) -> None:
    pairs = short_pairs(chitchat.pairs)
    assert len(pairs) == 43_953
    assert len(trim(pairs, min_count)) == kept
    assert len(Vocabulary.of_pairs(pairs, min_count)) == tokens


def test_no_profane_word_is_left_in_the_default_corpus(chitchat: Corpus, chitchat_texts: list[str]) -> None:
    profane = re.compile(
        r"\b(\w*fuck\w*|(bull)?shit(s|ty)?|bitch\w*|cunts?|nigg(er|a)s?|fag(got)?s?|\w*assholes?|whores?|sluts?|wtf)\b"
    )
    assert any(profane.search(text.lower()) for text in chitchat_texts)
    assert [m for m in chitchat.messages if profane.search(m)] == []
    assert [p for p in chitchat.pairs if any(map(profane.search, p))] == []


def test_no_message_with_an_email_like_string_is_left_in_the_default_corpus(
    chitchat: Corpus, chitchat_texts: list[str]
) -> None:
    email_like = re.compile(r"[\w.+-]+@[\w-]+|https?://|\bwww\.", re.IGNORECASE)
    found = {tutorial_normalize_string(text) for text in chitchat_texts if email_like.search(text)}
    assert found
    assert found.isdisjoint(chitchat.messages)
    assert found.isdisjoint(side for pair in chitchat.pairs for side in pair)


def test_a_default_corpus_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install chitchat-dataset"):
        corpus.load("chitchat")


@pytest.mark.parametrize("whole_folder", [True, False])
def test_convokit_pairs_each_message_with_the_next_of_its_conversation(tmp_path: Path, whole_folder: bool) -> None:
    write_convokit(tmp_path / "utterances.jsonl", CONVERSATIONS)
    read = corpus.load(str(tmp_path if whole_folder else tmp_path / "utterances.jsonl"))
    assert Counter(read.pairs) == Counter(CONVERSATION_PAIRS)


def test_convokit_reads_raw_latin_1_bytes_and_escapes_beyond_them(tmp_path: Path) -> None:
    path = tmp_path / "utterances.jsonl"
    write_convokit(path, [("Crème brûlée?", "Très bon!")], ascii_only=False)
    with path.open("ab") as file:
        file.write(
            rb'{"id": "b", "conversation_id": "a", "text": "It\u2019s \u0141\u00f3d\u017a", "reply-to": "a"}' + b"\n"
        )
        file.write(rb'{"id": "a", "conversation_id": "a", "text": "Where is it\u2026"}' + b"\n")
    assert corpus.load(str(path)).pairs == (("creme brulee ?", "tres bon !"), ("where is it", "it s odz"))


def test_convokit_takes_a_null_text_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "utterances.jsonl"
    rows = [
        {"id": str(i), "conversation_id": "c", "text": text, "reply-to": str(i + 1)}
        for i, text in enumerate(("d", "c", None, "a", "z"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    assert corpus.load(str(path)).pairs == (("z", "a"), ("c", "d"))


QUESTION, ANSWER, AGAIN = (
    {"id": f"u{i}", "conversation_id": "u0", "text": text} for i, text in enumerate(("who ?", "me .", "why ?"))
)


@pytest.mark.parametrize(
    "rows",
    [
        ({**QUESTION, "reply-to": None}, {**ANSWER, "reply-to": "u0"}, {**AGAIN, "reply-to": "u1"}),
        ({**AGAIN, "reply-to": "u1"}, {**ANSWER, "reply-to": "u0"}, {**QUESTION, "reply-to": None}),
        ({**AGAIN, "reply_to": "u1"}, {**QUESTION, "reply_to": None}, {**ANSWER, "reply_to": "u0"}),
        ({**ANSWER, "timestamp": 20}, {**AGAIN, "timestamp": 100}, {**QUESTION, "timestamp": 3}),
        ({**ANSWER, "timestamp": "20"}, {**AGAIN, "timestamp": "100"}, {**QUESTION, "timestamp": "3"}),
        ({**QUESTION, "timestamp": None}, {**ANSWER, "timestamp": None}, {**AGAIN, "timestamp": None}),
        ({**QUESTION, "timestamp": 9}, {**ANSWER, "timestamp": 5}, {**AGAIN}),
        (QUESTION, ANSWER, AGAIN),
    ],
    ids=["oldest first", "newest first", "mixed", "time", "time as text", "no time", "half a time", "as it stands"],
)
def test_convokit_orders_a_conversation_by_replies_then_time_then_place(
    tmp_path: Path, rows: Sequence[dict[str, object]]
) -> None:
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    assert corpus.load(str(tmp_path / "talk.jsonl")).pairs == (("who ?", "me ."), ("me .", "why ?"))


def test_convokit_pairs_each_answer_with_what_it_answers_not_with_its_neighbour(tmp_path: Path) -> None:
    """A thread with two answers to one question, one to a message that is not there, and two that answer each other."""
    rows = [("a", None), ("b", "a"), ("c", "b"), ("d", "a"), ("e", "lost"), ("f", "g"), ("g", "f")]
    lines = [json.dumps({"id": key, "conversation_id": "a", "text": key, "reply-to": to}) for key, to in rows]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines), encoding="ascii")
    pairs = set(corpus.load(str(tmp_path / "talk.jsonl")).pairs)
    assert pairs == {("a", "b"), ("b", "c"), ("a", "d"), ("g", "f"), ("f", "g")}


def test_a_long_conversation_is_read_in_linear_time(tmp_path: Path) -> None:
    """Neither its depth nor its length is a problem: by recursion, or by inserting at the front, it would be."""
    n = 50_000
    lines = (json.dumps({"id": i, "conversation_id": 0, "text": "hm", "reply-to": i + 1}) for i in range(n))
    (tmp_path / "talk.jsonl").write_text("\n".join(lines), encoding="ascii")
    assert len(corpus.load(str(tmp_path / "talk.jsonl")).pairs) == n - 1


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_a_corpus_is_read_as_utf_8_and_as_latin_1_where_it_is_not_that(
    tmp_path: Path, start: str, encoding: str
) -> None:
    """Read as ISO-8859-1, UTF-8's accents and curly apostrophes become letters: "it’s" would be "itas"."""
    text, normal = ("caf\xe9 na\xefve", "cafe naive")
    if encoding == "utf-8":
        text, normal = start + text + " it\u2019s", normal + " it s"
    (tmp_path / "movie_lines.txt").write_bytes(
        "".join(SEPARATOR.join((key, "u", "m", "A", text)) + "\n" for key in ("L1", "L2", "L3")).encode(encoding)
    )
    (tmp_path / "movie_conversations.txt").write_text(SEPARATOR.join(("u", "u", "m", "['L2', 'L3']")), "ascii")
    assert corpus.load(str(tmp_path)).pairs == ((normal, normal),)
    row = json.dumps({"id": "a", "conversation_id": "a", "text": text.strip("\ufeff")}, ensure_ascii=False)
    lead = start if encoding == "utf-8" else ""
    (tmp_path / "talk.jsonl").write_bytes(f"{lead}{row}\n\n{row}\n\n".encode(encoding))
    assert corpus.load(str(tmp_path / "talk.jsonl")).pairs == ((normal, normal),)


def test_movie_files_read_lists_without_commas(tmp_path: Path) -> None:
    """As in a republished form of the corpus: Python joins 'L1' 'L2' into one, and no pair was left."""
    write_movie_files(tmp_path, [("one", "two", "three")])
    path = tmp_path / "movie_conversations.txt"
    path.write_bytes(path.read_bytes().replace(b",", b""))
    assert corpus.load(str(tmp_path)).pairs == (("one", "two"), ("two", "three"))


def test_the_tutorials_own_file_of_pairs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "formatted_movie_lines.txt"
    path.write_text('\ufeffhello there\thi\n"how are ""you"""\tfine\n', encoding="utf-8")
    assert corpus.load(str(path)).pairs == (("hello there", "hi"), ("how are you", "fine"))


@pytest.mark.parametrize("form", ["movie files", "columns"])
def test_a_text_in_another_script_is_refused_with_the_count_of_messages_that_hold_no_letter(
    tmp_path: Path, form: str
) -> None:
    texts = ("привет", "да", "нет, no", "123")
    (tmp_path / "talk.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(texts, texts, strict=True)), "utf-8")
    lines = "".join(SEPARATOR.join((f"L{i}", "u", "m", "A", text)) + "\n" for i, text in enumerate(texts))
    (tmp_path / "movie_lines.txt").write_text(lines, "utf-8")
    (tmp_path / "movie_conversations.txt").write_text(
        SEPARATOR.join(("u", "u", "m", "['L0', 'L1', 'L2', 'L3']")), "ascii"
    )
    counted = "2 of 3" if form == "movie files" else "4 of 6"  # digits are no script
    with pytest.raises(UsageError, match=f"{counted} messages hold no letter from a to z") as caught:
        corpus.load(str(tmp_path if form == "movie files" else tmp_path / "talk.tsv"))
    assert len(str(caught.value).splitlines()) == 1


def test_letters_that_split_their_word_are_told(tmp_path: Path) -> None:
    (tmp_path / "talk.tsv").write_text("die Straße\tder Größte\nen ø\tÉté\n", "utf-8")
    read = corpus.load(str(tmp_path / "talk.tsv"))
    assert read.pairs == (("die stra e", "der gro te"), ("en", "ete"))
    assert read.notice == "3 letters are not from a to z even without accents (ß, ø); each splits its word"
    (tmp_path / "talk.tsv").write_text("Été\tit\u2019s\n", "utf-8")
    assert corpus.load(str(tmp_path / "talk.tsv")).notice == ""


def test_movie_files_pair_each_line_with_the_next_of_its_conversation(tmp_path: Path) -> None:
    write_movie_files(tmp_path, CONVERSATIONS)
    assert list(corpus.load(str(tmp_path)).pairs) == CONVERSATION_PAIRS


def test_movie_files_do_not_pair_over_a_missing_line(tmp_path: Path) -> None:
    write_movie_files(tmp_path, [("one", "two", "three", "four", "five")], missing=["L02"])
    assert corpus.load(str(tmp_path)).pairs == (("one", "two"), ("four", "five"))


def test_movie_files_read_a_line_whose_empty_text_lost_its_space(tmp_path: Path) -> None:
    write_movie_files(tmp_path, [("one", "", "three", "four")])
    lines = tmp_path / "movie_lines.txt"
    lines.write_bytes(b"\r\n".join(line.rstrip() for line in lines.read_bytes().splitlines()) + b"\r\n\r\n")
    assert corpus.load(str(tmp_path)).pairs == (("three", "four"),)


def test_both_cornell_layouts_give_the_same_pairs_and_messages(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    write_convokit(tmp_path / "new" / "utterances.jsonl", CONVERSATIONS)
    write_movie_files(tmp_path / "old", CONVERSATIONS)
    new, old = corpus.load(str(tmp_path / "new")), corpus.load(str(tmp_path / "old"))
    assert Counter(new.pairs) == Counter(old.pairs)
    assert Counter(new.messages) == Counter(old.messages)


def test_tsv_pairs_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "talk.tsv"
    path.write_bytes('He said "hi\tÇa va?\r\nA\tB\n12\tdropped\n'.encode())
    read = corpus.load(str(path))
    assert read.pairs == (("he said hi", "ca va ?"), ("a", "b"))
    assert read.messages == ("he said hi", "ca va ?", "a", "b")


MOVIE_LINE = SEPARATOR.join(("L1", "u0", "m0", "A", "Hello")).encode() + b"\n"
MOVIE_IDS = {
    "a number": b"5",
    "a number in a list": b"[5]",
    "lists in a list": b"[['L1']]",
    "nothing": b"None",
    "no Python": b"['L1', 'L2'",
    "a call": b"print()",
    "no text": b"",
    "sixty thousand minus signs": b"-" * 60_000,
}
MALFORMED: dict[str, dict[str, bytes]] = {
    "an empty folder": {},
    "only half of the older layout": {"movie_lines.txt": MOVIE_LINE},
    "lines without separators": {"movie_lines.txt": b"L1 u0 m0 A Hello\n", "movie_conversations.txt": b""},
    "conversations without ids": {
        "movie_lines.txt": MOVIE_LINE,
        "movie_conversations.txt": b"u0 +++$+++ u1 +++$+++ m0\n",
    },
    "no conversations": {"movie_lines.txt": MOVIE_LINE, "movie_conversations.txt": b""},
    "utterances that are no JSON": {"utterances.jsonl": b"hello\n"},
    "utterances cut short": {"utterances.jsonl": b'{"id": "a", "conversation_id": "a", "te'},
    "utterances that are lists": {"utterances.jsonl": b'["a", "b"]\n'},
    "utterances with a number of 5,000 digits": {"utterances.jsonl": b"9" * 5000},
    "utterances nested deeply": {"utterances.jsonl": b"[" * 100_000},
    "utterances without a conversation": {"utterances.jsonl": b'{"id": "a", "text": "hello"}\n'},
    "no utterances": {"utterances.jsonl": b""},
    "one utterance": {"utterances.jsonl": b'{"id": "a", "conversation_id": "a", "text": "hello"}\n'},
    **{
        f"conversations whose ids are {kind}": {
            "movie_lines.txt": MOVIE_LINE,
            "movie_conversations.txt": SEPARATOR.join(("u0", "u1", "m0", "")).encode() + ids + b"\n",
        }
        for kind, ids in MOVIE_IDS.items()
    },
}


@pytest.mark.parametrize("files", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_cornell_folder_is_one_clear_line(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        corpus.load(str(tmp_path))
    assert tmp_path.name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a\tb\nonly one column\n", "line 2: 1 columns"),
        (b"a\tb\tc\n", "line 1: 3 columns"),
        (b"caf\xe9\tlatin\n", "not UTF-8"),
        (b"a\t" + b"b" * 200_000, "field larger"),
        (b"", "no pair"),
        (b"1\t2\n", "no pair"),
    ],
)
def test_a_malformed_tsv_is_one_clear_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "talk.tsv").write_bytes(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        corpus.load(str(tmp_path / "talk.tsv"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_can_not_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "talk.tsv").symlink_to("/proc/self/mem")  # fails for every user, root too
    with pytest.raises(UsageError, match=r"talk\.tsv can't be read: Input/output error"):
        corpus.load(str(tmp_path / "talk.tsv"))


def test_a_path_without_a_corpus_says_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.*chitchat.*\.tsv.*Cornell"):
        corpus.load(str(tmp_path / "nowhere"))


def test_a_file_of_unknown_form_says_which_forms_are_known(tmp_path: Path) -> None:
    (tmp_path / "talk.csv").write_text("a,b\n", encoding="ascii")
    with pytest.raises(UsageError, match=r"talk\.csv.*\.tsv or \.jsonl"):
        corpus.load(str(tmp_path / "talk.csv"))
