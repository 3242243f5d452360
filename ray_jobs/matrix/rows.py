"""Launches -> the rows of the matrix: a latency, a speedup and a verdict for each trial and variant."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from chatbot.variants import BASELINE, CONTROL, UNTRIED, Workload, variant_named
from ray_jobs import statistics
from ray_jobs.matrix import cold as cold_columns
from ray_jobs.matrix import load as load_columns
from ray_jobs.matrix.against import against
from ray_jobs.matrix.row_warnings import drift_of, gpus_of, imprecision, interference_of, sentinel_ms, warnings_of
from ray_jobs.matrix.tails import tails
from ray_jobs.measure import dynamo, interference, roofline
from ray_jobs.measure.cold import Cold
from ray_jobs.measure.dynamo import Compilation
from ray_jobs.measure.replies import LEAST_COMPARED, ReplyComparison
from ray_jobs.measure.result import LaunchResult, Limits, Memory, VariantFacts
from ray_jobs.measure.trial import Pair, Place, Trial
from ray_jobs.sides import AGAIN, BASE, label_of
from ray_jobs.statistics import Interval, Verdict

NO_MEMORY, NO_LIMITS, NO_COLD = Memory(), Limits(), Cold()
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class Status(StrEnum):
    """The outcome of a trial, or of one of its variants."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of each key, keys and items in order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the matrix; unknown values are None. Columns are only ever appended."""

    run_id: str
    trial_id: str
    station: str | None
    host: str | None
    device: str
    device_name: str | None
    model: str
    batch: int
    prompt_tokens: int | None  # null where the model is not the chatbot
    reply_tokens: int | None
    threads: int
    variant: str
    baseline: str
    exact: bool
    samples: int | None = None
    launches: int | None = None
    discarded_rounds: int | None = None
    p50_ms: float | None = None
    p50_low_ms: float | None = None
    p50_high_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    verdict: str | None = None  # baseline, same, faster, slower, inconclusive or invalid
    identical_replies: float | None = None  # share
    prepare_s: float | None = None
    peak_memory_mb: float | None = None
    limit_ms: float | None = None
    of_limit: float | None = None
    bound: str | None = None  # memory, compute, latency or overhead
    status: str = Status.DONE
    reason: str | None = None
    warnings: tuple[str, ...] = field(default=())
    disturbed_rounds: int | None = None  # at most half of a launch's rounds are discarded
    warmup_calls: float | None = None  # slow ones before it settled, the median over launches
    sentinel_ms: float | None = None  # a fixed computation beside the launches: the machine's own speed
    sentinel_drift: float | None = None  # its time in the last half of the launches over that in the first, less 1
    hardware: str | None = None  # the class of the station: those of one class should answer equally fast
    p50_scatter: float | None = None  # standard deviation over launches of ln of the launch's own median
    bound_why: str | None = None
    moved_mb: float | None = None  # MB that a call must read, on which limit_ms rests
    stop_at_eos: bool = False  # a call ends when each of its replies has
    tokens_per_reply: float | None = None  # written: up to and including EOS where the workload stops there
    per_token_ms: float | None = None  # mean latency of a call over the mean tokens of a reply; see first_token_ms
    compared_replies: int | None = None  # that identical_replies is a share of
    first_difference: float | None = None  # of replies that are not identical the median first differing step, from 1
    cores: str | None = None  # that launches were pinned to, and what was left empty for them
    graphs: int | None = None  # that torch.compile made of it; null where it is not used
    graph_breaks: int | None = None  # places where it went back to Python
    recompiles: int | None = None  # functions that it looked at anew within the rounds of all launches
    outside_compiled: float | None = None  # share of the host's time of a profiled call, outside of compiled graphs
    first_token_ms: float | None = None  # of a model with parts; per_token_ms is then of each token after the first
    prepare_memory_mb: float | None = None  # the peak of preparing alone
    p90_speedup: float | None = None  # the ratio of the p90 of each launch, the baseline's over the variant's
    p90_speedup_low: float | None = None
    p90_speedup_high: float | None = None
    p99_speedup: float | None = None
    p99_speedup_low: float | None = None
    p99_speedup_high: float | None = None
    side: str | None = None  # the environment that it ran in; null where none was compared, the same below
    side_speedup: float | None = None  # of the same variant, base over this side: above 1 is faster than base
    side_speedup_low: float | None = None
    side_speedup_high: float | None = None
    side_verdict: str | None = None  # same, faster, slower, inconclusive or invalid; of base itself null
    side_p90_speedup: float | None = None  # the ratio of the p90 of each launch, of base over this side
    side_p90_speedup_low: float | None = None
    side_p90_speedup_high: float | None = None
    side_p99_speedup: float | None = None
    side_p99_speedup_low: float | None = None
    side_p99_speedup_high: float | None = None
    import_s_empty: float | None = None  # until all is imported; _empty: nothing is compiled, as in the first pod
    load_s_empty: float | None = None
    prepare_cold_s_empty: float | None = None
    first_reply_ms_empty: float | None = None
    to_first_reply_s_empty: float | None = None  # from exec to the reply in hand
    to_first_reply_s_empty_low: float | None = None
    to_first_reply_s_empty_high: float | None = None
    import_s_cached: float | None = None  # with what an earlier start compiled, in a new process
    load_s_cached: float | None = None
    prepare_cold_s_cached: float | None = None
    first_reply_ms_cached: float | None = None
    to_first_reply_s_cached: float | None = None
    to_first_reply_s_cached_low: float | None = None
    to_first_reply_s_cached_high: float | None = None
    import_s_warm: float | None = None  # of the second model in a live process
    load_s_warm: float | None = None
    prepare_cold_s_warm: float | None = None
    first_reply_ms_warm: float | None = None
    to_first_reply_s_warm: float | None = None
    to_first_reply_s_warm_low: float | None = None
    to_first_reply_s_warm_high: float | None = None
    artifact_mb: float | None = None  # on disk, for a start that finds everything
    weights_mb: float | None = None  # of the model as it is loaded
    kept_share: float | None = None  # of the files that a start reads, what the page cache did not let go
    pays_after_empty: float | None = None  # replies, until a faster variant has won back what its start costs more
    pays_after_empty_low: float | None = None
    pays_after_empty_high: float | None = None
    pays_after_cached: float | None = None
    pays_after_cached_low: float | None = None
    pays_after_cached_high: float | None = None
    scenario: str | None = None  # single-stream, offline or server; null in runs from before there were others
    slo: str | None = None  # the bound that server holds, as p99=50ms
    replicas: int | None = None  # null in single-stream, as all that follows
    replica_kind: str | None = None  # process or thread
    max_batch: int | None = None  # requests that a replica answers together, at most
    offered_rps: float | None = None  # mean of the windows nearest to the capacity; of offline null
    capacity_rps: float | None = (
        None  # calls a second: the most that hold the bound, 0 if none; of offline all answered
    )
    capacity_rps_low: float | None = None
    capacity_rps_high: float | None = None
    capacity_ratio: float | None = None  # the variant's over the baseline's: above 1 is more
    capacity_ratio_low: float | None = None
    capacity_ratio_high: float | None = None
    capacity_verdict: str | None = None  # baseline, same, faster, slower or inconclusive
    goodput_rps: float | None = None  # calls answered within the bound, a second, at offered_rps
    generator_late_p99_us: float | None = None  # of who sends the requests, in all windows
    cost_per_million: float | None = None  # replies, at the capacity, by the price of the station's hour
    through: str | None = None  # direct or serve: what requests passed through; null in single-stream

    @property
    def under_load(self) -> bool:
        """Whether it tells how many calls a second are answered, rather than how long one takes."""
        return self.replicas is not None

    @property
    def name(self) -> str:
        """The variant with its side, unique in its trial."""
        return label_of(self.side, self.variant)

    @property
    def of_base(self) -> bool:
        """Whether it ran in this program's own environment, as everything does where no side was compared."""
        return self.side in (None, BASE)

    @property
    def interval(self) -> Interval | None:
        """The speedup with its limits; None if it has none, like the baseline's."""
        if self.speedup is None or self.speedup_low is None or self.speedup_high is None:
            return None
        return Interval(self.speedup, self.speedup_low, self.speedup_high)


