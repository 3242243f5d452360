"""Save and load trained chatbots; read the tutorial's ``.tar``. Never unpickles code.

Our format is one ``torch.save`` of plain values: ``format``, ``config``, ``words``, ``encoder``, ``decoder``
(state dicts, half precision where asked) and ``notes`` (how it was made).
"""

import io
import os
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from chatbot import corpus
from chatbot.config import PRESETS, Config
from chatbot.errors import UsageError
from chatbot.files import put_in_place
from chatbot.model import Chatbot
from chatbot.variants import MODELS
from chatbot.vocabulary import FIRST_WORD, Vocabulary

FORMAT = "chatbot-1"
SHIPPED = Path(__file__).with_name("weights") / "small.pt"
SEED = 0  # of the tutorial preset's random weights
SPECIAL = ("PAD", "SOS", "EOS")  # tokens 0, 1 and 2
# A loss or an iteration that NumPy computed is a number, not code; NumPy 1 wrote it by the second name.
_SCALAR: Any = np.float64(0).__reduce__()[0]  # the function that the pickle of a NumPy scalar names
_NUMBERS: list[Any] = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype]
_NUMBERS += {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel and of torch.compile


@dataclass(frozen=True, eq=False)
class Trained:
    """A chatbot with the words it speaks. ``trained`` is False for random weights, which are for timing only."""

    name: str
    chatbot: Chatbot
    vocabulary: Vocabulary
    trained: bool = True
    notes: dict[str, Any] = field(default_factory=dict)


def open_model(name: str, need_trained: bool = False) -> Trained:
    """The model called ``small`` (shipped weights), ``tutorial`` (random weights, full size) or a checkpoint's path.

    Raises:
        UsageError: no such model; or ``need_trained`` and its weights are random.
    """
    if name == "small":
        return load(SHIPPED, name)
    if name == "tutorial":
        if need_trained:
            raise UsageError(
                "model 'tutorial' has random weights, for timing only; give 'small' or a trained checkpoint"
            )
        words = Vocabulary.most_frequent(corpus.load(), PRESETS[name].vocabulary)
        return Trained(name, Chatbot.random(PRESETS[name], SEED), words, trained=False)
    if not os.path.isfile(name):  # unlike Path.is_file, False for a name too long to exist
        raise UsageError(f"no model {name!r}; give {MODELS}")
    return load(Path(name))


def save(trained: Trained, path: Path, half: bool = False) -> None:
    """Writes our format to ``path``, by rename, so that an older file there survives a failure.

    ``half`` stores the weights in 16 bits; they are read back as 32.
    """
    save_plain(_content(trained, half), path)


def to_bytes(trained: Trained) -> bytes:
    """The content of the file that ``save`` writes, the same for the same weights."""
    content = io.BytesIO()
    torch.save(_content(trained, half=False), content)
    return content.getvalue()


def _content(trained: Trained, half: bool) -> dict[str, Any]:
    chatbot = trained.chatbot
    return {
        "format": FORMAT,
        "config": asdict(chatbot.config),
        "words": list(trained.vocabulary.words),
        "encoder": _stored(chatbot.encoder, half),
        # The embedding is shared: kept once, with the encoder.
        "decoder": {k: v for k, v in _stored(chatbot.decoder, half).items() if k != "embedding.weight"},
        "notes": trained.notes,
    }


def save_plain(content: dict[str, Any], path: Path) -> None:
    """``torch.save`` of plain values, whole or not at all."""
    replace_whole(path, lambda temporary: torch.save(content, temporary))


def replace_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then renames it: an older file survives."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, name: str | None = None) -> Trained:
    """Reads a checkpoint of ours or of the tutorial's, told apart by its keys.

    Raises:
        UsageError: one line, for a file that is truncated, would execute code, or does not fit its vocabulary.
    """
    content = read_plain(path)
    if content.get("format") == FORMAT:
        read = _ours
    elif {"en", "de", "embedding", "voc_dict"} <= content.keys():
        read = _tutorials
    else:
        raise UsageError(
            f"{path} is no checkpoint of ours (format {FORMAT!r}) nor of the tutorial (en, de, embedding, voc_dict)"
        )
    try:
        chatbot, vocabulary, notes = read(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: part of the checkpoint is missing or malformed ({error!r})") from None
    return Trained(name or path.stem, chatbot, vocabulary, notes=notes)


def read_plain(path: Path) -> dict[str, Any]:
    """The dictionary in a ``torch.save`` file, without running any code of it. Raises UsageError."""
    try:
        # The warnings are of odd pickle protocols, which are refused anyway.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower():  # a function or class to call
            raise UsageError(f"{path} would execute code when loaded, so it was not loaded") from None
        raise UsageError(f"{path} is not a checkpoint") from None
    except (RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise UsageError(
            f"{path} is truncated or not a checkpoint ({(str(error) or repr(error)).splitlines()[0]})"
        ) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def build(config: Config, encoder: dict[str, Any], decoder: dict[str, Any]) -> Chatbot:
    """A chatbot with the given weights of any float type. Raises UsageError where a name, shape or value is off."""
    parts = (("encoder", encoder, config.encoder_layers), ("decoder", decoder, config.decoder_layers))
    for name, state, layers in parts:
        if _layers(state) != layers:
            raise UsageError(f"the {name} has {_layers(state)} layers where its config says {layers}")
        # Nothing of the sizes that are claimed is made before tensors have them: these, from which the others follow.
        shapes = {"embedding.weight": torch.Size((config.vocabulary, config.hidden))}
        shapes |= {f"gru.weight_hh_l{i}": torch.Size((3 * config.hidden, config.hidden)) for i in range(layers)}
        _check(name, {key: state[key] for key in shapes if key in state}, shapes)
    chatbot = Chatbot.random(config)
    for name, module, state in (("encoder", chatbot.encoder, encoder), ("decoder", chatbot.decoder, decoder)):
        _check(name, state, {key: tensor.shape for key, tensor in module.state_dict().items()})
        module.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return chatbot


def _check(name: str, state: dict[str, Any], shapes: dict[str, torch.Size]) -> None:
    if state.keys() != shapes.keys():
        odd = sorted(state.keys() ^ shapes.keys())
        raise UsageError(f"the {name} does not fit its sizes: {', '.join(odd[:3])} missing or too many")
    for key, tensor in state.items():
        if tensor.shape != shapes[key]:
            raise UsageError(f"{name} {key} has shape {tuple(tensor.shape)}, expected {tuple(shapes[key])}")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UsageError(f"{name} {key} repeats a few numbers, so that it is larger than the file it came from")
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{name} {key} holds NaN or infinity")


def _stored(module: torch.nn.Module, half: bool) -> dict[str, torch.Tensor]:
    return {k: (v.half() if half else v.float()).cpu() for k, v in module.state_dict().items()}


def _ours(content: dict[str, Any]) -> tuple[Chatbot, Vocabulary, dict[str, Any]]:
    known = {f.name for f in fields(Config)}
    if content["config"].keys() != known:
        raise UsageError(f"its config holds {sorted(content['config'])}, expected {sorted(known)}")
    config = Config(**content["config"])
    vocabulary = _checked(content["words"], config.vocabulary)
    encoder = _unwrapped(content["encoder"])
    decoder = {**_unwrapped(content["decoder"]), "embedding.weight": encoder["embedding.weight"]}
    return build(config, encoder, decoder), vocabulary, _plain(dict(content["notes"]))


def _tutorials(content: dict[str, Any]) -> tuple[Chatbot, Vocabulary, dict[str, Any]]:
    """The sizes follow from the tensors; the tutorial does not store them."""
    encoder, decoder = _unwrapped(content["en"]), _unwrapped(content["de"])
    shared = _unwrapped(content["embedding"])["weight"]
    encoder["embedding.weight"] = decoder["embedding.weight"] = shared
    energy = decoder.get("attn.attn.weight")
    attention = "dot" if energy is None else "general" if energy.shape[0] == energy.shape[1] else "concat"
    config = Config(
        hidden=shared.shape[1],
        encoder_layers=_layers(encoder),
        decoder_layers=_layers(decoder),
        attention=attention,
        vocabulary=shared.shape[0],
    )
    names = content["voc_dict"]["index2word"]
    special = tuple(str(names[i]) for i in range(FIRST_WORD))
    if special != SPECIAL:
        raise UsageError(f"its first tokens are {', '.join(special)}, expected {', '.join(SPECIAL)} in this order")
    count = content["voc_dict"].get("num_words", len(names))
    vocabulary = _checked([names[i] for i in range(FIRST_WORD, count)], config.vocabulary)
    notes = {"source": "tutorial", "iteration": _plain(content.get("iteration"))}
    return build(config, encoder, decoder), vocabulary, notes


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    return {_WRAPPERS.sub("", key): tensor for key, tensor in state.items()}


def _plain(value: Any) -> Any:
    """Converts NumPy's scalars to Python's, however deep they are."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _layers(state: dict[str, Any]) -> int:
    return len([k for k in state if k.startswith("gru.weight_ih_l") and not k.endswith("_reverse")])


def _checked(words: Any, size: int) -> Vocabulary:
    if not all(isinstance(word, str) for word in words):
        raise UsageError("its vocabulary holds something other than words")
    vocabulary = Vocabulary(tuple(cast("list[str]", words)))
    if len(vocabulary) != size:
        raise UsageError(f"its vocabulary has {len(vocabulary)} tokens but its weights have {size}")
    return vocabulary
