"""The limit: bytes and FLOPs against those that PyTorch reads and forms, and what follows from a station's speeds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launches import enter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from chatbot.config import ATTENTIONS, PRESETS, Config
from chatbot.model import Chatbot
from chatbot.variants import BASELINE, VARIANTS, Workload
from chatbot.vocabulary import EOS, FIRST_WORD
from ray_jobs.measure import speeds as measured_speeds
from ray_jobs.measure.roofline import (
    BEYOND,
    DISTURBED,
    EXPLAINED,
    PRECISIONS,
    Bound,
    Limit,
    Read,
    Speeds,
    bound_of,
    columns,
    limit_of,
    limits_of,
    moved_bytes,
    phases_of,
    warning,
)

FLAT = Speeds(((1 << 16, 20.0), (1 << 28, 20.0)), {"float32": 100.0})
SMALL = Config(hidden=8, encoder_layers=2, decoder_layers=3, vocabulary=30)
CONFIGS = (SMALL, replace(SMALL, encoder_layers=3, decoder_layers=1), PRESETS["tiny"])
ASKED = Workload(batch=2, prompt_tokens=5, reply_tokens=4)


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of parameters that operations read; of an embedding only the rows."""

    def __init__(self, bot: Chatbot) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        modules = (bot.encoder, bot.decoder)
        self.places = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
        self.read = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding.default:
            self.read += result.nbytes
        elif not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.read += sum(t.nbytes for t in tensors if t.untyped_storage().data_ptr() in self.places)
        return result


def ask(bot: Chatbot, workload: Workload) -> None:
    prompts = torch.full((workload.batch, workload.prompt_tokens), FIRST_WORD)
    prompts[:, -1] = EOS
    with torch.no_grad():
        bot.search()(prompts, torch.full((workload.batch,), workload.prompt_tokens), workload.reply_tokens)


def states_read(config: Config, workload: Workload, element: int) -> int:
    """Bytes that are no parameters: in each step the encoder's outputs (but for ``dot`` twice) and the states."""
    outputs = workload.prompt_tokens * (1 if config.attention == "dot" else 2)
    return workload.reply_tokens * (outputs + config.decoder_layers) * workload.batch * config.hidden * element


def hoisted(config: Config, workload: Workload) -> tuple[int, int]:
    """Numbers and FLOPs that PyTorch reads and forms anew in each step, though they depend on the prompt alone."""
    again, wide = workload.reply_tokens - 1, config.hidden
    numbers = {"dot": 0, "general": wide * wide + wide, "concat": wide * wide}[config.attention]
    flops = 0 if config.attention == "dot" else 2 * workload.prompt_tokens * workload.batch * wide * wide
    if config.attention == "concat":  # it also meets the same decoder state once for each of the T positions
        apart = 2 * (workload.prompt_tokens - 1) * workload.batch * wide * wide
        return again * numbers, again * flops + workload.reply_tokens * apart
    return again * numbers, again * flops


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_are_those_that_pytorch_reads(config: Config, attention: str, dtype: str) -> None:
    config = replace(config, attention=attention)
    bot, kind = Chatbot.random(config), getattr(torch, dtype)
    bot.encoder.to(kind)
    bot.decoder.to(kind)
    with Counting(bot) as counted:
        ask(bot, ASKED)
    moved = moved_bytes(phases_of(config, ASKED, PRECISIONS[dtype]))
    numbers, _ = hoisted(config, ASKED)
    assert moved == counted.read + states_read(config, ASKED, kind.itemsize) - numbers * kind.itemsize


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_flops_are_those_that_pytorch_counts(config: Config, attention: str) -> None:
    """But for the energies, which PyTorch forms without a matrix product."""
    config = replace(config, attention=attention)
    with FlopCounterMode(display=False) as counter:
        ask(Chatbot.random(config), ASKED)
    energies = 2 * ASKED.reply_tokens * ASKED.prompt_tokens * ASKED.batch * config.hidden
    phases = phases_of(config, ASKED, PRECISIONS["float32"])
    _, spared = hoisted(config, ASKED)
    assert sum(p.times * p.flops for p in phases) == counter.get_total_flops() + energies - spared


