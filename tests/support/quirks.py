"""Own models with one quirk each that some engine does not take: named by tests as ``quirks:NAME``."""

import os
import signal
import time
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants import BASELINE, Reply, UnavailableError, Variant, Workload, eager
from ray_jobs.measure.custom_model import OwnModel


def floats(i: int, workload: Workload) -> tuple[Tensor, ...]:
    return (torch.rand(workload.batch, 16),)


def close(answer: Any, baselines: Any) -> bool:
    return torch.allclose(answer, baselines, rtol=0, atol=1e-3)


class Scaled(nn.Module):
    """Keeps a float64 constant, as ``torch.from_numpy`` gives it, and casts it when it is used."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((16,), 0.5, dtype=torch.float64))
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(x - self.mean.to(x.dtype))
        return answer


def scaled() -> OwnModel:
    return OwnModel(Scaled(), floats, lambda a, b: torch.allclose(a, b, rtol=0, atol=0.1))  # in 8 bits too


class Spectrum(nn.Module):
    """A Fourier transform: a CPU has none in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(torch.fft.rfft(x).abs())
        return answer


def spectrum() -> OwnModel:
    return OwnModel(Spectrum(), floats, close)


class CrashTraced(nn.Module):
    """Stands in for a converter that crashes: only a trace of it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            os.kill(os.getpid(), signal.SIGSEGV)
        answer: Tensor = self.net(x)
        return answer


def crashes_when_traced() -> OwnModel:
    return OwnModel(CrashTraced(), floats, close)


def halved(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> nn.Module:
    module.register_buffer("kept", torch.zeros(1, dtype=torch.float16))
    return module


def only_modules(chatbot: Chatbot, workload: Workload) -> Reply:
    raise UnavailableError("it is for other models")


HALVED = Variant("halved", "", only_modules, True, "eager", prepare_module=halved)


class Forms(nn.Module):
    """Answers in a nested form, its input among it, after recurrent layers with a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out, self.back = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 16), nn.Linear(16, 16)
        self.back.weight = self.out.weight

    def forward(self, x: Tensor, unused: Tensor) -> dict[str, Any]:
        hidden, _ = self.first(x.unsqueeze(1))
        scores = self.back(torch.relu(self.out(hidden.squeeze(1))))
        return {"scores": scores, "input": x, "none": None, "two": (scores.sum(), scores.argmax(1)), "size": 16}


def same_forms(answer: dict[str, Any], baselines: dict[str, Any]) -> bool:
    """Scores within what 8 bits leave, all else as it is."""
    rest = [[one["none"], one["size"], list(one), one["two"][1].shape] for one in (answer, baselines)]
    scores = torch.allclose(answer["scores"], baselines["scores"], rtol=0, atol=0.05)
    return scores and torch.equal(answer["input"], baselines["input"]) and rest[0] == rest[1]


def forms() -> OwnModel:
    inputs = lambda i, w: (torch.rand(w.batch, 16), torch.rand(3))  # noqa: E731
    return OwnModel(Forms(), inputs, same_forms)


class Box:
    """An output object that pytree does not know."""


class Boxed(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Box]:
        return x + 1, Box()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Adding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def adding() -> OwnModel:
    return OwnModel(Adding(), floats, close)


CALLS_BEFORE_LOAD = 40  # beyond any warm-up


def _after_warm_up(misbehave: Any) -> Any:
    """The eager chatbot, until the requests come."""

    def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
        inner, calls = eager.prepare(chatbot, workload), [0]

        def reply(prompts: Tensor, lengths: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] > CALLS_BEFORE_LOAD:
                misbehave()
            return inner(prompts, lengths)

        return reply

    return prepare


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs() -> None:
    time.sleep(3600)


def _raises() -> None:
    raise ValueError("no more")


def _under_load(misbehave: Any) -> Variant:
    return Variant(
        "quirk", "eager, until requests come", _after_warm_up(misbehave), True, kind="eager", control_of=BASELINE
    )


KILLED_UNDER_LOAD, HANGS_UNDER_LOAD, RAISES_UNDER_LOAD = map(_under_load, (_killed, _hangs, _raises))
