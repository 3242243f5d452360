"""What a fresh start costs: the figures of one, and of all that a variant had. Imports the standard library alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

STARTS = 6  # of a variant in each state: the fewest whose median has a 95% interval


class State(StrEnum):
    """What is there when a variant starts."""

    EMPTY = "empty"  # nothing is compiled, as in the first pod ever
    CACHED = "cached"  # what an earlier start has compiled, in a new process
    WARM = "warm"  # a live process, of which this is the second model


@dataclass(frozen=True)
class Start:
    """One start, step by step, in seconds."""

    import_s: float  # from exec to PyTorch and the variants imported; of a live process nothing
    load_s: float  # the weights
    prepare_s: float  # until it can be called, what it compiles included
    first_reply_s: float

    @property
    def to_first_reply_s(self) -> float:
        """From exec to the reply in hand."""
        return self.import_s + self.load_s + self.prepare_s + self.first_reply_s


@dataclass(frozen=True)
class Starts:
    """All starts of a variant by their state, in the order in which they came."""

    of: dict[str, Sequence[Start]] = field(default_factory=dict)
    artifact_mb: float | None = None  # on disk, for a start that finds everything: weights and what was compiled
    weights_mb: float | None = None  # of the model as it is loaded
    loaded_mb: float = 0.0  # of files that a start of ``EMPTY`` reads
    kept_mb: float = 0.0  # of these the page cache did not let go


@dataclass(frozen=True)
class Cold:
    """The starts of a trial's variants."""

    of: dict[str, Starts] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # why a variant has none, or too few
