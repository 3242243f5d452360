"""What one call of any model must read and multiply, counted operator by operator as PyTorch dispatches them.

Only operators of which both are known are counted: products, by formulas; gathers, by the rows that they read; and
those that form no products (``PLAIN``, and what PyTorch tags as pointwise, reducing or a view). Others are taken apart
into these where PyTorch can, else named: no limit follows from a model that has one with a matrix in it.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chatbot.variants.parts import Loop
from ray_jobs.measure.roofline import Phase, Precision, Read

Given = Mapping[str, Any]  # an operator's arguments by their names in its schema

PLAIN_TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace, torch.Tag.view_copy}
PLAIN = frozenset(
    "_softmax _log_softmax native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit_no_training "
    "cudnn_batch_norm _fused_rms_norm cat stack constant_pad_nd cumsum cumprod sort topk tril triu flip roll repeat "
    "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "_adaptive_avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d glu native_dropout bernoulli masked_select nonzero equal is_same_size _pack_padded_sequence "
    "_pad_packed_sequence max min any all scatter slice_scatter select_scatter index_put copy _to_copy "
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full "
    "unsafe_split unsafe_split_with_sizes unsafe_chunk _unsafe_view lift_fresh_copy _local_scalar_dense".split()
)
ROWS = {"embedding": ("weight", "indices"), "_embedding_bag": ("weight", "indices"), "index_select": ("self", "index")}
ELEMENTS = ("gather", "index", "take")
HOW_ATTENTION = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")


Formula = Callable[[Given, Any], int]  # of an operator's arguments and its result


def _product(left: str, right: str | None = None) -> Formula:
    """Of a (batched) matrix (..., M, K) with another (..., K, N); without one, with a vector."""
    return lambda given, _: 2 * int(given[left].numel()) * int(given[right].size(-1) if right else 1)


def _convolution(given: Given, result: Any) -> int:
    """Done directly: each number of the output, or of the input of a transposed one, meets one filter."""
    weight = given["weight"]
    numbers = (given["input"] if given.get("transposed") else result).numel()
    return int(2 * numbers * weight.numel() // weight.size(0))


def _attention(given: Given, _: Any) -> int:
    """Energies and contexts of queries (..., S, E) with keys (..., T, E) and values (..., T, F)."""
    query, keys, wide = given["query"], given["key"].size(-2), given["key"].size(-1) + given["value"].size(-1)
    steps = query.size(-2)
    pairs = steps * keys
    if given.get("is_causal"):  # query i sees the keys up to i
        pairs = sum(min(i + 1, keys) for i in range(steps))
    return int(2 * query.shape[:-2].numel() * pairs * wide)


def _recurrent(given: Given, _: Any) -> int:
    """Each matrix of each layer and direction meets every position of every sequence once."""
    positions = given["data"].size(0) if "data" in given else given["input"].shape[:-1].numel()
    return int(2 * positions * sum(weight.numel() for weight in given["params"] if weight.dim() == 2))


def _one_layer(given: Given, _: Any) -> int:
    """oneDNN's operator for a layer in one direction: input (T, B, E)."""
    return int(2 * given["input"].shape[:-1].numel() * (given["weight0"].numel() + given["weight1"].numel()))


PRODUCTS: dict[str, Formula] = {
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2"),
    "baddbmm": _product("batch1", "batch2"),
    "mv": _product("self"),
    "addmv": _product("mat"),
    "dot": _product("self"),
    "convolution": _convolution,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "mkldnn_rnn_layer": _one_layer,
    "scaled_dot_product_attention": _attention,
    **{f"_scaled_dot_product_{how}": _attention for how in HOW_ATTENTION},
}


