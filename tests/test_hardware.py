"""Means of hardware classes against plain formulas, a published example and simulation; who is named, who is not."""

import json
import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import QUICK, examples, trials

from chatbot.variants import BASELINE
from ray_jobs import statistics
from ray_jobs.matrix.hardware import HardwareClass, RandomEffects, classes_of, disagreements, off_stations
from ray_jobs.matrix.hardware import random_effects as effects_or_none
from ray_jobs.matrix.rows import Row, Status
from ray_jobs.report import text
from ray_jobs.report.terminal import print_classes
from ray_jobs.statistics import LEAST_ERROR, Estimate

SCRIPT = "torchscript"
EPYC = "AMD EPYC, 2 cores"
MARGIN = 0.02
SCATTER = 0.05  # of launches, in the simulations
# Whole thousandths: no two stations differ by less than the arithmetic's noise.
VALUES = st.integers(-500, 500).map(lambda n: n / 1000)
ERRORS = st.integers(1, 200).map(lambda n: n / 1000)
STATIONS = st.lists(st.tuples(VALUES, ERRORS), min_size=2, max_size=12)


def random_effects(stations: Sequence[tuple[float, float]]) -> RandomEffects:
    found = effects_or_none([Estimate(value, error, 9) for value, error in stations])
    assert found is not None
    return found


def figures(effects: RandomEffects) -> list[float | None]:
    return list(asdict(effects).values())


def dispersion(stations: Sequence[tuple[float, float]], tau: float) -> float:
    """Q in plain Python."""
    weights = [1 / (error**2 + tau**2) for _, error in stations]
    mean = sum(w * value for w, (value, _) in zip(weights, stations, strict=True)) / sum(weights)
    return sum(w * (value - mean) ** 2 for w, (value, _) in zip(weights, stations, strict=True))


# The mean of a class


@given(STATIONS)
def test_tau_is_paule_and_mandels_whose_dispersion_is_its_expectation(stations: list[tuple[float, float]]) -> None:
    tau = random_effects(stations).tau
    assert tau is not None
    if tau > 0:
        assert dispersion(stations, tau) == pytest.approx(len(stations) - 1, rel=1e-6)
    else:
        assert dispersion(stations, 0) <= (len(stations) - 1) * (1 + 1e-9)


@given(STATIONS)
def test_the_interval_is_hartung_and_knapps_and_i2_is_higgins_and_thompsons(
    stations: list[tuple[float, float]],
) -> None:
    found = random_effects(stations)
    k, tau = len(stations), found.tau or 0.0
    weights = [1 / (error**2 + tau**2) for _, error in stations]
    mean = plain.fmean([value for value, _ in stations], weights)
    q = max(1.0, dispersion(stations, tau) / (k - 1))
    low, high = scipy.stats.t.interval(0.95, k - 1, loc=mean, scale=math.sqrt(q / sum(weights)))
    at_once = dispersion(stations, 0)
    i2 = max(0.0, 1 - (k - 1) / at_once) if at_once else 0.0
    assert figures(found) == pytest.approx([mean, low, high, tau, i2], rel=1e-6, abs=1e-9)


@given(st.lists(VALUES, min_size=2, max_size=12), ERRORS)
def test_of_equal_errors_it_is_the_plain_mean_and_what_the_errors_leave_of_the_variance(
    values: list[float], error: float
) -> None:
    """There DerSimonian and Laird's tau^2 is the same."""
    found = random_effects([(value, error) for value in values])
    variance = plain.variance(values)
    assume(abs(variance - error**2) > 1e-9)
    assert found.mean == pytest.approx(plain.fmean(values), abs=1e-12)
    assert found.tau == pytest.approx(math.sqrt(max(0.0, variance - error**2)), abs=1e-7)
    reach = scipy.stats.t.ppf(0.975, len(values) - 1) * math.sqrt(max(variance, error**2) / len(values))
    assert (found.high or 0) - found.mean == pytest.approx(reach)