def test_int8_keeps_a_byte_for_each_weight_a_scale_for_each_row_and_biases_as_they_are() -> None:
    sizes = [(p.shape, p.numel()) for name, p in Chatbot.random(SMALL).decoder.named_parameters() if name[0] != "e"]
    weights = sum(count + 4 * shape[0] if len(shape) == 2 else 4 * count for shape, count in sizes)
    step = phases_of(SMALL, ASKED, PRECISIONS["int8"])[2].reads[0].size
    apart = (ASKED.prompt_tokens + 1 + SMALL.decoder_layers) * ASKED.batch * SMALL.hidden * 4
    assert step == weights + apart


def test_the_tutorials_reply_by_hand() -> None:
    """H = 500, V = 7836, T = 8, S = 10, batch 1; 20 GB/s whatever is read, 100 GFLOP/s."""
    recurrent = (1500 * 500 + 1500) * 4
    step = 4 * recurrent + (500 * 1000 + 500) * 4 + (7836 * 500 + 7836) * 4 + (3 + 8) * 500 * 4
    again = 2 * 2 * 7 * recurrent
    once = 2 * (2 * recurrent) + 2 * ((1500 * 1000 + 1500) * 4 + recurrent) + 8 * 500 * 4
    assert step == pytest.approx(29.75e6, rel=1e-3)
    limit = limit_of(PRESETS["tutorial"], Workload(model="tutorial"), "float32", FLAT)
    assert limit is not None
    assert limit.moved_mb == pytest.approx((10 * step + again + once) / 1e6)
    assert limit.ms == limit.memory_ms == pytest.approx((10 * step + max(again, once)) / 20e9 * 1e3)
    assert limit.int8_share == pytest.approx(0.25, abs=0.005)


def test_stages_that_wait_for_each_other_take_their_time_however_fast_the_rest_is() -> None:
    """Two encoder layers at 8 positions; in each of 10 steps two layers, concat and out."""
    fast = Speeds(((1 << 16, 1e6), (1 << 28, 1e6)), {"float32": 1e9}, stage_s=2e-6)
    limit = limit_of(PRESETS["tutorial"], Workload(model="tutorial"), "float32", fast)
    assert limit is not None
    assert limit.stages == 2 * 8 + 10 * (2 + 2)
    assert limit.ms == limit.latency_ms == pytest.approx(56 * 2e-3)
    assert bound_of(limit, 0.5) == Bound.LATENCY
    assert bound_of(limit, 0.2) == Bound.OVERHEAD


def test_a_station_that_was_measured_before_stages_were_has_none() -> None:
    assert Speeds.of({"read": [[1 << 16, 20.0]], "gflops": {"float32": 100.0}}).stage_s == 0.0
    assert Speeds.of(asdict(replace(FLAT, stage_s=2e-6))).stage_s == 2e-6


# Whatever the sizes and the speeds

configs = st.builds(
    Config,
    hidden=st.integers(1, 600),
    encoder_layers=st.integers(1, 3),
    decoder_layers=st.integers(1, 2),
    attention=st.sampled_from(ATTENTIONS),
    vocabulary=st.integers(10, 10_000),
)
workloads = st.builds(
    Workload, batch=st.integers(1, 64), prompt_tokens=st.integers(1, 20), reply_tokens=st.integers(1, 20)
)
rates = st.floats(1.0, 1e4)


@st.composite
def speeds(draw: st.DrawFn) -> Speeds:
    sizes = sorted(draw(st.sets(st.integers(1 << 12, 1 << 28), min_size=2, max_size=8)))
    gflops = {name: draw(rates) for name in ("float32", *draw(st.sets(st.sampled_from(["bfloat16", "int8"]))))}
    return Speeds(tuple((size, draw(rates)) for size in sizes), gflops, draw(st.floats(0.0, 1e-4)))


