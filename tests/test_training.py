"""Training: the tutorial's loss and step, resuming bit for bit, and mistakes that must not pass."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tutorial import GreedySearchDecoder, tutorial_of

from chatbot import training
from chatbot.checkpoint import Trained, load, read_plain
from chatbot.config import ATTENTIONS, Config, Options, split
from chatbot.corpus import Pair
from chatbot.errors import UsageError
from chatbot.model import Chatbot
from chatbot.training import (
    Batch,
    DivergedError,
    Progress,
    fit,
    make_batch,
    token_losses,
    tutorial_loss,
)
from chatbot.vocabulary import EOS, PAD, Vocabulary

ONE_LAYER = Config(hidden=16, encoder_layers=1, decoder_layers=1, dropout=0.0, vocabulary=17)
TWO_LAYERS_WITH_DROPOUT = Config(hidden=16, dropout=0.3, vocabulary=17)
QUICK = Options(iterations=30, batch=16, learning_rate=1e-2, validation_share=0.2, validate_every=5, patience=None)
ONE_STEP = replace(
    QUICK, iterations=1, batch=1000, optimizer="sgd", learning_rate=1.0, decoder_learning_ratio=1.0, clip=None
)

Fit = Callable[..., Trained]


class CrashError(Exception):
    """Stands for whatever ends a training half-way."""


@pytest.fixture(scope="module")
def words(toy_pairs: list[Pair]) -> Vocabulary:
    """The 17 tokens of the toy corpus."""
    return Vocabulary.of_pairs(toy_pairs, 1)


@pytest.fixture(scope="module")
def short_prompts(toy_pairs: list[Pair]) -> list[Pair]:
    """The pairs whose prompts have three words: the tutorial's attention has no mask for shorter ones."""
    return [pair for pair in toy_pairs if len(pair.prompt.split()) == 3]


@pytest.fixture
def train(toy_pairs: list[Pair], words: Vocabulary, tmp_path: Path) -> Fit:
    """``fit`` on the toy corpus into ``tmp_path / "bot.pt"``."""

    def run(
        options: Options = QUICK, config: Config = ONE_LAYER, pairs: list[Pair] = toy_pairs, **more: Any
    ) -> Trained:
        return fit(config, pairs, words, options, more.pop("path", tmp_path / "bot.pt"), **more)

    return run


def weights(chatbot: Chatbot) -> dict[str, Tensor]:
    """Every distinct weight under a name that starts with ``encoder``, ``decoder`` or ``embedding``."""
    named = {f"encoder.{k}": v for k, v in chatbot.encoder.state_dict().items()}
    named |= {f"decoder.{k}": v for k, v in chatbot.decoder.state_dict().items()}
    del named["decoder.embedding.weight"]
    return {"embedding": named.pop("encoder.embedding.weight"), **named}


def same(left: object, right: object) -> bool:
    """Whether two structures of plain values and tensors are equal bit for bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


# The tutorial's loss and step, restated.


def mask_nll_loss(probabilities: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``maskNLLLoss`` of the tutorial: the mean over the replies that have a token in this step."""
    total = torch.tensor(0.0)
    for row, token, real in zip(probabilities, target, mask, strict=True):
        if real:
            total = total - torch.log(row[token])
    return total / mask.sum()


def tutorial_batch_loss(tutorial: GreedySearchDecoder, batch: Batch, teacher_forcing: bool = True) -> Tensor:
    """The loss of ``train`` in the tutorial: the steps' losses summed."""
    outputs, hidden = tutorial.encoder(batch.prompts.t(), batch.lengths)
    hidden, loss = hidden[: tutorial.decoder.n_layers], torch.tensor(0.0)
    token = torch.ones(1, len(batch.prompts), dtype=torch.long)
    for target in batch.replies:
        probabilities, hidden = tutorial.decoder(token, hidden, outputs)
        loss = loss + mask_nll_loss(probabilities, target, target != 0)
        token = target.view(1, -1) if teacher_forcing else probabilities.topk(1)[1].view(1, -1)
    return loss


