"""What is made of trials: rows, rungs, importances, page. No Ray process."""

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot import checkpoint
from chatbot.config import PRESETS
from chatbot.errors import UsageError
from ray_jobs.results.store import RunDirectory
from ray_jobs.sweep import charts
from ray_jobs.sweep.folder import Record, find, read_rows, state_name
from ray_jobs.sweep.importance import LEAST_TRIALS, Importance, Importances, importances, ranks
from ray_jobs.sweep.page import failures_by_value, findings, sweep_page
from ray_jobs.sweep.rungs import EarlyStopping
from ray_jobs.sweep.space import DEFAULT, Space
from ray_jobs.sweep.spec import SweepSpec, make_spec
from ray_jobs.sweep.table import (
    SweepStatus,
    TrialRow,
    TrialStatus,
    Validation,
    best_trial,
    epochs_table,
    row_of,
    trials_table,
)

SPEC = make_spec(
    {"trials": 30, "iterations": 900, "validate_every": 100, "patience": None, "size": "tiny", "grace": 100}
)
TRIALS = SPEC.plan(17)
DONE, STOPPED, FAILED = TrialStatus


def validation(trial: int, iteration: int, loss: float, best: float | None = None) -> Validation:
    return Validation(trial, iteration, iteration / 10, loss, loss, loss + 1, loss if best is None else best, 0.5, "h")


def course(trial: int, losses: Sequence[float]) -> list[Validation]:
    return [validation(trial, 100 * (i + 1), loss, min(losses[: i + 1])) for i, loss in enumerate(losses)]


# Rows.


def test_a_row_tells_the_best_validation_and_not_the_last() -> None:
    row = row_of(TRIALS[0], course(0, [3.0, 2.0, 2.5]), DONE)
    assert (row.best_loss, row.best_iteration, row.free_running_loss) == (2.0, 200, 3.0)
    assert (row.iterations, row.validations, row.seconds) == (300, 3, 1.5)


def test_what_is_not_known_is_null_and_a_failed_trial_is_never_the_best() -> None:
    lost = row_of(TRIALS[0], [], FAILED, "it burst")
    assert (lost.best_loss, lost.best_iteration, lost.free_running_loss) == (None, None, None)
    burst = row_of(TRIALS[1], course(1, [0.1]), FAILED, "it burst")
    fine = row_of(TRIALS[2], course(2, [2.0]), STOPPED)
    assert best_trial([lost, burst]) is None
    assert best_trial([lost, burst, fine]) is fine
    table = trials_table([lost, burst, fine])
    assert table.column("best_loss").to_pylist() == [None, 0.1, 2.0]
    assert table.column("reason").to_pylist() == ["it burst", "it burst", None]


def test_of_equal_trials_the_first_is_the_best_whoever_ended_first() -> None:
    rows = [row_of(TRIALS[i], course(i, [2.0]), DONE) for i in (2, 1, 3)]
    assert best_trial(rows) is rows[1]


def test_a_columns_type_does_not_depend_on_what_the_rows_hold() -> None:
    without = replace(row_of(TRIALS[0], [], FAILED), settings={**TRIALS[0].settings, "clip": None})
    some = replace(row_of(TRIALS[1], course(1, [1.0]), DONE), settings={**TRIALS[1].settings, "clip": 25.0})
    assert trials_table([without]).schema == trials_table([some]).schema
    assert epochs_table([]).schema == epochs_table(course(0, [1.0])).schema


# The directory.


def a_record(root: Path) -> Record:
    return Record(RunDirectory.named(str(root), "s"), SPEC, "data")


