"""Intervals against SciPy's and against simulation; verdicts at their edges; medians against plain Python."""

import itertools
import math
import statistics as plain

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_jobs.measure.method import METHOD
from ray_jobs.statistics import (
    LEAST_ERROR,
    NOMINAL,
    Best,
    Centre,
    Estimate,
    Floats,
    Interval,
    best_of,
    least_samples,
    log_speedups,
    median_interval,
    paired,
    percentile,
    precise_enough,
    quantile,
    speedup,
    tail_speedup,
    trend,
    turn_medians,
    verdict,
)

LOGS = st.lists(st.floats(-3, 3), min_size=2, max_size=40)
MARGINS = st.floats(0.001, 0.5)
MARGIN = 0.02
CENTRE = METHOD.centre


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    """Around any speedup, wide or narrow."""
    middle, reach = draw(st.floats(-0.7, 0.7)), draw(st.floats(0, 0.5))
    return Interval(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def reciprocal(interval: Interval) -> Interval:
    return Interval(1 / interval.value, 1 / interval.high, 1 / interval.low)


# Speedups


@given(LOGS)
def test_speedup_is_scipys_t_interval_of_the_logs(logs: list[float]) -> None:
    assume(np.std(logs) > 1e-6)
    reach = scipy.stats.t.interval(NOMINAL, len(logs) - 1, loc=plain.fmean(logs), scale=scipy.stats.sem(logs))
    expected = [math.exp(plain.fmean(logs)), *map(math.exp, reach)]
    interval = known(speedup(logs))
    assert [interval.value, interval.low, interval.high] == pytest.approx(expected, rel=1e-9)


def test_speedup_of_equal_launches_is_a_point() -> None:
    interval = known(speedup([math.log(2)] * 5))
    assert [interval.value, interval.low, interval.high] == pytest.approx([2, 2, 2])
    assert interval.half_width == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("logs", [[], [0.1]])
def test_speedup_of_fewer_than_two_launches_is_unknown(logs: list[float]) -> None:
    assert speedup(logs) is None


@pytest.mark.parametrize("launches", [3, 10, 30])
def test_speedup_of_a_given_number_of_launches_covers_the_truth_as_often_as_is_nominal(launches: int) -> None:
    rng = np.random.default_rng(20)
    truth = 0.1
    found = [known(speedup(logs.tolist())) for logs in rng.normal(truth, 0.03, (5000, launches))]
    covered = plain.fmean(i.low <= math.exp(truth) <= i.high for i in found)
    assert covered == pytest.approx(NOMINAL, abs=0.01)  # three standard errors of 5,000


@given(LOGS)
def test_the_other_ways_round_speedup_is_the_reciprocal(logs: list[float]) -> None:
    there, back = known(speedup(logs)), known(speedup([-log for log in logs]))
    expected = reciprocal(there)
    assert [back.value, back.low, back.high] == pytest.approx([expected.value, expected.low, expected.high], rel=1e-9)


@given(LOGS, LOGS, st.floats(0.5, 0.999))
def test_a_difference_of_two_means_is_welchs(one: list[float], other: list[float], confidence: float) -> None:
    assume(min(np.std(one), np.std(other)) > 1e-4)
    first, second = Estimate.of(one), Estimate.of(other)
    assert first is not None
    assert second is not None
    expected = scipy.stats.ttest_ind(one, other, equal_var=False)
    found = first.minus(second)
    assert found.degrees == pytest.approx(expected.df, rel=1e-12)
    limits = expected.confidence_interval(confidence)
    interval = found.interval(confidence)
    assert [interval.low, interval.high] == pytest.approx([limits.low, limits.high], rel=1e-9, abs=1e-12)


@given(LOGS)
def test_an_estimate_has_the_figures_that_three_modules_once_worked_out_for_themselves(logs: list[float]) -> None:
    mean, error = float(np.mean(logs)), float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    found = Estimate.of([*logs, math.nan])
    assert found == Estimate(mean, error, len(logs) - 1)
    reach = quantile(len(logs) - 1, 0.99) * error
    assert found.interval(0.99) == Interval(mean, mean - reach, mean + reach)
    assert speedup(logs, 0.99) == Interval(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def test_equal_launches_differ_with_the_error_of_a_clock() -> None:
    found = Estimate(0.1, 0.0, 9).minus(Estimate(0.0, 0.0, 9))
    assert found.error == pytest.approx(LEAST_ERROR * math.sqrt(2))
    assert found.degrees == pytest.approx(18)


def test_half_width_is_a_share_of_the_value() -> None:
    assert Interval(2.0, 1.9, 2.1).half_width == pytest.approx(0.05)


def test_launches_without_a_value_are_left_out() -> None:
    logs = [0.1, math.nan, 0.2, 0.15, math.nan]
    assert speedup(logs) == speedup([0.1, 0.2, 0.15])
    assert speedup([0.1, math.nan]) is None


# The best of many


def side_by_side(speeds: dict[str, float], rng: np.random.Generator, launches: int = 10) -> list[dict[str, Floats]]:
    """Turns of programs so many times as fast as one of 10 ms: luck of each launch and program, jitter, and spikes.

    The machine's own speed changes from round to round, for all alike. Of few rounds Hodges and Lehmann's estimator
    bears fewer spikes than the median.
    """
    shape = (launches, len(speeds), 12)
    walls = 1e7 / np.array(list(speeds.values()))[:, None] * np.exp(0.05 * rng.standard_normal(shape))
    walls *= np.exp(0.01 * rng.standard_normal((*shape[:2], 1)) + 0.1 * rng.standard_normal((launches, 1, 12)))
    walls[rng.random(shape) < 0.02] *= 3
    return [dict(zip(speeds, launch, strict=True)) for launch in walls]


def test_of_identical_programs_none_is_told_apart_more_often_than_once_in_20() -> None:
    """The eight share a slower baseline, so that one of them always leads; comparing it uncorrected is often wrong."""
    trials, names = 800, "abcdefgh"
    rng, wrong, naive = np.random.default_rng(26), 0, 0
    for _ in range(trials):
        turns = side_by_side({"eager": 1.0, **dict.fromkeys(names, 1.5)}, rng)
        best = best_of(turns, "eager", names, CENTRE)
        assert best is not None
        wrong += set(best.rivals) != set(names) - {best.name}
        held = paired(turns, best.name, CENTRE)
        naive += any(known(held[name]).high < 1 for name in names if name != best.name)
    slack = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert wrong / trials <= 0.05 + slack
    assert naive / trials > 0.15, "the correction is needed"


def test_of_programs_as_fast_as_the_baseline_none_is_named_more_often_than_once_in_20() -> None:
    trials, names = 800, "abcdefgh"
    rng = np.random.default_rng(27)
    alike = dict.fromkeys(["eager", *names], 1.0)
    found = [best_of(side_by_side(alike, rng), "eager", names, CENTRE) for _ in range(trials)]
    named = plain.fmean(best is not None for best in found)
    assert named <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_really_faster_program_is_named_alone() -> None:
    rng = np.random.default_rng(28)
    speeds = {"eager": 1.0, **dict.fromkeys("abcdefgh", 1.5), "d": 1.7}
    assert {best_of(side_by_side(speeds, rng), "eager", "abcdefgh", CENTRE) for _ in range(50)} == {Best("d", ())}


def test_only_the_eligible_are_named_and_the_others_are_still_compared() -> None:
    turns = side_by_side({"eager": 1.0, "a": 1.5, "b": 1.5, "slow": 1.1}, np.random.default_rng(29))
    assert best_of(turns, "eager", ["a"], CENTRE) == Best("a", ("b",))
    assert best_of(turns, "eager", ["slow"], CENTRE) == Best("slow", ("a", "b"))
    assert best_of(turns, "eager", [], CENTRE) is None
    assert best_of([], "eager", ["a"], CENTRE) is None


def test_one_that_shares_no_two_launches_with_the_best_is_not_told_apart() -> None:
    rng = np.random.default_rng(30)
    first, *rest = side_by_side({"eager": 1.0, "a": 1.5, "b": 1.1}, rng)
    without_b = [{name: turns for name, turns in launch.items() if name != "b"} for launch in rest]
    assert best_of([first, *rest], "eager", "ab", CENTRE) == Best("a", ())
    assert best_of([first, *without_b], "eager", "ab", CENTRE) == Best("a", ("b",))
    assert paired([first], "eager", CENTRE)["a"] is None
    assert paired([first, *without_b], "b", CENTRE)["a"] is None


@given(st.integers(0, 2**32), st.floats(0.5, 2), st.floats(0.5, 2), st.floats(0.9, 0.999), st.sampled_from(Centre))
def test_a_pair_turned_round_is_the_reciprocal_and_is_what_the_rows_have(
    seed: int, a: float, b: float, confidence: float, centre: Centre
) -> None:
    turns = side_by_side({"a": a, "b": b}, np.random.default_rng(seed))
    there = known(paired(turns, "b", centre, confidence)["a"])
    back = reciprocal(known(paired(turns, "a", centre, confidence)["b"]))
    assert [back.value, back.low, back.high] == pytest.approx([there.value, there.low, there.high], rel=1e-9)
    stacked = [np.stack([launch["a"], launch["b"]], axis=1) for launch in turns]
    assert paired(turns, "b", centre)["a"] == speedup([float(log_speedups(each, 1, centre)[0]) for each in stacked])


@given(st.integers(0, 2**32), st.integers(0, 9))
def test_a_wider_family_never_names_more_and_never_tells_more_apart(seed: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    turns = side_by_side({"eager": 1.0, "a": 1.06, "b": 1.04, **dict.fromkeys(map(str, range(more)), 0.5)}, rng)
    few = best_of([{name: launch[name] for name in ("eager", "a", "b")} for launch in turns], "eager", "ab", CENTRE)
    many = best_of(turns, "eager", "ab", CENTRE)
    if many is not None:
        assert few is not None
        # The leader may no longer be faster than the baseline beyond doubt; then another one that is takes its place.
        assert few.name == many.name or few.name in many.rivals
        assert few.name != many.name or set(few.rivals) <= set(many.rivals)


# Trends


def halves(first: float, last: float, rounds: int = 6) -> list[float]:
    return [first] * (rounds // 2) + [last] * (rounds - rounds // 2)


def test_a_trend_is_how_much_slower_the_first_half_was_without_the_baselines() -> None:
    launches = [np.array([halves(10 * drift, 10), halves(24 * drift, 20)]).T for drift in (1.0, 1.1, 1.3)]
    found = known(trend(launches, 1, 0))
    assert [found.value, found.low, found.high] == pytest.approx([1.2, 1.2, 1.2])
    own = known(trend(launches, 0, 0))
    assert own.value == pytest.approx((1.1 * 1.3) ** (1 / 3))
    assert own.low < 1 < own.high


@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=12))
def test_a_trend_has_a_t_interval_of_999_in_1000(logs: list[float]) -> None:
    assume(np.std(logs) > 1e-6)
    launches = [np.array([halves(10, 10), halves(10 * math.exp(log), 10)]).T for log in logs]
    found = known(trend(launches, 1, 0))
    reach = scipy.stats.t.interval(0.999, len(logs) - 1, loc=plain.fmean(logs), scale=scipy.stats.sem(logs))
    expected = [math.exp(plain.fmean(logs)), *map(math.exp, reach)]
    assert [found.value, found.low, found.high] == pytest.approx(expected, rel=1e-6)


def test_rounds_without_a_turn_and_launches_that_do_not_tell_are_left_out_of_a_trend() -> None:
    told = np.array([halves(10.0, 10.0), halves(24.0, 20.0)]).T
    gaps = told.copy()
    gaps[[0, 5]] = math.nan
    half = told.copy()
    half[3:] = math.nan
    found = known(trend([told, gaps, half, told[:1]], 1, 0))
    assert found.value == pytest.approx(1.2)
    assert trend([told, half, told[:1]], 1, 0) is None


# Verdicts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.99, 1.01, "same"),
        (1.005, 1.015, "same"),  # excludes 1, but by less than anyone cares for
        (0.985, 0.995, "same"),
        (1 / (1 + MARGIN), 1 + MARGIN, "same"),
        (math.nextafter(1 / (1 + MARGIN), 0), 1 + MARGIN, "inconclusive"),
        (1 / (1 + MARGIN), math.nextafter(1 + MARGIN, 2), "inconclusive"),
        (1.01, 1.03, "faster"),
        (math.nextafter(1, 2), 1.5, "faster"),
        (1.0, 1.5, "inconclusive"),
        (0.97, 0.99, "slower"),
        (0.5, math.nextafter(1, 0), "slower"),
        (0.5, 1.0, "inconclusive"),
        (0.5, 2.0, "inconclusive"),
    ],
)
def test_verdict_at_its_edges(low: float, high: float, expected: str) -> None:
    assert verdict(Interval(math.sqrt(low * high), low, high), MARGIN) == expected


