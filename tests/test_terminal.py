"""What a person sees of the trials while they run."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launches import ALL, made_launch, made_trial
from rich.console import Console

from ray_jobs.cluster.events import (
    Event,
    LaunchDone,
    TrialEnded,
    TrialStarted,
    WorkerLost,
)
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure.result import Launch, Limits, Memory
from ray_jobs.measure.roofline import Limit, Speeds
from ray_jobs.measure.trial import Place
from ray_jobs.process.trial import Committed, Failure, Waiting
from ray_jobs.process.untimed import Alive, Part
from ray_jobs.report import terminal
from ray_jobs.report.terminal import PLAIN_EVERY_S, Reporter, print_matrix, time_left
from ray_jobs.statistics import LEAST_LAUNCHES, Interval

TABLE = pa.table({})
LIMIT = Limit(ms=8.0, memory_ms=8.0, compute_ms=2.0, moved_mb=400.0, gflop=0.2, int8_share=0.25)
LIMITS = Limits(Speeds(((1, 20.0),), {"float32": 100.0}), {"eager": LIMIT})
Lines = pytest.CaptureFixture[str]


class Clock:
    now = 5000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(terminal, "time", made)
    return made


@pytest.fixture
def plain(clock: Clock) -> Reporter:
    """Its lines go where there is no terminal."""
    return Reporter(budget_s=120.0, precision=0.01)


def committed(count: int, seconds: float = 2.0) -> list[Committed]:
    """So many launches, each a bit off the other."""
    return [Committed(i, 20, 3, {"torchscript": 0.2 + 0.01 * (-1) ** i}, seconds * (i + 1)) for i in range(count)]


def done(launches: Sequence[Committed], trial: str = "a") -> Event:
    return Event(trial, LaunchDone(launches[-1], TABLE))


def lines(capsys: Lines) -> list[str]:
    """What was said since it was last asked; nothing of it stands on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


# Without a terminal: lines


@pytest.mark.parametrize(
    ("event", "launches", "line"),
    [
        (Event("a", TrialStarted()), 0, "a: starting"),
        (Event("a", TrialStarted()), 7, "a: going on after 7 launches"),
        (Event("a", Waiting("core-0 is held by run r2")), 0, "a: waiting for its station: core-0 is held by run r2"),
        (
            Event("a", Failure(Launch(3, seed=0), "it was killed by SIGKILL")),
            3,
            "a: launch 3 lost: it was killed by SIGKILL",
        ),
        (
            Event("a", WorkerLost(2, "the worker died unexpectedly")),
            5,
            "a: worker 2 lost: the worker died unexpectedly",
        ),
        (Event("a", TrialEnded(None)), 12, "a: done after 12 launches"),
        (Event("a", TrialEnded("its node is gone")), 5, "a: failed: its node is gone after 5 launches"),
        (Event("a", TrialEnded("its node is gone", node_lost=True)), 0, "a: failed: its node is gone after 0 launches"),
    ],
)
def test_each_thing_that_happens_to_a_trial_is_a_line(
    event: Event, launches: int, line: str, plain: Reporter, capsys: Lines
) -> None:
    with plain:
        plain.show(event, committed(launches))
    assert lines(capsys) == [line]


@pytest.mark.parametrize(
    "event",
    [Event("a", Alive()), Event("a", Memory({"eager": 300.0})), Event("a", LIMITS)],
)
def test_what_nobody_waits_for_is_no_line(event: Event, plain: Reporter, capsys: Lines) -> None:
    with plain:
        plain.show(event, committed(3))
    assert lines(capsys) == []
    assert plain._lines == {}


def test_the_untimed_part_that_runs_is_shown_but_not_each_variants_memory(plain: Reporter, capsys: Lines) -> None:
    with plain:
        for part, variant in ((Part.COMPILING, "native"), (Part.COMPILING, "compile"), (Part.MEMORY, "eager")):
            plain.show(Event("a", Alive(part, variant)), committed(0))
        assert plain._lines == {"a": "memory and replies: eager"}
        plain.show(Event("a", Alive(Part.MEMORY, "torchscript")), committed(0))
        plain.show(Event("a", Alive(Part.LIMITS)), committed(0))
    told = ["compiling: native", "compiling: compile", "memory and replies: eager", "hardware limits"]
    assert lines(capsys) == [f"a: {line}" for line in told]


def test_launches_are_told_with_their_intervals_and_the_time_left(plain: Reporter, capsys: Lines) -> None:
    with plain:
        plain.show(done(committed(1)), committed(1))
        (first,) = lines(capsys)
        assert first == "a: 1 launches in 2 s, no interval yet; up to 118 s left"
        plain.show(Event("a", TrialEnded(None)), committed(1))
        lines(capsys)
        plain.show(done(committed(12)), committed(12))
    (line,) = lines(capsys)
    assert line == "a: 12 launches in 24 s, torchscript 1.221x ±0.7%; up to 0 s left"


