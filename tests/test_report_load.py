"""How trials under load are shown: words and figures, the terminal, the page and its charts, tables, W&B."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import BROWSER, Browser
from launches import made_launch
from reports import HOSTILE, LONG, MARGIN, Case, made_view, run_json
from rich.console import Console

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.driver.run import write_matrix
from ray_jobs.load.points import Point
from ray_jobs.matrix.rows import COLUMNS, Row
from ray_jobs.report import under_load, view
from ray_jobs.report.charts import Chart
from ray_jobs.report.load_charts import beats, front, latencies_over_load
from ray_jobs.report.load_facts import best_of, load_sentence, rivals_of
from ray_jobs.report.page import page
from ray_jobs.report.scales import WIDTH
from ray_jobs.report.summary import summarize
from ray_jobs.report.tables import as_csv, as_json, markdown
from ray_jobs.report.terminal import print_matrix
from ray_jobs.report.view import RunView, load
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.wandb_sink.content import distributions_of, speedups_of, summary_of, table_cells

MOST, PER_SECOND = "Most calls within the bound", "Most calls a second"
NONE_HELD = "it holds the bound at no rate that was tried: p99 is 80 ms at 3 calls a second"
NO_MORE = "no exact variant answers more than eager beyond doubt"
INVALID = "its replies differ from the baseline's in 31 of 63"


def row(variant: str, rps: float | None = None, ratio: float | None = None, **known: object) -> Row:
    """A row under load, its intervals 5% to both sides."""
    shared = {"run_id": "r", "station": "workbench-7:cpu", "host": "workbench-7", "device": "cpu"}
    sizes = {"model": "small", "batch": 1, "prompt_tokens": 8, "reply_tokens": 10, "threads": 1}
    told = {"trial_id": "server", "device_name": "AMD EPYC", "baseline": BASELINE, "exact": True, "launches": 10}
    asked = {"scenario": "server", "slo": "p99=50ms", "replicas": 1, "replica_kind": "process", "max_batch": 1}
    figures = {"samples": 5000, "compared_replies": 5000, "identical_replies": 1.0}
    for name, value in (("capacity_rps", rps), ("capacity_ratio", ratio)):
        if value is not None:
            figures |= {name: value, f"{name}_low": 0.95 * value, f"{name}_high": 1.05 * value}
    return Row(variant=variant, **{**shared, **sizes, **told, **asked, **figures, **known})  # type: ignore[arg-type]


def trial(scale: float = 1.0, **known: object) -> tuple[Row, ...]:
    """A trial of five variants: two that are not told apart, and an approximate one that answers the most."""
    made = (
        row(BASELINE, 200 * scale, 1.0, capacity_verdict="baseline"),
        row(CONTROL, 202 * scale, 1.01, capacity_verdict="same"),
        row("onnx", 405 * scale, 2.02, capacity_verdict="faster"),
        row("native", 412 * scale, 2.06, capacity_verdict="faster"),
        row("int8", 900 * scale, 4.5, capacity_verdict="faster", exact=False, identical_replies=0.99),
    )
    made = (replace(made[0], capacity_ratio_low=None, capacity_ratio_high=None), *made[1:])
    return tuple(replace(one, **known) for one in made)  # type: ignore[arg-type]


def offline(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(replace(one, scenario="offline", slo=None, trial_id="offline") for one in rows)


TWICE, FOUR = trial(1.9, replicas=2, trial_id="server-x2"), trial(2.0, replicas=4, trial_id="server-x4")
SKIPPED = tuple(
    replace(row(one.variant), samples=None, trial_id="gone", status="skipped", reason="4 replicas need 5 cores")
    for one in trial()
)


def point(variant: str, rate: float, p50_ms: float = 5.0, **known: object) -> Point:
    told = {"round": 0, "offered_rps": rate, "answered_rps": rate, "bound_ms": 3 * p50_ms}
    return Point(variant=variant, **{**told, "p50_ms": p50_ms, "abandoned": False, "kept": True, **known})  # type: ignore[arg-type]


def windows(scale: float = 1.0) -> tuple[Point, ...]:
    """Of each variant: four windows that it holds, one that is discarded, one that is given up."""
    most = {BASELINE: 200.0, CONTROL: 202.0, "onnx": 405.0, "native": 412.0, "int8": 900.0}
    return tuple(
        one
        for name, rps in most.items()
        for one in (
            *(point(name, scale * rps * share, 2 + 12 * share**4) for share in (0.25, 0.5, 0.75, 0.98)),
            point(name, scale * rps * 0.6, 40.0, kept=False),
            point(name, scale * rps * 1.2, 600.0, bound_ms=150.0, abandoned=True),
        )
    )


def made(*trials: Sequence[Row], points: Sequence[Point] = (), cases: Sequence[Case] = ()) -> RunView:
    """A run of these trials under load, and of latencies if there are cases."""
    run = {"spec": {"precision": 0.01, "margin": MARGIN}}
    base = made_view(cases) if cases else RunView("made", run, (), MARGIN, ())
    rows = tuple(one for rows in trials for one in rows)
    return replace(base, load_rows=rows, points={one.trial_id: tuple(points) for one in rows})


def changed(rows: Sequence[Row], name: str, /, **known: object) -> tuple[Row, ...]:
    return tuple(replace(one, **known) if one.variant == name else one for one in rows)  # type: ignore[arg-type]


def nowhere(rows: Sequence[Row], variant: str) -> tuple[Row, ...]:
    """The variant holds the bound at no rate."""
    nothing = dict.fromkeys(name for name in COLUMNS if name.startswith("capacity_"))
    return changed(rows, variant, **{**nothing, "capacity_rps": 0.0}, warnings=(NONE_HELD,))


def invalid(rows: Sequence[Row], variant: str) -> tuple[Row, ...]:
    return changed(rows, variant, verdict="invalid", reason=INVALID, capacity_ratio=None, capacity_verdict=None)


# Words and figures


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "server, 1 replica of 1 thread, p99 at most 50 ms"),
        ({"replicas": 4, "threads": 2}, "server, 4 replicas of 2 threads, a process each, p99 at most 50 ms"),
        (
            {"replicas": 2, "replica_kind": "thread", "slo": "p99.9=500us"},
            "server, 2 replicas of 1 thread, in one process, p99.9 at most 500 us",
        ),
        ({"scenario": "offline", "slo": None}, "offline, 1 replica of 1 thread"),
        ({"through": "serve"}, "server, 1 replica of 1 thread, behind Ray Serve, p99 at most 50 ms"),
        ({"max_batch": 8}, "server, 1 replica of 1 thread, up to 8 requests at once, p99 at most 50 ms"),
    ],
)
def test_a_title_tells_how_requests_come_and_who_answers(known: dict[str, object], said: str) -> None:
    sizes = "model small, batch 1, prompt 8 tokens, reply 10 tokens"
    assert under_load.title(row("native", **known)) == f"{said} on cpu AMD EPYC (workbench-7:cpu): {sizes}"  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "said"), [(8.5e-5, "85 us"), (0.05, "50 ms"), (0.0125, "12.5 ms"), (2.0, "2 s")])
def test_a_time_is_told_in_the_unit_that_suits_it(seconds: float, said: str) -> None:
    assert under_load.duration(seconds) == said


def test_a_row_has_its_calls_a_second_their_ratio_and_what_that_means() -> None:
    shown = {cells["variant"]: list(cells.values())[1:] for cells in under_load.table(trial(), MARGIN)}
    assert shown == {
        "eager": ["200 (190 to 210)", "-", "baseline", "100%"],
        "eager-again": ["202 (192 to 212)", "1.01 (0.96 to 1.06)", "same ±2%", "100%"],
        "onnx": ["405 (385 to 425)", "2.02 (1.92 to 2.12)", "more", "100%"],
        "native": ["412 (391 to 433)", "2.06 (1.96 to 2.16)", "more", "100%"],
        "int8": ["900 (855 to 945)", "4.5 (4.3 to 4.7)", "more", "99.00%"],
    }


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        (changed(trial(), "onnx", capacity_verdict="slower"), ["405 (385 to 425)", "2.02 (1.92 to 2.12)", "fewer"]),
        (
            changed(trial(), "onnx", capacity_verdict="inconclusive"),
            ["405 (385 to 425)", "2.02 (1.92 to 2.12)", "undecided"],
        ),
        (invalid(trial(), "onnx"), ["-", "-", "invalid"]),
        (nowhere(trial(), "onnx"), ["none", "-", "at no rate"]),
        (changed(nowhere(trial(), "onnx"), "onnx", capacity_rps=None), ["-", "-", "undecided"]),
        (changed(SKIPPED, "onnx"), ["-", "-", "skipped"]),
        (changed(SKIPPED, "onnx", status="failed"), ["-", "-", "failed"]),
    ],
)
def test_a_row_without_figures_says_why(rows: Sequence[Row], shown: list[str]) -> None:
    (found,) = [cells for cells in under_load.table(rows, MARGIN) if cells["variant"] == "onnx"]
    assert list(found.values())[1:4] == shown


def test_that_no_rate_held_the_bound_is_told_from_what_was_not_found() -> None:
    assert under_load.at_no_rate(replace(row("native"), capacity_rps=0.0))
    assert not under_load.at_no_rate(replace(row("native"), capacity_rps=None))
    assert not under_load.at_no_rate(replace(row("native"), capacity_rps=0.0, verdict="invalid"))


def test_costs_are_a_column_where_one_is_known_with_the_interval_of_the_calls() -> None:
    assert under_load.COST not in under_load.table(trial(), MARGIN)[0]
    priced = changed(trial(), "native", cost_per_million=0.2, capacity_rps_low=400.0, capacity_rps_high=440.0)
    shown = {cells["variant"]: cells[under_load.COST] for cells in under_load.table(priced, MARGIN)}
    assert shown == {**dict.fromkeys(shown, "-"), "native": "0.200 (0.187 to 0.206)"}


def test_rows_are_ranked_by_calls_a_second_and_exact_ones_before_the_approximate() -> None:
    rows = invalid(nowhere((*trial(), *SKIPPED[:1], row("quick", 2000.0, 10.0)), "onnx"), "quick")
    found = [(one.variant, one.status) for one in under_load.ranked(rows)]
    names = ["native", "eager-again", "eager", "onnx", "int8"]
    assert found[:5] == [(name, "done") for name in names]
    assert set(found[5:]) == {("quick", "done"), ("eager", "skipped")}


def test_notes_tell_reasons_once_and_what_windows_are_left_out() -> None:
    rows = tuple(replace(one, discarded_rounds=3, generator_late_p99_us=84.6) for one in trial())
    told = under_load.notes(invalid(nowhere(rows, "onnx"), "int8"))
    assert told == [
        f"onnx: {NONE_HELD}",
        f"int8: invalid: {INVALID}",
        "3 rounds discarded: something else was using the machine; requests were sent up to 84.6 us late (p99)",
    ]
    assert under_load.notes(trial()) == []
    (line,) = under_load.notes([replace(one, discarded_rounds=1) for one in offline(trial())])
    assert line == "1 round discarded: something else was using the machine"


# The best of a trial


def test_the_best_is_exact_beyond_doubt_and_neither_the_control_nor_invalid() -> None:
    best = best_of(trial(), exact=True)
    assert best is not None
    assert best.variant == "native"
    assert rivals_of(best, trial()) == ["onnx"]
    other = best_of(trial(), exact=False)
    assert other is not None
    assert (other.variant, rivals_of(other, trial())) == ("int8", [])
    doubtful = changed(changed(trial(), "native", capacity_verdict="inconclusive"), CONTROL, capacity_verdict="faster")
    assert (found := best_of(doubtful, exact=True)) is not None
    assert found.variant == "onnx"
    assert rivals_of(found, doubtful) == ["native"], "it may be as good all the same"
    assert best_of(invalid(invalid(trial(), "native"), "onnx"), exact=True) is None


def test_what_holds_the_bound_where_the_baseline_never_does_has_more() -> None:
    rows = nowhere(trial(), BASELINE)
    rows = tuple(replace(one, capacity_ratio=None, capacity_verdict="inconclusive") for one in rows)
    best = best_of(rows, exact=True)
    assert best is not None
    assert (best.variant, rivals_of(best, rows)) == ("native", ["onnx"])
    apart = changed(rows, "onnx", capacity_rps=300.0, capacity_rps_low=290.0, capacity_rps_high=310.0)
    assert rivals_of(best, apart) == []
    assert load_sentence(rows).endswith(
        "native answers 412 calls a second within the bound, which eager does at no rate; all replies the same."
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            trial(),
            "native answers 412 calls a second within the bound, 2.06 times as many as eager (1.96 to 2.16); "
            "all replies the same.",
        ),
        (
            offline(trial()),
            "native answers 412 calls a second, 2.06 times as many as eager (1.96 to 2.16); all replies the same.",
        ),
        (trial()[:2], f"{NO_MORE}; eager answers 200 calls a second within the bound."),
        (nowhere(trial()[:2], BASELINE), f"{NO_MORE}; eager holds the bound at no rate."),
        (SKIPPED, "nothing was measured: skipped, 4 replicas need 5 cores."),
        (
            changed(
                nowhere(trial()[:1], BASELINE),
                BASELINE,
                capacity_rps=None,
                warnings=("too few requests for a p99",),
            ),
            "no variant's calls a second were found: too few requests for a p99.",
        ),
    ],
)
def test_a_trial_in_a_sentence(rows: Sequence[Row], said: str) -> None:
    way = (
        "offline, 1 replica of 1 thread" if rows[0].slo is None else "server, 1 replica of 1 thread, p99 at most 50 ms"
    )
    assert load_sentence(rows) == f"Under load on cpu AMD EPYC ({way}), {said}"


# The first screen


def facts_of(*views: RunView) -> dict[str, tuple[str, str]]:
    return {fact.question: (fact.answer, fact.more) for fact in summarize(views).facts}


def test_the_best_variant_is_a_fact_with_those_like_it_and_the_approximate_apart() -> None:
    answer, more = facts_of(made(trial()))[MOST]
    assert answer == "native (indistinguishable from onnx)"
    assert more == "412 (391 to 433) calls/s, 2.06x eager's; int8, approximate, 900 (855 to 945)"
    assert facts_of(made(offline(trial())))[PER_SECOND] == (answer, more)
    both = facts_of(made(trial(), offline(trial(3.0))))
    assert (both[MOST][1].split()[0], both[PER_SECOND][1].split()[0]) == ("412", "1236")


def test_of_several_numbers_of_replicas_the_one_with_the_most_calls_is_named() -> None:
    answer, more = facts_of(made(trial(), TWICE, FOUR))[MOST]
    assert answer == "native (indistinguishable from onnx)"
    assert "824 (783 to 865) calls/s, 2.06x eager's, with 4 replicas of 1 thread, a process each; int8" in more


def test_of_several_workloads_the_winners_are_counted() -> None:
    big = tuple(replace(one, batch=16, trial_id="big") for one in changed(trial(), "onnx", capacity_rps=500.0))
    other = tuple(replace(one, batch=4, trial_id="other") for one in trial())
    assert facts_of(made(trial(), big, other))[MOST] == ("native", "in 2 of 3 workloads under load")


def test_where_none_has_more_beyond_doubt_the_fact_says_so() -> None:
    doubtful = tuple(replace(one, capacity_verdict="inconclusive") for one in trial() if one.exact)
    assert facts_of(made(doubtful))[MOST] == ("no variant beyond doubt", "none answers more than eager with confidence")


def test_the_cheapest_is_a_fact_where_prices_are_known() -> None:
    assert "Cheapest" not in facts_of(made(trial()))
    prices = {BASELINE: 0.4, CONTROL: 0.1, "onnx": 0.21, "native": 0.2, "int8": 0.09}
    priced = [replace(one, cost_per_million=prices[one.variant]) for one in trial()]
    assert facts_of(made(priced))["Cheapest"] == (
        "native (indistinguishable from onnx)",
        "0.200 (0.190 to 0.211) per million replies; eager 0.40 (0.38 to 0.42); "
        "int8, approximate, 0.090 (0.086 to 0.095)",
    )
    apart = changed(priced, "onnx", cost_per_million=0.3)
    assert facts_of(made(apart))["Cheapest"][0] == "native"
    other = [replace(one, batch=16, trial_id="big") for one in priced]
    assert "Cheapest" not in facts_of(made(priced, other)), "a call of another batch is another thing"


def test_a_run_under_load_alone_has_a_whole_first_screen() -> None:
    told = summarize([made(trial())])
    assert told.headline == load_sentence(trial())
    facts = {fact.question: fact for fact in told.facts}
    assert list(facts) == [MOST, "How sure", "The tool's own error", "Failed, skipped, invalid"]
    assert facts["How sure"].answer == "±5.0%"
    assert facts["How sure"].more == "at 95%, the median of 3 ratios; ±1.0% requested; 0 undecided"
    assert facts["The tool's own error"].answer == "1.01 (0.96 to 1.06)"
    assert (facts["Failed, skipped, invalid"].answer, facts["Failed, skipped, invalid"].more) == (
        "nothing",
        "the trial is done",
    )
    assert not any(fact.alarming for fact in told.facts)


def test_a_control_that_differs_under_load_is_told() -> None:
    rows = changed(
        trial(), CONTROL, capacity_ratio=1.2, capacity_ratio_low=1.1, capacity_ratio_high=1.3, capacity_verdict="faster"
    )
    facts = {fact.question: fact for fact in summarize([made(rows)]).facts}
    assert facts["The tool's own error"].alarming
    assert "distrust this trial" in facts["The tool's own error"].more


def test_latencies_come_first_and_what_load_says_after_them() -> None:
    told = summarize([made(trial(), cases=[Case()])])
    assert told.headline.startswith("On cpu AMD EPYC, torchscript answers 1.25")
    assert load_sentence(trial()) in told.sentences
    facts = {fact.question: fact for fact in told.facts}
    assert facts["Fastest with the same replies"].answer == "torchscript"
    assert facts[MOST].answer.startswith("native")
    assert facts["The tool's own error"].answer == "0 of 2 called different"
    assert facts["Failed, skipped, invalid"].more == "all 2 trials are done"


def test_trouble_under_load_is_counted_with_the_other() -> None:
    failed = tuple(replace(one, status="failed", reason="it hung", trial_id="hung") for one in SKIPPED)
    told = summarize([made(invalid(trial(), "onnx"), SKIPPED, failed, cases=[Case()])])
    (trouble,) = [fact for fact in told.facts if fact.question == "Failed, skipped, invalid"]
    assert trouble.answer == "1 failed, 1 skipped, 1 invalid"
    assert trouble.more.startswith("of 4 trials: ")
    assert trouble.alarming


def test_warnings_under_load_are_doubts_but_for_what_a_sentence_says() -> None:
    rows = changed(nowhere(trial(), "onnx"), "native", warnings=("the machine was loud",))
    told = summarize([made(rows)])
    assert [one for one in told.sentences if one.startswith("But")] == ["But the machine was loud."]


def test_many_trials_under_load_are_told_by_the_first() -> None:
    many = [trial(trial_id=f"t{number}", batch=number) for number in range(1, 6)]
    told = summarize([made(*many)])
    assert [one.startswith("Under load on") for one in (told.headline, *told.sentences)] == [True] * 3 + [False]
    assert told.sentences[-1] == "2 other trials under load are below."


# The terminal and the tables


def printed(rows: Sequence[Row], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True, force_jupyter=False)
    print_matrix(rows, MARGIN, console)
    return console.export_text().splitlines()


def test_the_terminal_shows_trials_under_load_after_the_others() -> None:
    latencies = made_view([Case()]).rows
    lines = printed([*trial(), *latencies, *SKIPPED], 100)
    titles = [line for line in lines if "model small" in line]
    assert [title.split()[0] for title in titles] == ["cpu", "server,", "server,"]
    table = lines[lines.index(under_load.title(trial()[0])) :]
    assert [line.split()[0] for line in table if "100%" in line or "99.00%" in line] == [
        *("native", "onnx", "eager-again", "eager", "int8")
    ]
    assert lines[-1] == "  skipped: 4 replicas need 5 cores"


@pytest.mark.parametrize("width", [20, 40, 60, 79, 120])
def test_on_no_terminal_is_a_figure_lost(width: int) -> None:
    rows = changed(nowhere(trial(), "onnx"), "native", cost_per_million=0.2, variant=LONG)
    text = " ".join(" ".join(printed(rows, width)).split())
    for figure in (*("412", "391", "433"), *("2.06", "1.96", "2.16"), "more", "none", "0.200", NONE_HELD):
        assert figure in text
    assert LONG in text.replace(" ", "")


def test_eighty_columns_hold_the_table() -> None:
    lines = printed(trial(), 80)
    assert any(line.startswith("variant ") and "calls/s (95%)" in line for line in lines)


def test_markdown_has_a_section_for_each_trial_under_load() -> None:
    rows = invalid(nowhere(trial(), "onnx"), "int8")
    text = markdown([made(rows, TWICE, SKIPPED, cases=[Case()])])
    assert text.index("### cpu AMD EPYC") < text.index("### server, 1 replica") < text.index("### server, 2 replicas")
    assert "| native | 412 (391 to 433) | 2.06 (1.96 to 2.16) | more | 100% |" in text
    assert "| onnx | none | - | at no rate | 100% |" in text
    assert f"- onnx: {NONE_HELD}" in text.replace("\\", "")
    assert "skipped: 4 replicas need 5 cores" in text
    head = next(line for line in text.splitlines() if "calls/s" in line and line.startswith("|"))
    assert text.splitlines()[text.splitlines().index(head) + 1] == "|---|---:|---:|---|---:|"


def test_csv_and_json_hold_the_rows_of_both_kinds() -> None:
    both = made(trial(), SKIPPED, cases=[Case()])
    read = list(csv.DictReader(io.StringIO(as_csv([both]))))
    assert [(one["trial_id"], one["variant"]) for one in read] == [
        (one.trial_id, one.variant) for one in both.every_row
    ]
    assert len(read) == 3 + 5 + 5
    assert (read[6]["p50_ms"], read[6]["capacity_rps"], read[0]["capacity_rps"]) == ("", "412.0", "")
    assert json.loads(as_json([both])) == [{**asdict(one), "warnings": list(one.warnings)} for one in both.every_row]


# Reading a run


def test_a_run_is_read_with_its_windows_in_the_order_of_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, latencies = trial(trial_id="server"), made_view([Case(count=0)]).rows
    directory = RunDirectory.named(str(tmp_path), "loaded")
    with directory.created():
        for index in (1, 0):
            directory.add_launch("server", to_table("server", made_launch({BASELINE: 5.0}, index)))
        write_matrix(directory, [*rows, *latencies], MARGIN)
        directory.write_json("run.json", run_json("loaded", [Case(count=0)]))
    monkeypatch.setattr(view, "points_of", lambda launch: [point(BASELINE, 100.0 + launch.launch.index)])
    found = load(directory)
    assert (found.load_rows, found.rows) == (rows, latencies)
    assert found.series == {}, "windows are no turns"
    assert [one.offered_rps for one in found.points["server"]] == [100.0, 101.0]
    assert load(directory, most_drawn=0).points == {}


# The page


class Tables(HTMLParser):
    """The cells of each table of a page, row by row, and its sections' anchors and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.anchors += [told["id"]] if "id" in told else []
        self.links += [told["href"]] if tag == "a" else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1][-1] += data
        if self.lasttag not in ("style", "script"):
            self.words.append(data)

    @property
    def all(self) -> str:
        return " ".join("".join(self.words).split())


