"""Shared by the command lines: how commands end, and streams that take any character."""

import codecs
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from chatbot.arguments import hide_keys
from chatbot.errors import UsageError, first_line
from chatbot.safe_text import safe

DEBUG = "LATENCY_MATRIX_DEBUG"
HELP = "An unexpected error is one line and exit code 70; --debug shows its traceback."
ASCII = {"±": "+-", "×": "x", "–": "-", "—": "-", "…": "...", "≤": "<=", "≥": ">=", "→": "->", "·": "-"}  # noqa: RUF001


class ExitCode(IntEnum):
    """Exit codes; a command's own verdicts begin at 1."""

    USAGE = 2
    UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
    INTERRUPTED = 130  # as a shell says it of SIGINT
    PIPE = 141  # and of SIGPIPE


class Commands(TyperGroup):
    """Commands that end with one line and a code of its own, whatever happens; Click would say 1 for much of it."""

    program = ""  # begins the line

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UsageError, KeyboardInterrupt, OSError) as error:
            raise typer.Exit(told(self.program, error)) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("click", "typer"):  # its own: usage, exit
                raise
            raise typer.Exit(told(self.program, error)) from error


@contextmanager
def ending(program: str) -> Iterator[None]:
    """Ends the process as ``told`` says it, whatever comes before or after the command itself; Python would say 1."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:  # an extension in Rust panics with what is no Exception
        sys.exit(told(program, error))


def told(program: str, error: BaseException) -> int:
    """Says in one line what ended a command; returns its exit code."""
    if isinstance(error, BrokenPipeError):  # what read our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PIPE
    if isinstance(error, KeyboardInterrupt):
        typer.echo(f"{program}: {str(error) or 'interrupted'}", err=True)
        return int(getattr(error, "code", ExitCode.INTERRUPTED))
    if isinstance(error, UsageError):
        typer.echo(f"{program}: {error}", err=True)
        return ExitCode.USAGE
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    advice = "" if os.environ.get(DEBUG) else "; --debug shows the traceback"
    typer.echo(safe(f"{program}: {_unexpected(error)}{advice}"), err=True)
    return ExitCode.UNEXPECTED


def _unexpected(error: BaseException) -> str:
    """Kind, message, the line of ours that it came through last, and notes."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _ours(frame.filename)]
    where = f" ({'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno})" if frames else ""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"unexpected {type(error).__name__}: {first_line(error)}{where}{notes}"


def _ours(file: str) -> bool:
    return any(f"/{package}/" in file for package in ("chatbot", "ray_jobs")) and not file.endswith("console.py")


def prepare() -> None:
    """Hides keys in the arguments, takes ``--debug`` from them, and lets both streams take any character."""
    hide_keys()
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[DEBUG] = "1"
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """The characters that an encoding lacks, in others that it has."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(ASCII.get(one, "?") for one in error.object[error.start : error.end]), error.end
