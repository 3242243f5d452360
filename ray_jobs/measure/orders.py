"""Balanced random orders of building the variants and of their turns.

Random order alone is not enough: with few rounds one variant would come first more often than another, and each place
has a cost of its own. A Latin square gives each variant each place equally often; in Williams' square (Williams 1949,
https://doi.org/10.1071/CH9490149) each variant also follows every other one equally often.
"""

import numpy as np
from numpy.typing import NDArray

Orders = NDArray[np.int64]
BUILDING, LEAVING = 1, 2  # keep these draws apart from those of a launch, and from each other


def williams_square(n: int) -> Orders:
    """An n x n Latin square; for even n each ordered pair is adjacent exactly once.

    For odd n that holds for the square together with its rows reversed.
    """
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]  # 0, 1, n-1, 2, n-2, ...
    return (np.array(zigzag)[None, :] + np.arange(n)[:, None]) % n


def random_pair(n: int, rng: np.random.Generator) -> Orders:
    """(2n, n): a Williams square and its mirror image under one random naming, the rows of each in random order."""
    square = rng.permutation(n)[williams_square(n)]
    return np.concatenate([square[rng.permutation(n)], square[rng.permutation(n), ::-1]])


def round_orders(n: int, rounds: int, rng: np.random.Generator) -> Orders:
    """(rounds, n): the variants' indices in the order of their turns, whole squares of them: n divides ``rounds``."""
    if rounds % n:
        raise ValueError(f"{rounds} rounds of {n} variants can't be balanced: not a multiple")
    pairs = [random_pair(n, rng) for _ in range(-(-rounds // (2 * n)))]
    return np.concatenate(pairs)[:rounds]


def building_order(n: int, launch: int, seed: int) -> tuple[int, ...]:
    """The order in which a launch builds the variants; in each block of n launches each takes each place once."""
    pair, row = divmod(launch, 2 * n)
    return tuple(int(i) for i in random_pair(n, np.random.default_rng([seed, pair, BUILDING]))[row])


def leaving_order(n: int, launch: int, seed: int) -> tuple[int, ...]:
    """The order in which a launch ends its n processes, drawn apart from that of building.

    The kernel gives the page frames that were given back last to whoever asks next. Processes that ended in the order
    in which they had begun would get their own frames back where the next launch begins in the reverse order, so that
    whatever these do to their speed would be the same in all launches of a trial.
    """
    return tuple(int(i) for i in np.random.default_rng([seed, launch, LEAVING]).permutation(n))


def up_to_multiple(count: int, n: int) -> int:
    """The smallest multiple of n that is at least ``count`` and at least n."""
    return max(n, -(-count // n) * n)