COLUMNS = tuple(f.name for f in fields(Row))


def compared_sides(rows: Iterable[Row]) -> list[Row]:
    """What is compared with ``base``: the rows of the sides in question, then those of their control.

    Each side has the baseline's control too, for its own baseline: that is compared with nothing else.
    """
    return [row for row in _of_sides(rows) if row.variant != CONTROL]


def base_first(rows: Sequence[Row]) -> list[Row]:
    """All rows, those of the control of sides last."""
    return [*(row for row in rows if row.of_base), *_of_sides(rows)]


def _of_sides(rows: Iterable[Row]) -> list[Row]:
    return sorted((row for row in rows if not row.of_base), key=lambda row: row.side == AGAIN)


def asked_sides(rows: Iterable[Row]) -> list[Row]:
    """The same without the control."""
    return [row for row in compared_sides(rows) if row.side != AGAIN]


def rows_of(
    trial: Trial,
    place: Place,
    status: str,
    reason: str | None,
    launches: Sequence[LaunchResult] = (),
    memory: Memory = NO_MEMORY,
    limits: Limits = NO_LIMITS,
    cold: Cold = NO_COLD,
) -> list[Row]:
    """The rows of a trial, one for each of its variants, of each side.

    A failed trial keeps what its committed launches tell; its status and reason say that they are not all.
    """
    rows: list[Row] = []
    base: dict[str, Any] = {}
    for pair in trial.pairs:
        common, label = _common(trial, place, pair), pair.label
        facts = [launch.facts[label] for launch in launches if label in launch.facts]
        broken = next((f.failed for f in facts if f.failed), None)
        lacking = next((f.skipped for f in facts if f.skipped), None)
        if status != Status.SKIPPED and broken is not None:
            rows.append(Row(**common, status=Status.FAILED, reason=broken))
        elif lacking is not None:
            rows.append(Row(**common, status=Status.SKIPPED, reason=lacking))
        elif not facts:
            rows.append(Row(**common, status=status, reason=reason or "no launch was completed"))
        elif trial.load is not None:
            rows.append(_row_under_load(trial, place, pair, status, reason, launches))
        else:
            measured = _measured(trial, pair, launches, facts)
            measured["peak_memory_mb"] = memory.peak_mb.get(label)
            measured["prepare_memory_mb"] = memory.prepare_mb.get(label)
            measured |= _identical(facts, memory.compared.get(label))
            measured |= _compiled(facts, memory.compiled.get(label))
            invalid = measured.pop("invalid")
            mine = cold.of.get(pair.variant) if pair.side == BASE else None
            if invalid is None:  # else it is not known what was measured
                measured |= cold_columns.columns(mine)
                base = measured if pair == (BASE, BASELINE) else base
                measured |= cold_columns.pays_after(measured, base)
                measured |= _limited(
                    limits.of.get(label),
                    measured,
                    trial.workload,
                    interference.complaint(interference_of(launches)),
                )
                if common["exact"] is False and measured["compared_replies"] < LEAST_COMPARED:
                    few = f"only {measured['compared_replies']} replies were compared, not {LEAST_COMPARED}"
                    measured["warnings"] = (*measured.get("warnings", ()), few)
            doubts = dynamo.warnings(memory.compiled.get(label), measured["recompiles"])
            lost = _not_known(memory.lost.get(label), limits.lost if pair.side == BASE else None)
            if pair.side == BASE:
                lost += cold_columns.warnings(mine, cold.lost.get(pair.variant))
            measured["warnings"] = (*common["warnings"], *measured.get("warnings", ()), *doubts, *lost)
            reasons = [text for text in (reason, invalid) if text]
            rows.append(Row(**{**common, **measured}, status=status, reason="; ".join(reasons) or None))
    return rows