def test_a_published_example() -> None:
    """The BCG vaccine trials (Colditz et al. 1994), as in Viechtbauer 2010, https://doi.org/10.18637/jss.v036.i03.

    metafor's ``rma(yi, vi, method="PM")`` says tau^2 = 0.318; the article, I^2 = 92.12% with Q = 152.233 (12 df).
    """
    values = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120, -0.4694, -1.3713, -0.3394]
    variances = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564, 0.0730, 0.0124]
    stations = zip([*values, 0.4459, -0.0173], [*variances, 0.5325, 0.0714], strict=True)
    found = random_effects([(value, math.sqrt(variance)) for value, variance in stations])
    assert (found.tau or 0) ** 2 == pytest.approx(0.318, abs=0.001)
    assert found.mean == pytest.approx(-0.715, abs=0.001)
    assert found.heterogeneity == pytest.approx(0.9212, abs=0.0005)


@given(STATIONS.flatmap(lambda stations: st.tuples(st.just(stations), st.permutations(stations))))
def test_the_stations_order_does_not_matter(
    both: tuple[list[tuple[float, float]], list[tuple[float, float]]],
) -> None:
    one, other = map(random_effects, both)
    assert figures(one) == pytest.approx(figures(other), abs=1e-6)


@given(STATIONS, VALUES)
def test_a_constant_added_to_every_log_moves_the_mean_alone(
    stations: list[tuple[float, float]], constant: float
) -> None:
    before, after = random_effects(stations), random_effects([(value + constant, error) for value, error in stations])
    moved = [value + constant for value in (before.mean, before.low or 0, before.high or 0)]
    assert figures(after) == pytest.approx([*moved, before.tau, before.heterogeneity], abs=1e-6)


@given(STATIONS, st.integers(2, 9))
def test_a_wider_scale_widens_all_but_the_share(stations: list[tuple[float, float]], factor: int) -> None:
    before = random_effects(stations)
    after = random_effects([(value * factor, error * factor) for value, error in stations])
    wider = [factor * value for value in (before.mean, before.low or 0, before.high or 0, before.tau or 0)]
    assert figures(after) == pytest.approx([*wider, before.heterogeneity], abs=1e-6)


@given(VALUES, st.lists(ERRORS, min_size=2, max_size=12))
def test_equal_estimates_have_no_spread(value: float, errors: list[float]) -> None:
    found = random_effects([(value, error) for error in errors])
    assert (found.mean, found.tau, found.heterogeneity) == pytest.approx((value, 0, 0))
    assert (found.low or 0) < value < (found.high or 0)


@given(STATIONS)
def test_the_mean_lies_among_the_stations(stations: list[tuple[float, float]]) -> None:
    values = [value for value, _ in stations]
    assert min(values) - 1e-9 <= random_effects(stations).mean <= max(values) + 1e-9


def test_a_class_of_one_has_its_stations_value_and_nothing_of_the_others() -> None:
    assert random_effects([(0.3, 0.01)]) == RandomEffects(0.3)
    assert effects_or_none([]) is None


def test_estimates_without_error_are_weighed_alike() -> None:
    found = random_effects([(0.1, 0.0), (0.3, 0.0), (0.2, 0.0)])
    assert (found.mean, found.tau) == pytest.approx((0.2, 0.1))
    equal = random_effects([(0.1, 0.0)] * 3)
    assert (equal.mean, equal.tau, equal.heterogeneity) == pytest.approx((0.1, 0, 0))
    assert (equal.high or 0) - 0.1 == pytest.approx(LEAST_ERROR / math.sqrt(3) * scipy.stats.t.ppf(0.975, 2))


# Who disagrees


def estimates(*stations: tuple[float, float], degrees: int = 9) -> dict[str, Estimate]:
    return {f"node-{i}": Estimate(value, error, degrees) for i, (value, error) in enumerate(stations)}


def named(stations: Mapping[str, Estimate], margin: float = 0.0) -> list[str]:
    return [found.station for found in disagreements(stations, margin)]


