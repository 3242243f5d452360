"""Packs weights the way the engine reads them: panels of rows, in 32, 16 or 8 bits, in large pages.

``linear.h`` describes the layout, ``screen.h`` the use of the radii.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 32  # rows side by side; as in vectors.h
QUAD, PAIR = 4, 2  # columns of 8 bits side by side; as in linear.h
LARGEST = 127  # of a weight in 8 bits
LARGEST_WORD = 127 * 256 + 127  # of one in 16: its high byte is then one in 8
MOST_INPUT = 16383  # of a value that 8-bit weights are multiplied with, unless the sums need it smaller
INT32_MAX = 2**31 - 1
CHUNK = 16 << 20  # bytes that the arena takes at a time
HUGE = 2 << 20  # bytes of a large page
LINE = 64  # bytes of a cache line
ROUNDING = 2.0**-24  # of one operation in 32 bits, relative


def up(value: int, multiple: int) -> int:
    """The next multiple, or the value itself."""
    return -(-value // multiple) * multiple


class Arena:
    """Memory in large pages, if the system has them: with small ones, streaming waits for address translation.

    ``words``: bytes are packed as ``_words``, else as ``_quads``.
    """

    def __init__(self, words: bool = False) -> None:
        self.words = words
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self.tensors: list[Tensor] = []

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros at the start of a cache line, with room for a panel after it."""
        count = int(torch.Size(shape).numel())
        taken = up((count + 2 * PANEL) * dtype.itemsize, LINE)
        if taken > len(self._chunk):
            self._chunk = self._pages(max(CHUNK, up(taken, HUGE)))
        part, self._chunk = self._chunk[:taken], self._chunk[taken:]
        tensor = part[: count * dtype.itemsize].view(dtype).view(*shape)
        self.tensors.append(tensor)
        return tensor

    def keep(self, values: Tensor) -> Tensor:
        """Copies a tensor into the arena."""
        tensor = self.zeros(values.shape, values.dtype)
        tensor.copy_(values)
        return tensor

    @staticmethod
    def _pages(size: int) -> Tensor:
        pages = mmap.mmap(-1, size + HUGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(pages, dtype=torch.uint8)
        return whole[-whole.data_ptr() % HUGE :][:size]


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer W x + b, its weights in panels: ``scales`` where they are integers, ``fine`` their low bytes of two."""

    weights: Tensor
    bias: Tensor
    inputs: int
    scales: Tensor | None = None
    fine: Tensor | None = None


def pack(arena: Arena, weight: Tensor, bias: Tensor | None) -> Packed:
    """(R, K) weights in 32 bits -> (R / PANEL, K, PANEL)."""
    rows, inputs = weight.shape
    panels = _panels(weight)
    return Packed(arena.keep(panels.permute(0, 2, 1)), _bias(arena, bias, rows), inputs)


def scales_of(weight: Tensor, largest: int) -> Tensor:
    """(R, K) -> the scale of each row (R), for whole numbers of at most ``largest``."""
    return weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * largest) / largest


def quantise(weight: Tensor, largest: int = LARGEST) -> tuple[Tensor, Tensor]:
    """(R, K) -> whole numbers (R, K) of at most ``largest`` and a scale per row (R); their product approximates it."""
    scales = scales_of(weight, largest)
    return (weight / scales.unsqueeze(1)).round().clamp(-largest, largest), scales


def pack_bytes(arena: Arena, numbers: Tensor, scales: Tensor, bias: Tensor | None) -> Packed:
    """(R, K) whole numbers of -128 to 127 and their scales (R), packed as bytes."""
    rows, inputs = numbers.shape
    return Packed(interleaved(arena, numbers), _bias(arena, bias, rows), inputs, arena.keep(_padded(scales, rows)))


def pack_words(arena: Arena, weight: Tensor, bias: Tensor | None) -> Packed:
    """(R, K) weights in 16 bits, packed as their high bytes and, separately, their low bytes."""
    rows, inputs = weight.shape
    numbers, scales = quantise(weight, LARGEST_WORD)
    high = ((numbers + 128) / 256).floor()
    fine = interleaved(arena, numbers - 256 * high)
    return Packed(interleaved(arena, high), _bias(arena, bias, rows), inputs, arena.keep(_padded(scales, rows)), fine)


@dataclass(frozen=True, eq=False)
class Screen:
    """The output layer in 8 bits, and the bound on a logit's error: radius x length of the input + slack."""

    coarse: Packed
    radii: Tensor
    slack: float
    rows: Tensor  # (V, H): the layer's own weights
    bias: Tensor


def screen(arena: Arena, weight: Tensor, bias: Tensor) -> Screen:
    """The proof of the radii, w x the logit in 32 bits, v the row in 8 bits, y the input in 15 bits:

    |w x - v y| <= |w - v| |x| + |v| |x - y| (Cauchy-Schwarz), |x - y| <= sqrt(K) |x| / (2 x most), and rounding
    in K sums in 32 bits of at most K x 2^-24 |w| |x|, here counted twice; of adding the bias, ``slack``.
    """
    rows, inputs = weight.shape
    numbers, scales = quantise(weight)
    own, near = weight.double(), numbers.double() * scales.double().unsqueeze(1)
    most = min(MOST_INPUT, INT32_MAX // (128 * up(inputs, 2 * QUAD)))
    input_error = 0.51 * inputs**0.5 / most  # half a step, and its own rounding
    rounding = 2 * (inputs + 16) * ROUNDING
    radii = (own - near).norm(dim=1) + input_error * near.norm(dim=1) + rounding * (own.norm(dim=1) + near.norm(dim=1))
    coarse = pack_bytes(arena, numbers, scales, bias)
    coarse.bias[rows:] = -torch.inf  # rows of the padding are never the likeliest
    slack = 16 * ROUNDING * float(bias.abs().max())
    kept = arena.keep(_padded((radii * 1.001).float(), rows))
    return Screen(coarse, kept, slack, arena.keep(weight), arena.keep(bias))


def table(arena: Arena, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The input projection of every token: (V, H) embedding, (3 H, H) weights -> (V, 3 H padded)."""
    gates = len(weight)
    kept = arena.zeros((len(embedding), up(gates, PANEL)), torch.float32)
    for first in range(0, len(embedding), 1024):
        some = embedding[first : first + 1024]
        kept[first : first + 1024, :gates] = torch.addmm(bias, some, weight.t())
    return kept


def interleaved(arena: Arena, numbers: Tensor) -> Tensor:
    """(R, K) of -128 to 127, the columns filled up to a multiple of 2 QUAD."""
    inputs = numbers.size(1)
    panels = _panels(torch.nn.functional.pad(numbers, (0, up(inputs, 2 * QUAD) - inputs)))
    return arena.keep((_words(panels) if arena.words else _quads(panels)).to(torch.uint8))


def _quads(panels: Tensor) -> Tensor:
    """(R / PANEL, PANEL, K) -> (R / PANEL, K / QUAD, PANEL, QUAD), 128 added."""
    count, rows, inputs = panels.shape
    return panels.reshape(count, rows, inputs // QUAD, QUAD).permute(0, 2, 1, 3) + 128


def _words(panels: Tensor) -> Tensor:
    """(R / PANEL, PANEL, K) -> (R / PANEL, K / PAIR, PANEL / 2, PAIR, 2): of a row, 128 added, and of one behind it."""
    count, rows, inputs = panels.shape
    first, second = panels[:, : rows // 2] + 128, panels[:, rows // 2 :] % 256
    words = torch.stack((first, second), -1)
    return words.reshape(count, rows // 2, inputs // PAIR, PAIR, 2).permute(0, 2, 1, 3, 4)


def _panels(weight: Tensor) -> Tensor:
    rows, inputs = weight.shape
    return torch.nn.functional.pad(weight, (0, 0, 0, up(rows, PANEL) - rows)).reshape(-1, PANEL, inputs)


def _padded(values: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, up(rows, PANEL) - rows))


def _bias(arena: Arena, bias: Tensor | None, rows: int) -> Tensor:
    return arena.keep(_padded(torch.zeros(rows) if bias is None else bias, rows))
