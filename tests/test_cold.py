"""Cold starts: the columns that come of them, files that leave the page cache, and real starts of real programs."""

import itertools
import json
import math
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launches import made_launch, made_trial, prompts

from chatbot import cache, checkpoint
from chatbot.variants import BASELINE, CONTROL
from ray_jobs.driver.resume import cold_of
from ray_jobs.matrix import cold as columns_of
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure import cold as figures
from ray_jobs.measure.cold import STARTS, Cold, Start, Starts, State
from ray_jobs.measure.trial import CheckpointBytes, Inputs, Place, Preset
from ray_jobs.process import page_cache
from ray_jobs.process.cold import Told, cold, prefix, run_start
from ray_jobs.process.page_cache import Dropped, drop, mapped_files
from ray_jobs.process.server import Loss, LossKind
from ray_jobs.process.untimed import Alive, Allowance, Part
from ray_jobs.report import text
from ray_jobs.results import schema
from ray_jobs.statistics import Verdict

FAST = "torchscript"
TRIAL = made_trial(variants=(BASELINE, CONTROL, FAST), cold=True)
SECONDS = st.floats(0.001, 100)


def starts(*whole_s: float, **more: Any) -> Starts:
    """Of both states of a new process; half of each is the import."""
    made = tuple(Start(s / 2, s / 8, s / 4, s / 8) for s in whole_s)
    return Starts(
        {State.EMPTY: tuple(replace(one, prepare_s=one.prepare_s + 1) for one in made), State.CACHED: made}, **more
    )


def rows(found: Cold, fast_ms: float = 5.0) -> dict[str, Row]:
    launches = [
        made_launch({BASELINE: 10.0, CONTROL: 10.0, FAST: fast_ms * (1 + 0.001 * (-1) ** i)}, i) for i in range(10)
    ]
    return {row.variant: row for row in rows_of(TRIAL, Place(), Status.DONE, None, launches, cold=found)}


# Columns


def test_columns_are_the_medians_of_six_starts_between_the_least_and_the_most() -> None:
    row = rows(Cold({FAST: starts(2.0, 2.4, 2.1, 2.2, 1.9, 2.3)}))[FAST]
    assert row.to_first_reply_s_cached == pytest.approx(2.15)
    assert (row.to_first_reply_s_cached_low, row.to_first_reply_s_cached_high) == pytest.approx((1.9, 2.4))
    assert row.to_first_reply_s_empty == pytest.approx(3.15)
    assert row.import_s_cached == pytest.approx(2.15 / 2)
    assert row.load_s_cached == pytest.approx(2.15 / 8)
    assert row.prepare_cold_s_empty == pytest.approx(2.15 / 4 + 1)
    assert row.first_reply_ms_cached == pytest.approx(1e3 * 2.15 / 8)
    assert row.to_first_reply_s_warm is None, "there was no start of this state"


def test_five_starts_have_a_median_and_no_interval() -> None:
    row = rows(Cold({FAST: starts(2.0, 2.4, 2.1, 2.2, 1.9)}))[FAST]
    assert row.to_first_reply_s_cached == pytest.approx(2.1)
    assert row.to_first_reply_s_cached_low is row.to_first_reply_s_cached_high is row.pays_after_cached is None


def test_without_cold_starts_every_column_is_null() -> None:
    named = [name for name in Row.__slots__ if "_s_" in name or name.startswith(("pays_after", "artifact", "weights"))]
    assert len(named) == 3 * 6 + 2 + 6
    assert {getattr(row, name) for row in rows(Cold()).values() for name in named} == {None}


def test_a_start_pays_for_itself_after_what_it_costs_more_over_what_a_reply_saves() -> None:
    found = rows(Cold({BASELINE: starts(*[2.0] * 6), FAST: starts(*[3.0] * 6)}))
    saving_s = 0.010 * (1 - 1 / (found[FAST].speedup or 0))  # the baseline's median has an interval of no width
    assert found[FAST].pays_after_cached == pytest.approx(1.0 / saving_s)
    assert found[FAST].pays_after_empty == pytest.approx(1.0 / saving_s)
    assert (found[FAST].pays_after_cached_low or 0) < 1.0 / saving_s < (found[FAST].pays_after_cached_high or 0)
    assert found[BASELINE].pays_after_cached is found[CONTROL].pays_after_cached is None