def known(config: Config, workload: Workload, dtype: str, speeds: Speeds) -> Limit:
    limit = limit_of(config, workload, dtype, speeds)
    assert limit is not None
    return limit


LARGER: tuple[Callable[[Config, Workload], tuple[Config, Workload]], ...] = (
    lambda c, w: (replace(c, hidden=c.hidden + 7), w),
    lambda c, w: (replace(c, vocabulary=c.vocabulary + 50), w),
    lambda c, w: (replace(c, encoder_layers=c.encoder_layers + 1), w),
    lambda c, w: (replace(c, decoder_layers=min(c.decoder_layers + 1, 2 * c.encoder_layers)), w),
    lambda c, w: (c, replace(w, batch=w.batch + 1)),
    lambda c, w: (c, replace(w, prompt_tokens=w.prompt_tokens + 1)),
    lambda c, w: (c, replace(w, reply_tokens=w.reply_tokens + 1)),
)


@given(configs, workloads, speeds(), st.sampled_from(list(PRECISIONS)), st.sampled_from(LARGER))
def test_more_work_is_never_quicker(
    config: Config,
    workload: Workload,
    speeds: Speeds,
    dtype: str,
    larger: Callable[[Config, Workload], tuple[Config, Workload]],
) -> None:
    less, more = known(config, workload, dtype, speeds), known(*larger(config, workload), dtype, speeds)
    assert more.ms >= less.ms * (1 - 1e-9)
    assert more.moved_mb >= less.moved_mb
    assert more.gflop >= less.gflop


@given(configs, workloads, speeds(), st.sampled_from(list(PRECISIONS)))
def test_a_limit_lies_between_its_slowest_resource_and_all_in_turn(
    config: Config, workload: Workload, speeds: Speeds, dtype: str
) -> None:
    limit = known(config, workload, dtype, speeds)
    needed = limit.memory_ms, limit.compute_ms, limit.latency_ms
    assert max(needed) <= limit.ms * (1 + 1e-9)
    assert limit.ms <= sum(needed) * (1 + 1e-9)


@given(configs, workloads, speeds(), st.floats(1.0, 10.0))
def test_a_machine_that_is_faster_at_all_is_as_much_faster(
    config: Config, workload: Workload, speeds: Speeds, factor: float
) -> None:
    faster = Speeds(
        tuple((size, rate * factor) for size, rate in speeds.read),
        {name: rate * factor for name, rate in speeds.gflops.items()},
        speeds.stage_s / factor,
    )
    before, after = known(config, workload, "float32", speeds), known(config, workload, "float32", faster)
    assert after.ms * factor == pytest.approx(before.ms)


@given(configs, workloads, speeds())
def test_narrower_weights_never_move_more(config: Config, workload: Workload, speeds: Speeds) -> None:
    config = replace(config, hidden=config.hidden + 2)  # a matrix of one column is mostly scales
    moved = [known(config, workload, dtype, speeds).moved_mb for dtype in ("int8", "float32")]
    assert moved == sorted(moved)
    halves = {known(config, workload, dtype, FLAT).moved_mb * 2 for dtype in ("bfloat16", "float16")}
    assert halves == {moved[1]}


@given(speeds(), st.lists(st.floats(1.0, 1e12), min_size=2))
def test_a_larger_working_set_is_never_read_faster(speeds: Speeds, sizes: list[float]) -> None:
    found = [speeds.gb_s(size) for size in sorted(sizes)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(found))
    for size, rate in speeds.read:
        assert speeds.gb_s(size) >= rate * (1 - 1e-12), "no slower than it was measured"


def test_bandwidth_between_two_sizes_lies_halfway_at_their_geometric_mean() -> None:
    curve = Speeds(((1 << 20, 100.0), (1 << 24, 20.0)), {"float32": 1.0})
    assert curve.gb_s(1 << 22) == pytest.approx(60.0)
    assert (curve.gb_s(1), curve.gb_s(1 << 30)) == (100.0, 20.0)


