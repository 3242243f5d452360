"""One question of a report's first screen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One of the first screen's questions with its answer."""

    question: str
    answer: str
    more: str = ""
    alarming: bool = False
