"""Variants that are wrong on purpose, and variants that are slower by a known share.

They are named ``ray_jobs.audit.mistakes:NAME``, and are measured by the same pipeline as any other.
"""

import copy
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, Prepare, Reply, Variant, Workload, eager, torchscript
from chatbot.variants.search import replying
from chatbot.vocabulary import EOS, PAD
from ray_jobs.audit.plan import SPIN

ASYNCHRONOUS_S = 0.02  # how long after its return the asynchronous stand-in fills in its answer
CALLS_BEFORE_DEATH = 10  # beyond the least warm-up, before the last of the fewest rounds


def named(plant: str) -> str:
    """The variant's name on a command line or in a spec."""
    return f"{__name__}:{plant}"


def _planted(prepare: Prepare, summary: str, kind: str = "eager", control_of: str | None = BASELINE) -> Variant:
    """Declared to run the baseline's networks, so that nothing but the planted mistake can be found."""
    return Variant("planted", summary, prepare, exact=True, kind=kind, control_of=control_of)


def _around(change: Callable[[Reply, Tensor, Tensor], Tensor]) -> Prepare:
    """The eager program with something done to each call of it."""

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        return partial(change, eager.prepare(chatbot, workload))

    return prepare


def _spinning(percent: float) -> Callable[..., Any]:
    """Each call lasts ``percent`` longer than the eager call within it: the true speedup is 1 / (1 + percent)."""

    def delay(inner: Callable[..., Any], *asked: Any) -> Any:
        clock = time.perf_counter_ns
        start = clock()
        answer = inner(*asked)
        stop = clock()
        until = stop + round((stop - start) * percent / 100)
        while clock() < until:
            pass
        return answer

    return delay


def _delayed(percent: float) -> Variant:
    change = _spinning(percent)
    planted = _planted(_around(change), f"eager, {percent:g}% slower")
    return replace(planted, prepare_module=lambda module, inputs, workload: partial(change, module))


def _spun(chatbot: Chatbot, workload: Workload) -> Reply:
    """As slow as the environment of its side says."""
    return _around(_spinning(float(os.environ.get(SPIN, "0"))))(chatbot, workload)


SPUN = _planted(_spun, f"eager, slower by the percentage in {SPIN}")
DELAYED_1, DELAYED_2, DELAYED_5 = _delayed(1), _delayed(2), _delayed(5)
DELAYED_200, DELAYED_900 = _delayed(200), _delayed(900)  # 3 and 10 times as long: ratios that an estimator may shift


def _on_another_device(chatbot: Chatbot, workload: Workload) -> Reply:
    inner, left = eager.prepare(chatbot, workload), copy.deepcopy(chatbot.encoder).to("meta")
    return lambda prompts, lengths: inner(prompts, lengths) if left is not None else prompts


def _not_synchronised(chatbot: Chatbot, workload: Workload) -> Reply:
    """Returns at once; the answer is filled in later, as a GPU's would be."""
    inner = eager.prepare(chatbot, workload)

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        answer = torch.zeros((workload.batch, workload.reply_tokens), dtype=torch.long)

        def work() -> None:
            time.sleep(ASYNCHRONOUS_S)
            with torch.inference_mode():  # which each thread enters for itself
                answer.copy_(inner(prompts, lengths))

        threading.Thread(target=work, daemon=True).start()
        return answer

    return reply


def _on_meta(inner: Reply, prompts: Tensor, lengths: Tensor) -> Tensor:
    return inner(prompts, lengths).to("meta")


def _same_reply(chatbot: Chatbot, workload: Workload) -> Reply:
    inner = eager.prepare(chatbot, workload)
    remembered: list[Tensor] = []

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        if not remembered:
            remembered.append(inner(prompts, lengths))
        return remembered[0]

    return reply


def _memory_of_prompts(chatbot: Chatbot, workload: Workload) -> Reply:
    inner = eager.prepare(chatbot, workload)
    seen: dict[tuple[int, ...], Tensor] = {}

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        key = tuple(prompts.flatten().tolist())
        if key not in seen:
            seen[key] = inner(prompts, lengths)
        return seen[key]

    return reply


def _half_as_long(chatbot: Chatbot, workload: Workload) -> Reply:
    return eager.prepare(chatbot, replace(workload, reply_tokens=max(1, workload.reply_tokens // 2)))


def _stops_at_the_end(inner: Reply, prompts: Tensor, lengths: Tensor) -> Tensor:
    """Nothing after the first EOS, filled up to the asked length."""
    tokens = inner(prompts, lengths)
    ended = (tokens == EOS).cumsum(1) - (tokens == EOS).long() > 0
    return tokens.masked_fill(ended, PAD)


def _computes_nothing(chatbot: Chatbot, workload: Workload) -> Reply:
    search, answer = chatbot.search(), torch.zeros((workload.batch, workload.reply_tokens), dtype=torch.long)
    return lambda prompts, lengths: answer if search is not None else prompts


def _dropout_on(chatbot: Chatbot, workload: Workload) -> Reply:
    chatbot.encoder.train()
    chatbot.decoder.train()
    return replying(chatbot.search().train(), workload)


def _gradients_on(chatbot: Chatbot, workload: Workload) -> Reply:
    with torch.inference_mode(False), torch.no_grad():
        own = Chatbot.random(chatbot.config)  # its parameters can take part in a backward pass
        for ours, theirs in ((own.encoder, chatbot.encoder), (own.decoder, chatbot.decoder)):
            ours.load_state_dict(theirs.state_dict())
    inner = eager.prepare(own, workload)

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return inner(prompts.clone(), lengths.clone())

    return reply


def _tokenises(inner: Reply, prompts: Tensor, lengths: Tensor) -> Tensor:
    """Makes its prompt from words within the call, as the original did."""
    text = [" ".join(str(word) for word in row) for row in prompts.tolist()]
    return inner(torch.tensor([[int(word) for word in row.split(" ")] for row in text]), lengths)


def _hangs(chatbot: Chatbot, workload: Workload) -> Reply:
    while True:
        time.sleep(3600)


def _dies(chatbot: Chatbot, workload: Workload) -> Reply:
    """Ends its process in the midst of the rounds, on the first attempt of every launch."""
    inner = eager.prepare(chatbot, workload)
    mark = Path(tempfile.gettempdir()) / f"latency-matrix-{os.getppid()}"  # the server's, which outlives the launch
    first, calls = not mark.exists(), [0]
    if not first:
        mark.unlink()

    def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
        calls[0] += 1
        if first and calls[0] > CALLS_BEFORE_DEATH:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(prompts, lengths)

    return reply


SAME_PROGRAM = _planted(torchscript.prepare, "torchscript under another name", kind="torchscript", control_of=None)
ANOTHER_DEVICE = _planted(_on_another_device, "weights left on another device")
NOT_SYNCHRONISED = _planted(_not_synchronised, "returns before it has answered")
NEVER_COMPUTED = _planted(_around(_on_meta), "answers with a tensor that holds nothing")
SAME_REPLY = _planted(_same_reply, "its first reply for ever")
MEMORY = _planted(_memory_of_prompts, "remembers prompts")
HALF = _planted(_half_as_long, "half of the reply")
STOPS = _planted(_around(_stops_at_the_end), "stops at the end of the sentence")
NOTHING = _planted(_computes_nothing, "computes nothing")
DROPOUT = _planted(_dropout_on, "dropout on")
GRADIENTS = _planted(_gradients_on, "gradients on")
TOKENISES = _planted(_around(_tokenises), "text within the call")
DIES = _planted(_dies, "its process is killed half-way")
HANGS = _planted(_hangs, "never answers")
