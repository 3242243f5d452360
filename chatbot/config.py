"""Network sizes and training options, which need no PyTorch."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.corpus import Pair
from chatbot.errors import UsageError, one_of
from chatbot.vocabulary import FIRST_WORD

OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}  # names in torch.optim
ATTENTIONS = ("dot", "general", "concat")


@dataclass(frozen=True)
class Config:
    """The sizes of a network; the defaults are the tutorial's on the Cornell corpus (18,862,336 parameters)."""

    hidden: int = 500  # also the width of the embedding
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.1
    attention: str = "dot"
    vocabulary: int = 7836

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise one_of("attention", self.attention, ATTENTIONS)
        for name in ("hidden", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.vocabulary <= FIRST_WORD:
            raise UsageError(
                f"vocabulary is {self.vocabulary}; it must hold at least one word besides PAD, SOS and EOS"
            )
        if self.decoder_layers > 2 * self.encoder_layers:  # it starts from that many of the encoder's final states
            raise UsageError(
                f"decoder_layers is {self.decoder_layers}; at most twice encoder_layers ({self.encoder_layers})"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


PRESETS = {
    "tutorial": Config(),
    "small": Config(hidden=256, vocabulary=2374),
    "tiny": Config(hidden=16, encoder_layers=1, decoder_layers=1, vocabulary=50),
}


@dataclass(frozen=True)
class Options:
    """Training options; the defaults are the tutorial's, except for validation."""

    iterations: int = 4000
    batch: int = 64
    learning_rate: float = 1e-4
    decoder_learning_ratio: float = 5.0
    optimizer: str = "adam"
    clip: float | None = 50.0
    teacher_forcing: float = 1.0  # probability, drawn per batch
    validation_share: float = 0.05
    validate_every: int = 200  # iterations
    patience: int | None = 5  # validations without a better loss before it stops; None: never
    seed: int = 0
    split_seed: int | None = None  # of what is held out; None: the seed

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise one_of("optimizer", self.optimizer, list(OPTIMIZERS))
        for name in ("iterations", "batch", "learning_rate", "decoder_learning_ratio", "validate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0, and finite")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip is {self.clip}, which zeroes every gradient; give a positive number or none")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience is {self.patience}; give a whole number of validations above 0, or none")
        if not 0 <= self.teacher_forcing <= 1:
            raise UsageError(f"teacher_forcing is {self.teacher_forcing}; it is a probability, from 0 to 1")
        if not 0 < self.validation_share < 1:
            raise UsageError(f"validation_share is {self.validation_share}; it must be above 0 and below 1")

    def split(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Splits the pairs into (training, validation) by these options."""
        return split(pairs, self.validation_share, self.seed if self.split_seed is None else self.split_seed)


def split(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, validation) pairs; all copies of a pair fall on one side."""
    distinct = sorted(set(pairs))
    random.Random(seed).shuffle(distinct)
    held_out = set(distinct[: max(1, round(share * len(distinct)))])
    return [p for p in pairs if p not in held_out], [p for p in pairs if p in held_out]