@given(
    st.lists(st.integers(-5, 5).map(lambda n: n / 1000), min_size=3, max_size=9),
    st.data(),
    st.sampled_from([-0.3, 0.3]),
)
def test_a_station_that_is_unlike_the_others_is_named_and_only_it(
    values: list[float], data: st.DataObject, off: float
) -> None:
    odd = data.draw(st.integers(0, len(values) - 1))
    stations = estimates(*((value + off * (i == odd), 0.01) for i, value in enumerate(values)))
    assert named(stations, MARGIN) == [f"node-{odd}"]


@given(st.tuples(VALUES, ERRORS, st.integers(2, 30)), st.tuples(VALUES, ERRORS, st.integers(2, 30)))
def test_two_stations_are_one_comparison_by_welchs_test(
    one: tuple[float, float, int], two: tuple[float, float, int]
) -> None:
    samples = [(value, error * math.sqrt(count), count) for value, error, count in (one, two)]
    p = scipy.stats.ttest_ind_from_stats(*samples[0], *samples[1], equal_var=False).pvalue
    assume(abs(p - 0.05) > 1e-9)
    both = {name: Estimate(value, error, count - 1) for name, (value, error, count) in (("a", one), ("b", two))}
    assert named(both) == (["b"] if p < 0.05 else [])


def limit(off: Sequence[float], error: float, degrees: int) -> float:
    """How far from stations of equal errors, whose values are ``off``, one more may lie: in plain formulas."""
    m = len(off)
    tau2 = max(0.0, plain.variance(off) - error**2)
    of_station, of_mean = error**2, error**2 / m
    between = tau2 * (1 + 1 / m)
    total = of_station + between + of_mean
    # The mean's error is of m parts, each of a station's degrees of freedom.
    squares = of_station**2 / degrees + between**2 / (m - 1) + m * (of_mean / m) ** 2 / degrees
    return float(scipy.stats.t.ppf(1 - 0.05 / (m + 1) / 2, total**2 / squares) * math.sqrt(total))


