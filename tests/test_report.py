"""The report: its sentences, its arithmetic, and what it makes of runs of every kind."""

import csv
import io
import itertools
import json
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from decisions import decision
from hypothesis import assume, given
from hypothesis import strategies as st
from launches import enter, made_launch
from reports import GONE, HOSTILE, INVALID, LONG, MARGIN, TROUBLED, Case, made_run, made_view, many_rows
from typer.testing import CliRunner

from chatbot.variants import BASELINE, CONTROL, VARIANTS, Workload
from ray_jobs.cli.app import app
from ray_jobs.matrix.rows import COLUMNS, Row
from ray_jobs.measure.result import VariantFacts
from ray_jobs.report import text, write
from ray_jobs.report.cold_start import break_even, starts
from ray_jobs.report.compact import compact
from ray_jobs.report.facts import facts_of
from ray_jobs.report.heatmap import heatmap_of, step
from ray_jobs.report.page import page, spec_toml
from ray_jobs.report.scales import WIDTH, Scale
from ray_jobs.report.sentences import sentence
from ray_jobs.report.series import trial_series
from ray_jobs.report.summary import summarize
from ray_jobs.report.tables import as_csv, as_json, markdown
from ray_jobs.report.view import RunView, load
from ray_jobs.report.write import draw, draw_or_say
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import read_spec

RESULTS = Path(__file__).resolve().parent.parent / "results"
SAME, NEARLY = "Fastest with the same replies", "Fastest approximate one"


def row(**known: object) -> Row:
    shared = {"run_id": "r", "trial_id": "t", "station": "workbench-7:cpu", "host": "workbench-7", "device": "cpu"}
    sizes = {"model": "small", "batch": 1, "prompt_tokens": 8, "reply_tokens": 10, "threads": 1}
    told = {"device_name": "AMD EPYC", "variant": "torchscript", "baseline": "eager", "exact": True}
    return Row(**{**shared, **sizes, **told, **known})  # type: ignore[arg-type]