def _row_under_load(
    trial: Trial, place: Place, pair: Pair, status: str, reason: str | None, launches: Sequence[LaunchResult]
) -> Row:
    """The row of a variant that was asked under load."""
    common, label = _common(trial, place, pair), pair.label
    facts = [launch.facts[label] for launch in launches if label in launch.facts]
    invalid = _invalid(pair, launches, facts)
    prepared = [f.prepare_s for f in facts if f.prepare_s is not None]
    measured: dict[str, Any] = {"launches": len(launches), **_machine(launches), **_identical(facts, None)}
    measured["prepare_s"] = float(np.median(prepared)) if prepared else None
    found: dict[str, Any] = {"verdict": Verdict.INVALID}
    if invalid is None:
        found = load_columns.told(trial, label, place.hardware, launches)
    doubts = warnings_of(pair, launches, facts, trial.workload)
    warnings = (*common["warnings"], *doubts, *found.pop("warnings", ()))
    reasons = [text for text in (reason, invalid) if text]
    told = {**common, **measured, **found, "warnings": warnings}
    return Row(**told, status=status, reason="; ".join(reasons) or None)


def _common(trial: Trial, place: Place, pair: Pair) -> dict[str, Any]:
    variant = pair.variant
    return {
        "run_id": trial.run_id,
        "trial_id": trial.id,
        **vars(place),
        **vars(trial.workload),
        **(dict.fromkeys(("prompt_tokens", "reply_tokens")) if trial.workload.own_model else {}),
        "variant": variant,
        "baseline": BASELINE,
        "exact": variant_named(variant).exact,
        "warnings": (UNTRIED,) if variant_named(variant).untried else (),
        "side": pair.side if trial.sides else None,
        **load_columns.asked(trial),
    }