def test_launches_of_one_trial_are_told_now_and_then_and_of_each_trial(
    plain: Reporter, clock: Clock, capsys: Lines
) -> None:
    with plain:
        for second in range(25):
            clock.now = 5000.0 + second
            for trial in ("a", "b"):
                plain.show(done(committed(second + 1), trial), committed(second + 1))
    told = [(line.split(":")[0], int(line.split()[1])) for line in lines(capsys)]
    assert PLAIN_EVERY_S == 10
    assert told == [(trial, count) for count in (1, 11, 21) for trial in ("a", "b")]


def test_a_trial_that_goes_on_tells_the_time_of_all_its_attempts(plain: Reporter, clock: Clock, capsys: Lines) -> None:
    """As each launch knows it: neither the wait nor what was cut off counts, and the time left follows from it."""
    with plain:
        plain.show(Event("a", TrialStarted()), committed(30, seconds=3.0))
        clock.now += 500.0
        plain.show(Event("a", Waiting("somebody")), committed(30, seconds=3.0))
        clock.now += 500.0
        plain.show(done(committed(31, seconds=3.0)), committed(31, seconds=3.0))
    assert lines(capsys)[-1].startswith("a: 31 launches in 93 s, ")


def test_a_variant_that_some_launches_lack_is_told_of_the_others(plain: Reporter, capsys: Lines) -> None:
    launches = committed(4)
    launches[1] = Committed(1, 20, 3, {}, 4.0)
    plain.show(done(launches), launches)
    (line,) = lines(capsys)
    assert line.startswith("a: 4 launches in 8 s, torchscript 1.22")
    last = [*committed(3), Committed(3, 20, 3, {}, 8.0)]
    plain.show(done(last, "b"), last)
    assert "no interval yet" in lines(capsys)[0]


def test_what_is_over_is_forgotten(plain: Reporter, capsys: Lines) -> None:
    with plain:
        for number in range(50):
            plain.show(Event(f"t{number}", TrialStarted()), [])
            plain.show(done(committed(1), f"t{number}"), committed(1))
            plain.show(Event(f"t{number}", TrialEnded(None)), committed(1))
    assert (plain._lines, plain._printed) == ({}, {})
    assert len(lines(capsys)) == 150


# On a terminal: a few lines that are drawn anew


def live(height: int, trials: int) -> Reporter:
    reporter = Reporter(120.0, 0.01)
    reporter._console = Console(file=io.StringIO(), force_terminal=True, height=height, width=60)
    reporter.trials = trials
    return reporter


def drawn(reporter: Reporter) -> list[str]:
    return reporter._drawn().plain.splitlines()


@given(st.integers(1, 60), st.integers(0, 200), st.integers(0, 200))
def test_however_many_trials_run_they_fit_on_the_screen(height: int, running: int, over: int) -> None:
    reporter = live(height, trials=running + over)
    for number in range(running + over):
        reporter._lines[f"t{number}"] = "starting"
    for number in range(over):
        reporter._lines.pop(f"t{number}")
    reporter._ended = over
    told = drawn(reporter)
    assert len(told) <= max(3, height - 1)
    shown = [line for line in told if line.endswith(": starting")]
    assert shown == [f"t{over + i}: starting" for i in range(len(shown))]
    others = [line for line in told if line.endswith(" others")]
    assert others == ([f"and {running - len(shown)} others"] if running > len(shown) else [])
    assert not others or len(told) >= height - 1, "no line is left empty"
    counted = [line for line in told if line.endswith(" trials are over")]
    assert counted == ([f"{over} of {running + over} trials are over"] if running + over > 1 else [])


def test_a_line_that_is_too_long_for_the_screen_stays_one_line() -> None:
    reporter = live(height=20, trials=1)
    reporter._lines["a"] = "waiting for its station: " + "very " * 100
    (line,) = reporter._console.render_lines(reporter._drawn(), pad=False)
    text = "".join(segment.text for segment in line)
    assert len(text) == 60
    assert text.startswith("a: waiting for its station: very")
    assert text.endswith("\N{HORIZONTAL ELLIPSIS}")