def test_without_an_interval_nothing_is_concluded() -> None:
    assert verdict(None, MARGIN) == "inconclusive"


@given(intervals(), MARGINS)
def test_verdict_is_same_only_inside_the_margin(interval: Interval, margin: float) -> None:
    inside = 1 / (1 + margin) <= interval.low and interval.high <= 1 + margin
    assert (verdict(interval, margin) == "same") == inside


@given(intervals(), MARGINS)
def test_verdict_turns_round_with_the_comparison(interval: Interval, margin: float) -> None:
    edges = (1.0, 1 + margin, 1 / (1 + margin))
    assume(all(abs(limit - edge) > 1e-9 for limit in (interval.low, interval.high) for edge in edges))
    turned = {"faster": "slower", "slower": "faster", "same": "same", "inconclusive": "inconclusive"}
    assert verdict(reciprocal(interval), margin) == turned[verdict(interval, margin)]


# Precision


@given(st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=3), min_size=1, max_size=12), st.floats(0.001, 0.9))
def test_precise_enough_asks_for_the_width_of_every_interval(launches: list[list[float]], precision: float) -> None:
    logs = [dict(zip("abc", launch, strict=False)) for launch in launches]
    widths = []
    for name in {name for launch in logs for name in launch}:
        mine = [launch[name] for launch in logs if name in launch]
        if len(mine) < 2:
            widths.append(math.inf)
            continue
        low, high = scipy.stats.t.interval(NOMINAL, len(mine) - 1, loc=0, scale=max(scipy.stats.sem(mine), 1e-300))
        widths.append((math.exp(high) - math.exp(low)) / 2)
    assume(all(abs(width - precision) > 1e-9 for width in widths))
    assert precise_enough(logs, precision) == all(width <= precision for width in widths)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=12),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    st.booleans(),
    st.floats(0.001, 0.9),
)
def test_precise_enough_does_not_depend_on_how_fast_or_which_way(
    launches: list[tuple[float, float]], shift: tuple[float, float], turned: bool, precision: float
) -> None:
    logs = [{"a": a, "b": b} for a, b in launches]
    widths = [known(speedup([launch[name] for launch in logs])).half_width for name in "ab"]
    assume(all(abs(width - precision) > 1e-9 for width in widths))
    sign = -1 if turned else 1
    moved = [{"a": sign * a + shift[0], "b": sign * b + shift[1]} for a, b in launches]
    assert precise_enough(moved, precision) == precise_enough(logs, precision)


