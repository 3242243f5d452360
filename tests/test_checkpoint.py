"""Checkpoints of ours and of the tutorial: whole, damaged and hostile ones."""

import io
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk import WHOLE, steps_of
from tutorial import GreedySearchDecoder, fresh, tutorial_reply

from chatbot import checkpoint
from chatbot.checkpoint import Trained, load, open_model, save
from chatbot.config import ATTENTIONS, PRESETS, Config
from chatbot.errors import UsageError
from chatbot.model import Chatbot
from chatbot.vocabulary import EOS, Vocabulary

WORDS = tuple(f"word{i}" for i in range(20))
CONFIG = Config(hidden=6, encoder_layers=1, decoder_layers=2, vocabulary=23)

Content = dict[str, Any]


@pytest.fixture
def trained() -> Trained:
    """A chatbot with random weights that passes for a trained one."""
    return Trained("bot", Chatbot.random(CONFIG, 5), Vocabulary(WORDS), notes={"corpus": "toy", "loss": 1.5})


@pytest.fixture
def content(trained: Trained, tmp_path: Path) -> Content:
    """What our file holds, to be spoilt."""
    save(trained, tmp_path / "whole.pt")
    read: Content = torch.load(tmp_path / "whole.pt", weights_only=True)
    return read


def lively_tutorial(method: str) -> GreedySearchDecoder:
    """The tutorial's networks with large random weights, so that prompts get different replies."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        search = fresh(method, 8, 2, 2, 23)
    with torch.no_grad():
        for parameter in search.parameters():
            parameter.mul_(3)
    return search


def voc_dict() -> Content:
    """A ``Voc.__dict__`` of the tutorial."""
    index2word = {0: "PAD", 1: "SOS", 2: "EOS", **dict(enumerate(WORDS, 3))}
    counts = dict.fromkeys(WORDS, 1)
    word2index = {word: i for i, word in enumerate(WORDS, 3)}
    named = {"name": "cornell", "trimmed": True, "num_words": 23}
    return {**named, "word2index": word2index, "word2count": counts, "index2word": index2word}


def tutorial_content(search: GreedySearchDecoder) -> Content:
    """The dictionary that the tutorial saves, its optimizers having taken a step."""
    networks = (search.encoder, search.decoder)
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.0) for network in networks]
    sum(parameter.sum() for parameter in search.parameters()).backward()  # type: ignore[union-attr]
    for optimizer in optimizers:
        optimizer.step()
    states = dict(zip(("en", "de"), (network.state_dict() for network in networks), strict=True))
    states |= dict(zip(("en_opt", "de_opt"), (optimizer.state_dict() for optimizer in optimizers), strict=True))
    embedding = search.encoder.embedding.state_dict()
    return {"iteration": 4000, **states, "loss": 2.5, "voc_dict": voc_dict(), "embedding": embedding}


def refusal(path: Path) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(UsageError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert path.name in message
    return message


def test_a_checkpoint_comes_back_whole(trained: Trained, tmp_path: Path) -> None:
    save(trained, tmp_path / "bot.pt")
    back = load(tmp_path / "bot.pt")
    assert (back.name, back.trained, back.notes) == ("bot", True, trained.notes)
    assert back.chatbot.config == CONFIG
    assert back.vocabulary == trained.vocabulary
    assert back.chatbot.encoder.embedding.weight is back.chatbot.decoder.embedding.weight
    for part in ("encoder", "decoder"):
        saved, read = (getattr(bot.chatbot, part).state_dict() for bot in (trained, back))
        assert all(torch.equal(saved[key], read[key]) for key in saved)


def test_a_half_checkpoint_is_half_as_large_and_comes_back_rounded(tmp_path: Path) -> None:
    config = Config(hidden=64, vocabulary=23)
    trained = Trained("bot", Chatbot.random(config), Vocabulary(WORDS))
    save(trained, tmp_path / "full.pt")
    save(trained, tmp_path / "half.pt", half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.55 * (tmp_path / "full.pt").stat().st_size
    back = load(tmp_path / "half.pt").chatbot
    for part in ("encoder", "decoder"):
        saved, read = (getattr(bot, part).state_dict() for bot in (trained.chatbot, back))
        assert all(read[key].dtype == torch.float32 for key in read)
        assert all(torch.equal(saved[key].half().float(), read[key]) for key in saved)


@pytest.mark.parametrize("method", ATTENTIONS)
def test_a_tutorial_checkpoint_answers_as_the_tutorials_own_search(method: str, tmp_path: Path) -> None:
    search = lively_tutorial(method)
    torch.save(tutorial_content(search), tmp_path / "4000_checkpoint.tar")
    read = load(tmp_path / "4000_checkpoint.tar")
    assert read.vocabulary.words == WORDS
    assert read.notes == {"source": "tutorial", "iteration": 4000}
    replies = set()
    for first in range(3, 23):
        prompt = [first, (7 * first) % 20 + 3, EOS]
        expected, _ = tutorial_reply(search, prompt)
        with torch.no_grad():
            tokens, _ = read.chatbot.search()(torch.tensor([prompt]), torch.tensor([3]), 10)
        assert tokens[0].tolist() == expected
        replies.add(tuple(expected))
    assert len(replies) > 5  # else the prompts would not matter


def test_sizes_of_a_tutorial_checkpoint_follow_from_its_tensors(tmp_path: Path) -> None:
    torch.save(tutorial_content(fresh("general", 8, 1, 2, 23)), tmp_path / "bot.tar")
    config = load(tmp_path / "bot.tar").chatbot.config
    sizes = (config.hidden, config.encoder_layers, config.decoder_layers, config.vocabulary)
    assert (sizes, config.attention) == ((8, 1, 2, 23), "general")


@pytest.mark.parametrize("number", [np.float64(2.5), np.float32(2.5), np.int64(7), np.bool_(True)], ids=repr)
def test_a_numpy_scalar_is_a_number_and_no_code(number: np.generic, trained: Trained, tmp_path: Path) -> None:
    torch.save({**tutorial_content(fresh("dot", 8, 2, 2, 23)), "iteration": number, "loss": number}, tmp_path / "a.tar")
    iteration = load(tmp_path / "a.tar").notes["iteration"]
    assert (iteration, type(iteration)) == (number.item(), type(number.item()))
    save(replace(trained, notes={"options": {"losses": [number]}}), tmp_path / "ours.pt")
    assert load(tmp_path / "ours.pt").notes == {"options": {"losses": [number.item()]}}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_saved_from_a_wrapped_network_are_read(prefix: str, content: Content, tmp_path: Path) -> None:
    """As ``DataParallel`` and ``torch.compile`` name them."""

    def wrapped(content: Content, *names: str) -> Content:
        return content | {name: {prefix + key: value for key, value in content[name].items()} for name in names}

    theirs = tutorial_content(fresh("general", 8, 2, 2, 23))
    for plain, names in ((content, ("encoder", "decoder")), (theirs, ("en", "de", "embedding"))):
        torch.save(plain, tmp_path / "plain.pt")
        torch.save(wrapped(plain, *names), tmp_path / "wrapped.pt")
        one, other = (load(tmp_path / f"{name}.pt").chatbot for name in ("plain", "wrapped"))
        assert one.config == other.config
        assert all(torch.equal(a, b) for a, b in zip(one.encoder.parameters(), other.encoder.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.decoder.parameters(), other.decoder.parameters(), strict=True))


def test_nothing_of_a_claimed_size_is_made_before_the_tensors_have_it(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kilobytes asked for 240 GB."""
    content["config"]["hidden"] = 100_000
    torch.save(content, tmp_path / "bot.pt")
    made: list[str] = []
    random = Chatbot.random

    def watched(config: Config, seed: int = 0) -> Chatbot:
        made.append(torch.empty(0).device.type)
        return random(config, seed)

    monkeypatch.setattr(Chatbot, "random", watched)
    refusal(tmp_path / "bot.pt")
    assert made == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(trained: Trained, share: float, tmp_path: Path) -> None:
    path = tmp_path / "bot.pt"
    save(trained, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "truncated" in refusal(path)


def not_pickled() -> dict[str, bytes]:
    """Files that are no checkpoint and hold no code."""
    draw = torch.Generator().manual_seed(0)
    noise = {f"noise {i}": bytes(torch.randint(256, (300,), generator=draw).tolist()) for i in range(6)}
    return {"empty": b"", "text": b"hello there\n", "zip": b"PK\x03\x04" + b"x" * 200, "zeros": bytes(99), **noise}


@pytest.mark.parametrize("data", not_pickled().values(), ids=not_pickled().keys())
def test_a_file_of_other_bytes_is_refused_and_not_said_to_hold_code(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bot.pt"
    path.write_bytes(data)
    assert "execute code" not in refusal(path)


class Payload:
    """Makes a file when it is unpickled by careless means."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


def hostile_files(marker: Path) -> dict[str, bytes]:
    """The payload in each form that ``torch.load`` reads."""
    content = {"format": checkpoint.FORMAT, "notes": Payload(marker)}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(content, zipped)
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    plain = {f"pickle {protocol}": pickle.dumps(content, protocol=protocol) for protocol in (0, 2, 4)}
    return {"zip": zipped.getvalue(), "legacy": legacy.getvalue(), **plain}


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4"])
def test_a_malicious_file_is_refused_and_its_code_never_runs(form: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bot.pt"
    path.write_bytes(hostile_files(marker)[form])
    refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_malicious_checkpoint_is_said_to_hold_code(form: str, tmp_path: Path) -> None:
    path = tmp_path / "bot.pt"
    path.write_bytes(hostile_files(tmp_path / "marker")[form])
    assert "would execute code" in refusal(path)


def test_the_payload_of_these_tests_is_live(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker))).close()
    assert marker.exists()


def spoil_weight(content: Content, value: float) -> None:
    content["encoder"]["gru.bias_hh_l0"][0] = value


OURS_SPOILT: dict[str, tuple[Callable[[Content], object], str]] = {
    "another format": (lambda c: c.update(format="chatbot-0"), "no checkpoint of ours"),
    "no config": (lambda c: c.pop("config"), "missing or malformed"),
    "no words": (lambda c: c.pop("words"), "missing or malformed"),
    "no notes": (lambda c: c.pop("notes"), "missing or malformed"),
    "no encoder": (lambda c: c.pop("encoder"), "missing or malformed"),
    "a config without hidden": (lambda c: c["config"].pop("hidden"), "its config holds"),
    "a config with more": (lambda c: c["config"].update(depth=3), "its config holds"),
    "no hidden units": (lambda c: c["config"].update(hidden=0), "hidden is 0"),
    "a text as size": (lambda c: c["config"].update(hidden="6"), "missing or malformed"),
    "layers beyond counting": (lambda c: c["config"].update(encoder_layers=10**9), "1 layers where its config says 10"),
    "a size that no tensor has": (
        lambda c: c["config"].update(hidden=100_000),
        r"shape \(23, 6\), expected \(23, 100000\)",
    ),
    "a tensor larger than its file": (
        lambda c: c["decoder"].update({"out.bias": torch.zeros(1).expand(23)}),
        "out.bias repeats a few numbers",
    ),
    "a size beyond memory": (lambda c: c["config"].update(hidden=10**15), "bot.pt"),
    "a word too few": (lambda c: c["words"].pop(), "22 tokens but its weights have 23"),
    "a word too many": (lambda c: c["words"].append("more"), "24 tokens but its weights have 23"),
    "a number as word": (lambda c: c["words"].__setitem__(0, 7), "other than words"),
    "a weight missing": (lambda c: c["decoder"].pop("out.bias"), "out.bias missing or too many"),
    "a weight too many": (lambda c: c["encoder"].update(more=torch.zeros(1)), "more missing or too many"),
    "a wrong shape": (lambda c: c["decoder"].update({"out.bias": torch.zeros(22)}), r"shape \(22,\), expected \(23,\)"),
    "another attention": (lambda c: c["config"].update(attention="general"), "attn.attn.bias"),
    "a weight that is a list": (lambda c: c["decoder"].update({"out.bias": [0.0] * 23}), "missing or malformed"),
    "a NaN": (lambda c: spoil_weight(c, float("nan")), "gru.bias_hh_l0 holds NaN"),
    "an infinity": (lambda c: spoil_weight(c, float("inf")), "gru.bias_hh_l0 holds NaN or infinity"),
}


@pytest.mark.parametrize(("spoil", "complaint"), OURS_SPOILT.values(), ids=OURS_SPOILT.keys())
def test_a_spoilt_checkpoint_of_ours_is_refused_with_the_reason(
    spoil: Callable[[Content], object], complaint: str, content: Content, tmp_path: Path
) -> None:
    spoil(content)
    torch.save(content, tmp_path / "bot.pt")
    with pytest.raises(UsageError, match=complaint):
        load(tmp_path / "bot.pt")
    refusal(tmp_path / "bot.pt")


TUTORIALS_SPOILT: dict[str, tuple[Callable[[Content], object], str]] = {
    "no vocabulary": (lambda c: c.pop("voc_dict"), "nor of the tutorial"),
    "no decoder": (lambda c: c.pop("de"), "nor of the tutorial"),
    "an empty embedding": (lambda c: c.update(embedding={}), "missing or malformed"),
    "a flat embedding": (lambda c: c.update(embedding={"weight": torch.zeros(23)}), "bot.tar"),
    "a word missing": (lambda c: c["voc_dict"]["index2word"].pop(22), "missing or malformed"),
    "another order of the special tokens": (
        lambda c: c["voc_dict"]["index2word"].update({0: "SOS", 1: "EOS", 2: "PAD"}),
        "its first tokens are SOS, EOS, PAD, expected PAD, SOS, EOS in this order",
    ),
    "another vocabulary": (lambda c: c["voc_dict"].update(num_words=20), "20 tokens but its weights have 23"),
    "no GRU": (lambda c: c.update(en={}), "encoder_layers is 0"),
    "a weight missing": (lambda c: c["de"].pop("out.bias"), "out.bias missing or too many"),
    "a wrong shape": (lambda c: c["de"].update({"concat.bias": torch.zeros(9)}), r"concat.bias has shape \(9,\)"),
    "a NaN": (lambda c: c["de"]["out.bias"].fill_(float("nan")), "out.bias holds NaN"),
}


@pytest.mark.parametrize(("spoil", "complaint"), TUTORIALS_SPOILT.values(), ids=TUTORIALS_SPOILT.keys())
def test_a_spoilt_checkpoint_of_the_tutorial_is_refused_with_the_reason(
    spoil: Callable[[Content], object], complaint: str, tmp_path: Path
) -> None:
    content = tutorial_content(fresh("dot", 8, 2, 2, 23))
    spoil(content)
    torch.save(content, tmp_path / "bot.tar")
    with pytest.raises(UsageError, match=complaint):
        load(tmp_path / "bot.tar")
    refusal(tmp_path / "bot.tar")


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), "hello"])
def test_a_file_that_holds_no_dictionary_is_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "bot.pt")
    assert "not a checkpoint" in refusal(tmp_path / "bot.pt")


def test_a_failing_save_leaves_the_old_file_and_nothing_else(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bot.pt"
    save(trained, path)
    before = path.read_bytes()

    def disk_full(content: Content, target: Path) -> None:
        target.write_bytes(before[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save(trained, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_and_its_name_are_on_the_disk_when_it_is_done(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that a power cut leaves an empty file in the place of hours of training."""
    steps = steps_of(monkeypatch)
    save(trained, tmp_path / "bot.pt")
    assert steps == WHOLE


def test_the_tutorial_preset_opens_with_as_many_words_as_its_weights_and_is_not_trained() -> None:
    trained = open_model("tutorial")
    assert trained.chatbot.config == PRESETS["tutorial"]
    assert len(trained.vocabulary) == 7_836
    assert not trained.trained
    assert trained.vocabulary.knows("hello how are you ?")


def test_random_weights_are_refused_where_trained_ones_are_needed() -> None:
    with pytest.raises(UsageError, match="random weights, for timing only; give 'small'"):
        open_model("tutorial", need_trained=True)


@pytest.mark.parametrize("name", ["large", "checkpoints/gone.pt", ""])
def test_an_unknown_model_is_answered_with_the_choices(name: str) -> None:
    with pytest.raises(UsageError, match="small, tutorial, or the path of a checkpoint") as caught:
        open_model(name)
    assert repr(name) in str(caught.value)


def test_a_model_opens_by_its_path(trained: Trained, tmp_path: Path) -> None:
    save(trained, tmp_path / "mine.pt")
    opened = open_model(str(tmp_path / "mine.pt"), need_trained=True)
    assert (opened.name, asdict(opened.chatbot.config)) == ("mine", asdict(CONFIG))