def tutorial_step(config: Config, batch: Batch, options: Options) -> dict[str, Tensor]:
    """The weights after one step of the tutorial's ``train`` with plain gradient descent."""
    start = Chatbot.random(config, options.seed)
    tutorial = tutorial_of(start)
    rates = (options.learning_rate, options.learning_rate * options.decoder_learning_ratio)
    networks: tuple[nn.Module, nn.Module] = (tutorial.encoder, tutorial.decoder)
    optimizers = [torch.optim.SGD(n.parameters(), lr=rate) for n, rate in zip(networks, rates, strict=True)]
    tutorial_batch_loss(tutorial, batch).backward()  # type: ignore[no-untyped-call]
    if options.clip is not None:
        for network in networks:
            nn.utils.clip_grad_norm_(network.parameters(), options.clip)
    for optimizer in optimizers:
        optimizer.step()
    start.encoder.load_state_dict(tutorial.encoder.state_dict())
    start.decoder.load_state_dict(tutorial.decoder.state_dict())
    return weights(start)


@pytest.mark.parametrize("seed", range(3))
def test_tutorial_loss_is_the_sum_of_the_tutorials_masked_losses(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 5, 11, generator=draw)
    replies = torch.randint(3, 11, (7, 5), generator=draw)
    for column, length in enumerate((7, 1, 4, 4, 2)):
        replies[length - 1, column], replies[length:, column] = EOS, PAD
    losses = nn.functional.cross_entropy(logits.permute(0, 2, 1), replies, ignore_index=PAD, reduction="none")
    expected = sum(
        mask_nll_loss(step.softmax(1), target, target != 0) for step, target in zip(logits, replies, strict=True)
    )
    torch.testing.assert_close(tutorial_loss(losses, replies), expected)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_loss_of_a_batch_is_the_tutorials(
    attention: str, forced: bool, short_prompts: list[Pair], words: Vocabulary
) -> None:
    chatbot = Chatbot.random(replace(ONE_LAYER, attention=attention))
    pairs = [pair._replace(reply=" ".join(pair.reply.split()[: 1 + i % 5])) for i, pair in enumerate(short_prompts)]
    batch = make_batch(pairs, words)
    assert (batch.replies == PAD).any()
    loss = tutorial_loss(token_losses(chatbot, batch, forced), batch.replies)
    torch.testing.assert_close(loss, tutorial_batch_loss(tutorial_of(chatbot), batch, forced))


@pytest.mark.parametrize("clip", [None, 1000.0, 0.5])
def test_one_step_is_the_tutorials(
    clip: float | None, train: Fit, short_prompts: list[Pair], words: Vocabulary
) -> None:
    options = replace(ONE_STEP, clip=clip, decoder_learning_ratio=5.0)
    batch = make_batch(split(short_prompts, options.validation_share, options.seed)[0], words)
    expected = tutorial_step(ONE_LAYER, batch, options)
    trained = weights(train(options, pairs=short_prompts).chatbot)
    for name in expected:
        torch.testing.assert_close(trained[name], expected[name], rtol=1e-4, atol=1e-6)


def test_losses_are_zero_at_padding_and_the_validation_loss_is_their_mean_per_token(
    toy_pairs: list[Pair], words: Vocabulary
) -> None:
    chatbot = Chatbot.random(ONE_LAYER)
    batch = make_batch(toy_pairs, words)
    losses = token_losses(chatbot, batch)
    real = batch.replies != PAD
    assert torch.equal(losses > 0, real)
    assert training.validation_loss(chatbot, toy_pairs, words) == pytest.approx(float(losses[real].mean().detach()))


def test_the_validation_loss_does_not_depend_on_how_pairs_fall_into_batches(
    toy_pairs: list[Pair], words: Vocabulary
) -> None:
    chatbot = Chatbot.random(ONE_LAYER)
    once = training.validation_loss(chatbot, toy_pairs, words)
    assert training.validation_loss(chatbot, toy_pairs * 5, words) == pytest.approx(once)