def test_one_launch_is_never_precise_enough() -> None:
    assert not precise_enough([{"a": 0.0}], 0.99)
    assert precise_enough([{"a": 0.0}, {"a": 0.0}], 0.01)


# Medians and percentiles


def test_ten_medians_lie_between_the_second_and_the_ninth() -> None:
    shuffled = [7.0, 3.0, 10.0, 1.0, 5.0, 9.0, 2.0, 8.0, 4.0, 6.0]
    assert median_interval(shuffled) == Interval(5.5, 2.0, 9.0)


@pytest.mark.parametrize("count", range(6))
def test_under_six_values_the_median_has_no_interval(count: int) -> None:
    assert median_interval(list(range(count))) is None


@pytest.mark.parametrize("count", range(6, 60))
def test_median_interval_is_the_narrowest_that_covers_19_of_20(count: int) -> None:
    interval = known(median_interval(list(range(count))))
    left_out = int(interval.low)
    assert interval.high == count - 1 - left_out
    below = scipy.stats.binom(count, 0.5).cdf
    assert 1 - 2 * below(left_out) >= 0.95
    assert 1 - 2 * below(left_out + 1) < 0.95


@pytest.mark.parametrize("count", [6, 10, 25])
def test_median_interval_covers_a_skewed_median_at_least_19_times_of_20(count: int) -> None:
    rng = np.random.default_rng(25)
    found = [known(median_interval(values.tolist())) for values in rng.lognormal(0.0, 1.0, (5000, count))]
    assert plain.fmean(i.low <= 1.0 <= i.high for i in found) >= 0.95


