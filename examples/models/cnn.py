"""A convolutional classifier of images, with batch normalisation and a residual connection."""

from torch import Tensor, nn, rand

from chatbot.variants import Workload
from models.same import close
from ray_jobs import OwnModel

PIXELS, WIDTH, CLASSES = 64, 32, 10


class Block(nn.Module):
    """Two convolutions and what they are added to: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])

    def forward(self, images: Tensor) -> Tensor:
        """The sum, rectified."""
        hidden = self.norms[0](self.first(images)).relu()
        return (images + self.norms[1](self.second(hidden))).relu()


def inputs(i: int, workload: Workload) -> tuple[Tensor]:
    return (rand(workload.batch, 3, PIXELS, PIXELS),)


def factory() -> OwnModel:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)]
    return OwnModel(nn.Sequential(nn.Conv2d(3, WIDTH, 7, 2, 3), nn.ReLU(), Block(WIDTH), *head), inputs, close)
