"""One row of the matrix in text."""

from collections.abc import Sequence

from chatbot.variants import CONTROL
from ray_jobs.matrix.rows import Row, Status
from ray_jobs.report import text
from ray_jobs.statistics import Verdict


def state(row: Row) -> str:
    """The verdict of a row, or the status that explains why it has none."""
    return row.verdict or row.status


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows that the run is about where it compares variants: neither the baseline nor its control, nor sides."""
    return [row for row in rows if row.of_base and row.variant not in (row.baseline, CONTROL)]


def hardware(row: Row) -> str:
    """The device of a row."""
    return f"{row.device} {row.device_name}" if row.device_name else row.device


def sentence(row: Row, margin: float) -> str:
    """One cell of the matrix in text."""
    kind = state(row)
    what: dict[str, str] = {Verdict.INVALID: "is invalid and has no speedup", Status.FAILED: "failed"}
    what[Status.SKIPPED] = "was skipped"
    if kind in what:
        return f"On {hardware(row)}, {row.variant} {what[kind]}: {row.reason or 'no reason is known'}."
    if kind == Verdict.BASELINE:
        said = f"{row.variant} answers in {text.digits(row.p50_ms)} ms; it is the baseline"
    else:
        said = f"{_compared(row, margin)}; {same_replies(row)}"
    unfinished = "" if row.status == Status.DONE else f"; the trial {row.status}: {row.reason}"
    return f"On {hardware(row)}, {said}{unfinished}."


def _compared(row: Row, margin: float) -> str:
    times, _, limits = text.speedup(row).partition(" ")
    speedup = "there is no interval" if row.speedup is None else f"{times}x {limits}".rstrip()
    if row.verdict == Verdict.SAME:
        return f"{row.variant} is as fast as {row.baseline}, within {margin:.0%}: {speedup}"
    if row.verdict == Verdict.INCONCLUSIVE:
        return f"{row.variant} vs {row.baseline}: undecided, {speedup}"
    return f"{row.variant} answers {times}x as fast as {row.baseline} {limits}".rstrip()


def comparable(row: Row) -> bool:
    """Whether a row of a side tells how it compares with ``base``."""
    return row.status != Status.FAILED and row.side_verdict not in (None, Verdict.INVALID)


def not_compared(rows: Sequence[Row], whole: bool) -> str:
    """Why variants of a side, of one place and reason, can't be compared; ``whole`` if they are all of that side."""
    first = rows[0]
    what = first.side if whole else f"{', '.join(row.variant for row in rows)} with {first.side}"
    return f"On {hardware(first)}, {what} can't be compared: {first.reason or 'what base has of it is not valid'}."


def side_sentence(row: Row, margin: float) -> str:
    """What a side does to a variant that is ``comparable``."""
    side, over = f"On {hardware(row)}, {row.variant} with {row.side}", text.speedup(text.against_base(row))
    if row.side_verdict == Verdict.INCONCLUSIVE:
        return f"{side} against base: undecided, {'there is no interval' if row.side_speedup is None else over}."
    same = row.side_verdict == Verdict.SAME
    how = f"as fast as with base, within {margin:.0%}" if same else str(row.side_verdict)
    return f"{side} is {how}: {over} times as fast as with base; {same_replies(row)}."


def same_replies(row: Row) -> str:
    """The share of replies that equal the baseline's."""
    if row.identical_replies is None:
        return "replies were not compared"
    return "all replies the same" if row.identical_replies == 1 else f"{text.replies(row)} of the replies the same"
