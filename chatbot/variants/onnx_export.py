"""Any module as an ONNX graph, kept for later launches: PyTorch's exporter takes seconds.

Source: https://docs.pytorch.org/docs/stable/onnx_export.html
"""

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from chatbot.files import put_in_place
from chatbot.variants.base import converting
from chatbot.variants.exported import Form, exported, key, quiet
from chatbot.variants.inductor import cache_folder
from chatbot.variants.onnx_int8 import quantise


def graph_of(module: nn.Module, inputs: tuple[Tensor, ...], int8: bool = False) -> tuple[bytes, Form]:
    """The graph of a module for inputs of these shapes, on demand with int8 weights, and the form of its answer.

    Raises:
        UnavailableError: it can't be exported; says why.
    """
    program, form = exported(module, inputs)
    versions = [version(name) for name in ("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))]
    name = f"{'int8-fused-' * int8}{key(program, True, *versions)}.onnx"
    path = cache_folder("onnx") / name
    if not path.is_file():
        _keep(path, lambda made: _export(program, made, int8))
    return path.read_bytes(), form


def _keep(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file and renames it: another launch sees a whole one or none."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        make(made)
        put_in_place(made, path)


def _export(program: ExportedProgram, made: Path, int8: bool) -> None:
    with torch.inference_mode(False), torch.no_grad(), quiet(), converting("torch.onnx.export"):
        graph = torch.onnx.export(program, dynamo=True, verbose=False)
        assert graph is not None
        plain = made.with_suffix(".fp32")
        plain.write_bytes(graph.model_proto.SerializeToString())
        if int8:
            quantise(plain, made)
        else:
            plain.rename(made)
