"""Training as in the tutorial: masked loss, teacher forcing, one optimizer and one clip for each network.

The loss that is minimised is the tutorial's (the sum over steps of the mean over unfinished replies). What
is reported is the validation loss per token, which does not depend on how a run was trained.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from chatbot.checkpoint import Trained, load, read_plain, save, save_plain
from chatbot.config import OPTIMIZERS, Config, Options
from chatbot.corpus import Pair, words_of
from chatbot.errors import UsageError, one_of
from chatbot.model import Chatbot
from chatbot.vocabulary import PAD, SOS, Vocabulary


@dataclass(frozen=True)
class Progress:
    """The state after a validation. Losses are per token, in nats; all but the first are on held-out pairs."""

    iteration: int
    train_loss: float  # mean since the last validation
    validation_loss: float  # teacher forced
    best_loss: float
    free_running_loss: float | None = None  # where it was asked for


class DivergedError(UsageError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Batch:
    """B pairs: prompts (B, T), lengths (B,) on the CPU, replies (S, B) padded with PAD."""

    prompts: Tensor
    lengths: Tensor
    replies: Tensor


def require_device(device: str) -> None:
    """Raises UsageError where this PyTorch can't compute on it."""
    if device not in ("cpu", "cuda"):
        raise one_of("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: PyTorch sees no CUDA device here; give cpu")


def state_path(path: Path) -> Path:
    """The path of the state to resume from."""
    return path.with_name(path.name + ".resume")


def make_batch(pairs: Sequence[Pair], vocabulary: Vocabulary, device: str = "cpu") -> Batch:
    """Encodes pairs whose words are all known."""
    prompts = [torch.tensor(vocabulary.encode(words_of(p.prompt))) for p in pairs]
    replies = [torch.tensor(vocabulary.encode(words_of(p.reply))) for p in pairs]
    return Batch(
        torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=PAD).to(device),
        torch.tensor([len(p) for p in prompts]),
        torch.nn.utils.rnn.pad_sequence(replies, padding_value=PAD).to(device),
    )


def token_losses(chatbot: Chatbot, batch: Batch, teacher_forced: bool = True) -> Tensor:
    """Negative log likelihood of each reply token: (S, B), 0 at PAD."""
    outputs, hidden = chatbot.encoder(batch.prompts.t(), batch.lengths)
    hidden = hidden[: chatbot.config.decoder_layers]
    blocked = (batch.prompts == PAD).t()
    first = torch.full_like(batch.replies[:1], SOS)
    if teacher_forced:
        logits = chatbot.decoder.teacher_forced(torch.cat((first, batch.replies[:-1])), hidden, outputs, blocked)
    else:
        steps, token = [], first
        for _ in range(batch.replies.size(0)):
            step, hidden = chatbot.decoder(token, hidden, outputs, blocked)
            steps.append(step)
            token = step.argmax(1).unsqueeze(0)
        logits = torch.stack(steps)
    return F.cross_entropy(logits.flatten(0, 1), batch.replies.flatten(), ignore_index=PAD, reduction="none").view_as(
        batch.replies
    )


def tutorial_loss(losses: Tensor, replies: Tensor) -> Tensor:
    """The sum over steps of the mean over unfinished replies: (S, B) -> ()."""
    running = (replies != PAD).sum(1)  # at least 1 in every step
    return (losses.sum(1) / running).sum()


@torch.no_grad()
def validation_loss(
    chatbot: Chatbot, pairs: Sequence[Pair], vocabulary: Vocabulary, device: str = "cpu", teacher_forced: bool = True
) -> float:
    """Mean negative log likelihood per reply token, EOS counted, in nats; perplexity is its exponential."""
    total, count = 0.0, 0
    for start in range(0, len(pairs), 256):
        batch = make_batch(pairs[start : start + 256], vocabulary, device)
        total += float(token_losses(chatbot, batch, teacher_forced).double().sum())
        count += int((batch.replies != PAD).sum())
    return total / count


