"""Models that answer in one form each, which ``same`` looks into: named by tests as ``own_forms:NAME``."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chatbot.variants import Workload
from ray_jobs import OwnModel


class Pair(NamedTuple):
    scores: Tensor
    best: Tensor


@dataclass
class Scores:
    scores: Tensor
    best: Tensor


class Output(OrderedDict[str, Tensor]):
    """A dict with attributes, as Hugging Face's models answer."""

    @property
    def scores(self) -> Tensor:
        return self["scores"]


class Answering(nn.Module):
    """Scores and the place of the best, in a form of its own."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = nn.Linear(16, 4), form

    def forward(self, x: Tensor) -> Any:
        scores = self.net(x)
        return self.form(scores, scores.argmax(-1))


def _near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-3)


def _model(form: Callable[[Tensor, Tensor], Any], part: Callable[[Any], Tensor]) -> Callable[[], OwnModel]:
    def factory() -> OwnModel:
        inputs = lambda i, w: (torch.rand(w.batch, 16),)  # noqa: E731
        return OwnModel(Answering(form), inputs, lambda a, b: type(a) is type(b) and _near(part(a), part(b)))

    return factory


plain_dict = _model(lambda s, b: {"scores": s, "best": b}, lambda a: a["scores"])
pair = _model(Pair, lambda a: a.scores)
listed = _model(lambda s, b: ([s, b], (b,)), lambda a: a[0][0])
output = _model(lambda s, b: Output(scores=s, best=b), lambda a: a.scores)
scores = _model(Scores, lambda a: a.scores)
mixed = _model(lambda s, b: {"scores": s, "best": [b]}, lambda a: a["scores"])
numbered = _model(lambda s, b: (s, 4), lambda a: a[0])


def workload(name: str) -> Workload:
    return Workload(batch=2, model=f"own_forms:{name}")