@dataclass(frozen=True)
class Counted:
    """What a call reads, each byte once, and forms. Numbers are floating ones of at least 32 bits."""

    matrices: int  # numbers of weights that are multiplied or looked up in
    vectors: int  # numbers of anything else, the inputs included
    others: int  # bytes that are no such numbers: indices, masks, weights in half precision
    flops: int  # a multiplication and an addition are two
    unknown: str | None = None  # the first operator with a matrix of which these are not known

    def size(self, precision: Precision) -> int:
        """Bytes, but for scales of int8, since some engines have one for a whole matrix; 1 at least."""
        return max(1, self.matrices * precision.weight + self.vectors * precision.other + self.others)

    def phase(self, precision: Precision, working_set: int) -> Phase:
        """All of it as one phase, out of memory of so many bytes."""
        size = self.size(precision)
        return Phase(1, (Read(size, max(size, working_set)),), self.flops)

    def phases(self, precision: Precision) -> tuple[Phase, ...]:
        """The call as one phase."""
        return (self.phase(precision, 1),)


@dataclass(frozen=True)
class CountedLoop:
    """What a call of a model with parts reads and forms: each byte once a call of a part, and once around them."""

    whole: Counted  # each byte once in all
    around: Counted
    calls: tuple[tuple[str, Counted], ...]  # of the parts, in order

    @property
    def unknown(self) -> str | None:
        """The first operator with a matrix of which these are not known."""
        return self.whole.unknown

    def phases(self, precision: Precision) -> tuple[Phase, ...]:
        """A phase for each call of a part, and one for what is around them.

        What a part reads again may lie in a cache as large as the largest call since; what is read first in a call was
        last read in the one before, and everything since.
        """
        everything = self.whole.size(precision)
        sizes = [counted.size(precision) for _, counted in self.calls]
        found, last = [self.around.phase(precision, everything)], dict[str, int]()
        for i, (name, counted) in enumerate(self.calls):
            since = max(sizes[last[name] + 1 : i + 1]) if name in last else everything
            found.append(counted.phase(precision, since))
            last[name] = i
        return tuple(found)


def counted(call: Callable[[], object], inputs: object) -> Counted:
    """Counts one call; ``inputs`` are the tensors that it is given, in any structure."""
    with _no_fast_path(), _Counting(inputs) as counting:
        call()
    found: Counted = counting.whole.counted()
    return found