PRICED = changed(trial(), "native", cost_per_million=0.2)


@pytest.mark.parametrize("trials", [[trial()], [PRICED, TWICE, FOUR], [trial(), offline(trial()), SKIPPED]])
@pytest.mark.parametrize("cases", [[], [Case()]])
def test_no_table_has_a_column_twice_or_one_too_few(trials: list[Sequence[Row]], cases: list[Case]) -> None:
    found = Tables(page([made(*trials, points=windows(), cases=cases)]))
    mine = [table for table in found.tables if "Calls/s (95%)" in table[0]]
    assert len(mine) == len(trials)
    for head, *rows in found.tables:
        assert len(set(head)) == len(head)
        assert {len(one) for one in rows} == {len(head)}
    for table, asked in zip(mine, trials, strict=True):
        assert [one[0] for one in table[1:]] == [one.variant for one in under_load.ranked(asked)]
    assert len(mine[0][0]) == (6 if trials[0] is PRICED else 5)


def test_a_page_of_load_alone_has_no_empty_matrix_and_links_to_every_trial() -> None:
    html = page([made(trial(), TWICE, SKIPPED, points=windows())])
    found = Tables(html)
    assert 'class="heat' not in html
    assert "trials in full" not in html
    assert [link for link in found.links if link.startswith("#")] == ["#load-0-0", "#load-0-1", "#load-0-2"]
    assert {"load-0-0", "load-0-1", "load-0-2"} <= set(found.anchors)
    assert "Under load: 3 trials" in found.all
    assert (
        "server, 2 replicas of 1 thread, a process each, p99 at most 50 ms: native, 783 (744 to 822) calls/s"
        in found.all
    )
    other = Tables(page([made(trial(), trial(trial_id="big", batch=16))])).all
    assert "model small, batch 16, prompt 8 tokens, reply 10 tokens: native, 412" in other, "where they differ in that"
    assert "4 replicas need 5 cores" in found.all
    alone = Tables(page([made(trial())]))
    assert alone.links == []
    assert "Under load: 1 trial" in alone.all
    assert "Under load" not in Tables(page([made_view([Case()])])).all


