"""Launches of known times -> rows: the figures, and what a row says where there are none."""

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from launches import ALL, made_launch, made_trial, stolen
from numpy.typing import ArrayLike

from chatbot.variants import BASELINE, CONTROL, UNTRIED, VARIANTS
from ray_jobs.matrix.rows import COLUMNS, Row, Status, rows_of
from ray_jobs.measure.interference import ABSENT, COUNTERS, Interference
from ray_jobs.measure.replies import ReplyComparison
from ray_jobs.measure.result import LaunchResult, Limits, Memory, VariantFacts
from ray_jobs.measure.roofline import DISTURBED, Limit
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.statistics import NOMINAL

TRIAL, NOWHERE = made_trial("trial-1", run_id="run-1"), Place()
ODD = "torchscript"
EIGHT = Limit(ms=8.0, memory_ms=8.0, compute_ms=2.0, moved_mb=400.0, gflop=0.2, int8_share=0.25)
LIMIT = ("limit_ms", "of_limit", "bound", "bound_why", "moved_mb")
TAILS = tuple(f"{name}_speedup{end}" for name in ("p90", "p99") for end in ("", "_low", "_high"))
FIGURES = (
    *("samples", "launches", "p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms"),
    *("speedup", "speedup_low", "speedup_high", "verdict", "identical_replies", "prepare_s", "peak_memory_mb"),
    "p50_scatter",
)


def launches(count: int = 10, rounds: int = 20, noise: float = 0.0, **walls_ms: float) -> list[LaunchResult]:
    """Launches of all variants at 10 ms each, or at ``variant=ms`` (underscores for dashes).

    From launch to launch all but the baseline move by ``noise``, up and down in turn.
    """
    given = {name.replace("_", "-"): ms for name, ms in walls_ms.items()}
    made = []
    for i in range(count):
        moved = 1 + noise * (-1) ** i
        times = {v: given.get(v, 10.0) * (1.0 if v == BASELINE else moved) for v in ALL}
        made.append(made_launch(times, index=i, rounds=rounds))
    return made


def rows(
    made: Sequence[LaunchResult],
    status: str = Status.DONE,
    reason: str | None = None,
    trial: Trial = TRIAL,
    place: Place = NOWHERE,
) -> dict[str, Row]:
    return {row.variant: row for row in rows_of(trial, place, status, reason, made)}


def with_facts(made: Sequence[LaunchResult], name: str, **changes: object) -> list[LaunchResult]:
    """The launches, with other facts about one variant."""
    return [
        replace(launch, facts={**launch.facts, name: VariantFacts(**{**vars(launch.facts[name]), **changes})})
        for launch in made
    ]


def values(row: Row, names: Sequence[str]) -> list[object]:
    return [getattr(row, name) for name in names]


# Figures


def test_there_is_a_row_for_each_variant_in_the_trials_order() -> None:
    assert [row.variant for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, launches())] == list(ALL)


def test_a_row_says_what_was_measured_and_where() -> None:
    row = rows(launches(), place=Place("here:cpu", "here", "a CPU", "a CPU, 2 cores"))[ODD]
    assert (row.run_id, row.trial_id) == ("run-1", "trial-1")
    assert (row.station, row.host, row.device_name) == ("here:cpu", "here", "a CPU")
    assert row.hardware == "a CPU, 2 cores"
    assert (row.device, row.batch, row.prompt_tokens, row.reply_tokens, row.threads) == ("cpu", 1, 4, 5, 1)
    assert (row.model, row.baseline, row.exact, row.status, row.reason) == ("small", BASELINE, True, Status.DONE, None)
    assert (row.samples, row.launches) == (600, 10)


def test_a_row_says_which_cores_were_chosen_and_what_is_wrong_with_them() -> None:
    shared = {"chosen": "0,1", "doubts": ["2 threads share one core"]}
    row = rows([replace(one, machine=shared) for one in launches()])[ODD]
    assert row.cores == "0,1"
    assert row.warnings.count("2 threads share one core") == 1
    assert rows(launches())[ODD].cores is None


def watched(told: int) -> list[LaunchResult]:
    """Launches in which every counter says the same; ``ABSENT``: none is told."""
    seen = Interference(**{name: np.full(20, told, dtype=np.int64) for name in COUNTERS})
    return [replace(one, interference=seen) for one in launches()]


def test_a_machine_that_tells_nothing_has_no_count_of_discarded_rounds_but_a_warning() -> None:
    row = rows(watched(ABSENT))[ODD]
    assert (row.discarded_rounds, row.disturbed_rounds) == (None, None)
    assert "not watched here: other processes, waiting for cores, steal, throttling" in row.warnings
    quiet = rows(watched(0))[ODD]
    assert (quiet.discarded_rounds, quiet.disturbed_rounds) == (0, 0)
    assert not any("not watched" in warning for warning in quiet.warnings)