def test_what_is_not_faster_beyond_doubt_never_pays_for_itself() -> None:
    found = rows(Cold({BASELINE: starts(*[2.0] * 6), FAST: starts(*[3.0] * 6)}), fast_ms=12.0)
    assert found[FAST].verdict == Verdict.SLOWER
    assert found[FAST].pays_after_cached is None
    assert text.pays(found[FAST], State.CACHED) == "slower"


@given(st.lists(SECONDS, min_size=6, max_size=6), st.lists(SECONDS, min_size=6, max_size=6), st.floats(1.05, 20))
def test_limits_hold_whatever_starts_and_speedup_are_within_theirs(
    mine: list[float], base: list[float], x: float
) -> None:
    low, high = x * 0.97, x * 1.03
    row = {"verdict": Verdict.FASTER, "speedup": x, "speedup_low": low, "speedup_high": high}
    cell = {"p50_ms": 10.0, "p50_low_ms": 9.5, "p50_high_ms": 11.0, **columns_of.columns(starts(*base))}
    told = columns_of.pays_after({**row, **columns_of.columns(starts(*mine))}, cell)
    for a in (min(mine), float(np.median(mine)), max(mine)):
        for b in (min(base), float(np.median(base)), max(base)):
            for s, p50_s in itertools.product((low, x, high), (0.0095, 0.010, 0.011)):
                replies = max(0.0, (a - b) / (p50_s * (1 - 1 / s)))
                least, most = told["pays_after_cached_low"], told["pays_after_cached_high"]
                assert least * (1 - 1e-9) <= replies <= most * (1 + 1e-9)


def test_a_row_says_why_it_has_no_start_or_too_few() -> None:
    found = rows(Cold({FAST: starts(*[2.0] * 6)}, {BASELINE: "it broke", FAST: "3 of 6 starts fitted"}))
    assert "its cold start is not known: it broke" in found[BASELINE].warnings
    assert "cold start: 3 of 6 starts fitted" in found[FAST].warnings
    assert found[CONTROL].warnings == ()


def test_a_table_says_how_much_was_not_cold() -> None:
    mostly, hardly = (
        starts(*[2.0] * 6, loaded_mb=600.0, kept_mb=480.0),
        starts(*[2.0] * 6, loaded_mb=600.0, kept_mb=6.0),
    )
    found = rows(Cold({BASELINE: mostly, FAST: hardly}))
    assert (found[BASELINE].kept_share, found[FAST].kept_share) == (0.8, 0.01)
    (note,) = text.start_notes(list(found.values()))
    assert note.startswith("1% to 80% of what a start reads stayed in memory")
    assert text.start_notes([found[FAST], found[CONTROL]]) == []


def test_what_is_invalid_has_no_start() -> None:
    launches = [made_launch(dict.fromkeys(TRIAL.variants, 10.0), i) for i in range(10)]
    launches = [replace(one, facts={**one.facts, FAST: replace(one.facts[FAST], invalid="odd")}) for one in launches]
    found = rows_of(TRIAL, Place(), Status.DONE, None, launches, cold=Cold({FAST: starts(*[2.0] * 6)}))
    assert found[-1].verdict == Verdict.INVALID
    assert found[-1].to_first_reply_s_cached is None


def test_a_record_is_read_back_as_it_was_and_with_fields_of_later_versions() -> None:
    found = Cold({FAST: starts(*[2.0] * 6, artifact_mb=1.5, weights_mb=20.0)}, {BASELINE: "no time"})
    record = json.loads(json.dumps(asdict(found)))
    assert cold_of(record) == found
    record["of"][FAST]["of"][State.CACHED][0]["later"] = 1
    record["of"][FAST]["later"] = 1
    assert cold_of(record) == found
    assert cold_of({}) == Cold()


def test_the_table_says_the_same_in_the_order_of_the_quickest() -> None:
    slow, quick = starts(3.0, 3.1, 3.2, 3.3, 3.4, 3.5), starts(1.0, 1.1, 1.2, 1.3, 1.4, 1.5, artifact_mb=1234.5)
    found = text.started(list(rows(Cold({BASELINE: slow, FAST: quick})).values()))
    assert [row.variant for row in found] == [FAST, BASELINE]
    told = text.start_cells(found[0])
    assert told["cached s"] == "1.2 (1.0 to 1.5)"
    assert told["warm s"] == "-"
    assert told["on disk MB"] == "1,234.5"
    assert told["pays after, cached"] == "at once"


# The page cache