def test_fit_learns_the_toy_corpus(train: Fit, toy_pairs: list[Pair], words: Vocabulary) -> None:
    seen: list[Progress] = []
    trained = train(replace(QUICK, iterations=200, validate_every=20), on_validation=seen.append)
    losses = [progress.validation_loss for progress in seen]
    untrained = training.validation_loss(Chatbot.random(ONE_LAYER), toy_pairs, words)
    assert losses[0] < untrained
    assert min(losses) < 0.05 * untrained
    assert [progress.iteration for progress in seen] == list(range(20, 201, 20))
    assert [progress.best_loss for progress in seen] == [min(losses[: i + 1]) for i in range(len(losses))]
    assert trained.notes["validation_loss"] == min(losses)


def test_the_noted_loss_is_that_of_the_kept_model_without_dropout(
    train: Fit, toy_pairs: list[Pair], words: Vocabulary
) -> None:
    trained = train(config=TWO_LAYERS_WITH_DROPOUT)
    held_out = split(toy_pairs, QUICK.validation_share, QUICK.seed)[1]
    loss = training.validation_loss(trained.chatbot, held_out, words)
    assert trained.notes["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_fit_returns_the_weights_that_its_file_holds(train: Fit, tmp_path: Path) -> None:
    trained = train()
    assert same(weights(trained.chatbot), weights(load(tmp_path / "bot.pt").chatbot))
    assert [path.name for path in tmp_path.iterdir()] == ["bot.pt"]  # no state, no temporary file


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(train: Fit) -> None:
    first, again, other = (weights(train(replace(QUICK, seed=seed)).chatbot) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


def test_training_leaves_the_callers_random_numbers_alone(train: Fit) -> None:
    before = torch.get_rng_state()
    train(config=TWO_LAYERS_WITH_DROPOUT)
    assert torch.equal(torch.get_rng_state(), before)


def crash_after_validation(progress: Progress) -> None:
    """Ends a training at iteration 15, just after its state was kept."""
    if progress.iteration == 15:
        raise CrashError


def crash_between_validations(iteration: int) -> None:
    """Ends a training at iteration 18, three after its state was kept."""
    if iteration == 18:
        raise CrashError


def whole_run(
    train: Fit, folder: Path, options: Options, config: Config, **more: Any
) -> tuple[Trained, dict[str, Any]]:
    """Trains to the end: the best model, and a copy of the whole state at the last validation."""

    def copy_state(progress: Progress) -> None:
        shutil.copy(folder / "bot.pt.resume", folder / "end")

    trained = train(options, config, path=folder / "bot.pt", on_validation=copy_state, **more)
    return trained, read_plain(folder / "end")


HALF_FORCED = replace(QUICK, teacher_forcing=0.5)
AFTER_VALIDATION = {"on_validation": crash_after_validation}
BETWEEN_VALIDATIONS = {"on_iteration": crash_between_validations}
RESUMED = {
    "plain": (QUICK, ONE_LAYER, BETWEEN_VALIDATIONS),
    "half the batches forced": (HALF_FORCED, ONE_LAYER, BETWEEN_VALIDATIONS),
    "dropout": (QUICK, TWO_LAYERS_WITH_DROPOUT, BETWEEN_VALIDATIONS),
    "both": (HALF_FORCED, TWO_LAYERS_WITH_DROPOUT, BETWEEN_VALIDATIONS),
    "both, just after a validation": (HALF_FORCED, TWO_LAYERS_WITH_DROPOUT, AFTER_VALIDATION),
    "sgd": (replace(QUICK, optimizer="sgd", learning_rate=0.02), ONE_LAYER, AFTER_VALIDATION),
}


@pytest.mark.parametrize(("options", "config", "crash"), RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_run_ends_with_bitwise_the_same_weights(
    options: Options, config: Config, crash: dict[str, Any], train: Fit, tmp_path: Path
) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, whole_end = whole_run(train, tmp_path / "whole", options, config)
    with pytest.raises(CrashError):
        train(options, config, path=tmp_path / "parts" / "bot.pt", **crash)
    parts, parts_end = whole_run(train, tmp_path / "parts", options, config, resume=True)
    assert whole.notes["iteration"] > 18  # the best came after the crash, so it is not merely the same file
    assert same(weights(whole.chatbot), weights(parts.chatbot))
    assert whole.notes == parts.notes
    assert whole_end["iteration"] == options.iterations
    assert same(whole_end, parts_end)
    assert not (tmp_path / "parts" / "bot.pt.resume").exists()


def test_a_resumed_run_has_waited_as_long_as_before(train: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(losses))
    options = replace(QUICK, patience=3)
    with pytest.raises(CrashError):
        train(options, on_validation=crash_after_validation)  # two validations without a better loss
    seen: list[int] = []
    train(options, resume=True, on_validation=lambda p: seen.append(p.iteration))
    assert seen == [20]


@pytest.mark.parametrize(
    ("options", "config", "complaint"),
    [
        (replace(QUICK, learning_rate=2e-2), ONE_LAYER, r"learning_rate was 0\.01, now 0\.02"),
        (replace(QUICK, seed=1), ONE_LAYER, "seed was 0, now 1"),
        (replace(QUICK, teacher_forcing=0.0), ONE_LAYER, r"teacher_forcing was 1\.0, now 0\.0"),
        (QUICK, replace(ONE_LAYER, hidden=8), "hidden was 16, now 8"),
    ],
)
def test_resuming_with_changed_options_is_refused(options: Options, config: Config, complaint: str, train: Fit) -> None:
    with pytest.raises(CrashError):
        train(on_validation=crash_after_validation)
    with pytest.raises(UsageError, match=complaint):
        train(options, config, resume=True)


def test_resuming_with_other_pairs_is_refused(train: Fit, toy_pairs: list[Pair]) -> None:
    with pytest.raises(CrashError):
        train(on_validation=crash_after_validation)
    with pytest.raises(UsageError, match="pairs"):
        train(pairs=toy_pairs[:40], resume=True)


def test_more_iterations_may_be_asked_when_resuming(train: Fit) -> None:
    with pytest.raises(CrashError):
        train(on_validation=crash_after_validation)
    assert train(replace(QUICK, iterations=40), resume=True).notes["options"]["iterations"] == 40


def test_resuming_without_a_state_is_refused(train: Fit) -> None:
    with pytest.raises(UsageError, match=r"nothing to resume: .*bot\.pt\.resume"):
        train(resume=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"clip": 0.0}, r"clip is 0\.0, which zeroes every gradient"),
        ({"clip": -1.0}, r"clip is -1\.0, which zeroes every gradient"),
        ({"clip": math.nan}, "clip is nan"),
        ({"optimizer": "adagrad"}, "optimizer 'adagrad'; choose from: adam, sgd"),
        ({"iterations": 0}, "iterations is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"decoder_learning_ratio": -5.0}, r"decoder_learning_ratio is -5\.0"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"teacher_forcing": 1.5}, r"teacher_forcing is 1\.5"),
        ({"validation_share": 1.0}, r"validation_share is 1\.0"),
    ],
)
def test_a_bad_option_is_refused_with_the_reason(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        Options(**changes)
    assert len(str(caught.value).splitlines()) == 1


def test_no_clip_and_no_patience_are_allowed() -> None:
    assert Options(clip=None, patience=None).clip is None


def test_without_a_clip_the_step_is_that_of_a_clip_never_reached(train: Fit) -> None:
    free = weights(train(ONE_STEP).chatbot)
    assert same(free, weights(train(replace(ONE_STEP, clip=1e6)).chatbot))
    assert not same(free, weights(train(replace(ONE_STEP, clip=1e-3)).chatbot))


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("sgd", 1.0), ("adam", 2.0**-6)])
def test_the_decoder_learns_faster_by_its_ratio_and_the_encoder_does_not(
    optimizer: str, learning_rate: float, train: Fit
) -> None:
    options = replace(ONE_STEP, optimizer=optimizer, learning_rate=learning_rate)
    start = weights(Chatbot.random(ONE_LAYER, options.seed))
    once, fourfold = (weights(train(replace(options, decoder_learning_ratio=ratio)).chatbot) for ratio in (1.0, 4.0))
    for name in start:
        moved, moved_more = once[name] - start[name], fourfold[name] - start[name]
        assert moved.abs().max() > 1e-4
        if name.startswith("encoder"):
            assert torch.equal(once[name], fourfold[name])
        else:  # the shared embedding is moved by both: once by the encoder's optimizer, ratio times by the decoder's
            factor = 4.0 if name.startswith("decoder") else (1 + 4.0) / (1 + 1)
            torch.testing.assert_close(moved_more, factor * moved, rtol=1e-4, atol=1e-6)