class Text(HTMLParser):
    """A page as a reader without pictures has it; notes what a page must not have."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.parts += [value or "" for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        if self.lasttag not in ("style", "script"):
            self.parts.append(data)

    @property
    def all(self) -> str:
        return " ".join("".join(self.parts).split())


# Sentences


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (
            {
                "verdict": "faster",
                "speedup": 1.0801,
                "speedup_low": 1.07,
                "speedup_high": 1.09,
                "identical_replies": 1.0,
            },
            "On cpu AMD EPYC, torchscript answers 1.080x as fast as eager (1.070 to 1.090); all replies the same.",
        ),
        (
            {
                "verdict": "slower",
                "speedup": 0.8,
                "speedup_low": 0.79,
                "speedup_high": 0.81,
                "identical_replies": 0.99999,
            },
            "On cpu AMD EPYC, torchscript answers 0.800x as fast as eager (0.790 to 0.810); "
            "99.99% of the replies the same.",
        ),
        (
            {"verdict": "same", "speedup": 1.001, "speedup_low": 0.99, "speedup_high": 1.01, "identical_replies": 1.0},
            "On cpu AMD EPYC, torchscript is as fast as eager, within 2%: 1.001x (0.990 to 1.010); "
            "all replies the same.",
        ),
        (
            {"verdict": "inconclusive", "speedup": 1.05, "speedup_low": 0.9, "speedup_high": 1.2},
            "On cpu AMD EPYC, torchscript vs eager: undecided, 1.05x (0.90 to 1.20); replies were not compared.",
        ),
        (
            {"verdict": "inconclusive", "identical_replies": 1.0},
            "On cpu AMD EPYC, torchscript vs eager: undecided, there is no interval; all replies the same.",
        ),
        (
            {"verdict": "invalid", "reason": "it is eager"},
            "On cpu AMD EPYC, torchscript is invalid and has no speedup: it is eager.",
        ),
        ({"status": "failed", "reason": "it died"}, "On cpu AMD EPYC, torchscript failed: it died."),
        (
            {"status": "skipped", "reason": "no GPU", "device": "cuda", "device_name": None},
            "On cuda, torchscript was skipped: no GPU.",
        ),
        (
            {
                "verdict": "faster",
                "speedup": 2.0,
                "identical_replies": 1.0,
                "status": "failed",
                "reason": "its node went",
            },
            "On cpu AMD EPYC, torchscript answers 2.000x as fast as eager; all replies the same; "
            "the trial failed: its node went.",
        ),
        (
            {"variant": "eager", "verdict": "baseline", "p50_ms": 12.34},
            "On cpu AMD EPYC, eager answers in 12.3 ms; it is the baseline.",
        ),
    ],
)
def test_a_cell_in_words(known: dict[str, object], said: str) -> None:
    assert sentence(row(**known), MARGIN) == said


@given(st.floats(1e-3, 1e4), st.floats(1e-5, 0.5), st.floats(0, 0.5))
def test_a_figure_has_as_many_digits_as_half_of_the_half_width_and_no_more(
    value: float, up: float, down: float
) -> None:
    low, high = value * (1 - down), value * (1 + up)
    assume(high - low > 4e-4)
    shown = text.estimated(value, low, high, text.ratio, apart=1)
    numbers = [float(one) for one in re.findall(r"\d+\.?\d*", shown)]
    assert numbers == pytest.approx([value, low, high], abs=(high - low) / 8 + 1e-9)
    places = len(shown.partition(" ")[0].partition(".")[2])
    one_less = 10.0 ** (1 - places)
    near_one = any(limit != 1 and round(limit, places - 1) == 1 for limit in (low, high))
    assert places == 0 or near_one or one_less > (high - low) / 4, "one digit less would be too few"
    assert (low == 1) == (numbers[1] == 1) or places == text.MOST_DECIMALS, "what is not 1 does not look like it"


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        ((1.2251, 1.2149, 1.2353), "1.225 (1.215 to 1.235)"),
        ((20.886, 20.597, 21.178), "20.9 (20.6 to 21.2)"),
        ((0.9942, 0.9861, 1.0028), "0.994 (0.986 to 1.003)"),
        ((1234.4, 1201.0, 1266.0), "1234 (1201 to 1266)"),
        ((1.03, 1.004, 1.056), "1.030 (1.004 to 1.056)"),
        ((1.5, 1.5, 1.5), "1.500 (1.500 to 1.500)"),
        ((1.5, None, None), "1.500"),
        ((None, None, None), "-"),
    ],
)
def test_figures_with_their_limits(estimate: tuple[float | None, float | None, float | None], shown: str) -> None:
    assert text.estimated(*estimate, text.ratio, apart=1) == shown


def test_milliseconds_may_be_rounded_to_one() -> None:
    assert text.p50(row(p50_ms=1.0307, p50_low_ms=1.0001, p50_high_ms=1.0569)) == "1.03 (1.00 to 1.06)"


def test_rows_are_ranked_the_fastest_first_and_exact_ones_before_the_approximate() -> None:
    made = [
        row(variant="eager", verdict="baseline", p50_ms=10.0, speedup=1.0, exact=True),
        row(variant="slow", verdict="slower", p50_ms=20.0, speedup=0.5, exact=True),
        row(variant="int8", verdict="faster", p50_ms=1.0, speedup=10.0, exact=False),
        row(variant="bf16", verdict="faster", p50_ms=5.0, speedup=2.0, exact=False),
        row(variant="odd", verdict="invalid", p50_ms=0.1, exact=True),
        row(variant="quick", verdict="faster", p50_ms=2.0, speedup=5.0, exact=True),
        row(variant="gone", status="skipped", exact=True),
    ]
    found = [one.variant for one in text.ranked(made)]
    assert found[:6] == ["quick", "eager", "slow", "int8", "bf16", "odd"]
    assert found[6:] == ["gone"]
    sided = [replace(one, side="base") for one in made]
    assert text.ranked(sided) == sided, "each side has the same order"


def test_variants_of_many_trials_are_ranked_by_the_median_of_their_speeds() -> None:
    def trial(number: int, **speedups: float | None) -> list[Row]:
        return [
            row(variant=name, trial_id=f"t{number}", p50_ms=speed, speedup=speed, exact=not name.startswith("near"))
            for name, speed in speedups.items()
        ]

    rows = [
        *trial(1, one=3.0, two=2.0, eager=1.0, gone=None, near=None),
        *trial(2, two=4.0, eager=1.0, one=0.5, gone=None, near=9.0),
        *trial(3, eager=1.0, one=2.5, two=2.9, gone=None, near=None),
    ]
    assert text.ranked_variants(rows) == ["two", "one", "eager", "near", "gone"]
    assert text.ranked_variants([replace(one, side="base") for one in rows])[:2] == ["one", "two"]


def test_one_trial_is_told_by_its_fastest_variant_and_what_must_be_known_of_it() -> None:
    told = summarize([made_view([Case()])])
    said = r"torchscript answers 1\.25\dx as fast as eager \(1\.24\d to 1\.25\d\); all replies the same\."
    assert re.fullmatch(f"On cpu AMD EPYC, {said}", told.headline)
    facts = {fact.question: fact for fact in told.facts}
    assert (facts[SAME].answer, facts[SAME].more) == ("torchscript", "8.00 ms, eager 10.0 ms")
    assert "6 fresh launches; ±1.0% requested" in facts["How sure"].more
    assert "against itself" in facts["The tool's own error"].more
    assert facts["Failed, skipped, invalid"].answer == "nothing"
    assert not any(fact.alarming for fact in told.facts)


def test_many_trials_are_counted_and_trouble_is_named() -> None:
    told = summarize([made_view(TROUBLED)])
    assert told.headline.startswith("torchscript is faster than eager in 2 of 5 trials (1.2")
    assert "slower in 1 (0.80" in told.headline
    assert "undecided in 1" in told.headline
    assert told.headline.endswith("invalid in 1; all replies the same where it is valid.")
    assert "On cuda, nothing was measured: skipped, no GPU." in told.sentences
    assert any("8 threads, nothing was measured: failed, the station was busy" in one for one in told.sentences)
    assert any(one.startswith("But 1 trial of 5 came with warnings") for one in told.sentences)
    facts = {fact.question: fact for fact in told.facts}
    assert facts["Failed, skipped, invalid"].answer == "2 failed, 2 skipped, 1 invalid"
    assert facts["The tool's own error"].answer == "1 of 5 called different"
    assert "; chance explains up to 1; " in facts["The tool's own error"].more
    assert not facts["The tool's own error"].alarming
    assert facts[SAME].more == "in 2 of 5 measured trials"


def test_a_disturbed_machine_is_told_on_the_first_screen() -> None:
    told = summarize([made_view([Case(disturbed=(1, 2, 5))])])
    assert any(one.startswith("But 38% of the rounds were disturbed: the hypervisor") for one in told.sentences)


def test_that_precision_was_not_reached_is_among_the_facts_and_not_the_doubts() -> None:
    view = made_view([Case(noise=0.2)])
    assert all(any("precision not reached" in text for text in row.warnings) for row in view.rows[1:])
    told = summarize([view])
    assert not any(one.startswith("But") for one in told.sentences)
    assert "±1.0% requested" in {fact.question: fact for fact in told.facts}["How sure"].more


def test_nothing_measured_is_said_so() -> None:
    told = summarize([made_view([TROUBLED[5]])])
    assert told.headline == "Nothing was measured."
    assert told.sentences == ("cuda: skipped, no GPU",)
    assert told.facts[0].answer == "no variant beyond doubt"
    assert told.facts[2].answer == "unknown"


def test_a_control_alone_is_never_the_fastest() -> None:
    told = summarize([made_view([Case({BASELINE: 10.0, CONTROL: 8.0})])])
    assert told.facts[0].answer == "no variant beyond doubt"
    assert told.facts[2].alarming
    assert "distrust" in told.facts[2].more


@pytest.mark.parametrize(("trials", "most"), [(1, 0), (2, 1), (5, 1), (20, 3), (100, 9)])
def test_as_many_controls_may_differ_as_chance_makes(trials: int, most: int) -> None:
    """An interval misses 1 in 20 trials; a report is red where so many or more do in fewer than 1 of 20 reports."""
    view = made_view([Case()])
    control = next(row for row in view.rows if row.variant == CONTROL)
    for wrong in (most, most + 1):
        verdicts = ["faster"] * wrong + ["same"] * (trials - wrong)
        rows = [replace(control, trial_id=f"t{i}", verdict=verdict) for i, verdict in enumerate(verdicts[:trials])]
        (fact,) = [one for one in facts_of([replace(view, rows=tuple(rows))]) if one.question == "The tool's own error"]
        assert fact.alarming == (wrong > most), fact
        assert scipy.stats.binomtest(wrong, trials, 0.05, "greater").pvalue < 0.05 + 1e-9 or not fact.alarming
        if trials > 1:
            assert f"chance explains up to {most}; " in fact.more


# Which is fastest


def only(view: RunView, *names: str) -> RunView:
    """As if these had been the only variants."""
    return replace(view, rows=tuple(row for row in view.rows if row.variant in (BASELINE, CONTROL, *names)))


def said(*views: RunView) -> dict[str, tuple[str, str]]:
    return {fact.question: (fact.answer, fact.more) for fact in summarize(views).facts}


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Two variants that differ by less than launches scatter, and an approximate one that beats them."""
    enter(monkeypatch, "twin", VARIANTS["torchscript"].prepare)
    return {BASELINE: 10.0, CONTROL: 7.0, "torchscript": 8.0, "twin": 7.999, "int8": 2.0}