def test_a_page_of_both_shows_both_and_the_matrix_holds_latencies_alone() -> None:
    html = page([made(trial(), points=windows(), cases=[Case()])])
    assert html.index('id="matrix"') < html.index('id="load-0-0"') < html.index('id="trial-0-0"')
    assert "native" not in html[html.index('id="matrix"') : html.index("</section>", html.index('id="matrix"'))]


def test_trouble_under_load_is_on_the_page_with_its_reason() -> None:
    text = Tables(page([made(invalid(nowhere(trial(), "onnx"), "int8"), points=windows())])).all
    for said in (INVALID, NONE_HELD, "at no rate", "invalid"):
        assert said in text
    assert "900" not in text, "what is not what its label says has no figure"


def test_how_late_requests_were_sent_is_no_warning_where_nothing_was_discarded() -> None:
    rows = trial(generator_late_p99_us=84.6)
    said = "requests were sent up to 84.6 us late (p99)"
    assert f'<p class="note">{said}' in page([made(rows)])
    disturbed = page([made([replace(one, discarded_rounds=1) for one in rows])])
    assert f'<p class="warning">1 round discarded: something else was using the machine; {said}' in disturbed


def test_hostile_names_under_load_are_shown_and_do_nothing() -> None:
    rows = changed(trial(station=HOSTILE, device_name=HOSTILE), "native", variant=HOSTILE, warnings=(HOSTILE,))
    view = made(rows, TWICE, points=[replace(one, variant=HOSTILE) for one in windows() if one.variant == "native"])
    html = page([view])
    assert html.count("<script") == 1
    assert "<img" not in html
    assert HOSTILE in Tables(html).all.replace("\N{HORIZONTAL ELLIPSIS}", "")


