"""How a program that is not made of PyTorch's modules tells what it executes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compiled:
    """What a compiled program executes, read from the program itself (its session, its buffers), not from its label.

    An object that a variant's callable refers to shows it as its attribute ``compiled``.
    """

    kind: str  # "native", "onnxruntime", ...: as in the variant's entry
    devices: frozenset[str]  # where its weights are: "cpu", "cuda"
    dtypes: frozenset[str]  # that it computes in: "float32", "qint8", ...
    identity: str  # equal for programs that execute the same code
    weights: frozenset[int] = frozenset()  # where its parameters lie in memory, where it can tell