def test_the_screen_shows_where_the_running_trials_stand(clock: Clock, capsys: Lines) -> None:
    reporter = live(height=20, trials=3)
    reporter._console = Console(file=io.StringIO(), force_terminal=True, height=20, width=60)
    with reporter:
        reporter.show(Event("a", TrialStarted()), [])
        reporter.show(Event("b", TrialStarted()), [])
        assert drawn(reporter) == ["a: starting", "b: starting", "0 of 3 trials are over"]
        reporter.show(done(committed(1)), committed(1))
        reporter.show(done(committed(2)), committed(2))
        assert drawn(reporter)[0].startswith("a: 2 launches in 4 s, "), "each launch, not now and then"
        reporter.show(Event("a", TrialEnded(None)), committed(2))
        assert drawn(reporter) == ["b: starting", "1 of 3 trials are over"]
        reporter.show(Event("b", Memory()), [])
        assert drawn(reporter)[0] == "b: starting"
    assert reporter._live is None


def test_what_went_wrong_stays_above_the_screen(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    reporter = live(height=20, trials=1)
    monkeypatch.setattr(reporter, "say", said.append)
    with reporter:
        for event in (
            Event("a", TrialStarted()),
            Event("a", Waiting("somebody")),
            done(committed(1)),
            Event("a", Failure(Launch(1, seed=0), "it hung")),
            Event("a", WorkerLost(1, "it died")),
            Event("a", TrialEnded(None)),
        ):
            reporter.show(event, committed(1))
    assert said == ["a: waiting for its station: somebody", "a: launch 1 lost: it hung", "a: worker 1 lost: it died"]


# The time left


def test_the_time_left_ends_with_the_precision_or_the_budget() -> None:
    wide, narrow = Interval(1.0, 0.96, 1.04), Interval(1.0, 0.995, 1.005)
    assert time_left(0, 0.0, [], 0.01, 120.0) == 120.0
    assert time_left(20, 20.0, [wide], 0.02, 1000.0) == pytest.approx(60.0), "twice as narrow takes four times as many"
    assert time_left(20, 20.0, [wide, narrow], 0.02, 1000.0) == pytest.approx(60.0), "the widest counts"
    assert time_left(20, 20.0, [wide], 0.02, 50.0) == pytest.approx(30.0)
    assert time_left(20, 20.0, [narrow], 0.02, 1000.0) == 0.0
    assert time_left(5, 20.0, [narrow], 0.02, 30.0) == pytest.approx(4.0 * (LEAST_LAUNCHES - 5))


# The matrix: how far from the limit

WHY = (
    "memory-bound: 0.40 GB per reply at 50 GB/s take 8 of 10 ms; scripting can't reduce that, int8 would move a quarter"
)


def measured(limits: dict[str, Limit]) -> list[Row]:
    made = [made_launch(dict.fromkeys(ALL, 10.0), index) for index in range(10)]
    return rows_of(made_trial(), Place(), Status.DONE, None, made, limits=Limits(of=limits))


def printed(rows: list[Row], width: int, monkeypatch: pytest.MonkeyPatch, capsys: Lines) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    print_matrix(rows, margin=0.02)
    return capsys.readouterr().out.splitlines()


def test_the_share_of_the_limit_is_a_column_and_the_reason_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Lines
) -> None:
    lines = printed(measured({"eager": LIMIT, "torchscript": LIMIT}), 100, monkeypatch, capsys)
    shares = {line.split()[0]: line.split()[-1] for line in lines if line.startswith(ALL)}
    assert shares == {"eager": "80%", "eager-again": "-", "torchscript": "80%"}
    assert lines.count(f"  eager is {WHY}") == 1
    assert not any("of the limit" in line for line in lines)


def test_a_table_without_limits_has_no_such_column(monkeypatch: pytest.MonkeyPatch, capsys: Lines) -> None:
    assert not any("limit" in line or "bound" in line for line in printed(measured({}), 100, monkeypatch, capsys))


@pytest.mark.parametrize("width", [20, 40, 60, 70, 75, 80, 100])
def test_on_no_terminal_is_a_share_or_a_reason_lost(width: int, monkeypatch: pytest.MonkeyPatch, capsys: Lines) -> None:
    text = " ".join(" ".join(printed(measured({"eager": LIMIT}), width, monkeypatch, capsys)).split())
    assert text.count("80%") == 1
    assert WHY in text


def test_a_terminal_too_narrow_for_the_column_keeps_the_table(monkeypatch: pytest.MonkeyPatch, capsys: Lines) -> None:
    rows = measured(dict.fromkeys(ALL, LIMIT))
    wide = printed(rows, 100, monkeypatch, capsys)
    width = max(len(line) for line in wide if line.startswith(ALL))
    narrow = printed(rows, width - 1, monkeypatch, capsys)
    assert any(line.startswith("variant ") for line in narrow)
    assert "  of the limit: eager 80%, eager-again 80%, torchscript 80%" in narrow