def fit(
    config: Config,
    pairs: Sequence[Pair],
    vocabulary: Vocabulary,
    options: Options,
    path: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    half: bool = False,
    notes: dict[str, Any] | None = None,
    free_running: bool = False,
    on_iteration: Callable[[int], None] = lambda iteration: None,
    on_validation: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Trains from seeded weights; ``path`` always holds the best model so far by validation loss.

    ``<path>.resume`` next to it holds the whole state at the last validation; ``resume`` continues from there and ends
    with the same weights as an uninterrupted run. It is removed at the end. Both files are complete when
    ``on_validation`` is called. ``free_running`` also evaluates each validation without teacher forcing.

    Raises:
        DivergedError: the loss became NaN or infinite; the best model so far stays at ``path``.
        UsageError: there is nothing to train on, or the state to resume belongs to other options.
    """
    train, held_out = options.split(pairs)
    if not train:
        raise UsageError(f"{len(pairs)} pairs are too few to train on and hold out {options.validation_share:.0%}")
    run = _Run(config, train, vocabulary, options, state_path(path), device)
    if resume:
        run.restore()
    with torch.random.fork_rng():
        while run.iteration < options.iterations and not run.out_of_patience:
            run.step()
            on_iteration(run.iteration)
            if run.iteration % options.validate_every == 0 or run.iteration == options.iterations:
                progress = run.validate(held_out, free_running)
                if progress.validation_loss == progress.best_loss:
                    made = {**(notes or {}), "options": asdict(options), "iteration": run.iteration}
                    made |= {"validation_loss": progress.best_loss, "pairs": len(train), "held_out": len(held_out)}
                    best = Trained(path.stem, run.chatbot, vocabulary, notes=made)
                    save(best, path, half)
                run.keep()
                on_validation(progress)
    run.state_path.unlink(missing_ok=True)
    return load(path)


class _Run:
    """The moving state of one training: networks, optimizers, iteration, best loss."""

    def __init__(
        self, config: Config, pairs: list[Pair], vocabulary: Vocabulary, options: Options, state_path: Path, device: str
    ) -> None:
        self.pairs, self.vocabulary, self.options = pairs, vocabulary, options
        self.state_path, self.device = state_path, device
        self.chatbot = Chatbot.random(config, options.seed).to(device)
        kind: Any = getattr(torch.optim, OPTIMIZERS[options.optimizer])
        rates = (options.learning_rate, options.learning_rate * options.decoder_learning_ratio)
        self.networks = (self.chatbot.encoder, self.chatbot.decoder)
        self.optimizers = [kind(n.parameters(), lr=rate) for n, rate in zip(self.networks, rates, strict=True)]
        self.iteration, self.best, self.waited = 0, math.inf, 0
        self.losses: list[float] = []

    @property
    def out_of_patience(self) -> bool:
        return self.options.patience is not None and self.waited >= self.options.patience

    def step(self) -> None:
        """One batch. Every draw follows from (seed, iteration), so that a resumed run draws the same."""
        options = self.options
        torch.manual_seed(options.seed * 1_000_003 + self.iteration)  # dropout
        forced = random.Random(f"{options.seed}-{self.iteration}").random() < options.teacher_forcing
        batch = make_batch(self._batch_pairs(), self.vocabulary, self.device)
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            network.train()
            optimizer.zero_grad()
        losses = token_losses(self.chatbot, batch, forced)
        loss = tutorial_loss(losses, batch.replies)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss.item()} at iteration {self.iteration + 1}; lower the learning rate "
                f"({options.learning_rate:g}, decoder x{options.decoder_learning_ratio:g}) or the clip ({options.clip})"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip is not None:  # both before either steps: they share the embedding (tutorial)
            for network in self.networks:
                clip_grad_norm_(network.parameters(), options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.losses.append(float(losses.detach().sum() / (batch.replies != PAD).sum()))
        self.iteration += 1

    def _batch_pairs(self) -> list[Pair]:
        """The iteration's share of the epoch's shuffled pairs."""
        size = min(self.options.batch, len(self.pairs))
        per_epoch = len(self.pairs) // size
        epoch, position = divmod(self.iteration, per_epoch)
        if position == 0 or not hasattr(self, "_order"):
            self._order = list(range(len(self.pairs)))
            random.Random(f"{self.options.seed}-epoch-{epoch}").shuffle(self._order)
        return [self.pairs[i] for i in self._order[position * size : (position + 1) * size]]

    def validate(self, held_out: list[Pair], free_running: bool = False) -> Progress:
        for network in self.networks:
            network.eval()
        judge = partial(validation_loss, self.chatbot, held_out, self.vocabulary, self.device)
        loss = judge()
        guessing = math.log(self.chatbot.config.vocabulary)
        if not loss < 2 * guessing:  # saturated networks keep a hopeless loss finite
            raise DivergedError(
                f"the validation loss became {loss:.3g} at iteration {self.iteration}, "
                f"where guessing has {guessing:.3g}; lower the learning rate"
            )
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(loss, self.best)
        mean = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses = []
        free = judge(teacher_forced=False) if free_running else None
        return Progress(self.iteration, mean, loss, self.best, free)

    def keep(self) -> None:
        state = {
            "identity": self._identity(),
            "networks": [n.state_dict() for n in self.networks],
            "optimizers": [o.state_dict() for o in self.optimizers],
            "iteration": self.iteration,
            "best": self.best,
            "waited": self.waited,
        }
        save_plain(state, self.state_path)

    def _identity(self) -> dict[str, Any]:
        """The options that must not change when a run is resumed; iterations and patience may grow."""
        digest = hashlib.sha256("\n".join("\t".join(pair) for pair in self.pairs).encode())
        options = {k: v for k, v in asdict(self.options).items() if k not in ("iterations", "patience")}
        return {**options, **asdict(self.chatbot.config), "pairs": digest.hexdigest()}

    def restore(self) -> None:
        if not self.state_path.is_file():
            raise UsageError(f"nothing to resume: {self.state_path} does not exist")
        state = read_plain(self.state_path)
        if "identity" not in state:
            raise UsageError(f"{self.state_path} is not the state of a training")
        mine, theirs = self._identity(), state["identity"]
        changed = [k for k in mine if mine[k] != theirs.get(k)]
        if changed:
            was = ", ".join(f"{k} was {theirs.get(k)!r}, now {mine[k]!r}" for k in changed)
            raise UsageError(f"{self.state_path} belongs to a training with other options: {was}")
        for parts, states in ((self.networks, state["networks"]), (self.optimizers, state["optimizers"])):
            for part, content in zip(parts, states, strict=True):
                part.load_state_dict(content)
        self.iteration, self.best, self.waited = state["iteration"], state["best"], state["waited"]
