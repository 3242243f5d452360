"""Operators of a trial's variants side by side, and one sentence on why a variant is faster than the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from chatbot.variants import BASELINE
from ray_jobs.process.profile.profiler import Operator, Traced
from ray_jobs.process.profile.shares import DISPATCH, INTERPRETER, KERNEL, Shares

WHOLE = 0.02  # of the baseline's reply: a difference below it is not explained
DISTURBED = 2.0  # times as long as before tracing: more than a profiler costs
BETWEEN = "(between operators)"


@dataclass(frozen=True)
class OperatorRow:
    """A row of ``traces/operators.parquet``: one operator of one traced variant, all of its calls in the trace.

    The columns are sums of ``torch.profiler`` over ``replies`` replies; ``self_cpu_us`` of a variant add up to all
    of the traced time.
    """

    trial_id: str
    variant: str
    operator: str
    kind: str
    replies: int
    calls: int
    self_cpu_us: float
    total_cpu_us: float
    self_device_us: float | None
    self_memory_bytes: int


@dataclass(frozen=True)
class KernelRow:
    """A row of ``traces/kernels.parquet``: one kernel of one traced variant on a GPU, all of its runs in the trace.

    Their time is in ``self_device_us`` of the operators as well.
    """

    trial_id: str
    variant: str
    kernel: str
    replies: int
    calls: int
    device_us: float


@dataclass(frozen=True)
class VariantRow:
    """One traced variant in ``traces/operators.json``: where the time of its fastest traced reply goes."""

    trial_id: str
    variant: str
    status: str  # done or failed
    reason: str | None
    replies: int
    untraced_ms: float | None  # the median just before the trace
    reply_ms: float | None  # traced; None with all below: it computes outside of operators
    kernel_ms: float | None
    dispatch_ms: float | None
    interpreter_ms: float | None
    kernel_share: float | None  # of reply_ms
    overhead_share: float | None  # dispatch and interpreter, of reply_ms
    encode_ms: float | None
    decode_ms: float | None
    operators: int  # calls in one reply
    sentence: str | None  # why it is faster than the baseline or not


def disturbance_warning(row: VariantRow) -> str | None:
    """A warning about a trace that took far longer than the same replies before it."""
    if row.reply_ms is None or row.untraced_ms is None or row.reply_ms < DISTURBED * row.untraced_ms:
        return None
    return (
        f"{row.variant} took {row.reply_ms / row.untraced_ms:.1f} times as long in the trace as before it: its "
        "operators are very short, or the machine was busy; then trace again when it is quiet"
    )


def operator_rows(trial_id: str, traced: Traced) -> list[OperatorRow]:
    """The operators of one variant, by self time."""
    return [OperatorRow(trial_id, traced.variant, replies=traced.replies, **vars(one)) for one in traced.operators]


def kernel_rows(trial_id: str, traced: Traced) -> list[KernelRow]:
    """The kernels of one variant, by their time."""
    return [KernelRow(trial_id, traced.variant, replies=traced.replies, **vars(one)) for one in traced.kernels]


def variant_rows(trial_id: str, traces: Sequence[Traced]) -> list[VariantRow]:
    """The variants of one trial, in order."""
    baseline = next((traced.shares for traced in traces if traced.variant == BASELINE), None)
    return [_variant_row(trial_id, traced, baseline) for traced in traces]


def _variant_row(trial_id: str, traced: Traced, baseline: Shares | None) -> VariantRow:
    shares = traced.shares
    told = {one.name: None if shares is None else getattr(shares, one.name) for one in fields(Shares)}
    kernel_share = None if shares is None else shares.kernel_ms / shares.reply_ms
    return VariantRow(
        trial_id=trial_id,
        variant=traced.variant,
        status="failed" if traced.failed else "done",
        reason=traced.failed,
        replies=traced.replies,
        untraced_ms=traced.untraced_ms,
        **told,
        kernel_share=kernel_share,
        overhead_share=None if kernel_share is None else 1 - kernel_share,
        operators=round(sum(one.calls for one in traced.operators if "::" in one.operator) / max(1, traced.replies)),
        sentence=None if traced.failed else explanation(traced, baseline),
    )


def explanation(traced: Traced, baseline: Shares | None) -> str:
    """The reason why a variant is faster than the baseline, or not, as far as its trace shows."""
    name, shares = traced.variant, traced.shares
    if shares is None:
        return f"{name} computes outside of PyTorch's operators, so its trace does not tell kernels from the rest"
    if name == BASELINE or baseline is None:
        parts = (shares.kernel_ms, shares.dispatch_ms, shares.interpreter_ms)
        kernels, dispatch, interpreter = (part / shares.reply_ms for part in parts)
        most = f"at most {1 / kernels:.2f} times as fast" if kernels else "as fast as one likes"
        return (
            f"{kernels:.0%} of {name}'s reply is kernels: without any overhead they would answer {most}; "
            f"{dispatch:.0%} is dispatch, {interpreter:.0%} the interpreter"
        )
    saved = baseline.reply_ms - shares.reply_ms
    names = (INTERPRETER, DISPATCH, KERNEL)
    changes = {kind: getattr(shares, f"{kind}_ms") - getattr(baseline, f"{kind}_ms") for kind in names}
    told = ", ".join(f"{kind} {change:+.2f} ms" for kind, change in changes.items())
    if abs(saved) < WHOLE * baseline.reply_ms:
        return f"{name} takes as long as {BASELINE} in the trace ({told})"
    verb = "saves" if saved > 0 else "loses"
    return f"{name} {verb} {abs(saved):.2f} of {baseline.reply_ms:.2f} ms a reply in the trace: {told}"


@dataclass(frozen=True)
class Use:
    """One operator in one variant, per reply."""

    calls: float
    self_ms: float  # the device's own time added
    memory_kb: float  # taken less given back


NEVER = Use(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class OperatorPair:
    """One operator in two variants."""

    operator: str
    kind: str
    left: Use
    right: Use


def side_by_side(left: Traced, right: Traced) -> list[OperatorPair]:
    """Every operator of two traces, the one with the most self time first; all that is no operator is one line."""
    kinds = {_line(one): one.kind for one in (*left.operators, *right.operators)}
    uses = [_uses(traced) for traced in (left, right)]
    pairs = [OperatorPair(name, kind, *(use.get(name, NEVER) for use in uses)) for name, kind in kinds.items()]
    return sorted(pairs, key=lambda pair: -max(pair.left.self_ms, pair.right.self_ms))


def _line(one: Operator) -> str:
    return BETWEEN if one.kind == INTERPRETER else one.operator


def _uses(traced: Traced) -> dict[str, Use]:
    found: dict[str, Use] = {}
    for one in traced.operators:
        name = _line(one)
        before = found.get(name, NEVER)
        found[name] = Use(
            before.calls + (0 if name == BETWEEN else one.calls / traced.replies),
            before.self_ms + (one.self_cpu_us + (one.self_device_us or 0.0)) / traced.replies / 1e3,
            before.memory_kb + one.self_memory_bytes / traced.replies / 1e3,
        )
    return found