def counted_loop(loop: Loop, call: Callable[[], object], inputs: object) -> CountedLoop:
    """Counts one call of a model with parts, which are called within it."""
    calls: list[tuple[str, _Tally]] = []
    with _no_fast_path(), _Counting(inputs) as counting:
        around = counting.within = _Tally()

        def enter(name: str, *_: object) -> None:
            counting.within = _Tally()
            calls.append((name, counting.within))

        def leave(*_: object) -> None:
            counting.within = around

        with loop.watched(enter, leave):
            call()
    told = tuple((name, tally.counted()) for name, tally in calls)
    return CountedLoop(counting.whole.counted(), around.counted(), told)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """PyTorch's transformer layers as their parts, not as one operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@dataclass
class _Storage:
    """What a call reads of memory that was there before it."""

    first: Tensor  # that was seen of it; keeps its address from being used again
    spans: list[tuple[int, int]] = field(default_factory=list)  # bytes
    strewn: int = 0  # the most distinct bytes of one read that is no span
    matrix: bool = False

    def read(self) -> int:
        """Distinct bytes; of reads that are no spans a lower bound."""
        total, end = 0, 0
        for start, stop in sorted(self.spans):
            total += max(0, stop - max(start, end))
            end = max(end, stop)
        return max(total, self.strewn)


@dataclass
class _Tally:
    """What is read and formed within a call, or within a part of it."""

    storages: dict[int, _Storage] = field(default_factory=dict)
    flops: int = 0
    unknown: str | None = None

    def counted(self) -> Counted:
        """The sums."""
        sizes = {"matrices": 0, "vectors": 0, "others": 0}
        for storage in self.storages.values():
            dtype = storage.first.dtype
            if dtype.is_floating_point and dtype.itemsize >= 4:
                sizes["matrices" if storage.matrix else "vectors"] += storage.read() // dtype.itemsize
            else:
                sizes["others"] += storage.read()
        return Counted(**sizes, flops=self.flops, unknown=self.unknown)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, inputs: object) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inputs = {_place(one) for one in _tensors(inputs)}
        self._made: set[int] = set()  # storages
        self.whole = _Tally()
        self.within = self.whole  # another one while only a part of the call is counted there too

    @property
    def _tallies(self) -> tuple[_Tally, ...]:
        return (self.whole,) if self.within is self.whole else (self.whole, self.within)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = _given(func, args, kwargs or {})
        name = str(func).split(".")[1].rstrip("_") if isinstance(func, OpOverload) else str(func)
        known = name in ROWS or name in ELEMENTS or name in PRODUCTS or _plain(func, name)
        if not known and isinstance(func, OpOverload):
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        tensors = _tensors(given)
        if not known and any(one.dim() >= 2 for one in tensors):
            self.whole.unknown = self.whole.unknown or str(func)
        result = func(*args, **(kwargs or {}))
        places = {_place(one) for one in tensors}
        made = [one for one in _tensors(result) if _place(one) not in places]
        self._made.update(map(_place, made))
        if made or not _tensors(result) or (isinstance(func, OpOverload) and func._schema.is_mutable):
            self._count(func, name, given, result)  # else it returns a view, and reads nothing
        return result

    def _count(self, func: Any, name: str, given: Given, result: object) -> None:
        if name.endswith("_like") or name.startswith("new_"):  # of it they take the shape alone
            return
        if products := name in PRODUCTS:
            flops = PRODUCTS[name](given, result)
            for tally in self._tallies:
                tally.flops += flops
        taken = self._gathered(func, name, given)
        for one in _tensors(given):
            if one is not taken:
                self._read(one, one.nbytes, products and one.dim() >= 2)

    def _gathered(self, func: Any, name: str, given: Given) -> Tensor | None:
        """Counts the distinct rows or elements that an operator looks up; returns what it looks them up in."""
        if name in ROWS:
            table, index = (given[part] for part in ROWS[name])
            rows = table.size(given.get("dim", 0))
            self._read(table, index.unique().numel() * table.nbytes // max(1, rows), matrix=True, whole=False)
            return table  # type: ignore[no-any-return]
        if name in ELEMENTS:
            table = given["self"]
            if _place(table) not in self._made:
                numbers = torch.arange(table.numel(), device=table.device).view(table.shape)
                which = func(**{**given, "self": numbers}).unique().numel()
                self._read(table, which * table.element_size(), matrix=True, whole=False)
            return table  # type: ignore[no-any-return]
        return None

    def _read(self, one: Tensor, size: int, matrix: bool, whole: bool = True) -> None:
        place = _place(one)
        if place in self._made or one.layout != torch.strided:
            return
        for tally in self._tallies:
            self._read_in(tally.storages.setdefault(place, _Storage(one)), one, size, matrix, whole)

    def _read_in(self, storage: _Storage, one: Tensor, size: int, matrix: bool, whole: bool) -> None:
        place = _place(one)
        storage.matrix |= matrix and place not in self._inputs
        if whole and _dense(one):
            start = int(one.storage_offset()) * one.element_size()
            storage.spans.append((start, start + size))
        else:
            lengths = (n for n, stride in zip(one.shape, one.stride(), strict=True) if stride)
            distinct = reduce(operator.mul, lengths, one.element_size())
            storage.strewn = max(storage.strewn, min(size, distinct))


def _given(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Given:
    if not isinstance(func, OpOverload):
        return {**{str(place): one for place, one in enumerate(args)}, **kwargs}
    names = (one.name for one in func._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _plain(func: Any, name: str) -> bool:
    return isinstance(func, OpOverload) and (name in PLAIN or func.is_view or bool(PLAIN_TAGS & set(func.tags)))


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _place(one: Tensor) -> int:
    """Where its storage is described; of a tensor without one, the tensor."""
    return int(one.untyped_storage()._cdata) if one.layout == torch.strided else id(one)


def _dense(one: Tensor) -> bool:
    """Tells whether its numbers fill a part of its storage, in any order."""
    filled = 1
    for stride, length in sorted(pair for pair in zip(one.stride(), one.shape, strict=True) if pair[1] != 1):
        if stride != filled:
            return False
        filled *= length
    return True
