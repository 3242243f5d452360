"""A trial: its workload, what is asked of the comparison, its place, and the inputs of its launches."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from chatbot import checkpoint
from chatbot.config import PRESETS
from chatbot.model import Chatbot
from chatbot.variants import Workload, variant_named
from ray_jobs.measure import custom_model
from ray_jobs.measure.custom_model import OwnModel
from ray_jobs.scenario import Load
from ray_jobs.sides import BASE, Side, label_of

LEAST_UNTIMED_S = 60.0  # however small the budget is
SIDE_S = 1.5  # of each side in a launch: to start its interpreter and import PyTorch, on two cores


def compiling_s(budget_s: float) -> float:
    """Seconds that variants may compile for before the first launch: the budget again. Later runs reuse the result."""
    return max(LEAST_UNTIMED_S, budget_s)


def untimed_s(budget_s: float) -> float:
    """Seconds for everything that follows the launches (memory, comparing, limits): half the budget."""
    return max(LEAST_UNTIMED_S, budget_s / 2)


def cold_s(budget_s: float) -> float:
    """Seconds for cold starts, where they are asked for: the budget again."""
    return max(LEAST_UNTIMED_S, budget_s)


def rounds_s(budget_s: float, launches: int, sides: int) -> float:
    """Seconds for the rounds of each of so many launches: its share of the budget, less what comes before them.

    That is a tenth, and what starts each of the sides anew; where it leaves less than another tenth, they last that.
    """
    share_s = budget_s / launches
    return max(0.1 * share_s, 0.9 * share_s - SIDE_S * sides)


def present(workload: Workload, variants: Sequence[str]) -> list[str]:
    """The variants that run on its device and take its model at all: those that orders are balanced over."""
    entries = {name: variant_named(name) for name in variants}
    taking = {name for name, one in entries.items() if one.prepare_module or not workload.own_model}
    return [name for name, one in entries.items() if workload.device in one.devices and name in taking]


@dataclass(frozen=True)
class Trial:
    """One workload in several variants, and what is asked of the comparison."""

    id: str
    run_id: str
    workload: Workload
    variants: tuple[str, ...]
    seed: int  # orders and prompts follow from it
    precision: float
    margin: float
    budget_s: float
    launch_timeout_s: float
    wait_s: float = 600.0  # for a station that somebody else holds
    memory: bool = True  # also each variant's peak memory and its limit, in processes of their own
    cold: bool = False  # also what a fresh start of each variant costs
    sides: tuple[Side, ...] = ()  # that are compared, ``base`` first; none: there is nothing but ``base``
    load: Load | None = None  # None: each call follows the one before
    prices: tuple[tuple[str, float], ...] = ()  # of an hour of a station, by how its hardware class begins

    @property
    def cores(self) -> int:
        """That its launches are pinned to."""
        return self.workload.threads if self.load is None else self.load.cores(self.workload.threads)

    @property
    def pairs(self) -> tuple["Pair", ...]:
        """Every variant of every side, the control too.

        A side with one more would be faster: more of its turns would follow turns of its own process.
        """
        sides = [side.name for side in self.sides] or [BASE]
        return tuple(Pair(side, name) for side in sides for name in self.variants)


class Pair(NamedTuple):
    """A variant of a side."""

    side: str
    variant: str

    @property
    def label(self) -> str:
        """Its name, unique in its trial."""
        return label_of(self.side, self.variant)


@dataclass(frozen=True)
class Place:
    """The station of a trial as its rows name it; None where it has none."""

    station: str | None = None
    host: str | None = None
    device_name: str | None = None
    hardware: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights in a file on this machine."""

    path: str

    def load(self) -> Chatbot:
        """A fresh chatbot on the CPU. Raises UsageError."""
        return checkpoint.load(Path(self.path)).chatbot


@dataclass(frozen=True)
class CheckpointBytes:
    """The content of a checkpoint, which stations need not have as a file."""

    content: bytes

    @contextmanager
    def as_file(self) -> Iterator[Checkpoint]:
        """A file that other processes can open while this one lives; a killed process leaves none behind."""
        descriptor = os.memfd_create("weights")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self.content)
            yield Checkpoint(f"/proc/{os.getpid()}/fd/{descriptor}")
        finally:
            os.close(descriptor)

    def load(self) -> Chatbot:
        """A fresh chatbot on the CPU. Raises UsageError."""
        with self.as_file() as file:
            return file.load()


@dataclass(frozen=True)
class Preset:
    """Random weights of a named size."""

    name: str

    def load(self) -> Chatbot:
        """A fresh chatbot on the CPU, the same in each process."""
        return Chatbot.random(PRESETS[self.name], checkpoint.SEED)


@dataclass(frozen=True)
class Factory:
    """A model that is not the chatbot, as ``package.module:factory``."""

    name: str
    weights: str = ""  # their hash
    code: str = ""  # the hash of its sources
    gradients: bool = False  # the model computes some: see ``mode_of``
    warnings: tuple[str, ...] = ()  # about every row
    cases: tuple[str, ...] = ()  # that it has and were asked for
    parts: tuple[str, ...] = ()  # that variants convert, of all cases

    def load(self, workload: Workload) -> OwnModel:
        """The model of a workload, made anew. Raises UsageError."""
        return custom_model.load(workload.model)


ChatbotSource = Checkpoint | CheckpointBytes | Preset
ModelSource = ChatbotSource | Factory


@contextmanager
def mode_of(model: ModelSource) -> Iterator[None]:
    """Inference mode, or no_grad alone for a model that computes gradients inside, which the former forbids."""
    with torch.no_grad() if isinstance(model, Factory) and model.gradients else torch.inference_mode():
        yield


@dataclass(frozen=True)
class Inputs:
    """What launches read: the model, and prompts of each length."""

    model: ModelSource
    prompts: Mapping[int, NDArray[np.int64]]  # by prompt tokens: (N, T)

    def pool(self, workload: Workload) -> NDArray[np.int64]:
        """(N, T): the prompts of a workload; a model from a factory is asked none of them."""
        return self.prompts[workload.prompt_tokens]