def test_each_network_is_clipped_on_its_own(train: Fit) -> None:
    clip = 1e-2
    start, after = weights(Chatbot.random(ONE_LAYER)), weights(train(replace(ONE_STEP, clip=clip)).chatbot)
    free = weights(train(ONE_STEP).chatbot)
    for network in ("encoder", "decoder"):
        names = [name for name in start if name.startswith(network)]
        moved = torch.cat([(after[n] - start[n]).flatten() for n in names]).norm()
        unclipped = torch.cat([(free[n] - start[n]).flatten() for n in names]).norm()
        assert unclipped > 10 * clip
        assert 0.5 * clip < moved <= clip * 1.001  # were both clipped together, their norms would add up to the clip
    ratios = [
        float((after[n] - start[n]).norm() / (free[n] - start[n]).norm())
        for n in ("encoder.gru.bias_hh_l0", "decoder.out.bias")
    ]
    assert ratios[0] != pytest.approx(ratios[1], rel=0.05)


# The network's squashed states keep the loss finite up to enormous weights.
DIVERGING = replace(QUICK, optimizer="sgd", learning_rate=1e36, decoder_learning_ratio=1.0, clip=None, validate_every=1)


@pytest.mark.parametrize("last", [math.nan, math.inf, 100.0])
def test_a_diverging_run_is_one_line_and_leaves_the_best_model_loadable(
    last: float, train: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, last])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(losses))
    seen: list[Progress] = []
    with pytest.raises(DivergedError, match="lower the learning rate") as caught:
        train(QUICK, on_validation=seen.append)
    assert len(str(caught.value).splitlines()) == 1
    assert [progress.best_loss for progress in seen] == [3.0, 2.0]
    assert load(tmp_path / "bot.pt").notes["validation_loss"] == 2.0


