"""Divides the shared memory of a GPU's multiprocessors among the weights and what a step works on."""

from dataclasses import dataclass, replace

from chatbot.config import Config

THREADS = 512  # of a block
LEAST_CAPABILITY = (8, 0)  # the first with copies into shared memory that nobody waits for
FLOAT = 4  # bytes
KB = 1024
WIDE = 4  # slots that are multiplied at a time, as in reply.cu
MOST_SLOTS = 32  # more of them would not be faster: they occupy all warps
GATES = 3


class DoesNotFitError(Exception):
    """The GPU can't keep the weights; the message has the figures."""


@dataclass(frozen=True)
class Card:
    """What the kernel needs to know of a GPU."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int  # that a block may have


@dataclass(frozen=True)
class Plan:
    """A block's shared memory: places and sizes in floats. Most fields are those of ``Task`` in reply.cu."""

    blocks: int
    threads: int  # of a block
    batch: int
    tokens: int
    columns: int  # of a vector, a multiple of 4
    slots: int  # each holds two vectors
    sums: int  # of a slot
    decoder_floats: int
    encoder_floats: int
    concat_at: int
    out_at: int
    encoder_at: int = 0
    x_at: int = 0
    sums_at: int = 0
    scores_at: int = 0
    best_at: int = 0
    floats: int = 0  # in all

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return FLOAT * self.floats


def up(value: int, multiple: int = 4) -> int:
    """The next multiple, or the value itself."""
    return -(-value // multiple) * multiple


def record(rows: int, columns: int) -> int:
    """The floats of some rows and their biases, as in reply.cu."""
    return rows * columns + up(rows)


def plan(config: Config, batch: int, tokens: int, card: Card, threads: int = THREADS) -> Plan:
    """One block for each multiprocessor, with as many slots as find room.

    Raises:
        DoesNotFitError: the weights do not find room, or the GPU is too old.
    """
    if card.capability < LEAST_CAPABILITY:
        major, minor = LEAST_CAPABILITY
        raise DoesNotFitError(f"it needs compute capability {major}.{minor}; {card.name} has {_dotted(card)}")
    room = card.shared_bytes // FLOAT // 4 * 4
    weights = _weights(config, batch, tokens, card.multiprocessors, threads)
    wanted = min(up(tokens * batch, WIDE), MOST_SLOTS)
    for slots in [*range(wanted, 0, -WIDE), 1]:
        made = _laid_out(replace(weights, slots=slots), room)
        if made.floats <= room:
            return made
    raise DoesNotFitError(_figures(made, card))


def _weights(config: Config, batch: int, tokens: int, blocks: int, threads: int) -> Plan:
    """The sizes that hang on the weights alone."""
    hidden, columns = config.hidden, up(config.hidden)
    own, own_ways, own_words = (-(-count // blocks) for count in (hidden, 2 * hidden, config.vocabulary))
    upper = record(2 * GATES, columns)
    concat_at = own * (record(GATES, columns) + (config.decoder_layers - 1) * upper)
    out_at = concat_at + own * record(1, 2 * columns)
    return Plan(
        blocks=blocks,
        threads=threads,
        batch=batch,
        tokens=tokens,
        columns=columns,
        slots=1,
        sums=max(own_ways * GATES, own * 2 * GATES),
        decoder_floats=out_at + own_words * record(1, columns),
        encoder_floats=config.encoder_layers * own_ways * record(GATES, columns),
        concat_at=concat_at,
        out_at=out_at,
    )


def _laid_out(sizes: Plan, room: int) -> Plan:
    """Weights first: the encoder's at the end of their part, which is as large as it may be; then what is worked on."""
    parts = (
        sizes.slots * 2 * sizes.columns,
        up(sizes.slots * sizes.sums),
        up(2 * sizes.tokens),
        up(2 * sizes.slots * sizes.threads // 32),
    )
    least, both = max(sizes.decoder_floats, sizes.encoder_floats), sizes.decoder_floats + sizes.encoder_floats
    x_at = max(least, min(both, room - sum(parts)))
    return replace(
        sizes,
        encoder_at=x_at - sizes.encoder_floats,
        x_at=x_at,
        sums_at=x_at + parts[0],
        scores_at=x_at + sum(parts[:2]),
        best_at=x_at + sum(parts[:3]),
        floats=x_at + sum(parts),
    )


def _figures(made: Plan, card: Card) -> str:
    needed, whole = made.shared_bytes, made.shared_bytes * made.blocks
    return (
        f"it keeps all weights in shared memory, which takes {needed / KB:.0f} KB in each of {made.blocks} "
        f"multiprocessors, {whole / 1e6:.0f} MB in all; {card.name} has {card.shared_bytes / KB:.0f} KB in each, "
        f"{card.shared_bytes * card.multiprocessors / 1e6:.0f} MB"
    )


def _dotted(card: Card) -> str:
    return ".".join(map(str, card.capability))