def test_too_many_trials_for_a_page_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.report.page.MOST_TOLD", 2)
    text = Tables(page([made(trial(), TWICE, FOUR)])).all
    assert "Under load: 3 trials" in text
    assert "1 other trial not shown here" in text
    assert "4 replicas of 1 thread" not in text.partition("Under load: 3 trials")[2]


# The charts


def marks(chart: Chart, kind: str) -> list[list[tuple[float, float]]]:
    """(line,) the places of each line's marks of one kind."""
    found = [re.findall(rf'<path class="{kind}" d="([^"]*)"', str(line.drawing)) for line in chart.lines]
    return [[(float(x), float(y)) for d in each for x, y in re.findall(r"M([\d.]+) ([\d.]+)", d)] for each in found]


def test_windows_are_dots_and_those_that_are_discarded_are_not() -> None:
    chart = latencies_over_load(trial(), windows())
    assert [line.name for line in chart.lines] == ["native", "onnx", "eager-again", "eager", "int8"]
    assert [line.figure for line in chart.lines] == ["412", "405", "202", "200", "900"]
    for kind, count in (("near", 4), ("far", 4), ("gone", 1), ("bound", 1), ("most", 1)):
        assert [len(one) for one in marks(chart, kind)] == [count] * 5, kind
    assert chart.lines[0].tip == "native: 412 (391 to 433) calls/s, 5 windows, 1 given up"