def test_two_that_are_not_told_apart_are_not_set_above_each_other_in_a_committed_run() -> None:
    view = load(RunDirectory.existing(str(RESULTS / "variants-tutorial")))
    two = only(view, "torchscript", "torchscript-frozen")
    assert said(two)[SAME][0] == "torchscript-frozen (indistinguishable from torchscript)"
    folded = Text(page([two] * 4)).all
    assert folded.count("all replies the same. It is indistinguishable from torchscript.") == 4
    assert said(only(view, "torchscript", "torchscript-optimized"))[SAME][0] == "torchscript-optimized"
    assert said(only(view, "torchscript", "compile"))[SAME][0] == "torchscript"


def test_exact_variants_are_told_before_approximate_ones_of_a_committed_run() -> None:
    view = load(RunDirectory.existing(str(RESULTS / "variants-tutorial")))
    found = said(view)
    assert found[SAME] == ("native", "4.60 ms, eager 33.4 ms")
    assert found[NEARLY] == ("native-int8", "1.61 ms, eager 33.4 ms; 99.80% of the replies the same")
    assert "native answers 7.28x" in summarize([view]).headline


def test_neither_control_nor_invalid_nor_approximate_competes_with_the_exact(rivals: dict[str, float]) -> None:
    facts = {"int8": VariantFacts(replies=100, identical=93)}
    found = said(made_view([Case(rivals, facts=facts)]))
    assert found[SAME] == ("twin (indistinguishable from torchscript)", "8.00 ms, eager 10.0 ms")
    assert found[NEARLY] == ("int8", "2.00 ms, eager 10.0 ms; 93.00% of the replies the same")
    found = said(
        made_view([Case(rivals, facts={name: VariantFacts(invalid="it is eager") for name in ("twin", "int8")})])
    )
    assert found[SAME][0] == "torchscript"
    assert NEARLY not in found