@pytest.mark.parametrize(("share", "least"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299)])
def test_percentile_is_unknown_below_its_least_samples(share: float, least: int) -> None:
    values = np.random.default_rng(1).lognormal(size=least)
    assert least_samples(share) == least
    assert percentile(values[:-1], share) is None
    assert percentile(values, share) == pytest.approx(np.quantile(values, share))


@given(st.lists(st.integers(1, 10**9), max_size=120), st.floats(0.3, 0.99))
def test_percentile_is_never_invented(values: list[int], share: float) -> None:
    assume(abs(1 - share ** len(values) - 0.95) > 1e-9)
    found = percentile(np.array(values, dtype=np.int64), share)
    if found is None:
        assert 1 - share ** len(values) < 0.95
    else:
        assert 1 - share ** len(values) >= 0.95
        assert min(values) <= found <= max(values)
        assert sum(value <= found for value in values) >= share * (len(values) - 1)


# Turns


def test_of_the_slow_calls_a_program_twice_as_fast_has_a_ratio_of_two() -> None:
    walls = np.arange(1.0, 41.0)
    found = known(tail_speedup([(walls * k, walls * k / 2) for k in (1, 3, 5)], 0.9))
    assert (found.low, found.value, found.high) == pytest.approx((2, 2, 2))


