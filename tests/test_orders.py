"""Balanced orders: every place, and every neighbour, equally often."""

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.measure.orders import (
    Orders,
    building_order,
    leaving_order,
    random_pair,
    round_orders,
    up_to_multiple,
    williams_square,
)

SIZES = st.integers(1, 12)
SEEDS = st.integers(0, 2**32)
BLOCKS = st.integers(0, 5)


def neighbours(orders: Orders) -> Counter[tuple[int, int]]:
    """How often each variant directly follows each other one."""
    return Counter(pair for row in orders.tolist() for pair in pairwise(row))


def each_pair(n: int, times: int) -> Counter[tuple[int, int]]:
    return Counter(dict.fromkeys(permutations(range(n), 2), times))


def is_latin(square: Orders) -> bool:
    lines = [*square.tolist(), *square.T.tolist()]
    return square.shape[0] == square.shape[1] and all(sorted(line) == list(range(len(line))) for line in lines)


@given(SIZES)
def test_williams_square_has_each_variant_once_in_each_row_and_column(n: int) -> None:
    square = williams_square(n)
    assert square.shape == (n, n)
    assert is_latin(square)


@given(SIZES.filter(lambda n: n % 2 == 0))
def test_in_an_even_williams_square_each_follows_each_other_once(n: int) -> None:
    assert neighbours(williams_square(n)) == each_pair(n, 1)


@given(SIZES.filter(lambda n: n % 2 == 1))
def test_an_odd_williams_square_and_its_mirror_let_each_follow_each_other_twice(n: int) -> None:
    square = williams_square(n)
    assert neighbours(np.concatenate([square, square[:, ::-1]])) == each_pair(n, 2)


@given(SIZES, SEEDS)
def test_both_squares_of_a_random_pair_are_latin(n: int, seed: int) -> None:
    pair = random_pair(n, np.random.default_rng(seed))
    assert is_latin(pair[:n])
    assert is_latin(pair[n:])


@given(SIZES, SEEDS)
def test_a_random_pair_keeps_its_neighbours_balanced(n: int, seed: int) -> None:
    pair = random_pair(n, np.random.default_rng(seed))
    assert neighbours(pair) == each_pair(n, 2)
    if n % 2 == 0:
        assert neighbours(pair[:n]) == each_pair(n, 1)


@given(SIZES, st.integers(1, 5), SEEDS)
def test_over_the_rounds_each_variant_stands_equally_often_in_each_place(n: int, squares: int, seed: int) -> None:
    orders = round_orders(n, squares * n, np.random.default_rng(seed))
    assert orders.shape == (squares * n, n)
    assert all(sorted(row) == list(range(n)) for row in orders.tolist())
    for place in range(n):
        assert Counter(orders[:, place].tolist()) == dict.fromkeys(range(n), squares)


@given(SIZES.filter(lambda n: n % 2 == 0), st.integers(1, 5), SEEDS)
def test_over_the_rounds_of_even_squares_each_follows_each_other_equally_often(n: int, squares: int, seed: int) -> None:
    assert neighbours(round_orders(n, squares * n, np.random.default_rng(seed))) == each_pair(n, squares)


@given(SIZES.filter(lambda n: n % 2 == 1), st.integers(1, 3), SEEDS)
def test_over_the_rounds_of_pairs_of_odd_squares_each_follows_each_other_equally_often(
    n: int, pairs: int, seed: int
) -> None:
    assert neighbours(round_orders(n, 2 * pairs * n, np.random.default_rng(seed))) == each_pair(n, 2 * pairs)


@given(SIZES.filter(lambda n: n > 1), st.integers(1, 50), SEEDS)
def test_rounds_that_are_not_whole_squares_are_refused(n: int, rounds: int, seed: int) -> None:
    if rounds % n:
        with pytest.raises(ValueError, match=f"{rounds} rounds of {n} variants"):
            round_orders(n, rounds, np.random.default_rng(seed))
    else:
        assert len(round_orders(n, rounds, np.random.default_rng(seed))) == rounds


@given(SIZES, SEEDS, BLOCKS)
def test_over_a_block_of_launches_each_variant_is_built_once_in_each_place(n: int, seed: int, block: int) -> None:
    orders = np.array([building_order(n, launch, seed) for launch in range(block * n, (block + 1) * n)])
    assert is_latin(orders)


@given(SIZES, st.integers(0, 60), SEEDS)
def test_a_lost_launch_is_built_again_in_the_same_order(n: int, launch: int, seed: int) -> None:
    order = building_order(n, launch, seed)
    assert order == building_order(n, launch, seed)
    assert all(type(i) is int for i in order)


@given(SIZES, st.integers(0, 60), SEEDS)
def test_every_process_of_a_launch_leaves_once(n: int, launch: int, seed: int) -> None:
    assert sorted(leaving_order(n, launch, seed)) == list(range(n))


@pytest.mark.parametrize("built_first", [0, 1])
def test_who_leaves_last_does_not_follow_from_who_was_built_first(built_first: int) -> None:
    """Nor from who will be: else one process would get its own page frames back in every launch."""
    launches = [(seed, launch) for seed in range(200) for launch in range(10)]
    for later in (0, 1):
        mine = [(s, i) for s, i in launches if building_order(2, i + later, s)[0] == built_first]
        share = np.mean([leaving_order(2, i, s)[-1] == built_first for s, i in mine])
        assert len(mine) > 900
        assert abs(share - 0.5) < 0.08  # five standard deviations


@given(SIZES, st.integers(1, 4), SEEDS)
def test_rounds_of_the_same_seed_have_the_same_orders(n: int, squares: int, seed: int) -> None:
    first, second = (round_orders(n, squares * n, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, second)


def test_seeds_and_blocks_differ_in_their_orders() -> None:
    by_seed = {tuple(building_order(6, launch, seed) for launch in range(6)) for seed in range(20)}
    by_block = {tuple(building_order(6, block * 6 + row, 0) for row in range(6)) for block in range(20)}
    of_rounds = {round_orders(6, 6, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert min(len(by_seed), len(by_block), len(of_rounds)) >= 19


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_up_to_multiple_is_the_next_whole_number_of_blocks(count: int, n: int) -> None:
    result = up_to_multiple(count, n)
    assert result % n == 0
    assert result >= max(count, n)
    assert result == n or result - n < count