def _measured(
    trial: Trial, pair: Pair, launches: Sequence[LaunchResult], facts: Sequence[VariantFacts]
) -> dict[str, Any]:
    walls = [launch.timed_ms(pair.label) for launch in launches]
    pooled = np.concatenate(walls)
    medians = [float(np.median(w)) for w in walls if len(w)]
    middle = statistics.median_interval(medians)
    replies = sum(f.replies for f in facts)
    per_reply = sum(f.tokens for f in facts) / replies if replies and all(f.tokens for f in facts) else None
    invalid = _invalid(pair, launches, facts)
    prepared = [f.prepare_s for f in facts if f.prepare_s is not None]
    warm = [f.warmup_calls for f in facts if f.warmup_calls is not None]
    return {
        "samples": len(pooled),
        "launches": len(launches),
        "p50_ms": float(np.median(medians)) if medians else None,
        "p50_low_ms": middle.low if middle else None,
        "p50_high_ms": middle.high if middle else None,
        "p50_scatter": float(np.std(np.log(medians), ddof=1)) if len(medians) >= 2 else None,
        "p90_ms": statistics.percentile(pooled, 0.90),
        "p95_ms": statistics.percentile(pooled, 0.95),
        "p99_ms": statistics.percentile(pooled, 0.99),
        "mean_ms": float(pooled.mean()) if len(pooled) else None,
        "tokens_per_reply": per_reply,
        "per_token_ms": float(pooled.mean()) / per_reply if per_reply and len(pooled) else None,
        "prepare_s": float(np.median(prepared)) if prepared else None,
        **_tokens(facts),
        "invalid": invalid,
        "warmup_calls": float(np.median(warm)) if warm else None,
        **_machine(launches),
        **_with_warnings(_compared(trial, pair, launches, facts, invalid), against(trial, pair, launches, invalid)),
    }


def _invalid(pair: Pair, launches: Sequence[LaunchResult], facts: Sequence[VariantFacts]) -> str | None:
    """Why a variant is. Every launch compares replies anew: one that finds a fault is enough."""
    baseline = Pair(pair.side, BASELINE).label
    untrue = next((f.invalid for launch in launches if (f := launch.facts[baseline]).invalid), None)
    if untrue is not None and pair.variant != BASELINE:
        return f"there is nothing to compare with: the baseline is invalid, {untrue}"
    return next((f.invalid for f in facts if f.invalid), None)