def test_axes_are_the_same_for_all_variants_and_grow_rightwards_and_upwards() -> None:
    chart = latencies_over_load(trial(), windows())
    assert len({tuple(one) for one in marks(chart, "bound")}) == 1
    for near, far in zip(marks(chart, "near"), marks(chart, "far"), strict=True):
        assert [x for x, _ in near] == sorted(x for x, _ in near) == [x for x, _ in far]
        assert [y for _, y in near] == sorted((y for _, y in near), reverse=True), "slower is higher"
        assert all(high < low for (_, low), (_, high) in zip(near, far, strict=True)), "p99 is above p50"
    by_name = dict(zip([line.name for line in chart.lines], marks(chart, "near"), strict=True))
    assert by_name["eager"][3][0] < by_name["native"][3][0] < by_name["int8"][3][0]
    assert all(0 <= x <= WIDTH and 0 <= y <= 100 for one in by_name.values() for x, y in one)


def test_the_axis_holds_latencies_of_windows_that_were_held_alone() -> None:
    """One that was given up stands for more than it shows, and would press all others together."""
    held = [point(BASELINE, 100.0), point(BASELINE, 150.0, 6.0)]
    late = point(BASELINE, 200.0, 60_000.0, bound_ms=150.0, abandoned=True)
    alone, both = (marks(latencies_over_load(trial(), points), "near") for points in (held, [*held, late]))
    assert [y for _, y in both[0]] == [y for _, y in alone[0]]


