"""``torch.export`` of any module: what ONNX Runtime, OpenVINO and AOTInductor are given of a model of one's own.

Source: https://docs.pytorch.org/docs/stable/export.html
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from chatbot.variants.base import UnavailableError, converting, varying

PLAIN = (bool, int, float, str, type(None))  # leaves of an answer that a program keeps as they were when it was made


class Form:
    """The form of a module's answer: puts an engine's flat list of tensors back into it."""

    def __init__(self, answer: object) -> None:
        leaves, self._spec = tree_flatten(answer)
        odd = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))]
        if odd:
            raise UnavailableError(
                f"a {type(odd[0]).__name__} in the model's answer is no tensor, and no graph returns it"
            )
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._is_tensor = isinstance(answer, Tensor)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """The answer that holds these tensors."""
        if self._is_tensor:
            return tensors[0]
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self._spec)


class Flat(nn.Module):
    """A module whose answer is the tensors of another's, in order."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """As many tensors as the module's answer has."""
        return tuple(leaf for leaf in tree_leaves(self.module(*inputs)) if isinstance(leaf, Tensor))


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[ExportedProgram, Form]:
    """The program of a module for inputs of these shapes, which answers flatly, and the form of its answer.

    Of an ``Example`` with others the dimensions that vary are left open.

    The module's tensors are replaced: those made in inference mode can't be exported.

    Raises:
        UnavailableError: it can't be exported; says why, as torch does.
    """
    with torch.inference_mode(False), torch.no_grad(), quiet(), converting("torch.export"):
        _leave_inference_mode(module)
        given = tuple(one.clone() for one in inputs)
        form = Form(module(*given))
        if not all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(given, inputs, strict=True)):
            raise UnavailableError("it changes its inputs in place, which no exported graph does")
        free = tuple(dict.fromkeys(dims, Dim.AUTO) for dims in varying(inputs))
        return torch.export.export(Flat(module).eval(), given, dynamic_shapes=(free,) if any(free) else None), form


def _leave_inference_mode(module: nn.Module) -> None:
    """Puts ordinary tensors in the place of all parameters and buffers; what is shared stays shared."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for name, weight in [*part._parameters.items()]:
            if weight is not None:  # recurrent layers list their weights, which setting one keeps up to date
                new = nn.Parameter(weight.detach().clone(), requires_grad=False)
                setattr(part, name, made.setdefault(id(weight), new))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = made.setdefault(id(buffer), buffer.clone())


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what converters say beside their result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def key(program: ExportedProgram, weights: bool, *more: object) -> str:
    """A key of a program: its operators, shapes and form of weights, and on demand their values; and of more."""
    digest = hashlib.sha256(repr((torch.__version__, str(program), *more)).encode())
    held = {**program.constants, **(program.state_dict if weights else {})}
    for name, tensor in sorted(held.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def require(extra: str, *packages: str) -> None:
    """Raises UnavailableError where one of the packages is missing; says how to get it."""
    for name in packages:
        if find_spec(name) is None:
            raise UnavailableError(f"{name} is not installed: pip install 'latency-matrix[{extra}]'")