def test_calls_without_a_core_are_told_where_no_counter_would_tell() -> None:
    def starved(told: int) -> list[str]:
        made = [replace(one, samples=replace(one.samples, cpu_ns=one.samples.wall_ns // 2)) for one in watched(told)]
        return [warning for warning in rows(made)[BASELINE].warnings if "had a core" in warning]

    assert starved(ABSENT) == ["its timed calls had a core for 50% of their time only"]
    assert starved(0) == [], "the counters tell better"


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"niceness": 15}, "its launches ran at nice 15, behind all else on the machine"),
        (
            {"gpu": {"not_watched": "NVML: no permission"}},
            "the GPU's clocks and other users could not be watched: NVML: ",
        ),
    ],
)
def test_what_was_wrong_with_where_launches_ran_is_a_warning(machine: dict[str, Any], said: str) -> None:
    made = [replace(one, machine=machine) for one in launches()]
    assert sum(warning.startswith(said) for warning in rows(made)[ODD].warnings) == 1
    assert not any(said[:10] in warning for warning in rows(launches())[ODD].warnings)


def test_only_timed_calls_count() -> None:
    row = rows(launches(torchscript=5.0))[ODD]
    times = (row.p50_ms, row.p50_low_ms, row.p50_high_ms, row.mean_ms, row.p90_ms, row.p95_ms, row.p99_ms)
    assert times == pytest.approx((5.0,) * 7)


def test_p50_is_the_median_of_the_launches_medians_from_the_second_to_the_ninth() -> None:
    order = [3, 8, 1, 10, 5, 2, 9, 4, 7, 6]
    made = [made_launch({v: float(ms) for v in ALL}, index=i) for i, ms in enumerate(order)]
    row = rows(made)[BASELINE]
    assert (row.p50_ms, row.p50_low_ms, row.p50_high_ms) == pytest.approx((5.5, 2.0, 9.0))


def test_one_disturbed_launch_moves_the_mean_but_hardly_the_median() -> None:
    made = [*launches(9), made_launch(dict.fromkeys(ALL, 1000.0), index=9)]
    row = rows(made)[BASELINE]
    assert (row.p50_ms, row.p50_high_ms) == pytest.approx((10.0, 10.0))
    assert row.mean_ms == pytest.approx(109.0)


def test_too_few_launches_have_a_median_without_an_interval() -> None:
    row = rows(launches(5))[BASELINE]
    assert row.p50_ms == pytest.approx(10.0)
    assert (row.p50_low_ms, row.p50_high_ms) == (None, None)


def test_p50_scatter_is_the_standard_deviation_of_the_logs_of_the_launches_medians() -> None:
    order = [3.0, 8.0, 1.0, 10.0]
    walls = [{v: [[ms, ms, 99.0]] for v in ALL} for ms in order]  # a launch's median, not its mean
    found = rows([made_launch(wall, index=i) for i, wall in enumerate(walls)])
    assert found[ODD].p50_scatter == pytest.approx(plain.stdev(map(math.log, order)))
    assert rows(launches())[ODD].p50_scatter == 0
    assert rows(launches(2, noise=0.01))[ODD].p50_scatter == pytest.approx(math.log(1.01 / 0.99) / math.sqrt(2))


def test_one_launch_has_no_scatter() -> None:
    assert [row.p50_scatter for row in rows(launches(1)).values()] == [None] * 3


@pytest.mark.parametrize(
    ("count", "rounds", "known"),
    [(28, 1, ""), (29, 1, "p90"), (58, 1, "p90"), (59, 1, "p90 p95"), (149, 2, "p90 p95"), (13, 23, "p90 p95 p99")],
)
def test_a_percentile_is_null_where_too_few_samples_exist(count: int, rounds: int, known: str) -> None:
    walls = np.random.default_rng(4).lognormal(2.0, 0.3, (count, rounds, 1))
    made = [
        made_launch({v: wall.tolist() for v in ALL}, index=i, rounds=rounds, calls=1) for i, wall in enumerate(walls)
    ]
    row = rows(made)[ODD]
    for name, share in (("p90", 0.90), ("p95", 0.95), ("p99", 0.99)):
        expected = pytest.approx(np.quantile(walls, share), rel=1e-6) if name in known.split() else None
        assert getattr(row, f"{name}_ms") == expected


