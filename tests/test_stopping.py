"""When launches end: by precision or by budget, in whole blocks, and what stopping so does to the intervals.

A launch's outcome is made up; its time passes on a made-up clock.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launches import made_trial
from numpy.typing import NDArray
from profiles import QUICK, examples
from scipy import special

from chatbot.variants import BASELINE
from ray_jobs.measure import orders
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.rounds import Log
from ray_jobs.measure.trial import SIDE_S, Trial
from ray_jobs.process.server import TrialError
from ray_jobs.process.trial import ATTEMPTS, Committed, Failure, launches
from ray_jobs.sides import AGAIN, BASE, Side
from ray_jobs.statistics import CONFIDENCE, LEAST_LAUNCHES, NOMINAL, Floats, speedup

PRECISION = 0.01
NOTHING = Log().samples()
POOL = np.zeros((1, 1), dtype=np.int64)
FOREVER = 1e9  # seconds


@dataclass(frozen=True)
class Told(LaunchResult):
    """A launch whose speedups are as told."""

    logs: dict[str, float] = field(default_factory=dict)

    def log_speedups(self) -> dict[str, float]:
        return self.logs


def names(variants: int) -> tuple[str, ...]:
    return (BASELINE, *(f"variant-{i}" for i in range(1, variants)))


def trial(variants: int, budget_s: float = FOREVER, precision: float = PRECISION, seed: int = 3) -> Trial:
    return made_trial(variants=names(variants), seed=seed, precision=precision, budget_s=budget_s)


def told(launch: Launch, logs: Iterable[float], rounds: int = 7, calls: int = 5) -> Told:
    """The outcome of a launch, ``logs`` of all variants but the baseline."""
    values = dict(zip(names(99)[1:], (float(log) for log in logs), strict=False))
    return Told(launch, names(1 + len(values)), (), rounds, calls, {}, NOTHING, logs=values)


def outcomes(logs: NDArray[np.float64], precision: float = PRECISION) -> list[LaunchResult | Failure]:
    """What a trial of these launches runs until it is precise enough; ``logs`` is (launches, variants - 1)."""
    asked = trial(1 + logs.shape[1], precision=precision)
    return list(launches(asked, lambda launch: told(launch, logs[launch.index]), lambda: 0.0))


# How often an interval misses the truth. Launches' log speedups are normal; the truth is 0.

TRIALS = 12_000 if QUICK else 120_000
MOST_LAUNCHES = 80  # then the budget ends, whatever the precision
STATED = 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / TRIALS)  # error of the simulation: 3 standard errors, 0.19%
# The scatter of launches in multiples of the precision: from where the least launches nearly always suffice, over
# those that need 15 to 60, to where the budget nearly always ends first.
RATIOS = (1.0, 1.4, 1.8, 2.1, 2.3, 2.6, 3.0, 3.5, 5.0)


@dataclass(frozen=True)
class Looks:
    """Many trials of launches with a scatter of 1, as they stand at each look of the stopping rule."""

    counts: NDArray[np.int64]  # (looks,): launches so far
    means: Floats  # (looks, trials, intervals)
    sds: Floats

    @classmethod
    def of(cls, logs: Iterable[Floats], block: int) -> "Looks":
        """Of launches that came out so, each (trials, intervals)."""
        sums, squares = np.zeros(1), np.zeros(1)
        counts, means, sds = [], [], []
        for n, launch in enumerate(logs, 1):
            sums, squares = sums + launch, squares + launch**2
            if n >= orders.up_to_multiple(LEAST_LAUNCHES, block) and not n % block:
                counts.append(n)
                means.append(sums / n)
                sds.append(np.sqrt((squares - sums**2 / n) / (n - 1)))
        return cls(np.array(counts), np.array(means), np.array(sds))

    def stop(self, scatter: float, precision: float, nominal: float) -> tuple[NDArray[np.int64], Floats]:
        """(trials,): launches run; (trials, intervals): 1.0 where the interval misses the truth.

        The same rule as ``launches`` and ``speedup`` in another form: a half-width is sinh of the reach of the logs.
        """
        quantiles = special.stdtrit(self.counts - 1, (1 + nominal) / 2) / np.sqrt(self.counts)
        reaches = quantiles[:, None, None] * self.sds
        enough = (scatter * reaches <= math.asinh(precision)).all(axis=2)
        enough[-1] = True
        look = enough.argmax(axis=0)
        each = np.arange(len(look))
        missed = np.abs(self.means[look, each]) > reaches[look, each]
        return self.counts[look], missed.astype(np.float64)


def scattered(block: int, trials: int, seed: int) -> Iterator[Floats]:
    """Launch by launch (trials, block - 1): with a scatter of 1; the variants share the baseline, so go together."""
    rng = np.random.default_rng(seed)
    for _ in range(MOST_LAUNCHES // block * block):
        if block == 2:
            yield rng.standard_normal((trials, 1))
        else:
            times = rng.standard_normal((trials, block)) * math.sqrt(0.5)
            yield times[:, :1] - times[:, 1:]


@pytest.mark.parametrize("block", [2, 3, 5])
def test_the_simulation_stops_when_the_tool_does_and_finds_the_same_intervals(block: int) -> None:
    logs = 0.02 * np.array(list(scattered(block, 40, seed=block)))
    counts, missed = Looks.of(logs / 0.02, block).stop(0.02, PRECISION, NOMINAL)
    assert counts.max() < len(logs), "none ends for want of launches"
    for number in range(logs.shape[1]):
        run = outcomes(logs[:, number])
        assert len(run) == counts[number]
        for i in range(block - 1):
            interval = speedup(logs[: len(run), number, i].tolist())
            assert interval is not None
            assert (not interval.low <= 1 <= interval.high) == missed[number, i]
    assert len(set(counts.tolist())) > 4, "some need few launches, some many"


@pytest.mark.parametrize("block", [2, 3, 5])
def test_of_intervals_that_stopped_when_narrow_at_most_one_of_twenty_misses_the_truth(block: int) -> None:
    """Within the error of the simulation. Two variants with a scatter of 2.2 to 2.3 times the precision are worst."""
    looks = Looks.of(scattered(block, TRIALS // (block - 1), seed=10 + block), block)
    found = {ratio: looks.stop(ratio * PRECISION, PRECISION, NOMINAL) for ratio in RATIOS}
    assert {
        ratio: missed.mean() for ratio, (_, missed) in found.items() if missed.mean() > 1 - CONFIDENCE + STATED
    } == {}
    needed = [float(counts.mean()) for counts, _ in found.values()]
    assert needed[0] < 14
    assert needed[-1] > 70
    assert sum(15 <= mean <= 60 for mean in needed) >= 5


@pytest.mark.parametrize("block", [2, 3, 5])
def test_with_a_plain_95_percent_more_than_one_of_twenty_would_miss(block: int) -> None:
    looks = Looks.of(scattered(block, TRIALS // (block - 1), seed=20 + block), block)
    worst = max(looks.stop(ratio * PRECISION, PRECISION, CONFIDENCE)[1].mean() for ratio in RATIOS)
    assert worst > 1 - CONFIDENCE + (0 if QUICK else STATED)
    if block == 2:
        assert worst > 0.06


# What the decision rests on

SCATTER = 0.02
SHIFTS = (-2.0, -0.01, 0.003, 0.01, 0.05, 0.7)


@pytest.mark.parametrize("variants", [2, 3, 4])
@pytest.mark.parametrize("shift", SHIFTS)
def test_how_fast_a_variant_is_does_not_change_the_number_of_launches(variants: int, shift: float) -> None:
    """The half-width as a share of the speedup is sinh of the logs' reach, exactly: the mean cancels out."""
    for seed in range(10):
        logs = np.random.default_rng(seed).normal(0, SCATTER, (400, variants - 1))
        moved = logs.copy()
        moved[:, 0] += shift
        assert len(outcomes(moved)) == len(outcomes(logs)) == len(outcomes(-logs))


