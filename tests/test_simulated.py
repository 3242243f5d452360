"""The whole of the tool but its programs on a simulated machine: how often it is wrong, and what its rules are for.

All seeds are fixed: a comparison's seed is its number, so a rate that was measured once stays as it was.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from profiles import QUICK, trials
from simulated import (
    PAIR,
    Comparison,
    Conditions,
    Rules,
    always_built_alike,
    always_in_turn,
    call_by_call,
    compare,
    one_after_the_other,
    processes_one_after_the_other,
    turns_by_lot,
)

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.measure import interference
from ray_jobs.measure.result import LaunchResult
from ray_jobs.statistics import Interval, speedup, verdict

MARGIN = 0.02
CLAIMED = 0.05  # of false verdicts: the interval of their rate reaches below this
MOST = 0.20 if QUICK else 0.10  # and ends under this
COMPARISONS = trials(300)
WRONG = ("faster", "slower")

QUIET = Conditions(launch_sd=0.005, call_sd=0.02)
DRIFT, SLOTS, PLACES, BURSTS = 0.2, 0.05, 0.05, 2.0
HOSTILE = {
    "quiet": Conditions(),
    "drift": Conditions(drift=DRIFT),
    "bursts": Conditions(burst_every_s=BURSTS),
    "slots": Conditions(slot=SLOTS),
    "places": Conditions(place=PLACES),
    "hits": Conditions(spikes=0.1),
    "many hits": Conditions(spikes=0.3),  # more than Hodges and Lehmann's estimator bears
    "all": Conditions(drift=DRIFT, burst_every_s=BURSTS, slot=SLOTS, place=0.02),
}


@pytest.fixture(scope="module", autouse=True)
def _no_rest_collects() -> Iterator[None]:
    """A simulated clock does not mind garbage; collecting it between rounds would be a third of this file's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda generation=2: 0)
        yield


def share(count: int, of: int) -> Interval:
    """The exact 95% interval of a share (Clopper and Pearson 1934)."""
    found = scipy.stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    return Interval(count / of, float(found.low), float(found.high))


def without_discarding(comparison: Comparison) -> Interval:
    """The control's speedup if no round were discarded."""
    found = speedup([replace(launch, interference=None).log_speedups()[CONTROL] for launch in comparison.launches])
    assert found is not None
    return found


def false_verdicts(comparisons: Sequence[Comparison]) -> float:
    """The share of comparisons of a program with itself that call it faster or slower."""
    return float(np.mean([verdict(comparison.interval(), MARGIN) in WRONG for comparison in comparisons]))


def bias(comparisons: Sequence[Comparison], truth: float) -> tuple[float, float]:
    """The mean error of the log speedups, and its standard error."""
    errors = [math.log(comparison.interval().value / truth) for comparison in comparisons]
    return float(np.mean(errors)), float(np.std(errors, ddof=1)) / math.sqrt(len(errors))


# A program beside itself


@pytest.mark.parametrize("condition", HOSTILE)
def test_a_program_is_called_different_from_itself_in_at_most_one_of_twenty(condition: str) -> None:
    excluded = wrong = 0
    for seed in range(COMPARISONS):
        comparison = compare(HOSTILE[condition], seed)
        interval = comparison.interval()
        said = verdict(interval, MARGIN)
        excluded += not interval.low <= 1 <= interval.high
        wrong += said in WRONG
        if not seed % 30:  # a row says just that; making all of them would take most of the time
            row = comparison.rows(MARGIN)[CONTROL]
            assert (row.speedup, row.speedup_low, row.speedup_high) == (interval.value, interval.low, interval.high)
            assert row.verdict == said
    for count in (excluded, wrong):
        rate = share(count, COMPARISONS)
        assert rate.low <= CLAIMED
        assert rate.high < MOST