def test_speedup_is_over_launches_of_medians_over_rounds_of_the_turns_medians() -> None:
    rng = np.random.default_rng(9)
    walls: list[Mapping[str, ArrayLike]] = [
        {v: rng.lognormal(math.log(ms), 0.05, (7, 3)) for v, ms in zip(ALL, (10, 10, 6), strict=True)}
        for _ in range(10)
    ]
    made = [made_launch(times, index=i, rounds=7) for i, times in enumerate(walls)]
    turns = [{v: np.median(np.asarray(ms), axis=1) for v, ms in times.items()} for times in walls]
    logs = [float(np.median(np.log(turn[BASELINE] / turn[ODD]))) for turn in turns]
    low, high = scipy.stats.t.interval(NOMINAL, 9, loc=np.mean(logs), scale=scipy.stats.sem(logs))
    row = rows(made)[ODD]
    expected = (math.exp(np.mean(logs)), math.exp(low), math.exp(high))
    assert (row.speedup, row.speedup_low, row.speedup_high) == pytest.approx(expected, rel=1e-6)
    assert row.verdict == "faster"


@pytest.mark.parametrize(
    ("ms", "noise", "verdict"),
    [(5.0, 0.001, "faster"), (20.0, 0.001, "slower"), (10.1, 0.001, "same"), (10.0, 0.2, "inconclusive")],
)
def test_verdict_follows_from_the_interval(ms: float, noise: float, verdict: str) -> None:
    assert rows(launches(noise=noise, torchscript=ms))[ODD].verdict == verdict


def test_the_margin_is_the_trials_own() -> None:
    made = launches(noise=0.001, torchscript=10.5)
    assert rows(made)[ODD].verdict == "slower"
    assert rows(made, trial=replace(TRIAL, margin=0.06))[ODD].verdict == "same"


def test_the_baseline_is_no_faster_than_itself() -> None:
    row = rows(launches())[BASELINE]
    assert (row.speedup, row.speedup_low, row.speedup_high, row.verdict) == (1.0, None, None, "baseline")
    assert row.warnings == ()


def test_identical_replies_are_a_share_over_all_launches() -> None:
    made = [*launches(5), *with_facts(launches(5), ODD, identical=30)]
    row = rows(made)[ODD]
    assert row.identical_replies == pytest.approx((5 * 60 + 5 * 30) / 600)
    assert rows(made)[BASELINE].identical_replies == 1.0


def test_prepare_s_is_the_launches_median() -> None:
    made = [with_facts([launch], ODD, prepare_s=s)[0] for launch, s in zip(launches(3), (9.0, 1.0, 2.0), strict=True)]
    assert rows(made)[ODD].prepare_s == 2.0


def test_peak_memory_is_of_the_variant_or_unknown() -> None:
    memory = Memory({ODD: 300.5}, lost={CONTROL: "it was killed"}, prepare_mb={ODD: 400.5})
    made = rows_of(TRIAL, NOWHERE, Status.DONE, None, launches(noise=0.001), memory)
    assert [row.peak_memory_mb for row in made] == [300.5 if row.variant == ODD else None for row in made]
    assert [row.prepare_memory_mb for row in made] == [400.5 if row.variant == ODD else None for row in made]
    assert {row.variant: row.warnings for row in made} == {
        BASELINE: (),
        CONTROL: ("its peak memory is not known: it was killed",),
        ODD: (),
    }


def test_a_limit_that_could_not_be_found_out_is_said_in_every_row() -> None:
    made = rows_of(TRIAL, NOWHERE, Status.DONE, None, launches(noise=0.001), limits=Limits(lost="it was killed"))
    assert {row.warnings for row in made} == {("its limit is not known: it was killed",)}


def test_what_is_not_measured_yet_is_null() -> None:
    assert values(rows(launches())[ODD], ["discarded_rounds", *LIMIT]) == [None] * 6


def test_a_row_says_how_far_it_is_from_its_limit_and_why() -> None:
    found = {
        row.variant: row
        for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, launches(), limits=Limits(of={ODD: EIGHT}))
    }
    assert values(found[BASELINE], LIMIT) == [None] * 5
    limit_ms, share, *others = values(found[ODD], LIMIT)
    assert (limit_ms, share) == (8.0, pytest.approx(0.8))
    assert others[::2] == ["memory", 400.0]
    assert "take 8 of 10 ms" in str(others[1])
    assert not any("limit" in text for text in found[ODD].warnings)


def test_a_disturbed_machine_leaves_open_what_looks_like_overhead() -> None:
    far = replace(EIGHT, ms=1.0)
    for disturbed, bound in (([], "overhead"), (list(range(20)), None)):
        made = [made_launch(dict.fromkeys(ALL, 10.0), i, interference=stolen(20, disturbed)) for i in range(10)]
        row = {
            row.variant: row for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, made, limits=Limits(of={ODD: far}))
        }[ODD]
        assert (row.limit_ms, row.bound) == (1.0, bound)
        assert row.of_limit == pytest.approx(0.1)
        assert (row.bound_why == DISTURBED) == (bound is None)