def _with_warnings(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The columns of both, and the warnings of either."""
    return {**one, **other, "warnings": (*one.get("warnings", ()), *other.get("warnings", ()))}


def _tokens(facts: Sequence[VariantFacts]) -> dict[str, float]:
    """The medians over launches of when tokens came; empty where the model has no parts."""
    first = [f.first_token_ms for f in facts if f.first_token_ms is not None]
    further = [f.further_token_ms for f in facts if f.further_token_ms is not None]
    if not (first and further):
        return {}
    return {"first_token_ms": float(np.median(first)), "per_token_ms": float(np.median(further))}


def _not_known(memory: str | None, limits: str | None) -> list[str]:
    lost = {"peak memory": memory, "limit": limits}
    return [f"its {what} is not known: {reason}" for what, reason in lost.items() if reason is not None]


def _limited(
    limit: roofline.Limit | None, measured: Mapping[str, Any], workload: Workload, complaint: str | None
) -> dict[str, Any]:
    """The distance of a variant from its limit, and its warnings."""
    disturbed, own = complaint is not None, workload.own_model
    found = roofline.columns(limit, measured["p50_ms"], workload.batch, disturbed, own)
    doubt = roofline.warning(found.get("of_limit"))
    return found | ({"warnings": (*measured["warnings"], doubt)} if doubt else {})


def _identical(facts: Sequence[VariantFacts], alone: ReplyComparison | None) -> dict[str, Any]:
    """The share of replies equal to the baseline's: on distinct prompts if compared, else on the timed ones."""
    replies, identical = sum(f.replies for f in facts), sum(f.identical for f in facts)
    differing = [step for f in facts for step in f.differing]
    if alone is not None:
        replies, identical, differing = alone.replies, alone.identical, list(alone.differing)
    return {
        "identical_replies": identical / replies if replies else None,
        "compared_replies": replies,
        "first_difference": float(np.median(differing)) + 1 if differing else None,
    }


def _compiled(facts: Sequence[VariantFacts], found: Compilation | None) -> dict[str, Any]:
    """What torch.compile compiled, and whether it did so while it was timed."""
    recompiled = [f.recompiled for f in facts if f.recompiled is not None]
    return {
        "graphs": found and found.graphs,
        "graph_breaks": found and found.breaks,
        "recompiles": sum(recompiled) if recompiled else None,
        "outside_compiled": found and found.outside,
    }


def _machine(launches: Sequence[LaunchResult]) -> dict[str, Any]:
    """The machine's activity during a trial, the same for every variant."""
    watched = interference_of(launches)
    told: dict[str, Any] = {}
    if interference.watched_causes(watched):
        told["discarded_rounds"] = sum(int((~launch.kept_rounds).sum()) for launch in launches)
        told["disturbed_rounds"] = sum(map(interference.disturbed, watched))
    told["cores"] = "; ".join(dict.fromkeys(filter(None, (w.machine.get("chosen") for w in launches)))) or None
    if speeds := sentinel_ms(launches):
        told["sentinel_ms"] = float(np.median(speeds))
    if len(speeds) >= 2:
        told["sentinel_drift"] = drift_of(speeds)
    cards = {f"{gpu['name']}, {gpu['multiprocessors']} SMs" for gpu in gpus_of(launches)}
    if len(cards) == 1:  # Ray calls a slice of a card like the whole one
        told["hardware"] = cards.pop()
    return told


def _compared(
    trial: Trial,
    pair: Pair,
    launches: Sequence[LaunchResult],
    facts: Sequence[VariantFacts],
    invalid: str | None,
) -> dict[str, Any]:
    """Speedup, verdict and warnings."""
    if invalid is not None:
        return {"verdict": Verdict.INVALID}
    warnings = warnings_of(pair, launches, facts, trial.workload)
    if pair.variant == BASELINE:
        return {"speedup": 1.0, "verdict": Verdict.BASELINE, "warnings": tuple(warnings)}
    label = pair.label
    logs = [speedups[label] for speedups in (launch.log_speedups() for launch in launches) if label in speedups]
    interval = statistics.speedup(logs)
    verdict = statistics.verdict(interval, trial.margin)
    if interval is None:
        return {"verdict": verdict, "warnings": ("one launch has no interval", *warnings)}
    if interval.half_width > trial.precision:
        warnings.append(imprecision(interval, trial.precision))
    if pair.variant == CONTROL and verdict in (Verdict.FASTER, Verdict.SLOWER):
        warnings.append("the control differs from the baseline, which is the same program: distrust this trial")
    told = {"verdict": verdict, "warnings": tuple(warnings)}
    return {**interval.columns("speedup"), **told, **tails(Pair(pair.side, BASELINE).label, label, launches)}