def test_the_part_of_a_working_set_that_stays_in_a_cache_is_read_there() -> None:
    """Of 16 MB in turn one may stay in the cache: 1 MB at 100 GB/s and 15 MB at 10."""
    curve = Speeds(((1_000_000, 100.0), (16_000_000, 10.0)), {"float32": 1.0})
    assert curve.seconds(Read(16_000_000, 16_000_000)) == pytest.approx(1e-5 + 1.5e-3)
    assert curve.seconds(Read(32_000_000, 16_000_000)) == pytest.approx(2 * (1e-5 + 1.5e-3))
    assert curve.seconds(Read(1_000_000, 16_000_000)) == pytest.approx(1e-5)
    assert curve.seconds(Read(500_000, 500_000)) == pytest.approx(5e-6)


@given(speeds(), st.integers(1, 10**10), st.integers(1, 10**10), st.floats(0.0, 1.0))
def test_no_division_between_caches_reads_faster(speeds: Speeds, size: int, working_set: int, kept: float) -> None:
    """At a size that was measured, or any size at the speed of the next larger one."""
    each = min(size, working_set)
    sizes = [float(one) for one, _ in speeds.read if one <= each]
    part = sizes[int(kept * (len(sizes) - 1))] if sizes else each
    least = speeds.seconds(Read(size, working_set))
    divided = part / speeds.gb_s(part) + (each - part) / speeds.gb_s(working_set)
    assert least <= 1e-9 * size / each * divided * (1 + 1e-6) + 1e-9
    assert least <= 1e-9 * size / speeds.gb_s(working_set) * (1 + 1e-6) + 1e-9
    assert least >= 1e-9 * size / max(rate for _, rate in speeds.read) * (1 - 1e-6) - 1e-9


def test_what_was_measured_too_low_is_mended_by_a_larger_working_set() -> None:
    assert Speeds(((1, 5.0), (2, 50.0), (3, 20.0)), {"float32": 1.0}).gb_s(1) == 50.0


def test_narrow_weights_can_be_multiplied_in_float32() -> None:
    given_rates = Speeds(FLAT.read, {"float32": 100.0, "float16": 2.0, "bfloat16": 200.0})
    assert [given_rates.peak(name) for name in ("float32", "float16", "bfloat16", "int8")] == [100, 100, 200, 100]