def test_weights_that_only_look_finite_have_diverged_too(train: Fit) -> None:
    with pytest.raises(DivergedError, match="where guessing has"):
        train(DIVERGING)


def test_a_run_that_diverges_before_its_first_validation_leaves_an_older_model_alone(
    train: Fit, tmp_path: Path
) -> None:
    train()
    before = (tmp_path / "bot.pt").read_bytes()
    with pytest.raises(DivergedError, match="the loss became"):
        train(replace(DIVERGING, validate_every=10))
    assert (tmp_path / "bot.pt").read_bytes() == before


@pytest.mark.parametrize(("patience", "stopped_at"), [(1, 15), (2, 30), (None, 40)])
def test_training_stops_after_patience_validations_without_a_better_loss(
    patience: int | None, stopped_at: int, train: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.7, 1.8])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(losses))
    seen: list[int] = []
    trained = train(replace(QUICK, iterations=40, patience=patience), on_validation=lambda p: seen.append(p.iteration))
    assert seen == list(range(5, stopped_at + 1, 5))
    assert trained.notes["validation_loss"] == (2.0 if patience == 1 else 1.5)


def test_the_kept_model_is_the_best_not_the_last(train: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = weights(train(replace(QUICK, iterations=10)).chatbot)
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(losses))
    trained = train()
    assert trained.notes["iteration"] == 10
    assert same(weights(trained.chatbot), shorter)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_split_keeps_all_copies_of_a_pair_on_one_side(share: float) -> None:
    pairs = [Pair(f"p{i}", "r") for i in range(40) for _ in range(1 + i % 4)]
    train_pairs, held_out = split(pairs, share, 0)
    assert set(train_pairs).isdisjoint(held_out)
    assert sorted(train_pairs + held_out) == sorted(pairs)
    assert len(set(held_out)) == round(share * 40)


