"""Made-up launches of known times, distinct prompts for the tiny preset, and how a test enters a variant of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from chatbot.config import PRESETS
from chatbot.model import Chatbot
from chatbot.variants import BASELINE, CONTROL, VARIANTS, Prepare, Reply, Workload
from chatbot.vocabulary import EOS, FIRST_WORD
from ray_jobs.measure.interference import COUNTERS, Interference
from ray_jobs.measure.result import REFRESH, TIMED, WARMUP, Launch, LaunchResult, Samples, VariantFacts
from ray_jobs.measure.trial import Trial

ALL = (BASELINE, CONTROL, "torchscript")
WORKLOAD = Workload(batch=1, prompt_tokens=4, reply_tokens=5)
UNTIMED_TIMES = 1000  # a figure that counts warm-up or refresh calls is far off


def made_trial(name: str = "trial", **asked: Any) -> Trial:
    """A trial that asks for little, but for what is given."""
    trial = Trial(name, "run", WORKLOAD, ALL, seed=1, precision=0.01, margin=0.02, budget_s=1.0, launch_timeout_s=60.0)
    return replace(trial, **asked)


def prompts(count: int, seed: int = 0) -> NDArray[np.int64]:
    """(count, 4) distinct prompts in the words of the tiny preset, each ending in EOS."""
    words = PRESETS["tiny"].vocabulary - FIRST_WORD
    chosen = np.random.default_rng(seed).choice(words**3, count, replace=False, shuffle=False)
    columns = [column + FIRST_WORD for column in np.unravel_index(chosen, (words,) * 3)]
    return np.stack([*columns, np.full(count, EOS)], axis=1)


def tiny() -> Chatbot:
    """Random weights of the smallest size, new each time."""
    return Chatbot.random(PRESETS["tiny"])


def enter(patch: pytest.MonkeyPatch, name: str, prepare: Prepare, like: str = "torchscript", **entry: Any) -> None:
    """Puts a variant in the table until the test ends: ``like`` another but for what is given."""
    patch.setitem(VARIANTS, name, replace(VARIANTS[like], name=name, prepare=prepare, **entry))


def watching(name: str, saw: Callable[[str, Tensor], None]) -> Prepare:
    """The variant called ``name``, which tells its name and the prompts of each call before it answers."""
    prepare = VARIANTS[name].prepare

    def prepare_watched(chatbot: Chatbot, workload: Workload) -> Reply:
        reply = prepare(chatbot, workload)

        def watched(batch: Tensor, lengths: Tensor) -> Tensor:
            saw(name, batch)
            return reply(batch, lengths)

        return watched

    return prepare_watched


def altered(name: str, change: Callable[[Tensor], Tensor]) -> Prepare:
    """The variant called ``name``, whose replies are changed."""
    prepare = VARIANTS[name].prepare

    def prepare_altered(chatbot: Chatbot, workload: Workload) -> Reply:
        reply = prepare(chatbot, workload)
        return lambda batch, lengths: change(reply(batch, lengths))

    return prepare_altered


def first_token_changed(tokens: Tensor) -> Tensor:
    """Another first token in every reply."""
    changed = tokens.clone()
    changed[:, 0] = (tokens[:, 0] + 1) % PRESETS["tiny"].vocabulary
    return torch.as_tensor(changed)


def made_launch(
    walls_ms: Mapping[str, ArrayLike],
    index: int = 0,
    rounds: int = 20,
    calls: int = 3,
    facts: Mapping[str, VariantFacts] | None = None,
    **more: Any,
) -> LaunchResult:
    """A launch whose timed calls took these ms: (rounds, calls) for each variant, or what broadcasts to it.

    Every variant is sound and answers as the baseline does, unless ``facts`` say otherwise; ``more`` are further
    fields of the launch.
    """
    names = tuple(walls_ms)
    replies = rounds * calls
    known = {
        name: VariantFacts(prepare_s=0.5, program=name, kind="eager", replies=replies, identical=replies)
        for name in names
    }
    walls = {name: np.broadcast_to(np.asarray(ms, dtype=float) * 1e6, (rounds, calls)) for name, ms in walls_ms.items()}
    samples = _samples([walls[name].round().astype(np.int64) for name in names])
    return LaunchResult(Launch(index, seed=0), names, names, rounds, calls, {**known, **(facts or {})}, samples, **more)


def stolen(rounds: int, disturbed: Sequence[int]) -> Interference:
    """Rounds of a second, of which the hypervisor took a quarter of those ``disturbed``; else a quiet machine."""
    watched = Interference(**{name: np.zeros(rounds, dtype=np.int64) for name in COUNTERS})
    watched.round_ns[:] = 10**9
    watched.steal_ns[list(disturbed)] = 10**9 // 4
    return watched


def _samples(walls: list[NDArray[np.int64]]) -> Samples:
    rows = []
    for v, wall in enumerate(walls):
        rows.append((v, WARMUP, -1, v, 0, UNTIMED_TIMES * wall.max(initial=1)))
        for r, turn in enumerate(wall):
            rows.append((v, REFRESH, r, v, 0, UNTIMED_TIMES * turn.max(initial=1)))
            rows += [(v, TIMED, r, v, call, ns) for call, ns in enumerate(turn, 1)]
    columns = np.array(rows, dtype=np.int64).T
    count = len(rows)
    return Samples(
        variant=columns[0].astype(np.int16),
        phase=columns[1].astype(np.int8),
        round=columns[2].astype(np.int32),
        position=columns[3].astype(np.int16),
        call=columns[4].astype(np.int32),
        start_ns=np.cumsum(columns[5]) - columns[5],
        wall_ns=columns[5],
        device_ns=np.full(count, -1, dtype=np.int64),
        cpu_ns=columns[5],
        involuntary_switches=np.zeros(count, dtype=np.int32),
    )
