"""Makes text from elsewhere safe to show and record: no control characters, no passwords or keys.

Names, reasons and addresses come from other machines, other users' files and the command line. They pass through here
where they become an error, a line in a terminal or a record on disk.
"""

import os
import re

HIDDEN = "***"
# Control characters (C0, C1), lone surrogates, and what reorders or hides the characters beside it.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_SECRET = (
    r"(?:access[_-]?key(?:[_-]?id)?|secret(?:[_-]?key)?|account[_-]?key|api[_-]?key"
    r"|token|passwo?r?d|signature|credential|sig)"
)
_USERINFO = re.compile(
    r"(?<=:/)(/?)(?:[^\s/?#'\"]*@|[^\s/?#'\"@:\[]+:(?!\d+(?:[/?#]))[^\s'\"@]*@)"  # :/ in a path; a key may hold a /
    r"|(?<![\w/:@.-])[\w.+%-]+:[^\s/'\"@:]+@(?=[\w\[])"  # user:password@host without a scheme
)
_OPTION = re.compile(rf"(?i)({_SECRET}=|\bbearer )[^\s&'\",;#\\<]+")  # within JSON and HTML too
_VARIABLE = re.compile(rf"(?i)\w*{_SECRET}")
LEAST_SECRET = 8  # characters: a shorter value of a variable may stand in any text


def printable(text: str) -> str:
    """The text in one line, with control and reordering characters as escapes: ``\\x1b``, ``\\n``, ``\\u202e``."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def keyless(text: str) -> str:
    """The text without the user and password of a URI and the keys among its options."""
    if "@" in text:
        text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    return _OPTION.sub(rf"\1{HIDDEN}", text) if "=" in text or "earer " in text else text


def redacted(text: str) -> str:
    """The text without keys, and without the secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= LEAST_SECRET and value in text and _VARIABLE.fullmatch(name):
            text = text.replace(value, HIDDEN)
    return keyless(text)


def safe(text: str) -> str:
    """The text, redacted and printable."""
    return printable(redacted(text))