def test_a_significant_result_neither_ends_a_trial_nor_prolongs_it() -> None:
    logs = np.random.default_rng(4).normal(0, SCATTER, (400, 1))
    plain, huge = outcomes(logs), outcomes(logs + 1.0)
    significant = [speedup((logs[:n, 0] + 1.0).tolist()) for n in range(LEAST_LAUNCHES, len(huge))]
    assert len(significant) > 2
    assert all(interval is not None and interval.low > 1 for interval in significant), "long before it ends"
    assert len(plain) == len(huge)


@pytest.mark.parametrize("variants", [2, 3, 4, 5])
def test_launches_go_on_until_every_interval_is_narrow_and_end_at_the_first_such_block(variants: int) -> None:
    scatter = 1.5 * SCATTER * np.linspace(1, 0.2, variants - 1)
    logs = np.random.default_rng(variants).normal(0.1, scatter, (400, variants - 1))
    done = len(outcomes(logs))
    least = orders.up_to_multiple(LEAST_LAUNCHES, variants)
    assert done > least
    for n in range(least, done + 1, variants):
        intervals = [speedup(column[:n].tolist()) for column in logs.T]
        narrow = all(interval is not None and interval.half_width <= PRECISION for interval in intervals)
        assert narrow == (n == done)


@pytest.mark.parametrize("variants", range(1, 13))
def test_the_least_launches_are_whole_blocks_however_narrow_the_intervals(variants: int) -> None:
    run = outcomes(np.zeros((40, variants - 1)))
    assert len(run) == orders.up_to_multiple(LEAST_LAUNCHES, variants)
    assert [outcome.launch.index for outcome in run] == list(range(len(run)))