@pytest.mark.parametrize("off", [[0.0, 0.0], [0.03, -0.03], [0.0] * 5, [0.04, -0.04, 0.01, -0.01, 0.0]])
@pytest.mark.parametrize("degrees", [9, 30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_station_is_named_from_where_chance_and_the_others_spread_end(
    off: list[float], degrees: int, sign: int
) -> None:
    edge = sign * limit(off, 0.01, degrees)
    for factor, expected in ((0.999, False), (1.001, True)):
        stations = estimates((factor * edge, 0.01), *((value, 0.01) for value in off), degrees=degrees)
        assert ("node-0" in named(stations)) == expected


def test_the_margin_is_of_the_ratio() -> None:
    stations = estimates((math.log(1.05), 1e-4), *[(0.0, 1e-4)] * 4)
    assert named(stations, 0.0499) == ["node-0"]
    assert named(stations, 0.0501) == []
    slower = estimates((-math.log(1.05), 1e-4), *[(0.0, 1e-4)] * 4)
    assert named(slower, 0.0499) == ["node-0"]
    assert named(slower, 0.0501) == []


def test_errors_of_zero_name_who_differs() -> None:
    assert named(estimates((0.1, 0.0), *[(0.0, 0.0)] * 3)) == ["node-0"]
    assert named(estimates(*[(0.0, 0.0)] * 4)) == []


@pytest.mark.parametrize("count", [0, 1])
def test_who_is_alone_disagrees_with_nobody(count: int) -> None:
    assert named(estimates(*[(0.0, 0.01)] * count)) == []


# Classes of rows


def cell(station: str, variant: str, **fields: Any) -> Row:
    """A row of a station, by default of ten launches that scatter by 1%."""
    row = Row(
        run_id="run",
        trial_id=f"trial@{station}",
        station=station,
        host=station,
        device="cpu",
        device_name="CPU",
        model="small",
        batch=1,
        prompt_tokens=4,
        reply_tokens=5,
        threads=1,
        variant=variant,
        baseline=BASELINE,
        exact=True,
        hardware=EPYC,
        launches=10,
        p50_ms=10.0,
        p50_scatter=0.01,
        speedup=1.0,
        verdict="baseline" if variant == BASELINE else "faster",
    )
    return replace(row, **fields)


def interval(speedup: float, scatter: float, launches: int = 10) -> dict[str, Any]:
    """As ``statistics.speedup`` would have it of launches with this scatter."""
    reach = float(scipy.stats.t.ppf((1 + statistics.NOMINAL) / 2, launches - 1)) * scatter / math.sqrt(launches)
    return {"speedup": speedup, "speedup_low": speedup * math.exp(-reach), "speedup_high": speedup * math.exp(reach)}


def pair(station: str, p50_ms: float = 10.0, speedup: float = 1.25, **fields: Any) -> list[Row]:
    script = cell(station, SCRIPT, p50_ms=p50_ms / speedup, **interval(speedup, 0.01), **fields)
    return [cell(station, BASELINE, p50_ms=p50_ms, **fields), script]


def several(count: int, **fields: Any) -> list[Row]:
    return [row for i in range(count) for row in pair(f"node-{i}:cpu", **fields)]


def by_variant(rows: Sequence[Row]) -> dict[str, HardwareClass]:
    return {one.variant: one for one in classes_of(rows, MARGIN)}


def test_a_class_is_one_kind_of_hardware_with_one_workload_and_variant() -> None:
    rows = [*several(2), *pair("gpu", hardware="Tesla T4", device="cuda"), *pair("node-0:cpu", batch=16)]
    found = [(c.hardware, c.device, c.batch, c.variant, c.stations) for c in classes_of(rows, MARGIN)]
    assert found == [
        *((EPYC, "cpu", 1, name, 2) for name in (BASELINE, SCRIPT)),
        *(("Tesla T4", "cuda", 1, name, 1) for name in (BASELINE, SCRIPT)),
        *((EPYC, "cpu", 16, name, 1) for name in (BASELINE, SCRIPT)),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"status": Status.FAILED},
        {"status": Status.SKIPPED},
        {"verdict": "invalid"},
        {"verdict": None},
        {"hardware": None},
        {"launches": 1, "p50_scatter": None},
    ],
)
def test_what_was_not_validly_measured_is_in_no_class(fields: dict[str, Any]) -> None:
    odd = [replace(row, **fields) for row in pair("node-9:cpu", p50_ms=99.0)]
    assert classes_of([*several(3), *odd], MARGIN) == classes_of(several(3), MARGIN)


def test_a_stations_figures_are_weighed_by_their_own_errors() -> None:
    """1.2533 is the root of half of pi: what a median's error is of a mean's."""
    launches, scatters, p50s, speedups = (10, 14, 20), (0.05, 0.02, 0.08), (10.0, 10.4, 9.5), (1.2, 1.26, 1.31)
    rows = [
        cell(
            f"node-{i}",
            SCRIPT,
            launches=launches[i],
            p50_ms=p50s[i],
            p50_scatter=scatters[i],
            **interval(speedups[i], scatters[i], launches[i]),
        )
        for i in range(3)
    ]
    means = [scatter / math.sqrt(count) for scatter, count in zip(scatters, launches, strict=True)]
    latency = random_effects([(math.log(ms), 1.2533 * error) for ms, error in zip(p50s, means, strict=True)])
    speedup = random_effects([(math.log(ratio), error) for ratio, error in zip(speedups, means, strict=True)])
    assert (latency.tau or 0) > 0 < (speedup.tau or 0)
    (found,) = classes_of(rows, MARGIN)
    for name, effects in (("p50_{}ms", latency), ("speedup{}", speedup)):
        mine = [
            getattr(found, name.format(part))
            for part in (("", "low_", "high_") if "ms" in name else ("", "_low", "_high"))
        ]
        logs = (effects.mean, effects.low or 0, effects.high or 0)
        assert mine == pytest.approx([math.exp(log) for log in logs], rel=1e-4)
    assert found.p50_spread == pytest.approx(math.exp(latency.tau or 0) - 1, rel=1e-3)
    assert found.speedup_spread == pytest.approx(math.exp(speedup.tau or 0) - 1)
    assert found.heterogeneity == pytest.approx(speedup.heterogeneity)