def test_the_bound_lies_between_what_holds_it_and_what_does_not() -> None:
    points = [point(BASELINE, 100.0, 10.0, bound_ms=49.0), point(BASELINE, 200.0, 20.0, bound_ms=51.0)]
    chart = latencies_over_load(trial(), points)
    ((_, level),) = marks(chart, "bound")[0]
    (_, held), (_, missed) = marks(chart, "far")[0]
    assert missed <= level <= held
    assert missed < held


def test_the_most_calls_within_the_bound_are_marked_where_they_lie() -> None:
    points = [point(BASELINE, 200.0), point(BASELINE, 180.0)]
    chart = latencies_over_load(trial(), points)
    ((most, _),) = marks(chart, "most")[0]
    ((low, floor),) = marks(chart, "interval")[0]
    near = dict(zip((200.0, 180.0), (x for x, _ in marks(chart, "near")[0]), strict=True))
    assert most == pytest.approx(near[200.0], abs=1)
    assert near[180.0] < low < most
    assert floor == 93


def test_a_variant_that_holds_no_rate_has_windows_but_no_mark_and_an_invalid_one_nothing() -> None:
    chart = latencies_over_load(invalid(nowhere(trial(), "onnx"), "int8"), windows())
    assert [line.name for line in chart.lines] == ["native", "eager-again", "eager", "onnx"]
    assert [len(one) for one in marks(chart, "most")] == [1, 1, 1, 0]
    assert chart.lines[-1].figure == "none"