def test_an_exact_winner_whose_replies_differ_in_ties_says_so() -> None:
    view = made_view([Case(facts={"torchscript": VariantFacts(replies=100, identical=99)})])
    assert said(view)[SAME][1] == "8.00 ms, eager 10.0 ms; 99.00% of the replies the same, the rest differ in ties only"


def test_where_samples_were_not_read_nothing_is_said_to_be_compared(rivals: dict[str, float]) -> None:
    unread = replace(made_view([Case(rivals)]), series={})
    assert said(unread)[SAME] == ("twin", "8.00 ms, eager 10.0 ms; not compared with the others")
    assert said(replace(made_view([Case()]), series={}))[SAME] == ("torchscript", "8.00 ms, eager 10.0 ms")


def test_over_many_trials_it_is_told_how_often_others_were_as_fast(rivals: dict[str, float]) -> None:
    clear = {**rivals, "twin": 6.0}
    cases = [Case(rivals), Case(clear, Workload(batch=16)), Case(clear, Workload(threads=2))]
    view = made_view(cases)
    assert said(view)[SAME] == ("twin", "in 3 of 3 measured trials, indistinguishable from others in 1")
    half = replace(view, series=dict(list(view.series.items())[:2]))
    told = "in 3 of 3 measured trials, indistinguishable from others in 1, not compared with the others in 1"
    assert said(half)[SAME] == ("twin", told)
    assert said(view, made_view(cases, run="again"))[SAME][1].startswith("in 6 of 6 measured trials, indistinguishable")