def test_the_baseline_has_a_latency_but_no_speedup() -> None:
    found = by_variant(several(3))[BASELINE]
    assert found.p50_ms == pytest.approx(10.0)
    assert found.p50_spread == 0
    nothing = (found.speedup, found.speedup_low, found.speedup_high, found.speedup_spread, found.heterogeneity)
    assert nothing == (None,) * 5


def test_one_station_tells_its_own_figures_and_no_spread() -> None:
    found = by_variant(several(1, p50_ms=8.0))[SCRIPT]
    assert found.stations == 1
    assert [found.p50_ms, found.speedup] == pytest.approx([6.4, 1.25])
    limits = [found.p50_low_ms, found.p50_high_ms, found.speedup_low, found.speedup_high]
    assert [*limits, found.p50_spread, found.speedup_spread] == [None] * 6
    assert (found.heterogeneity, found.disagreeing) == (None, ())


def test_a_speedup_without_an_interval_does_not_count() -> None:
    lone = replace(pair("node-9:cpu")[1], speedup=None, speedup_low=None, speedup_high=None, verdict="inconclusive")
    found = by_variant([*several(3), lone])[SCRIPT]
    assert found.stations == 4
    assert found.speedup == pytest.approx(1.25)
    assert classes_of([lone], MARGIN)[0].speedup is None


def test_equal_stations_are_all_alike() -> None:
    found = by_variant(several(6))
    assert [one.disagreeing for one in found.values()] == [(), ()]
    assert (found[SCRIPT].speedup_spread, found[SCRIPT].heterogeneity) == (0, 0)


def test_a_slow_station_is_told_of_once() -> None:
    found = by_variant([*several(5), *pair("node-7:cpu", p50_ms=13.1)])
    said = f"node-7:cpu is 31% slower than the other 5 stations of its class ({EPYC})"
    assert (found[BASELINE].disagreeing, found[SCRIPT].disagreeing) == ((said,), ())


def test_a_fast_station_is_faster() -> None:
    found = by_variant([*several(5), *pair("node-7:cpu", p50_ms=10 / 1.31)])[BASELINE]
    assert found.disagreeing == (f"node-7:cpu is 31% faster than the other 5 stations of its class ({EPYC})",)


def test_a_station_with_another_speedup_is_told_of_with_what_chance_would_allow() -> None:
    found = by_variant([*several(5), *pair("node-7:cpu", speedup=1.05)])
    assert found[BASELINE].disagreeing == ()
    reach = limit([0.0] * 5, 0.01 / math.sqrt(10), 9)
    low, high = 1.25 * math.exp(-reach), 1.25 * math.exp(reach)
    assert found[SCRIPT].disagreeing == (
        "node-7:cpu: torchscript's speedup of 1.050 differs from that of the other 5 stations, "
        f"1.250 (chance allows {low:.3f} to {high:.3f})",
    )


def test_of_two_stations_neither_is_the_odd_one() -> None:
    found = by_variant([*pair("b:cpu", p50_ms=13.1, speedup=1.05), *pair("a:cpu")])
    assert found[BASELINE].disagreeing == (f"a:cpu and b:cpu disagree: b:cpu is 31% slower ({EPYC})",)
    said = "a:cpu and b:cpu disagree: torchscript's speedup is 1.250 on a:cpu, 1.050 on b:cpu"
    assert found[SCRIPT].disagreeing == (said,)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_an_error_has_the_degrees_of_freedom_of_its_launches(factor: float) -> None:
    """Of two stations with four launches each, as in a t test of two means."""
    edge = scipy.stats.t.ppf(0.975, 3 + 3) * math.sqrt(2) * 0.05 / math.sqrt(4)
    told = interval(math.exp(factor * edge), 0.05, 4)
    slow = {"p50_ms": 10 * math.exp(factor * math.sqrt(math.pi / 2) * edge), "p50_scatter": 0.05, "launches": 4}
    usual = {"p50_ms": 10.0, "p50_scatter": 0.05, "launches": 4}
    baselines = [cell("a", BASELINE, **usual), cell("b", BASELINE, **slow)]
    scripts = [cell("a", SCRIPT, **{**usual, **interval(1.0, 0.05, 4)}), cell("b", SCRIPT, **{**usual, **told})]
    found = classes_of([*baselines, *scripts], margin=0.0)
    assert [len(one.disagreeing) for one in found] == [factor > 1] * 2