def on_disk(path: Path) -> bool:
    """Whether the folder's file system has files elsewhere than in memory."""
    said = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return said.stdout.strip() not in ("tmpfs", "ramfs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Eight megabytes that were written and read."""
    if not on_disk(tmp_path):
        pytest.skip("temporary files lie in memory here, which they can't leave")
    path = tmp_path / "weights"
    with path.open("wb") as out:
        out.write(os.urandom(8_000_000))
        out.flush()
        os.fsync(out.fileno())
    assert len(path.read_bytes()) == 8_000_000
    return path


@pytest.mark.process
def test_a_file_leaves_the_page_cache(file: Path) -> None:
    with file.open("rb") as opened:
        assert page_cache._resident(opened.fileno(), 8_000_000) == 8_000_000
        assert drop([str(file), str(file)]) == Dropped(8_000_000, 0)
        assert page_cache._resident(opened.fileno(), 8_000_000) == 0


@pytest.mark.process
def test_what_another_mapping_has_touched_stays_and_is_counted(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert len(bytes(view)) == 8_000_000
        assert str(file) in mapped_files()
        assert drop([str(file)]).kept == 8_000_000
    assert drop([str(file)]).kept == 0


def test_files_that_are_gone_or_empty_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert drop([str(tmp_path / "gone"), str(tmp_path / "empty"), str(tmp_path)]) == Dropped(0, 0)


# Real starts


INPUTS = Inputs(Preset("tiny"), {4: prompts(10)})


class Asking:
    """Runs the work at once, and remembers what it was of; its clock stands still."""

    def __init__(self, outcome: Callable[[Any], Any] = lambda work: work()) -> None:
        self.asked: list[Any] = []
        self._outcome = outcome

    def __call__(self, work: Any, timeout_s: float) -> Any:
        self.asked.append(work.args[0])
        return self._outcome(work)


def found_by(ask: Asking, names: Sequence[str], seconds: float = 60.0, ticks: Iterator[float] | None = None) -> Cold:
    trial = replace(TRIAL, variants=tuple(dict.fromkeys((*TRIAL.variants, *names))))
    clock = (lambda: 0.0) if ticks is None else lambda: next(ticks)
    *alive, told = cold(trial, INPUTS, names, ask, Allowance(seconds, clock))
    assert all(isinstance(one, Alive) and one.part == Part.COLD for one in alive)
    assert isinstance(told, Cold)
    return told


@pytest.mark.process
def test_what_a_start_compiles_the_next_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.process.cold.STARTS", 1)
    before = os.sched_getaffinity(0)
    ask = Asking()
    found = found_by(ask, [BASELINE, "native"])
    assert os.sched_getaffinity(0) == before
    assert found.lost == {}
    assert len(ask.asked) == 2 * 3
    native, eager = found.of["native"], found.of[BASELINE]
    (empty,), (cached,), (warm,) = (native.of[state] for state in State)
    assert empty.prepare_s > 3 * cached.prepare_s, "the compiler ran in the empty state alone"
    assert warm.import_s == 0
    assert warm.to_first_reply_s < 0.5 * cached.to_first_reply_s, "the interpreter and PyTorch start in a new one alone"
    assert (native.artifact_mb or 0) > (eager.artifact_mb or 0) == 0, "a preset has no file of weights"
    assert eager.weights_mb == native.weights_mb
    assert native.loaded_mb > 10, "PyTorch's libraries"
    assert {asked.model["name"] for asked in ask.asked} == {"tiny"}
    folders = {asked.cache for asked in ask.asked}
    assert len(folders) == 2 * 2, "one kept and one empty for each"
    assert not any(Path(folder).exists() for folder in folders)


@pytest.mark.process
def test_weights_are_read_from_a_file_that_leaves_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that come as a file in memory, as the workers of a cluster have them."""
    monkeypatch.setattr("ray_jobs.process.cold.STARTS", 1)
    content = CheckpointBytes(checkpoint.SHIPPED.read_bytes())
    with content.as_file() as in_memory:
        ask = Asking()
        workload = replace(TRIAL.workload, model="small")
        inputs = Inputs(in_memory, INPUTS.prompts)
        *_, found = cold(replace(TRIAL, workload=workload), inputs, [BASELINE], ask, Allowance(60.0, lambda: 0.0))
    assert isinstance(found, Cold)
    assert found.lost == {}
    size_mb = len(content.content) / 1e6
    assert found.of[BASELINE].artifact_mb == pytest.approx(size_mb)
    (weights,) = {asked.model["path"] for asked in ask.asked}
    assert [weights in asked.forgotten for asked in ask.asked].count(True) == 1
    assert not weights.startswith("/proc/")
    assert found.of[BASELINE].loaded_mb > size_mb


def test_a_cache_that_can_not_be_costs_the_starts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str = "") -> Path:
        raise cache.CacheError("it is mounted noexec")

    monkeypatch.setattr(cache, "folder", refuse)
    assert found_by(Asking(), [BASELINE, FAST]) == Cold(lost=dict.fromkeys((BASELINE, FAST), "it is mounted noexec"))


@pytest.mark.process
def test_folders_of_processes_that_were_killed_are_removed() -> None:
    gone, alive = (cache.folder() / f"{prefix()}{pid}-x" for pid in (2**22 + 1, os.getpid()))
    elsewhere = cache.folder() / f"cold-0-0-{2**22 + 1}-x"
    for place in (gone, alive, elsewhere):
        place.mkdir(mode=0o700, exist_ok=True)
    try:
        found_by(Asking(lambda work: told_of(work.args[0])), [BASELINE])
        assert not gone.exists()
        assert alive.exists()
        assert elsewhere.exists(), "of another machine that shares the cache"
    finally:
        alive.rmdir()
        elsewhere.rmdir()
    assert not list(cache.folder().glob(f"{prefix()}{os.getpid()}-*"))


@pytest.mark.process
def test_a_start_that_fails_costs_its_variant_and_says_why() -> None:
    ask = Asking(lambda work: run_start(replace(work.args[0], variant="no.such:VARIANT")))
    found = found_by(ask, [FAST])
    assert found.of == {}
    assert "no.such" in found.lost[FAST]
    assert len(ask.asked) == 1


def told_of(asked: Any, seconds: float = 2.0) -> Any:
    made = Start(seconds / 2, 0.0, seconds / 2, 0.0)
    return Told(made, replace(made, import_s=0.0), ("/lib/one.so",), 1000, Dropped(100, 0))


def test_every_variant_starts_six_times_in_each_state_in_an_order_drawn_anew() -> None:
    ask = Asking(lambda work: told_of(work.args[0]))
    found = found_by(ask, [BASELINE, FAST])
    assert found.lost == {}
    assert {len(made) for one in found.of.values() for made in one.of.values()} == {STARTS}
    rounds = np.array([(one.variant, bool(one.forgotten)) for one in ask.asked[2:]], dtype=object).reshape(STARTS, 4, 2)
    assert all(len({tuple(unit) for unit in units}) == 4 for units in rounds)
    assert len({tuple(map(tuple, units)) for units in rounds}) > 1
    assert all(one.forgotten in ((), ("/lib/one.so",)) for one in ask.asked)


def test_where_the_time_ends_fewer_starts_are_told_with_the_reason() -> None:
    ticks = iter(range(1000))
    found = found_by(Asking(lambda work: told_of(work.args[0])), [BASELINE, FAST], 40.0, map(float, ticks))
    counts = {len(made) for one in found.of.values() for made in one.of.values()}
    assert max(counts) < STARTS
    assert all("starts fitted in 40 s; give a larger --budget" in reason for reason in found.lost.values())


def test_a_start_that_hangs_costs_its_variant() -> None:
    late = Loss(LossKind.LATE, "it did not finish in its time and was ended")
    found = found_by(
        Asking(lambda work: late if work.args[0].variant == FAST else told_of(work.args[0])), [BASELINE, FAST]
    )
    assert found.lost == {FAST: "a start did not end within 60 s; give a larger --budget"}
    assert set(found.of) == {BASELINE}


def test_a_start_that_the_end_of_the_time_cuts_off_takes_nothing_from_those_before() -> None:
    late = Loss(LossKind.LATE, "it did not finish in its time and was ended")
    now = [0.0]

    def answer(work: Any) -> Any:
        now[0] += 7.0
        return late if now[0] > 60 else told_of(work.args[0])

    ask = Asking(answer)
    *_, found = cold(TRIAL, INPUTS, [BASELINE, FAST], ask, Allowance(60.0, lambda: now[0]))
    assert isinstance(found, Cold)
    assert {reason.partition(" ")[2] for reason in found.lost.values()} == {
        "of 6 starts fitted in 60 s; give a larger --budget"
    }
    assert sum(len(made) for one in found.of.values() for state, made in one.of.items() if state != State.WARM) == 6


def test_the_median_of_so_many_starts_has_an_interval() -> None:
    least = next(n for n in range(2, 20) if 2 * 0.5**n <= 0.05)
    assert least == figures.STARTS == STARTS
    assert schema.known(Start, asdict(Start(1.0, 2.0, 3.0, 4.0))).to_first_reply_s == math.fsum((1, 2, 3, 4))