def test_a_latency_below_its_limit_is_a_warning() -> None:
    limits = dict.fromkeys(ALL, replace(EIGHT, ms=11.0))
    for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, launches(), limits=Limits(of=limits)):
        assert row.of_limit == pytest.approx(1.1)
        assert any("faster than its theoretical limit (110%)" in text for text in row.warnings)


def test_a_program_that_is_not_what_its_label_says_has_no_limit() -> None:
    made = with_facts(launches(), ODD, invalid="it is the same program as eager")
    row = {
        row.variant: row for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, made, limits=Limits(of={ODD: EIGHT}))
    }[ODD]
    assert (row.verdict, values(row, LIMIT)) == ("invalid", [None] * 5)


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
def test_what_was_not_measured_has_no_limit(status: str) -> None:
    for row in rows_of(TRIAL, NOWHERE, status, "a reason", limits=Limits(of=dict.fromkeys(ALL, EIGHT))):
        assert values(row, LIMIT) == [None] * 5


def test_columns_are_the_rows_fields_the_newest_last() -> None:
    assert tuple(field.name for field in fields(Row)) == COLUMNS
    newest = ("stop_at_eos", "tokens_per_reply", "per_token_ms", "compared_replies", "first_difference", "cores")
    compiled = ("graphs", "graph_breaks", "recompiles", "outside_compiled")
    sides = ("side", "side_speedup", "side_speedup_low", "side_speedup_high", "side_verdict")
    whole = [f"to_first_reply_s_{{}}{end}" for end in ("", "_low", "_high")]
    steps = ("import_s_{}", "load_s_{}", "prepare_cold_s_{}", "first_reply_ms_{}", *whole)
    cold = [step.format(state) for state in ("empty", "cached", "warm") for step in steps]
    cold += ["artifact_mb", "weights_mb", "kept_share"]
    cold += [f"pays_after_{state}{end}" for state in ("empty", "cached") for end in ("", "_low", "_high")]
    load = [f"capacity_{name}{end}" for name in ("rps", "ratio") for end in ("", "_low", "_high")]
    load = ["scenario", "slo", "replicas", "replica_kind", "max_batch", "offered_rps", *load, "capacity_verdict"]
    load += ["goodput_rps", "generator_late_p99_us", "cost_per_million", "through"]
    assert COLUMNS[-len(load) :] == tuple(load)
    columns = COLUMNS[: -len(load)]
    before = columns[: -len(cold)]
    assert before[-29:-17] == (*newest, *compiled, "first_token_ms", "prepare_memory_mb")
    assert before[-17:] == (*TAILS, *sides, *(f"side_{name}" for name in TAILS))
    assert columns[-len(cold) :] == tuple(cold)


def test_a_row_tells_how_much_faster_the_slow_calls_are() -> None:
    made = rows(launches(noise=0.01, torchscript=5.0))
    half = [math.log(2 / (1 + 0.01 * (-1) ** i)) for i in range(10)]
    reach = scipy.stats.t.ppf((1 + NOMINAL) / 2, 9) * float(np.std(half, ddof=1)) / math.sqrt(10)
    middle = float(np.mean(half))
    expected = [math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)]
    assert values(made[ODD], TAILS[:3]) == pytest.approx(expected)
    assert values(made[ODD], TAILS[3:]) == [None] * 3, "60 calls of a launch can't bound its p99"
    assert values(made[BASELINE], TAILS) == [None] * 6


def test_an_invalid_row_and_launches_of_few_calls_have_no_ratio_of_tails() -> None:
    wrong = rows(with_facts(launches(), ODD, invalid="it is another program"))
    assert values(wrong[ODD], TAILS) == [None] * 6
    assert values(rows(launches(rounds=9))[ODD], TAILS) == [None] * 6, "27 calls"


# Warnings


def test_a_precision_that_was_not_reached_is_said_with_the_next_step() -> None:
    row = rows(launches(noise=0.1))[ODD]
    interval = ((row.speedup_high or 0) - (row.speedup_low or 0)) / 2 / (row.speedup or 1)
    said = f"precision not reached: ±{interval:.1%} where ±1.0% was asked; give a larger --budget"
    assert row.warnings == (said,)


def test_a_precision_that_was_reached_is_not_spoken_of() -> None:
    assert [row.warnings for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, launches(noise=0.001))] == [()] * 3


