"""When an answer counts as the baseline's, for models that return scores."""

from torch import Tensor, allclose


def close(answer: Tensor, baselines: Tensor) -> bool:
    """Scores within a thousandth: sums taken in another order stay far below that, other inputs far above."""
    return allclose(answer, baselines, rtol=1e-3, atol=1e-3)