def test_faster_alone_but_not_as_the_best_of_many_is_no_variant_beyond_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster by 2.5 standard errors or so: beyond doubt for one comparison, not for the best of eight."""
    names = [f"twin-{i}" for i in range(7)]
    for name in names:
        enter(monkeypatch, name, VARIANTS["torchscript"].prepare)
    ms = {BASELINE: 10.0, CONTROL: 10.0, "torchscript": 9.35, **dict.fromkeys(names, 10.0)}
    view = made_view([Case(ms, noise=0.04)])
    assert next(row for row in view.rows if row.variant == "torchscript").verdict == "faster"
    more = "none is faster than its baseline with confidence, once it is picked as the best of several"
    assert said(view)[SAME] == ("no variant beyond doubt", more)
    assert said(only(view, "torchscript"))[SAME][0] == "torchscript"


# Cold start


def test_the_break_even_is_what_is_lost_over_what_is_won() -> None:
    assert break_even(100.0, 2.0) == 50
    assert break_even(101.0, 2.0) == 51
    assert break_even(-5.0, 2.0) == 0
    assert break_even(100.0, 0.0) is None
    assert break_even(100.0, -1.0) is None


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e3))
def test_after_the_break_even_the_total_is_no_longer_greater(extra: float, gain: float) -> None:
    calls = break_even(extra, gain)
    assert calls is not None
    assert calls * gain >= extra * (1 - 1e-12)
    assert (calls - 1) * gain < extra


def test_a_slow_start_is_weighed_against_the_gain() -> None:
    """By hand: 499 ms of preparing more, and 4 ms saved of 20: 124.75 calls."""
    ms = {BASELINE: 20.0, CONTROL: 20.0, "torchscript": 16.0}
    facts = {"torchscript": VariantFacts(prepare_s=0.999, replies=24, identical=24)}
    view = made_view([Case(ms, facts=facts, noise=1e-9)])
    found = {one.variant: one for one in starts(view.rows, None)}
    assert found["torchscript"].pays_after == "after 125 calls (125 to 125)"
    assert (found["torchscript"].prepare_ms, found["torchscript"].slow_start_ms) == (999.0, None)
    assert found[BASELINE].pays_after == "the baseline"
    assert found[CONTROL].pays_after == "not shown to be faster"
    drawn = {one.variant: one for one in starts(view.rows, next(iter(view.series.values())))}
    # tests/launches.py makes the one warm-up call of each variant a thousand times as long as its others.
    assert drawn["torchscript"].slow_start_ms == pytest.approx(999 * 16.0, rel=1e-3)
    assert drawn["torchscript"].pays_after == "from the first call", "the baseline starts more slowly still"
    slower = made_view([Case({BASELINE: 20.0, CONTROL: 20.0, "torchscript": 30.0})])
    assert starts(slower.rows, None)[2].pays_after == "never: slower"
    assert starts(made_view([TROUBLED[5]]).rows, None) == []


# Drawings


def test_discarded_turns_are_drawn_and_their_calls_are_not_counted() -> None:
    view = made_view([Case(disturbed=(1, 5))])
    (series,) = view.series.values()
    eager = series.variants[0]
    assert len(eager.turn_ms) == 6 * 8
    assert eager.discarded.sum() == 6 * 2
    assert len(eager.calls_ms) == 6 * 6 * 3
    assert [span.index for span in series.launches] == list(range(6))
    assert all(span.discarded_rounds == 2 for span in series.launches)
    assert series.on_one_clock
    assert [span.end_s for span in series.launches] == pytest.approx([1000.0 * (i + 1) for i in range(6)])
    assert np.all(np.diff(eager.turn_s) > 0)


def test_launches_without_a_clock_stand_one_after_the_other() -> None:
    series = trial_series([made_launch({BASELINE: 5.0, CONTROL: 5.0}, index) for index in range(3)])
    assert not series.on_one_clock
    spans = [(span.start_s, span.end_s) for span in series.launches]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_variant_that_some_launches_lack_is_drawn_of_the_others() -> None:
    series = trial_series([made_launch({BASELINE: 5.0, "a": 4.0}), made_launch({BASELINE: 5.0}, 1)])
    assert [(one.variant, len(one.turn_ms)) for one in series.variants] == [(BASELINE, 40), ("a", 20)]


@given(st.floats(1e-3, 1e5), st.floats(1.0001, 1e6), st.sampled_from([None, True, False]))
def test_a_scale_holds_what_it_is_made_for(low: float, times: float, log: bool | None) -> None:
    scale = Scale.over(low, low * times, log)
    places = scale.places(np.array([low, low * times]))
    assert 0 <= places[0] < places[1] <= WIDTH
    assert scale.at(low / 1e9) == pytest.approx(0, abs=1e-6)
    assert scale.at(low * times * 1e9) == pytest.approx(WIDTH)
    for place, label in scale.ticks():
        assert 0 <= place <= 100
        assert scale.at(float(label)) / WIDTH * 100 == pytest.approx(place, abs=1.0)
    assert len(scale.ticks()) <= 13


def test_colours_grow_with_the_speedup_and_only_beyond_doubt() -> None:
    found = [step(row(verdict="faster" if x > 1 else "slower", speedup=x)) for x in (1.05, 1.2, 2.0, 5.0, 0.95, 0.1)]
    assert found == ["up1", "up2", "up3", "up4", "down1", "down4"]
    assert step(row(verdict="inconclusive", speedup=2.0)) == step(row(verdict="same", speedup=1.01)) == ""


def test_the_matrix_tells_where_by_what_varies() -> None:
    found = heatmap_of([made_view([Case(), Case(workload=Workload(batch=16))])])
    assert [line.head for line in found.rows] == ["batch 1", "batch 16"]
    assert found.shared == "cpu AMD EPYC, model small, prompt 8, reply 10, threads 1"
    (alone,) = heatmap_of([made_view([Case()])]).rows
    assert (alone.head, alone.more) == ("cpu AMD EPYC", "workbench-7:cpu")
    assert [name for name, *_ in found.variants] == ["torchscript", BASELINE, CONTROL], "the fastest first"


def test_many_variants_of_few_trials_are_the_rows_of_the_matrix() -> None:
    ms = {
        BASELINE: 10.0,
        CONTROL: 10.0,
        "torchscript": 8.0,
        "compile": 5.0,
        "onnx": 4.0,
        "native": 2.0,
        "bf16": 6.0,
        "int8": 1.0,
    }
    view = made_view([Case(ms=ms)])
    found = heatmap_of([view])
    assert found.turned
    assert (found.columns, found.wide) == (1, False)
    order = [name for name, *_ in found.variants]
    assert order[:3] == ["native", "onnx", "compile"]
    assert order[-2:] == ["int8", "bf16"], "approximate ones are no ranking with the others"
    html = page([view])
    assert (
        html.index('<th scope="col">Variant</th>')
        < html.index('<th scope="row">native')
        < html.index('<th scope="row">onnx')
    )
    assert not heatmap_of([made_view([Case()])]).turned
    many = [Case(ms=ms, station=f"node-{n}:cpu") for n in range(9)]
    assert not heatmap_of([made_view(many)]).turned, "there are more trials than variants"


def test_the_first_screen_names_what_starts_soonest_and_what_needs_least_memory() -> None:
    view = made_view([Case()])
    cost = {BASELINE: (2.0, 300.0), "torchscript": (2.2, 303.0), CONTROL: (0.1, 1.0)}

    def with_costs(one: Row) -> Row:
        start_s, mb = cost[one.variant]
        return replace(
            one,
            peak_memory_mb=mb,
            to_first_reply_s_cached=start_s,
            to_first_reply_s_cached_low=start_s - 0.15,
            to_first_reply_s_cached_high=start_s + 0.15,
        )

    facts = {fact.question: fact for fact in facts_of([replace(view, rows=tuple(map(with_costs, view.rows)))])}
    soonest, smallest = facts["Quickest to start"], facts["Smallest in memory"]
    assert (soonest.answer, soonest.more) == (
        "eager (indistinguishable from torchscript)",
        "2.00 (1.85 to 2.15) s to the first reply",
    )
    assert smallest.answer == "eager (indistinguishable from torchscript)"
    assert smallest.more == "300 MB at its peak, Python included"
    cost["torchscript"] = (1.0, 200.0)
    facts = {fact.question: fact for fact in facts_of([replace(view, rows=tuple(map(with_costs, view.rows)))])}
    assert facts["Quickest to start"].answer == facts["Smallest in memory"].answer == "torchscript"
    assert facts["Smallest in memory"].more.endswith(", eager 300 MB")
    assert "Quickest to start" not in {fact.question for fact in facts_of([view])}
    assert "Smallest in memory" not in {
        fact.question for fact in facts_of([made_view([Case(), Case(station="b:cpu")])])
    }


def test_where_starts_have_no_intervals_the_first_screen_names_none_the_quickest() -> None:
    view = made_view([Case()])
    seconds = {BASELINE: 2.0, "torchscript": 1.0}
    rows = tuple(replace(one, to_first_reply_s_cached=seconds.get(one.variant)) for one in view.rows)
    facts = {fact.question: fact for fact in facts_of([replace(view, rows=rows)])}
    assert facts["Quickest to start"].answer == "not told apart"
    assert facts["Quickest to start"].more.endswith("from torchscript 1.00 s to eager 2.00 s")


def test_a_place_that_all_sentences_share_is_named_once() -> None:
    more = {BASELINE: 10.0, CONTROL: 10.0, "torchscript": 8.0, "compile": 5.0}
    told = summarize([made_view([Case(more)])])
    assert told.headline.startswith("On cpu AMD EPYC, compile answers 2.0")
    assert told.sentences[0].startswith("torchscript answers 1.25")


def test_what_only_one_variant_is_warned_of_names_it() -> None:
    view = made_view([Case({BASELINE: 10.0, CONTROL: 10.0, "torchscript": 8.0, "compile": 5.0})])
    rows = tuple(replace(one, warnings=("it is old",) * (one.variant == "compile")) for one in view.rows)
    assert summarize([replace(view, rows=rows)]).sentences[-1] == "But compile: it is old."


def test_of_many_trials_exact_variants_are_told_before_approximate_ones() -> None:
    told = summarize([decision(variants=17, stations=2)])
    assert told.headline.startswith("native is faster than eager in 2 of 2 trials (18.")
    assert not any("int8" in one for one in told.sentences)


def test_ends_of_a_range_have_as_many_digits_as_the_less_sure_one() -> None:
    view = made_view([Case(), Case({BASELINE: 10.0, CONTROL: 10.0, "torchscript": 5.0}, noise=0.05)])
    sure, unsure = (text.times(one) for one in view.rows if one.variant == "torchscript")
    assert len(unsure) < len(sure)
    low, high = re.findall(r"[\d.]+x", summarize([view]).headline)
    assert (len(low), high) == (len(unsure), unsure)


def test_the_matrix_says_once_what_its_one_station_is_and_which_variants_are_approximate() -> None:
    found = heatmap_of([decision(variants=17)])
    assert found.shared == "model small, batch 1, prompt 8, reply 10, threads 1"
    roles = {name: role for name, _, role in found.variants}
    assert roles["native-int8"] == roles["bf16"] == "approximate"
    assert roles["native"] == ""


def test_intervals_of_many_stations_are_folded_behind_the_means_of_their_classes() -> None:
    html = page([decision(variants=3, stations=12)])
    assert "Each station by itself" in html
    assert html.index("mean of 3 stations, AMD EPYC 7B13") < html.index("Each station by itself")
    assert "Each station by itself" not in page([decision(variants=3, stations=4)])


def test_several_runs_stand_beneath_each_other_where_they_measured_the_same() -> None:
    cases = [Case(), Case(workload=Workload(batch=16))]
    views = [made_view(cases, run="before"), made_view(cases, run="after")]
    assert [(line.head, line.run) for line in heatmap_of(views).rows] == [
        ("batch 1", "before"),
        ("batch 1", "after"),
        ("batch 16", "before"),
        ("batch 16", "after"),
    ]
    told = summarize(views)
    assert told.headline == "2 runs side by side"
    assert told.sentences[0].startswith("before: torchscript is faster than eager in 2 of 2 trials")
    text = Text(page(views)).all
    assert "before, workbench-7:cpu" in text
    assert "after, workbench-7:cpu" in text


# The page


def figures_of(rows: Sequence[Row]) -> list[str]:
    shown = [text.latency(row) for row in rows] + [text.speedup_cell(row) for row in rows]
    return [figure for figure in shown if figure != text.DASH]


def test_variants_that_lack_something_do_not_skip_their_trial() -> None:
    shown = Text(page([load(RunDirectory.existing(str(RESULTS / "variants-tutorial")))]))
    assert "2 variants skipped" in shown.all
    assert "1 skipped" not in shown.all


@pytest.mark.parametrize("run", ["make-matrix", "seed", "variants-tutorial"])
def test_a_committed_run_is_shown_with_all_its_figures(run: str) -> None:
    view = load(RunDirectory.existing(str(RESULTS / run)))
    shown = Text(page([view]))
    for figure in figures_of(view.rows):
        assert figure in shown.all
    for warning in (one for row in view.rows for one in row.warnings):
        assert warning in shown.all
    assert view.run["environment"]["driver"]["git_commit"] in shown.all
    assert " ".join(view.run["command"]) in shown.all
    assert all(address.startswith(("#", "data:")) for address in shown.addresses), "nothing is fetched"
    assert shown.tags.count("script") == 1


def test_trouble_of_every_kind_is_told_with_its_reason() -> None:
    text = Text(page([made_view(TROUBLED, {"torchscript": LONG})])).all
    for said in (INVALID, GONE, "no GPU", "the station was busy for 600 s", "undecided", "skipped", "failed", LONG):
        assert said in text
    assert "12 rounds discarded: something else" in text
    assert "distrust this trial" in text


def test_an_invalid_variant_has_no_latency_anywhere() -> None:
    text = Text(page([made_view([replace(TROUBLED[1], ms={BASELINE: 10.0, CONTROL: 10.0, "torchscript": 3.456})])])).all
    assert INVALID in text
    assert "10.0" in text
    assert "3.4" not in text


def test_hostile_names_are_shown_and_do_nothing() -> None:
    cases = [Case(station=f"{HOSTILE}:cpu", device_name=HOSTILE, status="failed", reason=HOSTILE, facts={})]
    view = made_view(cases, {"torchscript": HOSTILE}, run=HOSTILE)
    view = replace(view, run={**view.run, "command": [HOSTILE], "environment": {"stations": {HOSTILE: {"x": HOSTILE}}}})
    shown = Text(page([view]))
    assert shown.tags.count("script") == 1, "only our own"
    assert "img" not in shown.tags
    assert HOSTILE in shown.all
    text = markdown([view])
    assert "<script" not in text.replace("\\<script", "")
    assert all(line.count("|") - line.count("\\|") == 6 for line in text.splitlines() if line.startswith("| "))


def test_five_hundred_rows_are_a_page_of_few_megabytes() -> None:
    with many_rows() as cases:
        view = made_view(cases)
    assert len(view.rows) == 500
    html = page([view])
    assert len(html) < 3_000_000
    assert html.count('<td class="') >= 500
    text = Text(html).all
    assert "int8 is faster than eager in 100 of 100 trials (" in text
    assert "mean of 5 stations" in text


def test_ten_thousand_trials_are_counted_and_the_first_are_shown() -> None:
    (one, *others) = made_view([Case()]).rows
    places = [(f"t{i}", f"node-{i}:cpu") for i in range(10_000)]
    rows = tuple(
        replace(row, trial_id=trial, station=station, hardware=None)
        for trial, station in places
        for row in (one, *others)
    )
    html = page([replace(made_view([Case()]), rows=rows, classes=())])
    text = Text(html).all
    assert "torchscript is faster than eager in 10,000 of 10,000 trials" in text
    assert "9,500 other trials not shown here" in text
    assert "node-499:cpu" in text
    assert "node-500:cpu" not in text
    assert len(html) < 3_000_000


def test_columns_of_the_limit_are_there_where_something_is_known() -> None:
    view = made_view([Case()])
    assert "Of limit" not in Text(page([view])).all
    rows = tuple(replace(row, limit_ms=2.5, of_limit=0.312, bound="memory") for row in view.rows)
    rows = (*rows[:2], replace(rows[2], bound_why="memory-bound: 29.7 MB a step at 20 GB/s"), *rows[3:])
    text = Text(page([replace(view, rows=rows)])).all
    assert "Of limit" in text
    assert "31.2%" in text
    assert "memory-bound: 29.7 MB a step at 20 GB/s" in text
    assert "memory: memory-bound" not in text, "it is said once"


def test_heads_of_columns_begin_alike_and_percentiles_are_written_as_everywhere() -> None:
    text = Text(page([decision(variants=3, cold=True)])).all
    assert "p50 ms (95%)Speedup (95%)" in text
    assert "Empty cache sCached s" in text
    assert "P50" not in text


def test_the_spec_in_the_page_is_a_spec(tmp_path: Path) -> None:
    asked = json.loads((RESULTS / "seed/run.json").read_text())["spec"]
    (tmp_path / "spec.toml").write_text(spec_toml(asked))
    read = read_spec(tmp_path / "spec.toml", {})
    assert {key: value for key, value in json.loads(read.model_dump_json()).items() if key in asked} == asked
    assert tomllib.loads(spec_toml({"a": None, "b": [1]})) == {"b": [1]}


# Reading and writing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A small finished run on disk. Read only."""
    return made_run(tmp_path_factory.mktemp("results") / "small", [TROUBLED[3], TROUBLED[5]])


