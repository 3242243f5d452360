"""A model whose answer takes as long as it says, and no computing: ``ray_jobs.audit.artificial:half_a_millisecond``.

What an audit under load finds out with it is due to who asks, not to what answers.
"""

import time

import torch
from torch import Tensor, nn

from chatbot.variants import Workload
from ray_jobs.measure.custom_model import OwnModel


class Spinning(nn.Module):
    """Looks at the clock for so many seconds, then answers with twice what it was given."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, values: Tensor) -> Tensor:
        """Of (B, 1) numbers."""
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        return values * 2


class Sleeping(Spinning):
    """Leaves its core alone meanwhile, so that several fit on one."""

    def forward(self, values: Tensor) -> Tensor:
        """Of (B, 1) numbers."""
        time.sleep(self.seconds)
        return values * 2


def _numbered(number: int, workload: Workload) -> tuple[Tensor]:
    return (torch.full((workload.batch, 1), float(number)),)


def half_a_millisecond() -> OwnModel:
    """Spins for 0.5 ms."""
    return OwnModel(Spinning(0.5e-3), _numbered)


def two_milliseconds_asleep() -> OwnModel:
    """Sleeps for 2 ms."""
    return OwnModel(Sleeping(2e-3), _numbered)
