"""What a sweep may vary, and seeded draws from it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.config import PRESETS, Config, Options
from chatbot.errors import UsageError
from ray_jobs.sweep.space import DEFAULT, NAMES, Range, Space, apply, parse_value, read_space, trial_seed
from ray_jobs.sweep.spec import make_spec

TINY = PRESETS["tiny"]
RANGES = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "dropout": {"low": 0.0, "high": 0.5},
    "hidden": {"low": 8, "high": 64, "step": 8},
    "batch": {"low": 3, "high": 7},
    "encoder_layers": [1, 2],
    "decoder_layers": [1, 2, 3],
    "clip": ["none", 50],
}


def test_the_default_space_is_the_originals_five_with_no_clip_in_place_of_a_clip_of_0() -> None:
    space = Space.of(DEFAULT)
    assert space.varied == ["learning_rate", "optimizer", "clip", "teacher_forcing", "decoder_learning_ratio"]
    drawn = space.draw(4 * 2 * 4 * 3 * 4, 0, TINY)  # every combination
    assert {row["learning_rate"] for row in drawn} == {1e-4, 2.5e-4, 5e-4, 1e-3}
    assert {row["optimizer"] for row in drawn} == {"adam", "sgd"}
    assert {row["clip"] for row in drawn} == {None, 25.0, 50.0, 100.0}
    assert {row["teacher_forcing"] for row in drawn} == {0.0, 0.5, 1.0}
    assert {row["decoder_learning_ratio"] for row in drawn} == {1.0, 3.0, 5.0, 10.0}


@given(seed=st.integers(0, 2**31), count=st.integers(1, 12), more=st.integers(0, 8))
def test_draws_are_different_fit_together_and_are_the_first_of_more(seed: int, count: int, more: int) -> None:
    space = Space.of(RANGES)
    drawn = space.draw(count, seed, TINY)
    assert drawn == space.draw(count + more, seed, TINY)[:count]
    assert all(one not in drawn[:i] for i, one in enumerate(drawn))
    for settings in drawn:
        options, config = apply(settings, Options(), TINY)
        assert config.decoder_layers <= 2 * config.encoder_layers
        assert 1e-4 <= options.learning_rate <= 1e-2
        assert config.hidden in range(8, 65, 8)
        assert isinstance(options.batch, int)
        assert 3 <= options.batch <= 7
        assert options.clip in (None, 50.0)


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.01, 1e6), log=st.booleans(), seed=st.integers(0, 2**32))
def test_a_range_holds_what_is_drawn_from_it(low: float, factor: float, log: bool, seed: int) -> None:
    value = Range(low, low * factor, log).draw(random.Random(seed))
    assert isinstance(value, float)
    assert low * (1 - 1e-5) <= value <= low * factor * (1 + 1e-5)


def test_a_logarithmic_range_gives_each_decade_its_share() -> None:
    space = Space.of({"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}})
    decades = [math.floor(math.log10(float(row["learning_rate"] or 0))) for row in space.draw(1000, 0, TINY)]
    assert all(190 < decades.count(decade) < 310 for decade in (-5, -4, -3, -2))  # 250 each, 4.4 deviations


@given(seed=st.integers(0, 10**6))
def test_trials_have_seeds_of_their_own_that_follow_from_the_sweeps(seed: int) -> None:
    seeds = [trial_seed(seed, number) for number in range(50)]
    assert len(set(seeds)) == 50
    assert all(0 <= one < 2**31 for one in seeds)
    assert seeds == [trial_seed(seed, number) for number in range(50)]


def test_every_trial_of_a_plan_holds_out_the_same_pairs_though_its_seed_is_another(toy_pairs: list[Any]) -> None:
    plan = make_spec({"trials": 6, "size": "tiny"}).plan(17)
    assert len({trial.options.seed for trial in plan}) == 6
    assert len({tuple(trial.options.split(toy_pairs)[1]) for trial in plan}) == 1
    assert all(trial.config.vocabulary == 17 for trial in plan)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "the space is empty"),
        ({"momentum": [0.9]}, "unknown hyperparameter 'momentum'; choose from: learning_rate, optimizer"),
        ({"min_count": [3, 10]}, "min_count must be the same in every trial"),
        ({"seed": [0, 1]}, "seed must be the same in every trial"),
        ({"clip": [0, 25]}, r"clip is 0\.0, which zeroes every gradient"),
        ({"optimizer": ["adam", "lion"]}, "unknown optimizer 'lion'; choose from: adam, sgd"),
        ({"optimizer": {"low": 0, "high": 1}}, "optimizer is 0; give a name"),
        ({"attention": ["sum"]}, "unknown attention 'sum'"),
        ({"learning_rate": []}, "learning_rate has no values"),
        ({"learning_rate": [True]}, "learning_rate is True; give a finite number"),
        ({"learning_rate": ["fast"]}, "learning_rate is 'fast'; give a finite number"),
        ({"learning_rate": [math.nan]}, "learning_rate is nan"),
        ({"hidden": [16.5]}, r"hidden is 16\.5; give a whole number"),
        ({"teacher_forcing": [2]}, "it is a probability"),
        ({"dropout": {"low": 0.5, "high": 0.1}}, r"dropout goes from 0\.5 to 0\.1"),
        ({"dropout": {"low": 0.1}}, "dropout is a range without ends"),
        ({"dropout": {"low": 0.1, "high": 0.2, "base": 2}}, "unknown key of dropout 'base'; choose from: high, log"),
        ({"dropout": {"low": 0, "high": 0.2, "log": True}}, "a logarithmic range starts above 0"),
        ({"hidden": {"low": 8, "high": 16, "step": 0}}, "hidden has step 0"),
        ({"hidden": {"low": 8, "high": 16, "step": 1.5}}, r"hidden has step 1\.5; give a whole number"),
        ({"clip": {"low": "none", "high": 5}}, "clip has no range"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_in_one_line(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Space.of(table)
    assert len(str(caught.value).splitlines()) == 1


def test_more_trials_than_there_are_combinations_are_refused() -> None:
    with pytest.raises(UsageError, match="4 combinations were found for 5 trials"):
        Space.of({"optimizer": ["adam", "sgd"], "hidden": [8, 16]}).draw(5, 0, TINY)


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_arrives_where_it_belongs(name: str) -> None:
    texts = {"optimizer": "sgd", "attention": "concat", "batch": "3", "hidden": "3"}
    texts |= {"encoder_layers": "3", "decoder_layers": "3"}
    value = parse_value(name, texts.get(name, "0.25"))
    options, config = apply({name: value}, Options(), Config())
    assert getattr(options if hasattr(options, name) else config, name) == value
    assert (options, config) != (Options(), Config())


def test_a_file_is_read_and_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    with pytest.raises(UsageError, match="can't be read"):
        read_space(path)
    path.write_text("hidden = ")
    with pytest.raises(UsageError, match="is not TOML"):
        read_space(path)
    path.write_text('hidden = [8, 16]\nclip = "none"\nlearning_rate = {low = 1e-4, high = 1e-2, log = true}\n')
    assert Space.of(read_space(path)).varied == ["hidden", "learning_rate"]


def test_a_spec_is_the_same_after_a_round_through_json() -> None:
    spec = make_spec({"space": RANGES, "patience": None, "gpus": 0.5, "seed": 3})
    assert make_spec(json.loads(json.dumps(spec.model_dump()))) == spec
    assert spec.device == "cuda"


@given(iterations=st.integers(1, 10_000), every=st.integers(1, 500))
def test_the_first_rung_is_a_validation(iterations: int, every: int) -> None:
    grace = make_spec({"iterations": iterations, "validate_every": every}).grace_iterations
    assert 1 <= grace <= iterations
    assert grace % every == 0 or grace == iterations