def test_a_difference_below_the_margin_is_not_spoken_of() -> None:
    odd = pair("node-7:cpu", p50_ms=10.3, p50_scatter=1e-4)
    rows = [*several(5, p50_scatter=1e-4), *odd]
    assert len(classes_of(rows, 0.029)[0].disagreeing) == 1
    assert classes_of(rows, 0.031)[0].disagreeing == ()


@examples(25)
@given(st.permutations([*several(2), *pair("node-5:cpu", p50_ms=15.0), *pair("node-6:cpu", speedup=2.0)]))
def test_the_order_of_the_rows_does_not_matter(rows: list[Row]) -> None:
    expected = by_variant([*several(2), *pair("node-5:cpu", p50_ms=15.0), *pair("node-6:cpu", speedup=2.0)])
    assert by_variant(rows) == expected
    assert sum(len(one.disagreeing) for one in expected.values()) == 2


def test_a_class_is_flat() -> None:
    (found, _) = classes_of([*several(2), *pair("node-7:cpu", p50_ms=15.0)], MARGIN)
    content = asdict(found)
    assert json.loads(json.dumps(content)) == {**content, "disagreeing": list(content["disagreeing"])}
    assert {type(value) for value in content.values()} == {str, int, float, bool, tuple, type(None)}


# How often it is wrong


def simulated(rng: np.random.Generator, truths: Sequence[float]) -> list[Row]:
    """A station of each true log latency and log speedup, with 10 to 20 launches."""
    rows = []
    for i, truth in enumerate(truths):
        count = int(rng.integers(10, 21))
        medians, logs = truth + rng.normal(0, SCATTER, (2, count))
        told = statistics.speedup(logs.tolist())
        assert told is not None
        known: dict[str, Any] = {"speedup": told.value, "speedup_low": told.low, "speedup_high": told.high}
        p50: dict[str, Any] = {
            "p50_ms": float(np.exp(np.median(medians))),
            "p50_scatter": float(np.std(medians, ddof=1)),
        }
        name = f"node-{i}"
        rows += [cell(name, BASELINE, launches=count, **p50), cell(name, SCRIPT, launches=count, **p50, **known)]
    return rows


def holds(low: float | None, high: float | None, truth: float) -> bool:
    assert low is not None
    assert high is not None
    return low <= truth <= high


def error(share: float, count: int) -> float:
    """Three standard errors of a simulated share."""
    return 3 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize(("stations", "classes"), [(2, 600), (3, 600), (5, 400), (20, 100)])
def test_of_equal_stations_one_class_in_twenty_or_fewer_has_one_named(stations: int, classes: int) -> None:
    """Without a margin; and the class's intervals hold the truth."""
    rng = np.random.default_rng(31)
    classes = trials(classes)
    wrong, covered = np.zeros(2), np.zeros(2)
    for _ in range(classes):
        slow, script = classes_of(simulated(rng, [0.0] * stations), margin=0.0)
        wrong += [bool(slow.disagreeing), bool(script.disagreeing)]
        covered += [
            holds(slow.p50_low_ms, slow.p50_high_ms, 1.0),
            holds(script.speedup_low, script.speedup_high, 1.0),
        ]
    assert (wrong / classes <= 0.05 + error(0.05, classes)).all()
    assert (covered / classes >= 0.95 - error(0.05, classes)).all()