def copy(run: RunDirectory, to: Path) -> RunDirectory:
    assert run.local_path is not None
    shutil.copytree(run.local_path, to)
    return RunDirectory.existing(str(to))


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", *arguments])
    if done.exit_code == 2:
        return 2, done.stderr.removeprefix("ray_jobs: ").strip()
    return done.exit_code, done.stdout


def test_a_run_is_read_as_it_was_written(run: RunDirectory) -> None:
    view, made = load(run), made_view([TROUBLED[3], TROUBLED[5]], run="small")
    assert view.rows == made.rows
    assert list(view.series) == list(made.series)
    read, kept = (next(iter(one.series.values())) for one in (view, made))
    assert read.launches == kept.launches
    assert np.array_equal(read.variants[2].turn_ms, kept.variants[2].turn_ms)
    assert [asdict(one) for one in view.classes] == [asdict(one) for one in made.classes]


def test_only_so_many_trials_are_drawn_and_the_page_says_so(tmp_path: Path) -> None:
    view = load(made_run(tmp_path / "three", [Case(count=2), Case(count=2), Case(count=2)]), most_drawn=2)
    assert len(view.series) == 2
    assert Text(page([view])).all.count("Samples not drawn") == 1


def test_columns_of_a_later_version_are_no_hindrance(run: RunDirectory, tmp_path: Path) -> None:
    later = copy(run, tmp_path / "later")
    rows = json.loads(later.read("matrix.json"))
    later.write_json("matrix.json", [{**one, "bound_why": "by the memory", "unheard_of": 1} for one in rows])
    assert load(later).rows[0].bound_why == "by the memory"
    assert "by the memory" in Text(page([load(later)])).all