def test_windows_with_too_few_requests_for_the_percentile_have_no_square() -> None:
    chart = latencies_over_load(trial(), [point(BASELINE, 100.0, bound_ms=None), point(BASELINE, 150.0)])
    assert (len(marks(chart, "near")[0]), len(marks(chart, "far")[0])) == (2, 1)


def test_there_is_no_chart_without_rates_or_windows() -> None:
    assert latencies_over_load(trial(), []).lines == ()
    assert latencies_over_load(offline(trial()), [point(BASELINE, 100.0, offered_rps=None, bound_ms=None)]).lines == ()
    assert latencies_over_load(trial(), [replace(one, kept=False) for one in windows()]).lines == ()
    given_up = [point(BASELINE, 100.0, abandoned=True)]
    assert len(latencies_over_load(trial(), given_up).lines) == 1, "that none was held is shown too"


def test_what_needs_more_cores_for_no_more_calls_is_beaten() -> None:
    def of(rps: float, replicas: int = 1, exact: bool = True) -> Row:
        return row("native", rps, replicas=replicas, exact=exact)

    assert beats(of(400), of(400, replicas=2))
    assert not beats(of(400, replicas=2), of(400))
    assert beats(of(500), of(400))
    assert not beats(of(420), of(400)), "their intervals overlap"
    assert not beats(of(900, replicas=2), of(400))
    assert not beats(of(900, exact=False), of(400)), "its replies are not the same"
    assert beats(of(500), of(400, exact=False))


