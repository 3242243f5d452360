"""``torch.export`` and AOTInductor: encoder and decoder step, or any module, as shared libraries, kept on disk.

TorchScript's successor. Source: https://pytorch.org/docs/stable/torch.compiler_aot_inductor.html
"""

import copy
import hashlib
import importlib
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from chatbot import model, vocabulary
from chatbot.cache import used
from chatbot.files import put_in_place
from chatbot.model import Chatbot
from chatbot.variants import inductor, masked
from chatbot.variants.base import Reply, UnavailableError, Workload, converting
from chatbot.variants.engines import engine_of
from chatbot.variants.exported import exported
from chatbot.variants.exported import key as exported_key
from chatbot.variants.inductor import cache_folder, compiling, example, machine, require_compiler, settings, stepping
from chatbot.variants.masked import MaskedEncoder, Step
from chatbot.vocabulary import SOS

SOURCES = (sys.modules[__name__], inductor, masked, model, vocabulary)


def prepare(chatbot: Chatbot, workload: Workload) -> Reply:
    """Loads both libraries, building them if no earlier launch has; they read the chatbot's weights in place."""
    _require_tools(workload.device)
    encoder, step, layers = MaskedEncoder(chatbot.encoder).eval(), Step(chatbot.decoder).eval(), chatbot.config
    prompts, _ = example(workload)
    token = torch.full((workload.batch,), SOS, device=workload.device)
    key = _key(chatbot, workload)
    with torch.no_grad():
        outputs, hidden, blocked = encoder(prompts)
        state = hidden[: layers.decoder_layers].clone()
        encode = _loaded(f"encoder-{key}", encoder, (prompts,), workload)
        take = _loaded(f"step-{key}", step, (token, state, outputs, blocked), workload)
    return stepping(encode, take, layers.decoder_layers, workload)


def prepare_module(module: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Callable[..., Any]:
    """Loads any module's library, building it if no earlier launch has."""
    _require_tools(workload.device)
    program, form = exported(module, inputs)
    place = json.dumps(_surroundings(workload), sort_keys=True, default=repr)
    name = f"module-{exported_key(program, False, place)}"
    weights = {**program.state_dict, **program.constants}
    with converting("AOTInductor"):
        run = _running(name, weights, lambda path: _package(path, program, workload))

    def answer(*tensors: Tensor) -> Any:
        return form(run(*tensors))

    return answer


def _require_tools(device: str) -> None:
    """Raises UnavailableError where AOTInductor could not compile."""
    require_compiler(device)
    if device == "cuda":
        _require_toolkit()


def _require_toolkit() -> None:
    """Raises UnavailableError where AOTInductor would not find the headers that its wrapper is compiled with.

    Imported here, never before a fork: the module asks the driver for its GPUs.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        raise UnavailableError("there is no CUDA toolkit: install one and let CUDA_HOME name its folder")


class Running:
    """A loaded library with the weights that it reads, as a callable of tensors."""

    def __init__(self, library: Any, weights: dict[str, Tensor]) -> None:
        library.load_constants(weights, check_full_update=True, user_managed=True)
        self.weights = weights  # the library only points to them
        self._run = library.loader.run  # the public call parses its own description anew each time
        shown = engine_of(library)
        assert shown is not None
        floats = [weight.dtype for weight in weights.values() if weight.is_floating_point()]
        dtypes = frozenset(str(dtype).removeprefix("torch.") for dtype in floats)
        places = frozenset(weight.data_ptr() for weight in weights.values())
        self.compiled = replace(shown, dtypes=dtypes, weights=places)

    def __call__(self, *tensors: Tensor) -> Any:
        return self._run(list(tensors))


def _loaded(name: str, network: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> Running:
    weights = dict(network.named_parameters(remove_duplicate=False))
    return _running(name, weights, lambda path: _build(path, network, inputs, workload))


def _running(name: str, weights: Mapping[str, Tensor], build: Callable[[Path], None]) -> Running:
    """The library of this name, which ``build`` makes where it is missing, with these weights."""
    path = cache_folder("aoti") / f"{name}.pt2"
    library = _kept(path)
    if library is None:
        build(path)
        library = torch._inductor.aoti_load_package(str(path))
    return Running(library, {name: weights[name].detach() for name in library.get_constant_fqns()})


def _kept(path: Path) -> Any:
    """The library of an earlier launch; None where there is none, or only one that can't be loaded (half a file)."""
    if not path.is_file():
        return None
    used(path)
    try:
        return torch._inductor.aoti_load_package(str(path))
    except (RuntimeError, OSError, ValueError, LookupError):
        path.unlink(missing_ok=True)
        return None


def _build(path: Path, network: nn.Module, inputs: tuple[Tensor, ...], workload: Workload) -> None:
    with torch.inference_mode(False), torch.no_grad(), compiling(workload):  # inference tensors can't be exported
        plain = _outside_of_inference(network)
        program = torch.export.export(plain, tuple(tensor.clone() for tensor in inputs))
    _package(path, program, workload)


def _package(path: Path, program: ExportedProgram, workload: Workload) -> None:
    """Compiles to a temporary file and renames it: another launch sees a whole package or none."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        compiling(workload),
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        made = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / path.name),
            inductor_configs={"aot_inductor.package_constants_in_so": False},
        )
        put_in_place(Path(made), path)


def _outside_of_inference(network: nn.Module) -> nn.Module:
    """A copy whose parameters are ordinary tensors."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    return copy.deepcopy(network, memo)


def _key(chatbot: Chatbot, workload: Workload) -> str:
    """A key of everything that the libraries depend on; they don't contain the weights."""
    content = {
        "config": asdict(chatbot.config),
        "shape": [workload.batch, workload.prompt_tokens],
        **_surroundings(workload),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _surroundings(workload: Workload) -> dict[str, object]:
    """What every library depends on beside its network."""
    return {
        "device": workload.device,
        "torch": torch.__version__,
        "machine": machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # which the environment may lower
        "gpu": _gpu() if workload.device == "cuda" else None,
        "settings": settings(workload),  # the number of threads is one
        "sources": [inspect.getsource(module) for module in SOURCES],
    }


def _gpu() -> tuple[str, str]:
    """The GPU's name, and the version of its compiler."""
    return torch.cuda.get_device_name(), importlib.import_module("triton").__version__
