"""Rounding that looks at a layer's inputs: what it promises, and that the inputs are those of the network."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor

from chatbot.config import Config
from chatbot.model import Chatbot
from chatbot.native import rounding
from chatbot.native.pack import LARGEST, quantise
from chatbot.native.rounding import inputs_of, round_for
from chatbot.vocabulary import FIRST_WORD

VOCABULARY = 61


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As an engine is made."""
    with torch.no_grad():
        yield


def error(rounded: tuple[Tensor, Tensor], weight: Tensor, inputs: Tensor) -> float:
    """Of the layer's outputs."""
    numbers, scales = rounded
    return float((inputs @ (numbers * scales.unsqueeze(1) - weight).t()).norm())


def related(count: int, width: int, rank: int, rng: torch.Generator) -> Tensor:
    """Inputs that go together: they lie near a space of ``rank`` dimensions."""
    together = torch.randn(count, rank, generator=rng) @ torch.randn(rank, width, generator=rng)
    return together + 0.05 * torch.randn(count, width, generator=rng)


@examples(60)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(1, 60), st.integers(0, 10**6))
def test_it_gives_whole_numbers_of_eight_bits_and_the_scales_of_rounding_each(
    rows: int, columns: int, count: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng)
    numbers, scales = round_for(weight, torch.randn(count, columns, generator=rng))
    assert torch.equal(numbers, numbers.round())
    assert numbers.abs().max() <= LARGEST
    assert torch.equal(scales, quantise(weight)[1])


@pytest.mark.parametrize("columns", [8, rounding.BLOCK, rounding.BLOCK + 1, 300])
def test_outputs_for_related_inputs_are_off_by_less_than_half_of_what_rounding_each_weight_costs(columns: int) -> None:
    rng = torch.Generator().manual_seed(columns)
    weight = torch.randn(50, columns, generator=rng)
    for inputs in (related(1000, columns, max(1, columns // 8), rng), related(1000, columns, 1, rng) + 1):
        assert error(round_for(weight, inputs), weight, inputs) < 0.5 * error(quantise(weight), weight, inputs)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(20, 90, generator=rng), related(200, 90, 10, rng)
    numbers = round_for(weight, inputs)[0]
    monkeypatch.setattr(rounding, "BLOCK", 1)
    assert torch.equal(round_for(weight, inputs)[0], numbers)


def test_inputs_that_do_not_go_together_give_plain_rounding() -> None:
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(round_for(weight, torch.eye(30))[0], quantise(weight)[0])


def test_inputs_of_zero_and_weights_of_zero_are_no_trouble() -> None:
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(round_for(weight, torch.zeros(5, 30))[0], quantise(weight)[0])
    assert round_for(torch.zeros(20, 30), torch.ones(5, 30))[0].abs().max() == 0


@examples(10)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_the_inputs_are_what_the_network_computes(layers: int, decoder_layers: int, seed: int) -> None:
    bot = Chatbot.random(Config(12, layers, min(decoder_layers, 2 * layers), 0.0, "dot", VOCABULARY), seed)
    prompts = torch.randint(FIRST_WORD, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(seed))
    _, outputs, states = rounding._encoder_inputs(bot, prompts)
    right, finals = bot.encoder(prompts.t(), torch.full((4,), 5))
    torch.testing.assert_close(outputs, right)
    torch.testing.assert_close(states, finals)


def test_each_matrix_of_the_grus_behind_the_word_tables_has_its_inputs() -> None:
    bot = Chatbot.random(Config(12, 2, 2, 0.0, "dot", VOCABULARY))
    found = inputs_of(bot)
    for part in ("encoder", "decoder"):
        for name, weight in getattr(bot, part).gru.named_parameters():
            if name.startswith("weight") and not name.startswith("weight_ih_l0"):
                assert found[f"{part}.gru.{name}"].size(1) == weight.size(1)


def test_preparing_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    inputs_of(Chatbot.random(Config(12, 1, 1, 0.0, "dot", VOCABULARY)))
    assert torch.equal(torch.rand(1), expected)