@pytest.mark.parametrize(
    ("flags", "times"),
    [
        ("avx2", 4),
        ("avx2 avx512f avx512_vnni avx_vnni", 4),
        ("avx512_vnni amx_tile amx_int8", 32),
        ("asimd asimddp", 4),
        ("asimddp i8mm", 8),
        ("", 4),
    ],
)
@pytest.mark.parametrize("measured", [0.0, 2.6, 10_000.0])
def test_int8s_rate_is_what_the_instructions_allow_at_most(
    flags: str, times: int, measured: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own product reaches a hundredth of it on AVX2."""
    rates = {torch.float32: 100.0, torch.int8: measured}
    monkeypatch.setattr(measured_speeds, "cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(measured_speeds, "_product_rate", lambda dtype, device: rates.get(dtype, 0.0))
    assert measured_speeds._product_rates("cpu") == {"float32": 100.0, "int8": max(measured, times * 100.0)}
    assert measured_speeds._product_rates("cuda").get("int8", 0.0) == measured


def test_speeds_come_back_from_json_as_they_were() -> None:
    assert Speeds.of({"read": [list(pair) for pair in FLAT.read], "gflops": FLAT.gflops}) == FLAT
    assert Speeds.of(asdict(FLAT)) == FLAT


# What is not known


def test_a_precision_that_is_none_of_ours_has_no_limit() -> None:
    assert limit_of(SMALL, ASKED, "float8", FLAT) is None


def test_products_in_tf32_have_the_limit_of_tensor_cores_and_none_where_these_were_not_measured() -> None:
    """On an H100 they are formed 8 times as fast as those of float32, whose weights they have."""
    many = replace(ASKED, batch=64, device="cuda")
    cores = replace(FLAT, gflops={"float32": 1.0, "tf32": 8.0})
    found = limits_of(SMALL, many, ("eager", "tf32"), cores)
    assert found["tf32"].compute_ms == pytest.approx(found["eager"].compute_ms / 8)
    assert found["tf32"].memory_ms == found["eager"].memory_ms
    assert found["tf32"].ms < found["eager"].ms
    assert "tf32" not in limits_of(SMALL, many, ("eager", "tf32"), FLAT)


def test_the_rate_of_tf32_is_measured_with_its_switches_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def rate(dtype: torch.dtype, device: str) -> float:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return 2.0 if seen[-1] else 1.0

    monkeypatch.setattr(measured_speeds, "_product_rate", rate)
    before = torch.backends.cuda.matmul.allow_tf32
    assert measured_speeds._product_rates("cuda")["tf32"] == 2.0
    assert (before, seen.count(True), torch.backends.cuda.matmul.allow_tf32) == (False, 1, False)


def test_replies_that_may_stop_early_have_no_limit() -> None:
    assert limit_of(SMALL, replace(ASKED, stop_at_eos=True), "float32", FLAT) is None


def test_only_known_programs_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = VARIANTS[BASELINE].prepare
    enter(monkeypatch, "hidden", prepare, kind="unknown")
    enter(monkeypatch, "strange", prepare, dtype="float8")
    enter(monkeypatch, "narrow", prepare, dtype="qint8")
    found = limits_of(PRESETS["tutorial"], Workload(), (BASELINE, "hidden", "strange", "narrow"), FLAT)
    assert set(found) == {BASELINE, "narrow"}
    assert found["narrow"].ms < found[BASELINE].ms / 3


# What a row says

EIGHT = Limit(ms=8.0, memory_ms=8.0, compute_ms=2.0, moved_mb=400.0, gflop=0.2, int8_share=0.2538)


def test_without_a_limit_or_a_latency_a_row_says_nothing() -> None:
    assert columns(None, 10.0, 1) == columns(EIGHT, None, 1) == {}


@pytest.mark.parametrize(
    ("limit", "p50_ms", "bound"),
    [
        (EIGHT, 8.0, Bound.MEMORY),
        (EIGHT, 8.0 / EXPLAINED, Bound.MEMORY),
        (EIGHT, 8.1 / EXPLAINED, Bound.OVERHEAD),
        (replace(EIGHT, compute_ms=8.1), 20.0, Bound.COMPUTE),
        (replace(EIGHT, stages=4000, latency_ms=8.1), 20.0, Bound.LATENCY),
        (replace(EIGHT, compute_ms=8.1), 80.0, Bound.OVERHEAD),
    ],
)
def test_the_bound_is_the_slower_resource_where_it_explains_a_quarter(
    limit: Limit, p50_ms: float, bound: Bound
) -> None:
    found = columns(limit, p50_ms, 1)
    assert (found["limit_ms"], found["moved_mb"], found["bound"]) == (8.0, 400.0, bound)
    assert found["of_limit"] == pytest.approx(8.0 / p50_ms)
    assert found["bound_why"].startswith(f"{bound}-bound: ")


@pytest.mark.parametrize(
    ("limit", "p50_ms", "batch", "why"),
    [
        (
            EIGHT,
            20.0,
            1,
            "memory-bound: 0.40 GB per reply at 50 GB/s take 8 of 20 ms; scripting can't reduce that, "
            "int8 would move a quarter",
        ),
        (
            replace(EIGHT, moved_mb=51.3, int8_share=0.51),
            20.0,
            16,
            "memory-bound: 51.3 MB per 16 replies at 6 GB/s take 8 of 20 ms; scripting can't reduce that, "
            "int8 would move half",
        ),
        (
            replace(EIGHT, int8_share=1.0),
            20.0,
            1,
            "memory-bound: 0.40 GB per reply at 50 GB/s take 8 of 20 ms; scripting can't reduce that",
        ),
        (
            replace(EIGHT, int8_share=0.4),
            20.0,
            1,
            "memory-bound: 0.40 GB per reply at 50 GB/s take 8 of 20 ms; scripting can't reduce that, "
            "int8 would move 40%",
        ),
        (
            replace(EIGHT, compute_ms=10.0, ms=10.0),
            20.0,
            1,
            "compute-bound: 0.2 GFLOP per reply at 20 GFLOP/s take 10 of 20 ms",
        ),
        (
            replace(EIGHT, stages=4000, latency_ms=10.0, ms=10.0),
            20.0,
            1,
            "latency-bound: 4000 stages per reply that wait for each other, 2.5 us each, take 10 of 20 ms; "
            "a larger batch costs them no time",
        ),
        (
            EIGHT,
            80.0,
            1,
            "overhead-bound: 0.40 GB and 0.2 GFLOP per reply need 8 of 80 ms; "
            "the rest is call overhead, or kernels below the hardware's speed",
        ),
    ],
)
def test_the_reason_is_a_sentence(limit: Limit, p50_ms: float, batch: int, why: str) -> None:
    assert columns(limit, p50_ms, batch)["bound_why"] == why


@given(st.floats(1.0, 1000.0))
def test_on_a_disturbed_machine_overhead_is_not_told_from_waiting(p50_ms: float) -> None:
    quiet, disturbed = (columns(EIGHT, p50_ms, 1, disturbed=known) for known in (False, True))
    if quiet["bound"] != Bound.OVERHEAD:
        assert disturbed == quiet
    else:
        assert disturbed == {k: v for k, v in quiet.items() if k != "bound"} | {"bound_why": DISTURBED}


def test_less_than_the_limit_is_doubted() -> None:
    assert warning(None) is None
    assert warning(BEYOND) is None
    assert "theoretical limit (120%)" in (warning(1.2) or "")
    assert "keeps weights where they are computed with" in (warning(1.2) or "")


# What was recorded


def committed() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each trial of the committed runs that has limits, and its rows by variant."""
    found = []
    for run in sorted((Path(__file__).parent.parent / "results").glob("*/run.json")):
        rows = json.loads(run.with_name("matrix.json").read_text())
        for name, trial in json.loads(run.read_text())["trials"].items():
            if trial.get("limits"):
                found.append((trial, {row["variant"]: row for row in rows if row["trial_id"] == name}))
    return found


def test_no_variant_of_a_committed_run_beats_its_limit() -> None:
    """Neither the recorded one, nor that which today's bound makes of the recorded speeds."""
    trained = replace(PRESETS["tutorial"], vocabulary=6103)  # words of the corpus that run was trained with
    shares: dict[tuple[str, str], float] = {}
    for trial, rows in committed():
        workload, speeds = Workload(**trial["workload"]), Speeds.of(trial["speeds"])
        measured = {name: row for name, row in rows.items() if row["of_limit"] is not None}
        shares |= {(name, "recorded"): row["of_limit"] for name, row in measured.items()}
        if "tutorial" in workload.model:
            limits = limits_of(trained, workload, measured, speeds)
            assert limits["eager"].moved_mb == pytest.approx(rows["eager"]["moved_mb"])
            assert all(limits[name].ms <= 1.0001 * row["limit_ms"] for name, row in measured.items())
            shares |= {(name, "today"): limits[name].ms / row["p50_ms"] for name, row in measured.items()}
    assert len(shares) > 25
    assert {name: share for name, share in shares.items() if share > 1} == {}
    assert shares["native-int8", "today"] > 0.5, "and it is no idle bound"
