"""A bidirectional LSTM that gives each word of a sentence a tag."""

from torch import Tensor, nn, randint

from chatbot.variants import Workload
from models.same import close
from ray_jobs import OwnModel

WORDS, WIDTH, HIDDEN, LAYERS, TAGS, LENGTH = 10_000, 128, 256, 2, 17, 24


class Tagger(nn.Module):
    """Token ids (B, T) -> scores (B, T, tags)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, LAYERS, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(2 * HIDDEN, TAGS)

    def forward(self, words: Tensor) -> Tensor:
        """The scores."""
        return self.tags(self.lstm(self.embedding(words))[0])  # type: ignore[no-any-return]


def inputs(i: int, workload: Workload) -> tuple[Tensor]:
    return (randint(WORDS, (workload.batch, LENGTH)),)


def factory() -> OwnModel:
    return OwnModel(Tagger(), inputs, close)