def test_a_run_that_was_cut_off_is_refused_with_the_next_step(run: RunDirectory, tmp_path: Path) -> None:
    half = copy(run, tmp_path / "half")
    (tmp_path / "half/matrix.json").unlink()
    code, said = invoke(half.shown)
    assert code == 2
    assert "is not a finished run" in said
    assert f"--resume {half.shown}" in said
    assert "\n" not in said


def test_one_run_gets_its_page_beside_its_samples(run: RunDirectory, tmp_path: Path) -> None:
    mine = copy(run, tmp_path / "mine")
    assert invoke(mine.shown) == (0, f"{mine.shown}: report.html\n")
    assert (tmp_path / "mine/report.html").read_text() == page([load(mine)])


def test_several_runs_get_one_page_that_links_to_their_traces(run: RunDirectory, tmp_path: Path) -> None:
    one, two = copy(run, tmp_path / "a/one"), copy(run, tmp_path / "b/two")
    (tmp_path / "a/one/traces").mkdir()
    trace = {"file": "eager x.json.gz", "title": "<b>eager</b>", "variant": "eager", "kind": "chrome"}
    one.write_json("traces/index.json", [{**trace, "trial_id": load(one).rows[0].trial_id}])
    assert "traces/eager%20x.json.gz" in Text(page([load(one)])).addresses
    out = tmp_path / "c/both.html"
    out.parent.mkdir()
    assert invoke(one.shown, two.shown, "--out", str(out)) == (0, f"{out}\n")
    shown = Text(out.read_text())
    assert "../a/one/traces/eager%20x.json.gz" in shown.addresses
    assert "<b>eager</b>" in shown.all
    assert invoke(one.shown, two.shown, "--out", str(tmp_path / "nowhere/x.html"))[0] == 2