def test_each_of_three_variants_is_called_different_from_itself_in_at_most_one_of_twenty() -> None:
    names = (*PAIR, "torchscript")
    comparisons = [compare(HOSTILE["all"], seed, dict.fromkeys(names, 1.0)) for seed in range(trials(240))]
    assert all(len(comparison.launches) % len(names) == 0 for comparison in comparisons)
    said = [verdict(comparison.interval(name), MARGIN) for comparison in comparisons for name in names[1:]]
    rate = share(sum(word in WRONG for word in said), len(said))
    assert rate.low <= CLAIMED
    assert rate.high < MOST


# What the rules are for: the same machine, measured otherwise


def test_always_building_in_the_same_order_is_nearly_always_wrong() -> None:
    rules = Rules(building=always_built_alike)
    assert false_verdicts([compare(HOSTILE["places"], seed, rules=rules) for seed in range(40)]) >= 0.95


def test_always_taking_turns_in_the_same_order_is_nearly_always_wrong() -> None:
    rules = Rules(turns=always_in_turn)
    assert false_verdicts([compare(HOSTILE["slots"], seed, rules=rules) for seed in range(40)]) >= 0.95


def test_turns_by_lot_that_are_not_balanced_leave_wider_intervals() -> None:
    still = replace(HOSTILE["slots"], call_sd=0.03)  # else a single call of a turn hides what its place costs
    widths = [
        np.mean([compare(still, seed, rules=rules, precision=1e-6).interval().half_width for seed in range(40)])
        for rules in (Rules(), Rules(turns=turns_by_lot))
    ]
    assert widths[0] < 0.9 * widths[1]


def rate_of(p_values: Sequence[float]) -> float:
    """How often a t test at 5% calls a program different from itself."""
    return float(np.mean(np.array(p_values) < 0.05))


STILL = Conditions(launch_sd=0.0, spikes=0.0)
SEEDS = range(trials(200))


def test_one_program_after_the_other_is_mostly_wrong_where_the_machine_drifts() -> None:
    drifting = replace(STILL, drift=DRIFT)
    assert rate_of([one_after_the_other(drifting, seed, 300) for seed in SEEDS]) > 0.8
    assert rate_of([processes_one_after_the_other(drifting, seed, 10, 24) for seed in SEEDS]) > 0.8
    assert rate_of([one_after_the_other(STILL, seed, 300) for seed in SEEDS]) < MOST, "drift alone is to blame"
    assert rate_of([processes_one_after_the_other(STILL, seed, 10, 24) for seed in SEEDS]) < MOST


def test_calls_of_one_process_as_the_unit_are_mostly_wrong_where_launches_differ() -> None:
    differing = replace(STILL, launch_sd=0.02)
    assert rate_of([call_by_call(differing, seed, 300) for seed in SEEDS]) > 0.7
    assert rate_of([call_by_call(STILL, seed, 300) for seed in SEEDS]) < MOST, "launches alone are to blame"


# A program beside a slower one


def test_a_difference_of_two_percent_is_found() -> None:
    base = {BASELINE: 1.0, CONTROL: 1.02}
    comparisons = [compare(QUIET, seed, base, precision=0.012) for seed in range(80)]
    found = share(sum(comparison.interval().high < 1 for comparison in comparisons), len(comparisons))
    assert found.low >= 0.9
    mean, error = bias(comparisons, 1 / 1.02)
    assert abs(mean) < 0.002
    assert error < 0.0006, "the bias is known well enough to say so"


@pytest.mark.parametrize("slower", [1.0, 1.02])
def test_a_machine_that_slows_down_half_way_does_not_bias_the_speedup(slower: float) -> None:
    slowing = replace(QUIET, step=0.2, step_s=8.0)
    comparisons = [compare(slowing, seed, {BASELINE: 1.0, CONTROL: slower}, precision=0.012) for seed in range(60)]
    assert all(comparison.machine.clock() > 15 for comparison in comparisons), "the step lies half-way"
    mean, error = bias(comparisons, 1 / slower)
    assert abs(mean) < 0.002
    assert error < 0.0008
    missed = sum(not i.low <= 1 / slower <= i.high for i in (comparison.interval() for comparison in comparisons))
    assert share(missed, len(comparisons)).low <= CLAIMED
    row = comparisons[0].rows()[CONTROL]
    assert any("the machine itself became" in text and "slower" in text for text in row.warnings)


