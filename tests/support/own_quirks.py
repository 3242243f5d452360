"""Models with one quirk each of what people bring: named by tests as ``own_quirks:NAME``."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.variants import Workload
from ray_jobs import OwnModel, close


def _floats(i: int, workload: Workload) -> tuple[Tensor, ...]:
    return (torch.rand(workload.batch, 16),)


class Wrapped(nn.Module):
    """A layer, and what a function makes of it: ``function(module, x)``."""

    def __init__(self, function: Callable[..., Any], **kept: Any) -> None:
        super().__init__()
        self.net, self.function = nn.Linear(16, 4), function
        for name, value in kept.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@dataclass
class Scores:
    """An answer that PyTorch does not know as a container."""

    scores: Tensor
    cache: Any = None


class Box:
    """An object that nobody can compare."""


def _counting(self: Any, x: Tensor) -> Any:
    self.calls += 1
    return self.net(x)


def _remembering(self: Any, x: Tensor) -> Any:
    self.cache.append(x)
    return self.net(x)


def _depending(self: Any, x: Tensor) -> Any:
    before, self.last = self.last, x.sum().item()
    return self.net(x) + before


def _spoiling(self: Any, x: Tensor) -> Any:
    return self.net(x.mul_(2))


def _forces(self: Any, x: Tensor) -> Any:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.net(x).sum(), x)
    return -slope


def _missing(self: Any, x: Tensor) -> Tensor:
    answer: Tensor = self.net(torch.nan_to_num(x))
    answer[:, 0] = float("nan")
    return answer


def _plain(self: Any, x: Tensor) -> Any:
    return self.net(x)


def _cast(self: Any, x: Tensor) -> Any:
    return self.net(x - self.mean.to(x.dtype))


def _sometimes(i: int, workload: Workload) -> tuple[Tensor, ...]:
    x = torch.rand(workload.batch, 16)
    x[:, 3] = float("nan")
    return (x,)


class Uncopied(nn.Linear):
    """Holds what can't be copied, a file or a lock say."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle '_thread.lock' object")


def _of(function: Callable[..., Any], **kept: Any) -> Callable[[], OwnModel]:
    def factory() -> OwnModel:
        return OwnModel(Wrapped(function, **kept), _floats)

    return factory


def _module(make: Callable[[], nn.Module], inputs: Any = _floats, same: Any = None) -> Callable[[], OwnModel]:
    def factory() -> OwnModel:
        return OwnModel(make(), inputs) if same is None else OwnModel(make(), inputs, same)

    return factory


plain = _of(_plain)
counts = _of(_counting, calls=torch.zeros(1))
remembers = _of(_remembering, cache=[])
depends = _of(_depending, last=0.0)
spoils = _of(_spoiling)
dropout = _of(lambda self, x: self.net(nn.functional.dropout(x, 0.5)))
samples = _of(lambda self, x: self.net(x) + random.random())
generator = _of(lambda self, x: (self.net(one) for one in x))
nothing = _of(lambda self, x: Box())
all_nan = _of(lambda self, x: self.net(x) * float("nan"))
fails = _of(lambda self, x: self.net(x[:, :3]))
gradients = _of(_forces)
boxed = _of(lambda self, x: Scores(self.net(x), Box()))
tupled = _of(lambda self, x: (self.net(x), {"more": [x.sum(), 3, None]}))
buffer_float64 = _of(_cast, mean=torch.full((16,), 0.5, dtype=torch.float64))
buffer_float16 = _of(_cast, mean=torch.full((16,), 0.5, dtype=torch.float16))
nan_inputs = _module(lambda: Wrapped(lambda self, x: self.net(torch.nan_to_num(x))), _sometimes)
some_nan = _module(lambda: Wrapped(_missing), _sometimes)
nan_unlike = _module(lambda: Wrapped(_missing), _sometimes, torch.allclose)
unlike = _module(lambda: Wrapped(_plain), _floats, lambda a, b: False)
no_parameters = _module(nn.ReLU)
uncopied = _module(lambda: Uncopied(16, 4))
lazy = _module(lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4)))
grows = _module(lambda: Wrapped(_plain), lambda i, w: (torch.rand(w.batch + i, 16),))
unseeded = _module(lambda: Wrapped(_plain), lambda i, w: (torch.full((w.batch, 16), random.random()),))
runs_out = _module(lambda: Wrapped(_plain), lambda i, w: (([torch.rand(w.batch, 16)] * 50)[i],))


class Unreached(nn.Module):
    """A layer without weights that no input ever reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.spare = nn.Linear(16, 4), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


lazy_unreached = _module(Unreached)


class Named(nn.Module):
    """Arguments in another order than that of their names, and one that must be named."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def forward(self, values: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        return {"scores": self.net(values) * mask}


def _named(i: int, workload: Workload) -> Mapping[str, Tensor]:
    return {"values": torch.rand(workload.batch, 16), "mask": torch.ones(workload.batch, 1)}


named = _module(Named, _named, close(atol=1e-4))


def crashes() -> OwnModel:
    os.kill(os.getpid(), signal.SIGSEGV)
    return plain()


def fills() -> OwnModel:
    """Ends as the kernel ends a process that has filled the memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return plain()


def loops() -> OwnModel:
    time.sleep(600)
    return plain()


def _of_width(width: int) -> OwnModel:
    return OwnModel(nn.Linear(width, 4), lambda i, w: (torch.rand(w.batch, width),))


def cases() -> dict[str, OwnModel]:
    """Two shapes of one kind of model."""
    return {"short": _of_width(8), "long": _of_width(32)}


def misnamed() -> dict[str, OwnModel]:
    return {"a b": _of_width(8)}