@pytest.mark.parametrize("tau", [0.02, 0.1])
@pytest.mark.parametrize(("stations", "classes"), [(3, 800), (5, 800), (20, 800)])
def test_of_stations_that_differ_the_mean_of_their_class_is_covered(stations: int, classes: int, tau: float) -> None:
    rng = np.random.default_rng(32)
    covered, classes = 0, trials(classes)
    for _ in range(classes):
        counts = rng.integers(10, 21, stations)
        errors = SCATTER * np.sqrt(rng.chisquare(counts - 1) / (counts - 1) / counts)
        values = rng.normal(0, tau, stations) + rng.normal(0, SCATTER / np.sqrt(counts))
        found = random_effects(list(zip(values, errors, strict=True)))
        covered += holds(found.low, found.high, 0.0)
    assert covered / classes >= 0.95 - error(0.05, classes)


@pytest.mark.parametrize(("stations", "off"), [(3, 0.2), (5, 0.15), (20, 0.1)])
def test_an_odd_station_is_found_nine_times_in_ten(stations: int, off: float) -> None:
    rng = np.random.default_rng(33)
    found, classes = 0, trials(60)
    for _ in range(classes):
        slow, _ = classes_of(simulated(rng, [off, *[0.0] * (stations - 1)]), MARGIN)
        found += any(said.startswith("node-0 ") for said in slow.disagreeing)
    assert found >= (0.9 - (error(0.9, classes) if QUICK else 0)) * classes


# On screen


def shown(rows: Sequence[Row], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    print_classes(classes_of(rows, MARGIN))
    return capsys.readouterr().out


def test_the_classes_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*several(5), *pair("node-7:cpu", p50_ms=13.1), *pair("gpu", hardware="Tesla T4", device="cuda")]
    lines = [line.rstrip() for line in shown(rows, 120, monkeypatch, capsys).splitlines()]
    assert lines[1] == "cpu by hardware class: model small, batch 1, prompt 4 tokens, reply 5 tokens, 1 thread"
    assert "hardware class" in lines[3]
    found = by_variant(rows[:12])
    slow, script = found[BASELINE], found[SCRIPT]
    latency = text.p50(slow)
    assert lines[5].split() == [*EPYC.split(), "6", "eager", *latency.split(), "-", f"{slow.p50_spread:.1%},", "-"]
    assert text.speedup(script) in lines[6]
    assert lines[6].endswith(f" {script.p50_spread:.1%}, 0.0%")
    assert lines[7:] == [f"  {said}" for said in slow.disagreeing]


def test_a_station_that_is_off_is_named_once_behind_a_run() -> None:
    rows = [*several(5), *pair("node-7:cpu", p50_ms=13.1, speedup=1.6)]
    rows += [*several(5, batch=16), *pair("node-7:cpu", batch=16)]
    (said,) = off_stations(classes_of(rows, MARGIN))
    assert said.startswith("node-7:cpu is 31% slower than the other 5 stations")
    assert off_stations(classes_of(several(5), MARGIN)) == []


def test_each_workload_has_its_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown([*several(2), *several(3, batch=16, threads=2)], 120, monkeypatch, capsys)
    assert out.count("hardware class  ") == 2
    assert out.index("batch 1,") < out.index("batch 16,") < out.index("2 threads")


def test_on_a_narrow_terminal_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*several(5), *pair("node-7:cpu", p50_ms=13.1, speedup=1.05)]
    wide, narrow = (shown(rows, width, monkeypatch, capsys) for width in (120, 60))
    assert "…" not in narrow
    table = wide.split("─\n")[1]
    words = {word.strip(",:") for word in table.split()}
    assert words <= {word.strip(",:") for word in narrow.split()}
    assert narrow.endswith("\n".join(wide.splitlines()[-2:]) + "\n")


def test_classes_of_one_station_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown([*several(1), *pair("gpu", hardware="Tesla T4", device="cuda")], 120, monkeypatch, capsys) == ""