@pytest.mark.parametrize("ms", [10.5, 9.5])
def test_a_control_that_differs_is_a_warning(ms: float) -> None:
    found = rows(launches(noise=0.001, eager_again=ms, torchscript=ms))
    assert len(found[CONTROL].warnings) == 1
    assert found[CONTROL].warnings[0].startswith("the control differs from the baseline")
    assert found[ODD].warnings == ()


def test_one_launch_has_no_interval() -> None:
    row = rows(launches(1))[ODD]
    assert (row.verdict, row.warnings) == ("inconclusive", ("one launch has no interval",))
    assert values(row, ["speedup", "speedup_low", "speedup_high"]) == [None] * 3
    assert row.p50_ms == pytest.approx(10.0)


# The machine


def watched_launches(slowdown: float, disturbed: Sequence[int], count: int = 10) -> list[LaunchResult]:
    """The script takes 5 ms where the baseline takes 10, and all calls of the disturbed rounds other times."""
    walls = {BASELINE: np.full((20, 3), 10.0), CONTROL: np.full((20, 3), 10.0), ODD: np.full((20, 3), 5.0)}
    for name, factor in ((BASELINE, slowdown), (ODD, slowdown**2)):
        walls[name][list(disturbed)] *= factor
    return [made_launch(walls, index=i, interference=stolen(20, disturbed)) for i in range(count)]


@pytest.mark.parametrize("slowdown", [0.1, 7.0])
def test_disturbed_rounds_count_in_no_figure_whether_they_were_slow_or_fast(slowdown: float) -> None:
    row = rows(watched_launches(slowdown, range(9)))[ODD]
    assert row.samples == 10 * 11 * 3
    assert (row.p50_ms, row.mean_ms, row.p90_ms) == pytest.approx((5.0,) * 3)
    assert row.speedup == pytest.approx(2.0)
    assert (row.discarded_rounds, row.disturbed_rounds) == (90, 90)


def test_half_of_the_rounds_are_kept_however_many_were_disturbed() -> None:
    row = rows(watched_launches(1.0, range(16)))[ODD]
    assert (row.discarded_rounds, row.disturbed_rounds, row.samples) == (100, 160, 10 * 10 * 3)


def test_the_machine_is_the_same_for_all_rows_of_a_trial() -> None:
    found = rows([replace(launch, sentinel_ns=(4_000_000, 6_000_000)) for launch in watched_launches(1.0, [3])])
    for row in found.values():
        assert (row.discarded_rounds, row.disturbed_rounds) == (10, 10)
        assert (row.sentinel_ms, row.sentinel_drift) == pytest.approx((5.0, 0.0))


def test_launches_that_were_not_watched_leave_the_machines_columns_null() -> None:
    names = ["discarded_rounds", "disturbed_rounds", "sentinel_ms", "sentinel_drift", "warmup_calls"]
    assert values(rows(launches())[ODD], names) == [None] * 5


def test_rounds_are_counted_over_the_launches_that_were_watched() -> None:
    row = rows([*launches(4), *watched_launches(1.0, [3, 4], count=2)])[ODD]
    assert (row.discarded_rounds, row.disturbed_rounds) == (4, 4)


def test_many_disturbed_rounds_are_a_warning_on_every_row() -> None:
    for row in rows(watched_launches(1.0, range(5))).values():
        assert len(row.warnings) == 1
        assert row.warnings[0].startswith("25% of the rounds were disturbed: the hypervisor took 25% of the time away")


def test_few_disturbed_rounds_are_not_spoken_of() -> None:
    assert [row.warnings for row in rows(watched_launches(1.0, range(4))).values()] == [()] * 3


def with_sentinels(*speeds_ms: float) -> list[LaunchResult]:
    made = launches(len(speeds_ms), noise=0.001)
    return [replace(a, sentinel_ns=(round(ms * 1e6),) * 2) for a, ms in zip(made, speeds_ms, strict=True)]


@pytest.mark.parametrize(
    ("speeds_ms", "drift", "said"),
    [
        ([4, 4, 4, 5, 5, 5], 0.25, "became 25% slower meanwhile"),
        ([5, 5, 5, 4, 4, 4], -0.2, "became 20% faster meanwhile"),
        ([4, 4, 50, 4, 4.2, 4], 0.0, None),
        ([4, 4, 4, 4.2, 4.2, 4.2], 0.05, None),
    ],
)
def test_a_machine_that_changes_its_speed_is_a_warning(speeds_ms: list[float], drift: float, said: str | None) -> None:
    row = rows(with_sentinels(*speeds_ms))[ODD]
    assert row.sentinel_drift == pytest.approx(drift)
    if said is None:
        assert row.warnings == ()
    else:
        assert [said in warning for warning in row.warnings] == [True]


def test_one_launch_has_a_speed_of_the_machine_but_no_drift() -> None:
    row = rows(with_sentinels(4.0))[ODD]
    assert (row.sentinel_ms, row.sentinel_drift) == (4.0, None)


