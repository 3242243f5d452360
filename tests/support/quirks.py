"""Own models with one quirk each that some engine does not take: named by tests as ``quirks:NAME``."""

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.model import Chatbot
from chatbot.variants import Reply, UnavailableError, Variant, Workload
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
