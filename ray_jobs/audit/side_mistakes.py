"""Sides that are wrong on purpose: one variant and one model, which do it where the side's environment says so.

Elsewhere the variant is the eager program. What it does it does while it is asked something new, as it is while it is
timed: where it is asked the same again, as by who looks at it afterwards, nothing is to be seen.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, Reply, Variant, Workload, eager
from ray_jobs.measure.trial import ChatbotSource, Preset
from ray_jobs.sides import AGAIN, Side, sides_of

PLANT, KEPT = "LATENCY_MATRIX_PLANT", "LATENCY_MATRIX_KEPT"  # variables: what is planted, and a folder that outlives it
NAME = f"{__name__}:WRONG"  # of the variant, as a spec has it
LOOK_S, COMPUTE_S = 0.005, 0.05
ADDED = 1e-3  # to one weight

Do = Callable[[], object]


def sides(against: str) -> tuple[Side, ...]:
    """``base`` and what is asked for; without the control, as each launch starts every side anew."""
    return tuple(side for side in sides_of([against]) if side.name != AGAIN)


def asked(plant: str) -> Callable[[Path], str]:
    """How ``--against`` asks for a side with this mistake."""
    return lambda folder: f"env={PLANT}={plant}"


def asked_for_cache(folder: Path) -> str:
    """A side that knows a folder which outlives launches."""
    return f"env={PLANT}=cache,env={KEPT}={folder}"


def asked_by_link(folder: Path) -> str:
    """This interpreter's own environment under another name."""
    home, interpreter = Path(sys.executable).parent.parent, Path(sys.executable).name
    (folder / "another").symlink_to(home)
    return f"python={folder / 'another' / 'bin' / interpreter}"


def _while_new(inner: Reply, begin: Do, end: Do) -> Reply:
    """``begin`` before it is asked something new, ``end`` before it is asked the same again."""
    seen: set[bytes] = set()

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        key = prompts.numpy().tobytes()
        (end if key in seen else begin)()
        seen.add(key)
        return inner(prompts, lengths)

    return reply


def _elsewhere(inner: Reply, workload: Workload) -> Reply:
    """On the cores of its launch server, which stays beside those that are measured."""
    own, beside = os.sched_getaffinity(0), os.sched_getaffinity(os.getppid())
    there = beside - own or beside
    return _while_new(inner, lambda: os.sched_setaffinity(0, there), lambda: os.sched_setaffinity(0, own))


def _more_threads(inner: Reply, workload: Workload) -> Reply:
    own = torch.get_num_threads()
    return _while_new(inner, lambda: torch.set_num_threads(own + 1), lambda: torch.set_num_threads(own))


def _at_once(inner: Reply, workload: Workload) -> Reply:
    """A thread that sleeps until its turn is over, and computes in that of another side."""
    last = [0.0]

    def go_on() -> None:
        done = 0.0
        while True:
            time.sleep(LOOK_S)
            if last[0] != done and time.monotonic() - last[0] > LOOK_S:
                done, until = last[0], time.monotonic() + COMPUTE_S
                while time.monotonic() < until:
                    pass

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        tokens = inner(prompts, lengths)
        last[0] = time.monotonic()
        return tokens

    threading.Thread(target=go_on, daemon=True).start()
    return reply


def _from_a_file(inner: Reply, workload: Workload) -> Reply:
    """Right answers, of which it computes only those that no launch before has."""
    path = Path(os.environ[KEPT], "replies")
    known: dict[bytes, Tensor] = {}
    if path.exists():
        with path.open("rb") as file:
            while file.peek(1):
                key, tokens = pickle.load(file)
                known[key] = torch.tensor(tokens)

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        key = prompts.numpy().tobytes()
        if key not in known:
            known[key] = inner(prompts, lengths)
            with path.open("ab") as file:
                pickle.dump((key, known[key].tolist()), file)
        return known[key]

    return reply


PLANTS = {"cores": _elsewhere, "threads": _more_threads, "at-once": _at_once, "cache": _from_a_file}


def _prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    inner, plant = eager.prepare(chatbot, workload), PLANTS.get(os.environ.get(PLANT, ""))
    return inner if plant is None else plant(inner, workload)


WRONG = Variant("planted", "eager, wrong in a side", _prepare, exact=True, kind="eager", control_of=BASELINE)


@dataclass(frozen=True)
class Altered(Preset):
    """A model whose file is another one in a side, by one weight."""

    source: ChatbotSource

    def load(self) -> Chatbot:
        """A fresh chatbot on the CPU. Raises UsageError."""
        chatbot = self.source.load()
        if os.environ.get(PLANT) == "weights":
            next(chatbot.decoder.parameters()).data.view(-1)[0] += ADDED
        return chatbot


def altered(source: ChatbotSource) -> ChatbotSource:
    """The model with the mistake."""
    return Altered("altered", source)