def test_warm_up_calls_are_the_median_over_launches_that_settled() -> None:
    calls = [2, 2, 9, None, None]
    made = [with_facts([a], ODD, warmup_calls=n)[0] for a, n in zip(launches(5), calls, strict=True)]
    assert rows(made)[ODD].warmup_calls == 2.0
    assert rows(made)[BASELINE].warmup_calls is None


@pytest.mark.parametrize(("restless", "warned"), [(2, False), (3, True), (10, True)])
def test_a_variant_that_was_not_settled_in_over_a_fifth_of_the_launches_is_a_warning(
    restless: int, warned: bool
) -> None:
    made = launches(noise=0.001)
    found = rows([*with_facts(made[:restless], ODD, settled=False), *made[restless:]])
    said = f"it never settled: still getting faster as its warm-up ended, in {restless} of 10 launches"
    assert found[ODD].warnings == ((said,) if warned else ())
    assert found[CONTROL].warnings == ()


def on_gpu(made: Sequence[LaunchResult], sentinels_ms: Sequence[float]) -> list[LaunchResult]:
    card = {"name": "NVIDIA H100 MIG 1g.10gb", "multiprocessors": 14}
    facts = [{"gpu": {**card, "sentinel_ns": [ms * 1e6, ms * 1e6]}} for ms in sentinels_ms]
    return [replace(launch, machine={**launch.machine, **known}) for launch, known in zip(made, facts, strict=True)]


@pytest.mark.parametrize(
    ("late_ms", "said"),
    [
        (2.1, ()),
        (2.5, ("the GPU itself became 25% slower meanwhile; speedups hold, latencies are mixed",)),
        (1.5, ("the GPU itself became 25% faster meanwhile; speedups hold, latencies are mixed",)),
    ],
)
def test_a_gpu_whose_sentinel_drifts_is_a_warning(late_ms: float, said: tuple[str, ...]) -> None:
    found = rows(on_gpu(launches(noise=0.001), [2.0] * 5 + [late_ms] * 5))
    assert found[ODD].warnings == said


def test_a_slice_of_a_gpu_is_hardware_of_its_own() -> None:
    """Ray names it like the whole card."""
    found = rows(on_gpu(launches(), [2.0] * 10))
    assert {row.hardware for row in found.values()} == {"NVIDIA H100 MIG 1g.10gb, 14 SMs"}
    assert {row.hardware for row in rows(launches()).values()} != {"NVIDIA H100 MIG 1g.10gb, 14 SMs"}


def test_a_gru_whose_weights_are_copied_at_each_call_is_a_warning_of_its_row_alone() -> None:
    found = rows(with_facts(launches(noise=0.001), ODD, scattered=True))
    said = "its GRU's weights are not in one buffer, so cuDNN copies all of them at each call"
    assert (found[ODD].warnings, found[CONTROL].warnings) == ((said,), ())


@pytest.mark.parametrize(
    ("python", "warned"), [("3.13.5", False), ("3.14.0rc1", True), ("3.15.2", True), (None, False)]
)
def test_torchscript_on_a_python_that_it_does_not_support_is_a_warning(python: str | None, warned: bool) -> None:
    made = [replace(one, machine={"python": python} if python else {}) for one in launches()]
    found = rows(with_facts(made, ODD, kind="torchscript"))
    assert any("torch.jit does not support Python 3.14" in one for one in found[ODD].warnings) == warned
    assert found[CONTROL].warnings == ()


def with_trend(first_half: Mapping[str, float], count: int = 10) -> list[LaunchResult]:
    """All calls take 10 ms, in the first half of each launch times this."""
    made = []
    for i in range(count):
        walls = {v: np.full((20, 3), 10.0 * (1.001 if i % 2 and v == ODD else 1.0)) for v in ALL}
        for name, factor in first_half.items():
            walls[name][:10] *= factor
        made.append(made_launch(walls, index=i))
    return made


@pytest.mark.parametrize(("factor", "said"), [(1.1, "10% slower"), (0.9, "10% faster")])
def test_a_variant_that_changes_its_speed_within_a_launch_is_a_warning(factor: float, said: str) -> None:
    found = rows(with_trend({ODD: factor}))
    expected = f"it never settled: the first half of a launch was {said} than the second"
    assert [warning for warning in found[ODD].warnings if "settled" in warning] == [expected]
    assert found[CONTROL].warnings == found[BASELINE].warnings == ()


def test_a_trend_that_all_share_is_the_machines_and_is_told_of_the_baseline_alone() -> None:
    found = rows(with_trend(dict.fromkeys(ALL, 1.1)))
    assert found[ODD].warnings == found[CONTROL].warnings == ()
    assert "the first half of a launch was 10% slower" in found[BASELINE].warnings[0]


