"""The search that is captured as a CUDA graph, computed on the CPU from the same code: its replies, and its kernels."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from chatbot.config import PRESETS, Config
from chatbot.model import Chatbot
from chatbot.variants import fused
from chatbot.variants.fused import FusedGreedy
from chatbot.vocabulary import EOS, FIRST_WORD, PAD
from ray_jobs.measure.program import program_of, scattered


def ragged(count: int, tokens: int, words: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(count, tokens) prompts of 1 to ``tokens`` tokens, at least one of them whole, and their lengths."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(FIRST_WORD, words, (count, tokens), generator=draw)
    lengths = torch.randint(1, tokens + 1, (count,), generator=draw)
    lengths[0] = tokens
    for row, length in enumerate(lengths.tolist()):
        prompts[row, length - 1] = EOS
        prompts[row, length:] = PAD
    return prompts, lengths


@torch.inference_mode()
def same_replies(bot: Chatbot, prompts: Tensor, lengths: Tensor) -> bool:
    return torch.equal(FusedGreedy(bot, 10).eval()(prompts), bot.search()(prompts, lengths, 10)[0])


@pytest.mark.parametrize("attention", ["dot", "general", "concat"])
@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(1, 1), (2, 2), (3, 2)])
def test_it_gives_eagers_replies_to_ragged_prompts(attention: str, encoder_layers: int, decoder_layers: int) -> None:
    sizes = Config(32, encoder_layers, decoder_layers, attention=attention, vocabulary=200)
    assert same_replies(Chatbot.random(sizes), *ragged(60, 8, 200))


def test_it_gives_eagers_replies_to_500_prompts_together_and_to_some_alone() -> None:
    bot = Chatbot.random(Config(hidden=32, vocabulary=200))
    prompts, lengths = ragged(500, 8, 200)
    assert same_replies(bot, prompts, lengths)
    for row in range(20):
        alone = prompts[row : row + 1, : int(lengths[row])]
        assert same_replies(bot, alone, lengths[row : row + 1])


def test_it_gives_eagers_replies_at_the_small_preset() -> None:
    assert same_replies(Chatbot.random(PRESETS["small"]), *ragged(5, 8, PRESETS["small"].vocabulary))


def test_its_weights_are_the_chatbots_and_none_of_a_gru_that_cudnn_would_lay_out() -> None:
    search = FusedGreedy(Chatbot.random(Config(hidden=16, vocabulary=50)), 3).eval()
    assert not any(isinstance(part, nn.RNNBase) for part in search.modules())
    assert not scattered(search)
    assert program_of(search).dtypes == {"float32"}


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that compute; a view computes nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns):
            self.called[str(func)] += 1
        return func(*args, **(kwargs or {}))


def one_kernel(inputs: Tensor, states: Tensor, before: Tensor) -> Tensor:
    """Stands in for the fused cell, which a CPU lacks."""
    return before.neg()


def three_kernels(self: nn.GRUCell, inputs: Tensor, state: Tensor) -> Tensor:
    """What ``torch.gru_cell`` launches on CUDA: two products without biases, and the fused cell."""
    return one_kernel(linear(inputs, self.weight_ih), linear(state, self.weight_hh), state)


def test_a_tutorial_reply_is_some_250_kernels_and_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing can be read back, and no tensor of the CPU can take part: both would end a capture."""
    monkeypatch.setattr(fused, "cell", one_kernel)
    monkeypatch.setattr(nn.GRUCell, "forward", three_kernels)
    search = FusedGreedy(Chatbot.random(Config(hidden=16, vocabulary=50)).to("meta"), 10).eval()
    prompts = torch.full((1, 8), EOS, device="meta")
    with torch.inference_mode(), Kernels() as seen:
        tokens = search(prompts)
    assert (tokens.shape, tokens.device.type) == ((1, 10), "meta")
    assert 200 < sum(seen.called.values()) <= 270, seen.called