@pytest.mark.process
def test_what_a_driver_left_when_it_died_at_any_point_of_a_trials_end_is_put_right(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    with record.directory.created(samples=False):
        for row in course(0, [3.0, 2.0]):
            assert record.add(row, b"state")
            assert not record.add(row, b"told again")
        record.end(row_of(TRIALS[0], record.of_trial(0), DONE), b"best")
        assert record.state(0) is None
        record.directory.write(state_name(0), b"state")  # as if it had died before this was taken away
        record.add(validation(1, 100, 4.0), b"half-way")
    directory, sheet, spec = find("s", str(tmp_path))
    again = Record(directory, spec, "data")
    again.restore(sheet, read_rows(directory))
    assert (again.state(0), again.state(1)) == (None, b"half-way")
    assert (again.rows, again.validations) == (record.rows, record.validations)
    assert len(again.commands) == 2


@pytest.mark.process
def test_only_the_best_checkpoint_is_kept_and_never_that_of_a_failed_trial(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    with record.directory.created(samples=False):
        for number, (loss, status) in enumerate([(3.0, DONE), (2.0, STOPPED), (2.5, DONE), (1.0, FAILED)]):
            row = row_of(TRIALS[number], course(number, [loss]), status)
            record.end(row, None if status == FAILED else str(number).encode())
        assert record.directory.read("best.pt") == b"1"


@pytest.mark.process
def test_a_sweep_of_other_data_or_sources_is_not_gone_on_with(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    with record.directory.created(samples=False):
        record.write(SweepStatus.RUNNING)
    directory, sheet, spec = find("s", str(tmp_path))
    with pytest.raises(UsageError, match="the corpus changed since"):
        Record(directory, spec, "other").restore(sheet, [])
    sheet["identity"]["source_hash"] = "another"
    with pytest.raises(UsageError, match="the sources of this program changed since"):
        Record(directory, spec, "data").restore(sheet, [])


# Rungs.


def early_stopping(spec: SweepSpec = SPEC) -> EarlyStopping:
    return EarlyStopping(spec)


def decided(one: EarlyStopping, rows: Sequence[Validation]) -> list[bool]:
    """Feeds rows until the trial ends."""
    found = []
    for row in rows:
        found.append(one.decide(row))
        if not found[-1]:
            break
    return found


def test_a_trial_that_is_worse_than_the_others_at_a_rung_is_stopped_and_the_reason_says_where() -> None:
    one = early_stopping()
    for number, loss in enumerate([2.0, 2.1, 2.2]):
        decided(one, course(number, [loss] * 9))
    assert decided(one, course(3, [5.0] * 9)) == [False]
    assert one.ends[3] == (STOPPED, "at 100 iterations its loss was not in the best 1 in 3")
    assert decided(one, course(4, [1.0] * 9)) == [True] * 8 + [False]
    assert one.ends[4] == (DONE, None)


def test_without_halving_every_trial_goes_to_its_end() -> None:
    one = early_stopping(SPEC.model_copy(update={"asha": False}))
    for number, loss in enumerate([1.0, 2.0, 9.0]):
        assert decided(one, course(number, [loss] * 9)) == [True] * 8 + [False]
    assert all(end == (DONE, None) for end in one.ends.values())


def test_patience_ends_a_trial_that_gets_no_better() -> None:
    one = early_stopping(SPEC.model_copy(update={"asha": False, "patience": 2}))
    assert decided(one, course(0, [3.0, 2.0, 2.0, 2.5, 1.0])) == [True, True, True, False]
    assert one.ends[0] == (DONE, "no better loss in 2 validations")


@given(
    losses=st.lists(st.lists(st.floats(0.1, 9.0), min_size=9, max_size=9), min_size=1, max_size=8),
    cut=st.integers(0, 80),
    asha=st.booleans(),
    patience=st.sampled_from([None, 2]),
)
def test_decisions_follow_from_the_validations_alone_so_a_replay_decides_the_same(
    losses: list[list[float]], cut: int, asha: bool, patience: int | None
) -> None:
    spec = SPEC.model_copy(update={"asha": asha, "patience": patience})
    unbroken = early_stopping(spec)
    told: list[Validation] = []
    for number, one in enumerate(losses):
        rows = course(number, one)
        told += rows[: len(decided(unbroken, rows))]
    again = early_stopping(spec)
    again.replay(told[:cut])
    again.replay(told[:cut][-3:])  # a worker that was lost tells again what is known
    for row in told[cut:]:
        again.decide(row)
    assert again.ends == unbroken.ends
    assert set(unbroken.ends) == set(range(len(losses)))


# Importance.


def settings(count: int) -> list[dict[str, Any]]:
    return Space.of(DEFAULT).draw(count, 0, PRESETS["tiny"])


@pytest.fixture(scope="module")
def truth() -> tuple[list[float], dict[str, float]]:
    """(losses of 60 trials, the shares of their variance): the optimizer and the teacher forcing act, the rest not."""
    rows, source = settings(60), random.Random(0)
    parts = {
        "optimizer": np.array([2.0 * (row["optimizer"] == "sgd") for row in rows]),
        "teacher_forcing": np.array([1.4 * row["teacher_forcing"] for row in rows]),
    }
    losses = 3 + sum(parts.values()) + np.array([source.gauss(0, 0.2) for _ in rows])
    return losses.tolist(), {name: float(part.var() / losses.var()) for name, part in parts.items()}


@pytest.fixture(scope="module")
def known(truth: tuple[list[float], dict[str, float]]) -> Importances:
    return importances(settings(60), truth[0])


def test_known_importances_are_found_within_their_intervals_and_the_greatest_stands_first(
    known: Importances, truth: tuple[list[float], dict[str, float]]
) -> None:
    found = {one.name: one for one in known.of}
    assert [one.name for one in known.of][:2] == ["optimizer", "teacher_forcing"]
    for name, true in truth[1].items():
        assert true > 0.15
        one = found[name]
        assert one.low is not None
        assert one.high is not None
        assert one.low < true < one.high
        assert one.high - one.low < 0.5
        assert one.low > 0
    assert known.explained is not None
    assert known.explained > 0.8


def test_what_does_nothing_accounts_for_nothing(known: Importances) -> None:
    for one in known.of[2:]:
        assert one.share is not None
        assert abs(one.share) < 0.03
    assert "beyond luck: optimizer (" in findings(known)


def test_luck_is_called_luck() -> None:
    source = random.Random(0)
    found = importances(settings(16), [source.gauss(3, 1) for _ in range(16)])
    assert found.explained is not None
    assert found.explained <= 0
    assert findings(found).endswith("treat these shares as noise")
    nothing_clear = replace(found, explained=0.1, of=tuple(replace(one, low=-0.1) for one in found.of))
    assert findings(nothing_clear).endswith("no hyperparameter stands out from luck")


@pytest.mark.parametrize(
    ("rows", "losses", "reason"),
    [
        (settings(LEAST_TRIALS - 1), [float(i) for i in range(LEAST_TRIALS - 1)], "9 trials with a loss are too few"),
        (settings(12), [2.0] * 12, "all losses are the same"),
        ([{"hidden": 8}] * 12, [float(i) for i in range(12)], "only one value was tried"),
    ],
)
def test_where_it_can_not_be_told_it_is_null_with_the_reason(
    rows: list[dict[str, Any]], losses: list[float], reason: str
) -> None:
    found = importances(rows, losses)
    assert all((one.share, one.low, one.high) == (None, None, None) for one in found.of)
    assert all(one.reason is not None and one.reason.startswith(reason) for one in found.of)
    assert found.explained is None
    assert findings(found).startswith(reason)
    assert charts.importance(found).lines == ()


def test_values_are_ranked_by_size_and_no_clip_is_the_largest() -> None:
    assert ranks([25.0, None, 100.0, 25.0]).tolist() == [0, 2, 1, 0]
    assert ranks(["sgd", "adam"]).tolist() == [1, 0]


# The page.


class Reader(HTMLParser):
    """Sees that every element that is opened is closed in its turn, and what the page would fetch."""

    VOID = frozenset(("meta", "br", "link", "img", "input", "wbr"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        fetching = [(name, value or "") for name, value in attrs if name in ("src", "href", "srcset")]
        self.fetched += [f"{tag} {name} {value}" for name, value in fetching if not value.startswith("data:")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rows_of_a_sweep(count: int = 12, failed: Sequence[int] = (3, 7)) -> tuple[list[TrialRow], list[Validation]]:
    source = random.Random(1)
    rows, told = [], []
    for trial in TRIALS[:count]:
        number = trial.number
        base = 2 + (trial.settings["optimizer"] == "sgd") + source.random() / 5
        own = course(number, [base + 1 / (i + 1) for i in range(2 if number % 2 else 9)])
        if number in failed:
            rows.append(row_of(trial, [], FAILED, "the loss became <inf> & more"))
            continue
        told += own
        rows.append(row_of(trial, own, STOPPED if number % 2 else DONE))
    return rows, told


def sheet(status: str = "done") -> dict[str, Any]:
    return {
        "sweep_id": "s<1>",
        "status": status,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 100.0,
        "commands": [["python", "-m", "ray_jobs", "sweep", "--corpus", "<my> & yours"]],
        "spec": SPEC.model_dump(),
        "environment": {"python": "3.11", "packages": {"torch": "2", "ray": "2"}, "source_hash": "abc"},
    }


def rendered(rows: list[TrialRow], told: list[Validation], found: Importances | None = None) -> tuple[str, Reader]:
    text = sweep_page(sheet(), rows, told, found)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return text, reader


def test_the_page_is_whole_needs_nothing_else_and_escapes_what_it_is_given(known: Importances) -> None:
    text, reader = rendered(*rows_of_a_sweep(), known)
    assert reader.fetched == []
    assert "url(" not in text
    assert "<my>" not in text
    assert "s<1>" not in text
    assert "the loss became &lt;inf&gt; &amp; more" in text
    assert "prefers-color-scheme: dark" in text
    assert "NaN" not in text
    assert "nan," not in text


MARKUP = 'x"><script>alert(1)</script>'


def test_markup_in_a_trial_reaches_neither_the_charts_nor_the_table() -> None:
    rows, told = rows_of_a_sweep()
    hostile = replace(
        rows[0], status=cast(TrialStatus, MARKUP), reason=MARKUP, settings={**rows[0].settings, "optimizer": MARKUP}
    )
    text, reader = rendered(
        [hostile, *rows[1:]], told, Importances((Importance(MARKUP, 0.5, 0.1, 0.9, None),), 12, 0.5)
    )
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert [tag for tag, _ in reader.tags].count("script") == 1
    (policy,) = (one["content"] for _, one in reader.tags if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


@pytest.mark.process
def test_a_trial_of_no_known_status_is_refused_when_a_sweep_is_resumed(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    with record.directory.created(samples=False):
        record.end(row_of(TRIALS[0], course(0, [3.0]), DONE), b"best")
        (kept,) = json.loads(record.directory.read("trials.json"))
        assert read_rows(record.directory) == record.rows
        record.directory.write_json("trials.json", [{**kept, "status": MARKUP}])
    with pytest.raises(UsageError, match=r"its trials\.json can't be read \('x.* is not a valid TrialStatus\)"):
        read_rows(record.directory)


def test_every_trial_stands_in_the_table_the_best_first_and_each_with_a_loss_in_both_pictures() -> None:
    rows, told = rows_of_a_sweep()
    _, reader = rendered(rows, told)
    listed = [attributes for tag, attributes in reader.tags if tag == "tr" and "data-trial" in attributes]
    best = best_trial(rows)
    assert best is not None
    assert listed[0]["data-trial"] == str(best.trial)
    assert listed[0]["class"] == "best"
    assert {one["data-trial"] for one in listed} == {str(row.trial) for row in rows}
    drawn = [attributes["data-trial"] for tag, attributes in reader.tags if tag == "g" and "data-trial" in attributes]
    for row in rows:
        assert drawn.count(str(row.trial)) == (3 if row.judged else 1)  # parallel, curves, free curves


def test_curves_show_losses_where_they_are() -> None:
    rows, told = rows_of_a_sweep(2, ())
    plot = charts.curves(rows, told)
    assert plot is not None
    own = [row for row in told if row.trial == 0]
    lines = [line.split("L") for line in re.findall(r'class="course" d="M([^"]*)"', plot.drawing)]
    heights = [float(point.split()[1]) for point in next(line for line in lines if len(line) == len(own))]
    drops = np.diff([row.validation_loss for row in own])
    assert np.corrcoef(np.diff(heights), drops)[0, 1] < -0.999  # lower losses stand lower: y grows downwards


@pytest.mark.parametrize(("count", "failed"), [(1, ()), (1, (0,)), (3, (0, 1, 2))])
def test_few_trials_or_none_with_a_loss_make_a_page_too(count: int, failed: tuple[int, ...]) -> None:
    rows, told = rows_of_a_sweep(count, failed)
    text, _ = rendered(rows, told, importances([row.settings for row in rows if row.judged], []))
    assert ("No trial has a loss." in text) == (len(failed) == count)


def test_an_unfinished_sweep_says_so() -> None:
    assert "not all trials have ended" in sweep_page(sheet("interrupted"), *rows_of_a_sweep(4), None)
    assert "Available when the sweep ends." in sweep_page(sheet("interrupted"), [], [], None)


def test_values_that_fail_more_often_are_named() -> None:
    rows = [
        replace(row_of(trial, [], FAILED if trial.settings["optimizer"] == "sgd" else DONE)) for trial in TRIALS[:20]
    ]
    worst = failures_by_value(rows)[0]
    assert worst[:2] == ("optimizer", "sgd")
    assert worst[2] == worst[3]
    assert failures_by_value([row for row in rows if row.status == DONE]) == []


def test_of_a_range_the_half_that_fails_is_named() -> None:
    space = Space.of({"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "optimizer": ["adam", "sgd"]})
    drawn = space.draw(20, 0, PRESETS["tiny"])
    order = sorted(float(one["learning_rate"] or 0) for one in drawn)
    rows = [
        replace(
            row_of(
                trial,
                [],
                FAILED if float(settings["learning_rate"] or 0) >= order[15] else DONE,
            ),
            settings=settings,
        )
        for trial, settings in zip(TRIALS, drawn, strict=False)
    ]
    assert failures_by_value(rows)[0] == ("learning_rate", f"above {order[9]:.3g}", 5, 10)


def test_shares_next_to_nothing_have_no_sign() -> None:
    assert [charts.whole_percent(share) for share in (-0.004, 0.004, -0.02, 0.756)] == ["0%", "0%", "-2%", "76%"]


# The sweep that made the shipped weights


def test_the_shipped_model_is_the_best_trial_of_the_committed_sweep() -> None:
    folder = Path(__file__).parent.parent / "results" / "sweep-small"
    notes = checkpoint.open_model("small").notes
    best = min(pq.read_table(folder / "trials.parquet").to_pylist(), key=lambda row: row["best_loss"])
    assert json.loads((folder / "sweep.json").read_text())["best"] == best
    assert (notes["sweep"], notes["trial"], notes["iteration"]) == (folder.name, best["trial"], best["best_iteration"])
    assert notes["validation_loss"] == best["best_loss"]
    card = (Path(checkpoint.__file__).parent / "weights" / "small.md").read_text()
    assert f"perplexity {math.exp(best['best_loss']):.2f} ({best['best_loss']:.4f} nats per token" in card
    assert f"seed {best['seed']}" in card


def test_the_committed_sweep_names_no_machine_and_no_path() -> None:
    folder = Path(__file__).parent.parent / "results" / "sweep-small"
    assert pq.read_table(folder / "epochs.parquet")["host"].null_count == len(pq.read_table(folder / "epochs.parquet"))
    for name in ("sweep.json", "sweep.html"):
        assert not re.search(r"[\"' ]/(tmp|root|home|work)/", (folder / name).read_text())