def test_a_slow_tail_shows_where_the_medians_are_equal() -> None:
    even, tailed = np.full(40, 5.0), np.array([5.0] * 30 + [20.0] * 10)
    assert known(tail_speedup([(even, tailed)] * 3, 0.9)).value == pytest.approx(0.25)


@pytest.mark.parametrize(("calls", "share"), [(28, 0.9), (298, 0.99)])
def test_a_launch_of_too_few_calls_leaves_the_ratio_of_the_tails_unknown(calls: int, share: float) -> None:
    many = np.arange(1.0, 400.0)
    assert tail_speedup([(many, many)] * 3, share) is not None
    assert tail_speedup([(many, many), (many, many[:calls]), (many, many)], share) is None
    assert tail_speedup([(many, many), (many[:calls], many), (many, many)], share) is None


def test_tails_of_identical_programs_are_told_apart_once_in_20_at_most() -> None:
    """Calls of a launch share its luck, and a tail is heavy: launches are the unit here too."""
    rng = np.random.default_rng(11)
    luck = rng.normal(0, 0.05, (800, 10, 2, 1)) + rng.normal(0, 0.1, (800, 10, 1, 1))
    walls = np.exp(luck + 0.2 * rng.standard_t(3, (800, 10, 2, 60)))
    found = [known(tail_speedup([(one[0], one[1]) for one in trial], 0.9)) for trial in walls]
    wrong = sum(i.low > 1 or i.high < 1 for i in found)
    assert scipy.stats.binomtest(wrong, len(found)).proportion_ci().low <= 0.05
    assert 0 < wrong < 0.1 * len(found)


