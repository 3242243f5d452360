"""A variant and a model that are wrong in some side only: their environment says in which way.

Tests name them ``side_quirks:ODD`` and ``side_quirks:weighted``.
"""

import os
import signal
import threading

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, Reply, Variant, Workload, eager
from ray_jobs.measure.custom_model import OwnModel

QUIRK, WEIGHTS = "SIDE_QUIRK", "SIDE_WEIGHTS"


def spin() -> None:
    while True:
        pass


def threads() -> None:
    torch.set_num_threads(2)


def cores() -> None:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def restless() -> None:
    if threading.active_count() == 1:
        threading.Thread(target=spin, daemon=True).start()


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


QUIRKS = {one.__name__: one for one in (threads, cores, restless, dies)}


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    inner, quirk = eager.prepare(chatbot, workload), os.environ.get(QUIRK, "")
    seen: list[Tensor] = []

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        if quirk in QUIRKS:
            QUIRKS[quirk]()
        tokens = inner(prompts, lengths)
        seen.append(tokens)
        changed = (tokens + 1) % chatbot.config.vocabulary if quirk == "tokens" else tokens
        return seen[0] if quirk == "remembers" else changed

    return reply


ODD = Variant("odd", "eager, wrong where the environment says so", prepare, True, "eager", control_of=BASELINE)


def weighted() -> OwnModel:
    torch.manual_seed(int(os.environ.get(WEIGHTS, "0")))
    return OwnModel(nn.Linear(16, 4), lambda i, workload: (torch.rand(workload.batch, 16),))
