"""The network against the tutorial's, restated; sizes, padding and seeds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from tutorial import tutorial_of, tutorial_reply

from chatbot.config import ATTENTIONS, PRESETS, Config
from chatbot.errors import UsageError
from chatbot.model import Chatbot
from chatbot.vocabulary import EOS, PAD, SOS

SMALL = Config(hidden=12, encoder_layers=2, decoder_layers=2, vocabulary=40)


def lively(config: Config, seed: int = 0) -> Chatbot:
    """Random weights, enlarged so that different prompts get different replies."""
    chatbot = Chatbot.random(config, seed)
    with torch.no_grad():
        for parameter in {*chatbot.encoder.parameters(), *chatbot.decoder.parameters()}:
            parameter.mul_(3)
    return chatbot


def random_prompts(number: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 0 to 9 words, EOS at the end."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [int(torch.randint(10, (1,), generator=draw)) for _ in range(number)]
    return [[*torch.randint(3, vocabulary, (length,), generator=draw).tolist(), EOS] for length in lengths]


def reply(chatbot: Chatbot, prompts: list[list[int]], max_length: int = 10) -> tuple[Tensor, Tensor]:
    """Tokens and probabilities for one padded batch."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True, padding_value=PAD)
    with torch.no_grad():
        tokens, scores = chatbot.search()(padded, lengths, max_length)
    return tokens, scores


def encoded(chatbot: Chatbot, prompts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """What the decoder reads: first hidden state, encoder outputs, blocked positions."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], padding_value=PAD)
    outputs, hidden = chatbot.encoder(padded, torch.tensor([len(prompt) for prompt in prompts]))
    return hidden[: chatbot.config.decoder_layers], outputs, padded == PAD


@pytest.mark.parametrize("layers", [(1, 1), (2, 2), (2, 1), (1, 2)])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_replies_are_the_tutorials(attention: str, layers: tuple[int, int]) -> None:
    config = replace(SMALL, attention=attention, encoder_layers=layers[0], decoder_layers=layers[1])
    chatbot, seen = lively(config), set()
    tutorial = tutorial_of(chatbot)
    for prompt in random_prompts(40, config.vocabulary):
        tokens, scores = reply(chatbot, [prompt])
        expected_tokens, expected_scores = tutorial_reply(tutorial, prompt)
        assert tokens[0].tolist() == expected_tokens
        torch.testing.assert_close(scores[0], expected_scores, rtol=1e-5, atol=1e-7)
        seen.add(tuple(expected_tokens))
    assert len(seen) > 10  # else the prompts would not matter


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_state_names_are_the_tutorials(attention: str) -> None:
    chatbot = Chatbot.random(replace(SMALL, attention=attention))
    tutorial = tutorial_of(chatbot)
    assert tutorial.encoder.state_dict().keys() == chatbot.encoder.state_dict().keys()
    assert tutorial.decoder.state_dict().keys() == chatbot.decoder.state_dict().keys()


def test_the_tutorial_preset_has_its_number_of_parameters() -> None:
    chatbot = Chatbot.random(PRESETS["tutorial"])
    distinct = {*chatbot.encoder.parameters(), *chatbot.decoder.parameters()}
    assert sum(parameter.numel() for parameter in distinct) == 18_862_336


def test_encoder_and_decoder_share_one_embedding() -> None:
    chatbot = Chatbot.random(SMALL)
    assert chatbot.encoder.embedding.weight is chatbot.decoder.embedding.weight


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_prompt_gets_the_same_reply_in_a_padded_batch_as_alone(attention: str) -> None:
    chatbot = lively(replace(SMALL, attention=attention))
    prompts = random_prompts(16, SMALL.vocabulary)
    assert len({len(prompt) for prompt in prompts}) > 4
    tokens, scores = reply(chatbot, prompts)
    for i, prompt in enumerate(prompts):
        alone_tokens, alone_scores = reply(chatbot, [prompt])
        assert tokens[i].tolist() == alone_tokens[0].tolist()
        torch.testing.assert_close(scores[i], alone_scores[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_teacher_forced_equals_stepping(attention: str) -> None:
    chatbot = lively(replace(SMALL, attention=attention))
    prompts = random_prompts(5, SMALL.vocabulary)
    hidden, outputs, blocked = encoded(chatbot, prompts)
    assert blocked.any()
    tokens = torch.randint(SOS, SMALL.vocabulary, (7, 5), generator=torch.Generator().manual_seed(1))
    at_once = chatbot.decoder.teacher_forced(tokens, hidden, outputs, blocked)
    steps = []
    for token in tokens.split(1):  # type: ignore[no-untyped-call]
        logits, hidden = chatbot.decoder(token, hidden, outputs, blocked)
        steps.append(logits)
    torch.testing.assert_close(at_once, torch.stack(steps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_attention_weights_sum_to_one_and_leave_blocked_positions_out(attention: str) -> None:
    chatbot = lively(replace(SMALL, attention=attention))
    hidden, outputs, blocked = encoded(chatbot, random_prompts(6, SMALL.vocabulary))
    weights = chatbot.decoder.attn(hidden[-1:], outputs, blocked)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    assert torch.equal(weights == 0, blocked.t())


@pytest.mark.parametrize("max_length", [1, 10, 23])
def test_search_takes_exactly_max_length_steps_even_past_eos(max_length: int) -> None:
    chatbot, steps = Chatbot.random(SMALL), []
    with torch.no_grad():
        chatbot.decoder.out.bias[EOS] = 100.0  # it ends at once and always
    chatbot.decoder.register_forward_hook(lambda *_: steps.append(1))
    tokens, scores = reply(chatbot, random_prompts(3, SMALL.vocabulary), max_length)
    assert len(steps) == max_length
    assert tokens.tolist() == [[EOS] * max_length] * 3
    assert scores.shape == (3, max_length)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"hidden": -5}, "hidden is -5"),
        ({"encoder_layers": 0}, "encoder_layers is 0"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"encoder_layers": 1, "decoder_layers": 3}, "decoder_layers is 3"),
        ({"vocabulary": 3}, "vocabulary is 3"),
        ({"dropout": -0.1}, r"dropout is -0\.1"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"attention": "additive"}, "attention 'additive'; choose from: dot, general, concat"),
    ],
)
def test_config_rejects_a_bad_value_and_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        replace(Config(), **changes)


def test_random_weights_follow_from_the_seed() -> None:
    first, same, other = (Chatbot.random(SMALL, seed) for seed in (1, 1, 2))
    for part in ("encoder", "decoder"):
        states = [getattr(chatbot, part).state_dict() for chatbot in (first, same, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not any(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_random_weights_leave_the_callers_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    Chatbot.random(SMALL, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_chatbot_is_in_evaluation_mode() -> None:
    chatbot = Chatbot.random(replace(SMALL, dropout=0.9))
    modules = (*chatbot.encoder.modules(), *chatbot.decoder.modules(), *chatbot.search().modules())
    assert not any(module.training for module in modules)


def test_dropout_is_between_the_layers_of_both_networks_and_after_the_decoders_embedding() -> None:
    chatbot = Chatbot.random(replace(SMALL, dropout=0.3))
    assert (chatbot.encoder.gru.dropout, chatbot.decoder.gru.dropout, chatbot.decoder.embedding_dropout.p) == (0.3,) * 3