@st.composite
def timed_calls(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """(rounds, variants) and calls of (variant, round, ns) in any order, some turns without any."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    call = st.tuples(st.integers(0, shape[1] - 1), st.integers(0, shape[0] - 1), st.integers(1, 10**12))
    return shape, draw(st.lists(call, max_size=60))


@pytest.mark.parametrize("centre", Centre)
@given(made=timed_calls(), data=st.data())
def test_turns_and_log_speedups_are_as_plain_python_has_them(
    centre: Centre, made: tuple[tuple[int, int], list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    (rounds, variants), calls = made
    turns: dict[tuple[int, int], float] = {}
    for r, v in itertools.product(range(rounds), range(variants)):
        walls = [ns for variant, number, ns in calls if (variant, number) == (v, r)]
        turns[r, v] = plain.median(walls) if walls else math.nan
    columns = np.array(calls, dtype=np.int64).reshape(-1, 3).T
    medians = turn_medians(columns[0], columns[1], columns[2], (rounds, variants))
    assert medians.ravel().tolist() == pytest.approx(list(turns.values()), nan_ok=True)
    baseline = data.draw(st.integers(0, variants - 1))
    expected = [_plain_log_speedup(turns, rounds, v, baseline, centre) for v in range(variants)]
    assert log_speedups(medians, baseline, centre).tolist() == pytest.approx(expected, nan_ok=True)


def _plain_log_speedup(
    turns: dict[tuple[int, int], float], rounds: int, variant: int, baseline: int, centre: Centre
) -> float:
    logs = [math.log(turns[r, baseline] / turns[r, variant]) for r in range(rounds)]
    paired = [log for log in logs if not math.isnan(log)]
    if centre == Centre.HODGES_LEHMANN:
        paired = [(one + other) / 2 for one, other in itertools.combinations_with_replacement(paired, 2)]
    return plain.median(paired) if paired else math.nan


@pytest.mark.parametrize("centre", Centre)
def test_a_quarter_of_rounds_that_are_hit_moves_a_speedup_no_further_than_the_others_scatter(centre: Centre) -> None:
    """A mean would say 1.84 for 1."""
    turns = np.full((20, 2), 10.0)
    turns[::2, 1] *= 1.002
    turns[:5, 0] *= 1000
    found = float(log_speedups(turns, 0, centre)[1])
    assert -0.002 <= found <= 0


def test_hodges_and_lehmanns_estimator_needs_two_thirds_of_the_rounds_that_the_median_needs() -> None:
    """Of normal values 1.05 to 1.57 times as many as the mean: 0.67."""
    values = np.random.default_rng(5).standard_normal((36, 4000))
    mean, median, both = (np.var(found) for found in (values.mean(axis=0), *(c.of(values) for c in Centre)))
    assert both / mean == pytest.approx(1.05, abs=0.05)
    assert both / median == pytest.approx(0.67, abs=0.06)


def test_a_variant_twice_as_fast_in_most_rounds_has_the_log_of_two() -> None:
    turns = np.array([[10.0, 5.0], [12.0, 6.0], [900.0, 5.0]])  # the baseline was disturbed in one round
    assert log_speedups(turns, 0, Centre.MEDIAN).tolist() == pytest.approx([0.0, math.log(2)])