def test_a_small_trend_is_not_spoken_of() -> None:
    assert rows(with_trend({ODD: 1.015}))[ODD].warnings == ()


def test_a_trend_of_disturbed_rounds_is_none_of_the_variants() -> None:
    made = [replace(a, interference=stolen(20, range(10))) for a in with_trend({ODD: 1.1})]
    assert not any("settled" in warning for warning in rows(made)[ODD].warnings)


def test_a_trend_that_comes_and_goes_is_not_spoken_of() -> None:
    made = [with_trend({ODD: factor}, 1)[0] for factor in (1.3, 1.3, 0.9, 1.3, 0.95, 1.2)]
    made = [replace(a, launch=replace(a.launch, index=i)) for i, a in enumerate(made)]
    assert not any("settled" in warning for warning in rows(made)[ODD].warnings)


def without_samples(launch: LaunchResult, name: str) -> LaunchResult:
    """The launch of a variant that could not be prepared."""
    left = launch.samples.variant != launch.variants.index(name)
    samples = type(launch.samples)(**{key: column[left] for key, column in vars(launch.samples).items()})
    failed = VariantFacts(failed="could not be prepared: RuntimeError: no kernel")
    return replace(launch, samples=samples, facts={**launch.facts, name: failed})


def test_the_rows_beside_a_variant_without_samples_are_made_without_a_murmur() -> None:
    """NumPy warns of a median of nothing, and a warning is an error here."""
    found = rows([without_samples(launch, ODD) for launch in launches(noise=0.001)])
    assert (found[CONTROL].verdict, found[ODD].status) == ("same", Status.FAILED)


# Invalid, failed, skipped


def test_an_invalid_variant_has_a_reason_and_no_speedup() -> None:
    row = rows(with_facts(launches(torchscript=1.0), ODD, invalid="it is labelled eager"))[ODD]
    assert (row.verdict, row.status, row.reason) == ("invalid", Status.DONE, "it is labelled eager")
    assert values(row, ["speedup", "speedup_low", "speedup_high"]) == [None] * 3
    assert row.warnings == ()


def test_one_launch_that_finds_a_fault_is_enough() -> None:
    made = launches(noise=0.001, torchscript=5.0)
    made[6] = with_facts([made[6]], ODD, invalid="one differs at step 3")[0]
    found = rows(made)
    assert (found[ODD].verdict, found[ODD].reason, found[ODD].speedup) == ("invalid", "one differs at step 3", None)
    assert found[CONTROL].verdict == "same"


def test_an_invalid_control_is_invalid() -> None:
    assert rows(with_facts(launches(), CONTROL, invalid="the same program"))[CONTROL].verdict == "invalid"


def test_an_invalid_baseline_is_no_baseline() -> None:
    row = rows(with_facts(launches(), BASELINE, invalid="it runs in training mode"))[BASELINE]
    assert (row.verdict, row.speedup, row.reason) == ("invalid", None, "it runs in training mode")


def test_against_an_invalid_baseline_nothing_is_faster() -> None:
    found = rows(with_facts(launches(torchscript=5.0), BASELINE, invalid="it holds float16"))
    assert values(found[ODD], ["speedup", "speedup_low", "speedup_high"]) == [None] * 3
    assert found[ODD].verdict not in ("faster", "slower", "same")


def test_a_variant_that_failed_has_its_reason_and_no_figures() -> None:
    failed = VariantFacts(failed="could not be prepared: RuntimeError: no kernel")
    made = [made_launch({BASELINE: 10, CONTROL: 10, ODD: np.full((20, 3), 1.0)}, i) for i in range(10)]
    row = rows([replace(launch, facts={**launch.facts, ODD: failed}) for launch in made])[ODD]
    assert (row.status, row.reason) == (Status.FAILED, "could not be prepared: RuntimeError: no kernel")
    assert values(row, FIGURES) == [None] * len(FIGURES)


def test_a_variant_that_lacks_something_is_skipped_with_its_reason_and_the_others_are_done() -> None:
    lacking = VariantFacts(skipped="no C++ compiler; install g++")
    made = [without_samples(launch, ODD) for launch in launches(noise=0.001)]
    found = rows([replace(launch, facts={**launch.facts, ODD: lacking}) for launch in made])
    assert (found[ODD].status, found[ODD].reason) == (Status.SKIPPED, "no C++ compiler; install g++")
    assert values(found[ODD], FIGURES) == [None] * len(FIGURES)
    assert (found[CONTROL].status, found[CONTROL].verdict) == (Status.DONE, "same")