# Budget, on a clock that launches alone advance


class Bench:
    """Runs made-up launches: how long each takes, and which attempts are lost, in turn."""

    def __init__(
        self, seconds: Callable[[int], float], scatter: float = 1.0, lost: Callable[[int], bool] | None = None
    ):
        self.seconds = seconds
        self.lost = lost or (lambda number: False)
        self.scatter = scatter
        self.now = 1000.0
        self.asked: list[Launch] = []
        self.ends: list[float] = []  # since the start, of each launch that was not lost

    def run(self, launch: Launch) -> LaunchResult | Failure:
        number = len(self.asked)
        self.asked.append(launch)
        self.now += self.seconds(number)
        if self.lost(number):
            return Failure(launch, "it was lost")
        self.ends.append(self.now - 1000.0)
        return told(launch, launch.rng().normal(0, self.scatter, 4)[: self.variants - 1])

    def trial(
        self, variants: int, budget_s: float, precision: float = PRECISION, sides: tuple[Side, ...] = ()
    ) -> list[LaunchResult | Failure]:
        self.variants = variants
        asked = replace(trial(variants, budget_s, precision), sides=sides)
        return list(launches(asked, self.run, lambda: self.now))


@examples(50)
@given(st.integers(2, 5), st.integers(1, 60), st.integers(1, 2000))
def test_as_many_whole_blocks_run_as_fit_into_the_budget(variants: int, seconds: int, budget_s: int) -> None:
    bench = Bench(lambda number: seconds)
    done = len(bench.trial(variants, budget_s))
    least = orders.up_to_multiple(LEAST_LAUNCHES, variants)
    assert done == max(least, budget_s // seconds // variants * variants)
    assert done == least or bench.ends[-1] <= budget_s


@examples(50)
@given(st.integers(2, 5), st.integers(0, 1000), st.floats(20, 500))
def test_no_block_is_started_that_would_outlast_the_budget(variants: int, seed: int, budget_s: float) -> None:
    times = np.random.default_rng(seed).uniform(1, 9, 1000)
    bench = Bench(lambda number: float(times[number]))
    done = len(bench.trial(variants, budget_s))
    least = orders.up_to_multiple(LEAST_LAUNCHES, variants)
    assert not done % variants
    forecasts = [bench.ends[n - 1] * (n + variants) / n for n in range(least, done + 1, variants)]
    assert all(forecast <= budget_s for forecast in forecasts[:-1])
    assert forecasts[-1] > budget_s


def test_the_least_launches_run_even_in_a_budget_too_short_for_them() -> None:
    assert len(Bench(lambda number: 60).trial(3, budget_s=1)) == 12


def test_within_the_budget_it_is_precision_that_ends_a_trial() -> None:
    bench = Bench(lambda number: 1, scatter=SCATTER)
    done = len(bench.trial(2, budget_s=1000))
    assert LEAST_LAUNCHES < done < 100
    assert len(Bench(lambda number: 1, scatter=SCATTER).trial(2, budget_s=done - 1)) == done - 2


def test_the_first_launch_finds_the_size_that_all_others_have() -> None:
    bench = Bench(lambda number: 1)
    bench.trial(2, budget_s=40)
    first, *others = bench.asked
    assert (first.rounds, first.calls) == (None, None)
    assert first.seconds == pytest.approx(0.9 * 40 / LEAST_LAUNCHES)
    assert {(launch.rounds, launch.calls) for launch in others} == {(7, 5)}


@pytest.mark.parametrize(("budget_s", "seconds"), [(120, 0.9 * 12 - 2 * SIDE_S), (3, 0.1 * 0.3)])
def test_sides_that_are_started_anew_in_each_launch_take_from_its_rounds(budget_s: float, seconds: float) -> None:
    bench = Bench(lambda number: 1)
    bench.trial(2, budget_s=budget_s, sides=(Side(BASE), Side(AGAIN)))
    assert bench.asked[0].seconds == pytest.approx(seconds)


# Lost launches


def work_of(launch: Launch, variants: int) -> tuple[object, ...]:
    """All that a launch's work follows from, but for the number of its attempt."""
    building = orders.building_order(variants, launch.index, launch.seed)
    turns = orders.round_orders(variants, 2 * variants, launch.rng()).tolist()
    return replace(launch, attempt=1), building, str(turns)


@pytest.mark.parametrize("variants", [2, 3, 4])
def test_a_lost_launch_runs_again_the_same_and_counts_once(variants: int) -> None:
    lost = {0, 3, 4, 9, 11}
    bench = Bench(lambda number: 1, scatter=SCATTER, lost=lost.__contains__)
    run = bench.trial(variants, budget_s=FOREVER)
    assert [isinstance(outcome, Failure) for outcome in run] == [number in lost for number in range(len(run))]
    done = [outcome.launch for outcome in run if isinstance(outcome, LaunchResult)]
    assert [launch.index for launch in done] == list(range(len(done)))
    for number in lost:
        again = bench.asked[number + 1]
        assert work_of(again, variants) == work_of(bench.asked[number], variants)
        assert again.attempt == bench.asked[number].attempt + 1
    assert all(launch.attempt == 1 for number, launch in enumerate(bench.asked) if number - 1 not in lost)
    unharmed = Bench(lambda number: 1, scatter=SCATTER).trial(variants, budget_s=FOREVER)
    assert len(done) == len(unharmed), "losses end no trial sooner, and none later"


def test_the_time_of_lost_launches_is_taken_from_the_budget() -> None:
    lost = Bench(lambda number: 1, lost=lambda number: number % 2 == 0)
    done = [outcome for outcome in lost.trial(2, budget_s=50) if isinstance(outcome, LaunchResult)]
    assert len(done) == 24
    assert lost.now - 1000 <= 50


@pytest.mark.parametrize("index", [0, 5, 13])
def test_a_launch_is_tried_only_so_often(index: int) -> None:
    run: list[LaunchResult | Failure] = []

    def fail(launch: Launch) -> LaunchResult | Failure:
        return Failure(launch, "no luck") if launch.index == index else told(launch, [(-1.0) ** launch.index])

    with pytest.raises(TrialError, match=rf"launch {index} failed {ATTEMPTS} times, last: no luck"):
        run.extend(launches(trial(2), fail, lambda: 0.0))


def test_the_last_attempt_may_succeed() -> None:
    attempts: list[int] = []

    def run(launch: Launch) -> LaunchResult | Failure:
        attempts.append(launch.attempt)
        return told(launch, [0.0]) if launch.attempt == ATTEMPTS else Failure(launch, "no luck")

    outcomes = list(launches(trial(2), run, lambda: 0.0))
    assert attempts == list(range(1, ATTEMPTS + 1)) * LEAST_LAUNCHES
    assert sum(isinstance(outcome, LaunchResult) for outcome in outcomes) == LEAST_LAUNCHES


# Going on with the launches that earlier attempts committed

SECONDS = st.lists(st.integers(1, 30), min_size=1, max_size=7)  # of launch after launch, over and over


def of_index(launch: Launch, variants: int, scatter: float) -> Told:
    """The outcome of a launch, which follows from its index alone, as its size does from its being asked."""
    logs = np.random.default_rng(launch.index).normal(0.1, scatter, variants - 1)
    return told(launch, logs, launch.rounds or 7, launch.calls or 5)


@dataclass
class Attempt:
    """One attempt at a trial, on a clock that its launches alone advance."""

    seconds: list[int]
    scatter: float
    now: float = 0.0
    asked: list[Launch] = field(default_factory=list)

    def run(self, launch: Launch) -> LaunchResult | Failure:
        self.asked.append(launch)
        self.now += self.seconds[launch.index % len(self.seconds)]
        return of_index(launch, self.variants, self.scatter)

    def go(self, asked: Trial, committed: Sequence[Committed] = ()) -> list[LaunchResult]:
        self.variants = len(asked.variants)
        outcomes = list(launches(asked, self.run, lambda: self.now, committed))
        assert [outcome.launch for outcome in outcomes] == self.asked
        return [outcome for outcome in outcomes if isinstance(outcome, LaunchResult)]


def indices(outcomes: Iterable[LaunchResult]) -> list[int]:
    return [outcome.launch.index for outcome in outcomes]


@examples(40)
@given(st.integers(2, 5), SECONDS, st.integers(50, 800), st.floats(0.001, 0.05), st.data())
def test_a_trial_goes_on_as_if_it_had_never_been_cut_off(
    variants: int, seconds: list[int], budget_s: int, scatter: float, data: st.DataObject
) -> None:
    """Cut off behind any launch, any number of times, at other times of the day: the same launches, sizes and times."""
    asked = trial(variants, budget_s)
    whole = Attempt(seconds, scatter).go(asked)
    done: list[LaunchResult] = []
    for now in data.draw(st.lists(st.integers(-1000, 10**6), max_size=3)):
        ran = Attempt(seconds, scatter, now).go(asked, list(map(Committed.of, done)))
        done += ran[: data.draw(st.integers(0, len(ran)))]
    last = Attempt(seconds, scatter, 77).go(asked, list(map(Committed.of, done)))
    assert indices([*done, *last]) == list(range(len(whole)))
    for found, expected in zip([*done, *last], whole, strict=True):
        assert found == expected


@examples(40)
@given(st.integers(2, 4), st.floats(0.001, 0.03), st.data())
def test_missing_launches_are_run_in_order_with_the_size_of_the_others(
    variants: int, scatter: float, data: st.DataObject
) -> None:
    whole = Attempt([1], scatter).go(trial(variants))
    kept = data.draw(st.lists(st.sampled_from(whole), unique_by=lambda one: one.launch.index))
    sized = [replace(Committed.of(one), rounds=30, calls=2) for one in kept]
    ran = Attempt([1], scatter).go(trial(variants), sized)
    assert indices(ran) == sorted(set(indices(whole)) - set(indices(kept)))
    if kept:
        assert {(one.launch.rounds, one.launch.calls) for one in ran} <= {(30, 2)}


@pytest.mark.parametrize("variants", [2, 3])
def test_a_complete_set_of_launches_runs_nothing(variants: int) -> None:
    for asked in (trial(variants), trial(variants, budget_s=100)):
        whole = Attempt([3], SCATTER).go(asked)
        assert Attempt([3], SCATTER).go(asked, list(map(Committed.of, whole))) == []


def test_launches_beyond_the_end_of_a_trial_are_left_out_of_it() -> None:
    """A trial that ends at the same launch whatever else is known."""
    whole = Attempt([1], 0.0).go(trial(2))
    more = [*map(Committed.of, whole), Committed(len(whole), 7, 5, {"variant-1": 5.0}, 99.0)]
    assert Attempt([1], 0.0).go(trial(2), more) == []


def test_a_lost_launch_of_a_resumed_trial_is_tried_as_often_as_ever() -> None:
    known = tuple(Committed(i, 7, 5, {"variant-1": 0.0}, float(i)) for i in range(4))
    attempts: list[tuple[int, int]] = []

    def run(launch: Launch) -> LaunchResult | Failure:
        attempts.append((launch.index, launch.attempt))
        return Failure(launch, "no luck")

    with pytest.raises(TrialError, match=rf"launch 4 failed {ATTEMPTS} times"):
        list(launches(trial(2), run, lambda: 0.0, known))
    assert attempts == [(4, 1), (4, 2), (4, 3)]


def test_the_time_of_earlier_attempts_is_taken_from_the_budget_and_stands_in_each_launch() -> None:
    known = tuple(Committed(i, 7, 5, {"variant-1": (-1.0) ** i}, 10.0 * (i + 1)) for i in range(10))
    ran = Attempt([10], 1.0, now=5000.0).go(trial(2, budget_s=160), known)
    assert [one.elapsed_s for one in ran] == [110.0, 120.0, 130.0, 140.0, 150.0, 160.0]


def test_a_variant_that_becomes_another_program_is_invalid_from_there_on_whatever_the_reason() -> None:
    """Within an attempt, and against the launches of earlier ones; a launch that is not valid sets no example."""
    earlier = [Committed(0, 7, 5, {"variant-1": 0.1}, 1.0, {"eager": "e", "variant-1": "old"})]
    programs = {1: "old", 2: "new"}

    def run(launch: Launch) -> LaunchResult:
        facts = {
            "eager": VariantFacts(program="e"),
            "variant-1": VariantFacts(program=programs.get(launch.index, "old")),
        }
        return replace(told(launch, [0.1]), facts=facts)

    found = [one for one in launches(trial(2), run, lambda: 0.0, earlier) if isinstance(one, LaunchResult)]
    invalid = {one.launch.index: {name for name, facts in one.facts.items() if facts.invalid} for one in found}
    assert invalid == {index: {"variant-1"} if index == 2 else set() for index in range(1, 10)}
    assert found[1].facts["variant-1"].invalid == "it was another program than in earlier launches of its trial"


def test_a_launch_tells_how_long_its_trial_had_run_when_it_came_home() -> None:
    ran = Attempt([10, 5], 1.0, now=5000.0).go(trial(2, budget_s=1))
    assert [one.elapsed_s for one in ran][:4] == [10.0, 15.0, 25.0, 30.0]