# Bursts


@pytest.fixture(scope="module")
def beside_bursts(_no_rest_collects: None) -> list[Comparison]:
    """Comparisons beside bursts that come often enough to matter and not often enough for a warning."""
    return [compare(HOSTILE["bursts"], seed) for seed in range(60)]


def lost_shares(comparison: Comparison) -> list[NDArray[np.float64]]:
    """Of each round, what share of its launch's median round a burst took, less what wake-ups may, as simulated."""
    bursts = np.array(comparison.machine.bursts)
    lost = []
    for times in comparison.round_times:
        starts, ends = np.array(times).T[:, :, None]
        overlaps = np.clip(np.minimum(ends, bursts[:, 1]) - np.maximum(starts, bursts[:, 0]), 0, None)
        taken = overlaps.sum(axis=1) / 2 - interference.WAKE_UPS_NS
        lost.append(taken / np.median(ends - starts))
    return lost


def test_the_disturbed_rounds_are_those_in_which_a_burst_took_the_core(beside_bursts: list[Comparison]) -> None:
    discarded = 0
    for comparison in beside_bursts:
        for launch, lost in zip(comparison.launches, lost_shares(comparison), strict=True):
            assert launch.interference is not None
            known = lost > 0.02
            assert interference.disturbed(launch.interference) == known.sum()
            if known.sum() <= launch.rounds // 2:
                assert launch.kept_rounds.tolist() == (~known).tolist()
            else:
                assert launch.kept_rounds.sum() == launch.rounds - launch.rounds // 2
            discarded += int((~launch.kept_rounds).sum())
    assert discarded > 100


def test_rounds_are_discarded_by_counters_alone_whatever_the_latencies(beside_bursts: list[Comparison]) -> None:
    rng = np.random.default_rng(0)
    for launch in (launch for comparison in beside_bursts for launch in comparison.launches):
        made_up = rng.integers(1, 10**9, len(launch.samples.wall_ns))
        other = replace(launch, samples=replace(launch.samples, wall_ns=made_up))
        assert other.kept_rounds.tolist() == launch.kept_rounds.tolist()


def test_discarding_makes_intervals_narrower_beside_bursts(beside_bursts: list[Comparison]) -> None:
    discarding = np.array([comparison.interval().half_width for comparison in beside_bursts])
    keeping = np.array([without_discarding(comparison).half_width for comparison in beside_bursts])
    assert discarding.mean() < 0.95 * keeping.mean()


def test_without_bursts_no_round_is_discarded() -> None:
    comparison = compare(HOSTILE["drift"], seed=0)
    assert all(launch.kept_rounds.all() for launch in comparison.launches)
    assert without_discarding(comparison) == comparison.interval()


def disturbed_share(launches: Sequence[LaunchResult]) -> float:
    watched = [launch.interference for launch in launches if launch.interference is not None]
    return sum(map(interference.disturbed, watched)) / sum(launch.rounds for launch in launches)


@pytest.mark.parametrize("every_s", [0.5, 1.0, 2.0, 4.0, math.inf])
def test_a_row_names_what_disturbed_more_than_a_fifth_of_its_rounds(every_s: float) -> None:
    comparisons = [compare(Conditions(burst_every_s=every_s), seed) for seed in range(4)]
    for comparison in comparisons:
        share_known = np.mean(np.concatenate(lost_shares(comparison)) > 0.02) if math.isfinite(every_s) else 0.0
        assert disturbed_share(comparison.launches) == pytest.approx(share_known)
        for row in comparison.rows().values():
            named = [text for text in row.warnings if "of the rounds were disturbed" in text]
            assert len(named) == (share_known > 0.2)
            assert all("waited" in text and "other processes" in text for text in named)


def test_the_bursts_of_these_tests_fall_on_both_sides_of_the_warning() -> None:
    shares = [disturbed_share(compare(Conditions(burst_every_s=every), seed=0).launches) for every in (0.5, 4.0)]
    assert shares[0] > interference.WARN_SHARE > shares[1] > 0