def test_the_others_of_a_failed_variant_are_done() -> None:
    found = rows(with_facts(launches(noise=0.001), ODD, failed="could not answer: no kernel"))
    assert (found[CONTROL].status, found[CONTROL].verdict) == (Status.DONE, "same")
    assert (found[BASELINE].status, found[BASELINE].verdict) == (Status.DONE, "baseline")


def test_a_failed_trial_keeps_what_its_committed_launches_tell() -> None:
    found = rows(launches(7, noise=0.001, torchscript=5.0), Status.FAILED, "OutOfMemoryError: killed")
    for row in found.values():
        assert (row.status, row.reason, row.launches) == (Status.FAILED, "OutOfMemoryError: killed", 7)
        assert row.p50_ms is not None
    assert found[ODD].verdict == "faster"
    assert found[ODD].speedup == pytest.approx(2.0, rel=0.01)


def test_a_trial_that_failed_at_once_says_why() -> None:
    for row in rows_of(TRIAL, NOWHERE, Status.FAILED, "NodeDiedError: gone"):
        assert (row.status, row.reason) == (Status.FAILED, "NodeDiedError: gone")
        assert values(row, FIGURES) == [None] * len(FIGURES)


def test_a_trial_without_launches_or_reason_says_so() -> None:
    assert {row.reason for row in rows_of(TRIAL, NOWHERE, Status.FAILED, None)} == {"no launch was completed"}


@pytest.mark.parametrize("facts", [VariantFacts(skipped="no CUDA device"), VariantFacts()])
def test_a_row_of_what_was_never_run_on_its_device_says_so_whatever_became_of_it(facts: VariantFacts) -> None:
    names = (BASELINE, CONTROL, "persistent")
    launch = made_launch(dict.fromkeys(names, 5.0), facts={**dict.fromkeys(names, VariantFacts()), "persistent": facts})
    rows = rows_of(made_trial(variants=names), NOWHERE, Status.DONE, None, [launch])
    assert [UNTRIED in row.warnings for row in rows] == [False, False, True]


def test_a_skipped_trial_says_why_and_shows_nothing() -> None:
    for row in rows_of(TRIAL, NOWHERE, Status.SKIPPED, "no station of kind cuda in the cluster"):
        assert (row.status, row.reason) == (Status.SKIPPED, "no station of kind cuda in the cluster")
        assert values(row, FIGURES) == [None] * len(FIGURES)
        assert (row.station, row.host, row.device_name, row.hardware) == (None, None, None, None)


def test_what_became_of_a_failed_trials_invalid_variant_is_not_lost() -> None:
    made = with_facts(launches(3), ODD, invalid="it holds float16")
    row = rows(made, Status.FAILED, "NodeDiedError: gone")[ODD]
    assert (row.verdict, row.status) == ("invalid", Status.FAILED)
    assert "it holds float16" in (row.reason or "")


# Replies that are only nearly the baseline's, and those that end early


@pytest.fixture
def approximate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, ODD, replace(VARIANTS[ODD], exact=False))


@pytest.mark.usefixtures("approximate")
def test_an_approximate_variant_is_judged_on_the_prompts_that_were_asked_apart() -> None:
    compared = {ODD: ReplyComparison(500, 497, (4, 9, 2))}
    row = next(
        row
        for row in rows_of(TRIAL, NOWHERE, Status.DONE, None, launches(), Memory(compared=compared))
        if row.variant == ODD
    )
    assert (row.identical_replies, row.compared_replies, row.first_difference) == (497 / 500, 500, 5.0)
    assert not any("were compared" in warning for warning in row.warnings)


@pytest.mark.usefixtures("approximate")
def test_too_few_compared_replies_are_said() -> None:
    made = with_facts(launches(count=2, rounds=3), ODD, identical=8, replies=9, differing=(1, 3))
    row = rows(made)[ODD]
    assert (row.compared_replies, row.first_difference) == (18, 3.0)
    assert "only 18 replies were compared, not 500" in row.warnings


def test_an_exact_variant_needs_no_more_prompts_than_it_was_timed_on() -> None:
    row = rows(launches(count=2, rounds=3))[ODD]
    assert (row.compared_replies, row.first_difference) == (18, None)
    assert not any("were compared" in warning for warning in row.warnings)


def test_the_time_of_a_token_is_a_calls_over_the_tokens_of_a_reply() -> None:
    made = with_facts(launches(torchscript=6.0), ODD, replies=60, tokens=240)
    row = rows(made)[ODD]
    assert row.tokens_per_reply == 4
    assert row.per_token_ms == pytest.approx(1.5)
    assert rows(launches())[ODD].tokens_per_reply is None, "a run from before tokens were counted"