def test_the_front_has_every_way_by_cores_and_pales_what_is_beaten() -> None:
    chart = front([FOUR, trial(), TWICE, invalid(offline(trial(5.0)), "native")[3:4]])
    told = [(line.name, line.more, "pale" in line.drawing) for line in chart.lines]
    one, two = "1 replica of 1 thread", "2 replicas of 1 thread, a process each"
    assert told[:4] == [
        ("native", one, False),
        ("onnx", "", False),
        ("eager", "", True),
        ("int8", "approximate", False),
    ]
    assert told[4:8] == [
        ("native", two, False),
        ("onnx", "", False),
        ("eager", "", True),
        ("int8", "approximate", False),
    ]
    assert len(told) == 12, "neither the control nor what is invalid"
    assert chart.lines[4].figure == "783 (744 to 822)"


def test_a_front_is_drawn_where_numbers_of_replicas_can_be_compared() -> None:
    assert "Variant and replicas" not in page([made(trial(), offline(trial()))])
    html = page([made(trial(), TWICE, offline(trial()))])
    assert html.count("Variant and replicas") == 1
    assert "<h3>server, p99 at most 50 ms on cpu AMD EPYC" in html.replace("<wbr>", "")


def test_a_front_has_costs_where_prices_are_known() -> None:
    assert [line.figures for line in front([trial(), TWICE]).lines[:1]] == [()]
    lines = front([changed(trial(), BASELINE, cost_per_million=0.4), TWICE]).lines
    told = {(line.name, line.figures) for line in lines}
    assert (BASELINE, ("200 (190 to 210)", "0.40 (0.38 to 0.42)")) in told
    assert ("native", ("412 (391 to 433)", "-")) in told
    assert "Cost per million</span>" in page([made(PRICED, TWICE)])


# W&B


def test_wandb_gets_the_calls_a_second_under_stable_names() -> None:
    rows = nowhere(trial(), "onnx")
    told = summary_of(rows)
    native = {key.rpartition("/")[2]: value for key, value in told.items() if key.startswith("server/native/")}
    assert native == {
        "capacity_rps": 412,
        "capacity_rps_low": 0.95 * 412,
        "capacity_rps_high": 1.05 * 412,
        "capacity_ratio": 2.06,
        "capacity_ratio_low": 0.95 * 2.06,
        "capacity_ratio_high": 1.05 * 2.06,
        "capacity_verdict": "faster",
    }
    assert {key: value for key, value in told.items() if "/onnx/" in key} == {"server/onnx/capacity_rps": 0}
    assert speedups_of(rows) == []
    assert [len(cells) for cells in table_cells(rows)] == [len(COLUMNS)] * len(rows)


def test_calls_under_load_are_no_distribution(tmp_path: Path) -> None:
    directory = RunDirectory.named(str(tmp_path), "loaded")
    with directory.created():
        for name in ("server", "alone"):
            directory.add_launch(name, to_table(name, made_launch({BASELINE: 5.0})))
        latency = replace(made_view([Case({BASELINE: 5.0})]).rows[0], trial_id="alone")
        write_matrix(directory, [*trial(trial_id="server"), latency], MARGIN)
        directory.write_json("run.json", run_json("loaded", [Case(count=0)]))
    assert list(distributions_of(FinishedRun.within(directory))) == [f"alone/{BASELINE}"]


# A real browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as one:
        yield one


EVERY = "[...document.querySelectorAll('main *')]"
WIDEST = f"Math.max(...{EVERY}.map(one => one.getBoundingClientRect().right)) - document.documentElement.clientWidth"
CUT = f"""{EVERY}.filter(one => one.clientWidth && one.scrollWidth > one.clientWidth + 1
    && getComputedStyle(one).overflowX !== 'visible').length"""
HEADS = """[...document.querySelectorAll('.stacked')].map(table => [
    !!table.querySelector('thead th').offsetWidth,
    getComputedStyle(table.querySelector('td'), '::before').content !== 'none'])"""


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: make test-packages (root, apt-get) installs it")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(375, 812), (768, 1024), (1280, 800), (1920, 1080)])
def test_every_column_is_on_the_screen(size: tuple[int, int], dark: bool, chromium: Browser, tmp_path: Path) -> None:
    path, rows = tmp_path / "load.html", changed(PRICED, "onnx", variant=LONG)
    points = [replace(one, variant=LONG) if one.variant == "onnx" else one for one in windows()]
    path.write_text(page([made(rows, TWICE, FOUR, points=points)]))
    chromium.open(path, *size, dark=dark)
    assert chromium.complaints() == []
    assert chromium.value(WIDEST) <= 0
    assert chromium.value(CUT) == 0, "nothing is scrolled sideways"
    narrow = size[0] < 860
    assert chromium.value(HEADS) == [[not narrow, narrow]] * 3, "each figure has its head once, above or beside it"
