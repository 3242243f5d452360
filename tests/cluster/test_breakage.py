"""The table of a cluster's faults, as a page holds it. The faults themselves: tests/cluster."""

from pathlib import Path

import pytest
from breakage.bench import NOTHING, Seen, line_with
from breakage.table import FAULTS, HEAD, facts, sound, table, with_table

from chatbot.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
SEEN = [
    Seen("a fault", "cpu@node-1: failed: a | b\nand more", 12.34, NOTHING),
    Seen("another", "", None, "not seen"),
]
LINES = [
    HEAD,
    "|---|---|---|---|",
    "| a fault | cpu@node-1: failed: a \\| b and more | 12.3 | nothing |",
    "| another |  |  | not seen |",
]


def test_a_fault_is_one_line_of_the_table() -> None:
    assert table(SEEN).splitlines() == LINES
    assert facts(SEEN)[0] == {"fault": "a fault", "shows": SEEN[0].shows, "seconds": 12.34, "lost": "nothing"}


def test_what_was_not_said_or_lost_something_is_not_sound() -> None:
    assert list(map(sound, SEEN)) == [True, False]
    assert not sound(Seen("a fault", "", 1.0, NOTHING))
    assert not sound(Seen("a fault", "said", 1.0, "changed: ['a']"))


@pytest.mark.parametrize("after", ["\nThe end.\n", ""])
def test_a_pages_table_is_replaced_and_nothing_else(after: str) -> None:
    other = "| other | table |\n|---|---|\n| a | b |"
    page = f"# Faults\n\n{other}\n\n{HEAD}\n|---|---|---|---|\n| old | x | 1 | y |\n{after}"
    made = with_table(page, SEEN)
    assert made == page.replace("| old | x | 1 | y |", "\n".join(LINES[2:]))
    assert with_table(made, SEEN) == made


def test_a_page_without_a_table_is_refused() -> None:
    with pytest.raises(UsageError, match="no table of faults"):
        with_table("# Faults\n", SEEN)


def test_the_line_that_is_shown_is_the_one_with_the_words() -> None:
    assert line_with("one\n  two words \nthree", "words") == "two words"
    assert line_with("one\ntwo", "words") == ""


def test_no_fault_is_there_twice() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)


RUN, DOCS = (ROOT / "results/audit-cluster/summary.md", ROOT / "docs/cluster.md")


@pytest.mark.skipif(not RUN.exists(), reason="no run of it is committed")
def test_the_documentation_holds_the_committed_table_word_for_word() -> None:
    rows = [line for line in RUN.read_text().splitlines() if line.startswith("|")]
    page = DOCS.read_text().splitlines()
    start = page.index(HEAD)
    assert page[start : start + len(rows)] == rows
    assert not page[start + len(rows)].startswith("|")
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == [fault.name for fault in FAULTS]
    assert all(row.endswith("| nothing |") for row in rows[2:])