def test_tables_hold_every_row(run: RunDirectory) -> None:
    code, text = invoke(run.shown, "--format", "csv")
    read = list(csv.DictReader(io.StringIO(text)))
    rows = json.loads(run.read("matrix.json"))
    assert code == 0
    assert list(read[0]) == list(COLUMNS)
    assert [(one["variant"], one["status"], one["verdict"]) for one in read] == [
        (one["variant"], one["status"], one["verdict"] or "") for one in rows
    ]
    assert float(read[2]["speedup"]) == rows[2]["speedup"]
    assert read[-1]["p50_ms"] == "", "what is unknown is empty"
    assert json.loads(invoke(run.shown, "--format", "json")[1]) == rows
    code, text = invoke(run.shown, "--format", "markdown")
    for figure in figures_of(load(run).rows):
        assert figure in text
    assert "skipped: no GPU" in text


def test_an_unknown_format_is_refused_with_the_valid_ones(run: RunDirectory) -> None:
    assert invoke(run.shown, "--format", "pdf") == (
        2,
        "unknown format 'pdf'; choose from: html, markdown, csv, json",
    )


def test_a_page_that_can_not_be_drawn_costs_nothing_but_a_line(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Sequence[RunView]) -> str:
        raise ZeroDivisionError("in a chart\nand more")

    mine = copy(run, tmp_path / "mine")
    monkeypatch.setattr(write, "page", broken)
    draw_or_say(mine)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "report: ZeroDivisionError: in a chart; the run is complete without it, "
        f"try again with: python -m ray_jobs report {mine.shown}"
    ]
    assert not mine.holds("report.html")


def test_a_run_in_a_store_has_its_page_there(run: RunDirectory, tmp_path: Path) -> None:
    copy(run, tmp_path / "stored")
    directory = RunDirectory.existing(f"file://{tmp_path}/stored")
    draw(directory)
    assert directory.holds("report.html")


def test_a_compacted_run_has_a_page_that_names_no_machine(run: RunDirectory, tmp_path: Path) -> None:
    named = copy(run, tmp_path / "named")
    draw(named)
    assert b"workbench-7" in named.read("report.html")
    small = RunDirectory.named(str(tmp_path), "small")
    compact(named, small)
    html = small.read("report.html").decode()
    assert "workbench-7" not in html
    assert str(tmp_path) not in html
    assert "host-1:cpu" in html


def test_every_format_can_be_made_of_one_row() -> None:
    alone = made_view([Case({BASELINE: 10.0}, count=1, noise=0.0)])
    assert len(alone.rows) == 1
    assert "eager answers in 10.0 ms" in Text(page([alone])).all
    assert as_csv([alone]).count("\n") == 2
    assert len(json.loads(as_json([alone]))) == 1
    assert "| eager | 10.0 |" in markdown([alone])


def test_the_headline_says_what_its_variant_is_not_told_apart_from() -> None:
    told = summarize([decision(variants=17)])
    assert told.headline.endswith("; all replies the same; indistinguishable from persistent.")
    assert "indistinguishable" not in told.sentences[0]