def test_split_follows_from_the_seed_and_not_from_the_order_of_pairs() -> None:
    pairs = [Pair(f"p{i}", "r") for i in range(40)]
    assert split(pairs, 0.2, 1) == split(pairs, 0.2, 1)
    assert set(split(pairs, 0.2, 1)[1]) == set(split(pairs[::-1], 0.2, 1)[1])
    assert set(split(pairs, 0.2, 1)[1]) != set(split(pairs, 0.2, 2)[1])


def test_pairs_too_few_to_hold_any_out_are_refused(train: Fit, toy_pairs: list[Pair]) -> None:
    with pytest.raises(UsageError, match="too few"):
        train(pairs=toy_pairs[:1])


def test_training_without_teacher_forcing_differs(train: Fit) -> None:
    forced, free, half = (weights(train(replace(QUICK, teacher_forcing=p)).chatbot) for p in (1.0, 0.0, 0.5))
    assert not same(forced, free)
    assert not same(half, forced)
    assert not same(half, free)


def test_what_is_held_out_may_have_a_seed_of_its_own(train: Fit, toy_pairs: list[Pair]) -> None:
    here, there = (replace(QUICK, seed=seed, split_seed=7) for seed in (1, 2))
    assert here.split(toy_pairs) == there.split(toy_pairs) == split(toy_pairs, 0.2, 7)
    assert replace(QUICK, seed=7).split(toy_pairs) == split(toy_pairs, 0.2, 7)
    judged = [train(replace(options, learning_rate=1e-30)) for options in (here, there)]  # as they were made
    assert judged[0].notes["validation_loss"] != judged[1].notes["validation_loss"]
    for options, trained in zip((here, there), judged, strict=True):
        held_out = split(toy_pairs, 0.2, 7)[1]
        loss = training.validation_loss(trained.chatbot, held_out, trained.vocabulary)
        assert loss == pytest.approx(trained.notes["validation_loss"], rel=1e-6)
        assert trained.notes["options"]["split_seed"] == options.split_seed


def test_a_state_from_before_held_out_pairs_had_a_seed_can_be_resumed(train: Fit, tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        train(on_validation=crash_after_validation)
    path = tmp_path / "bot.pt.resume"
    state = read_plain(path)
    del state["identity"]["split_seed"]
    torch.save(state, path)
    assert train(resume=True).notes["options"]["split_seed"] is None


def test_the_free_running_loss_is_told_where_it_is_asked_for_and_changes_nothing(
    train: Fit, toy_pairs: list[Pair], tmp_path: Path
) -> None:
    seen: list[Progress] = []
    plain: list[Progress] = []
    both = train(QUICK, path=tmp_path / "both.pt", free_running=True, on_validation=seen.append)
    one = train(QUICK, on_validation=plain.append)
    assert same(weights(both.chatbot), weights(one.chatbot))
    assert [progress.free_running_loss for progress in plain] == [None] * 6
    assert [replace(progress, free_running_loss=None) for progress in seen] == plain
    best = min(seen, key=lambda progress: progress.validation_loss)
    held_out = QUICK.split(toy_pairs)[1]
    free = training.validation_loss(both.chatbot, held_out, both.vocabulary, teacher_forced=False)
    assert best.free_running_loss == pytest.approx(free, rel=1e-6)
    assert best.free_running_loss != best.validation_loss
