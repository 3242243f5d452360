"""The kernels of ``triton_graph``; importing them needs triton. If ``TRITON_INTERPRET=1`` is set, a CPU runs them.

One row of a batch is a program of its own, and so is a block of ``ROWS`` rows of a matrix, whose products it forms
``COLUMNS`` at a time. All numbers are float32, and sums are not in TF32: no ``tl.dot``.
"""

# ruff: noqa: N803 (constants of a kernel are written as constants)

import triton
import triton.language as tl


@triton.jit
def cell(
    table, index, of_input, of_state, bias_in, bias_of, before, after, outputs, step, tokens, batch, inputs, hidden,
    KEYS: tl.constexpr, INDEXED: tl.constexpr, FIRST: tl.constexpr, MASKED: tl.constexpr, PAD: tl.constexpr,
    INDEX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One step of a GRU's layer; grid: blocks of H, B, directions D.

    Reads row ``index[b, position]`` of ``table`` (..., I), where the index is a token or a key, or without ``INDEXED``
    row ``(position, b)``; states ``before`` (D, B, H), zeros if this is the ``FIRST`` step. Writes states ``after``
    and, if ``MASKED``, outputs (T, B, D x H); states do not change where ``index`` is ``PAD``. The second direction's
    position is ``tokens - 1 - step``. Weights (D, 3H, I) and (D, 3H, H), biases (D, 3H): reset, update, new.
    """
    row = tl.program_id(1)
    way = tl.program_id(2)
    unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = unit < hidden
    position = tl.where(way == 0, step, tokens - 1 - step)
    place = position * batch + row
    token = row.to(tl.int64)
    if INDEXED or MASKED:
        token = tl.load(index + row * tokens + position)
        if KEYS:
            token = INDEX - (token & INDEX)
    source = token if INDEXED else place
    gates = way * 3 * hidden + unit
    reset = tl.load(bias_in + gates, inside, 0.0) + tl.load(bias_of + gates, inside, 0.0)
    update = tl.load(bias_in + gates + hidden, inside, 0.0) + tl.load(bias_of + gates + hidden, inside, 0.0)
    new_in = tl.load(bias_in + gates + 2 * hidden, inside, 0.0)
    new_of = tl.load(bias_of + gates + 2 * hidden, inside, 0.0)
    for start in range(0, inputs, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        read = inside[:, None] & (column < inputs)[None, :]
        value = tl.load(table + source * inputs + column, column < inputs, 0.0)[None, :]
        weight = of_input + gates[:, None] * inputs + column[None, :]
        reset += tl.sum(tl.load(weight, read, 0.0) * value, 1)
        update += tl.sum(tl.load(weight + hidden * inputs, read, 0.0) * value, 1)
        new_in += tl.sum(tl.load(weight + 2 * hidden * inputs, read, 0.0) * value, 1)
    states = (way * batch + row) * hidden
    old = tl.zeros([ROWS], tl.float32)
    if not FIRST:
        old = tl.load(before + states + unit, inside, 0.0)
        for start in range(0, hidden, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            read = inside[:, None] & (column < hidden)[None, :]
            value = tl.load(before + states + column, column < hidden, 0.0)[None, :]
            weight = of_state + gates[:, None] * hidden + column[None, :]
            reset += tl.sum(tl.load(weight, read, 0.0) * value, 1)
            update += tl.sum(tl.load(weight + hidden * hidden, read, 0.0) * value, 1)
            new_of += tl.sum(tl.load(weight + 2 * hidden * hidden, read, 0.0) * value, 1)
    new = _tanh(new_in + tl.sigmoid(reset) * new_of)
    state = new + tl.sigmoid(update) * (old - new)
    if MASKED:
        live = token != PAD
        state = tl.where(live, state, old)
        ways = tl.num_programs(2)
        shown = tl.where(live, state, 0.0)
        tl.store(outputs + (place * ways + way) * hidden + unit, shown, inside)
    tl.store(after + states + unit, state, inside)


@triton.jit
def attend(
    state, targets, outputs, prompts, weight, bias, joined, tokens, batch, hidden,
    PAD: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attention and the layer after it; grid: blocks of H, B. Every program computes all energies.

    State (B, H), targets and outputs (T, B, H): energies are products of state and targets, none where ``prompts``
    (B, T) are ``PAD``. Writes tanh of weight (H, 2H) times state and context, plus bias: joined (B, H).
    """
    row = tl.program_id(1)
    unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = unit < hidden
    token = tl.arange(0, TOKENS)
    live = (token < tokens) & (tl.load(prompts + row * tokens + token, token < tokens, PAD) != PAD)
    places = (token[:, None] * batch + row) * hidden
    energies = tl.zeros([TOKENS], tl.float32)
    for start in range(0, hidden, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        read = (token < tokens)[:, None] & (column < hidden)[None, :]
        value = tl.load(state + row * hidden + column, column < hidden, 0.0)[None, :]
        energies += tl.sum(tl.load(targets + places + column[None, :], read, 0.0) * value, 1)
    energies = tl.where(live, energies, float("-inf"))
    shares = tl.exp(energies - tl.max(energies, 0))
    shares = shares / tl.sum(shares, 0)
    total = tl.load(bias + unit, inside, 0.0)
    for start in range(0, hidden, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        read = inside[:, None] & (column < hidden)[None, :]
        value = tl.load(state + row * hidden + column, column < hidden, 0.0)
        seen = tl.load(outputs + places + column[None, :], (token < tokens)[:, None] & (column < hidden)[None, :], 0.0)
        context = tl.sum(seen * shares[:, None], 0)
        of_state = weight + unit[:, None] * (2 * hidden) + column[None, :]
        total += tl.sum(tl.load(of_state, read, 0.0) * value[None, :], 1)
        total += tl.sum(tl.load(of_state + hidden, read, 0.0) * context[None, :], 1)
    tl.store(joined + row * hidden + unit, _tanh(total), inside)


@triton.jit
def choose(
    joined, weight, bias, keys, hidden, words,
    INDEX: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The likeliest word; grid: blocks of V, B. Joined (B, H), weight (V, H), bias (V,), keys (B,), the least before.

    A key is a logit, in integers of its order, above ``INDEX`` less the word: of equal logits the first word wins.
    """
    row = tl.program_id(1)
    word = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = word < words
    logits = tl.load(bias + word, inside, 0.0)
    for start in range(0, hidden, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        read = inside[:, None] & (column < hidden)[None, :]
        value = tl.load(joined + row * hidden + column, column < hidden, 0.0)[None, :]
        logits += tl.sum(tl.load(weight + word[:, None].to(tl.int64) * hidden + column[None, :], read, 0.0) * value, 1)
    logits = tl.where(inside, logits, float("-inf"))
    bits = logits.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & INDEX)).to(tl.int64)
    tl.atomic_max(keys + row, tl.max((ordered << 32) | (INDEX - word).to(tl.int64), 0))


@triton.jit
def _tanh(x):
    """Exact to the last digits, and finite for every x."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)
