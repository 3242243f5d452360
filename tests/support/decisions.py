"""Made-up finished runs of every size that someone may have to decide by: 3 to 17 variants on 1 to 40 stations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from launches import made_launch
from reports import INVALID, Case, made_view

from chatbot.variants import BASELINE, CONTROL, VARIANTS, Workload
from ray_jobs.load.points import Point
from ray_jobs.matrix.rows import COLUMNS, Row
from ray_jobs.measure.result import LaunchResult, VariantFacts
from ray_jobs.report.view import RunView

LONG_LABEL = "my_company.inference.experimental.variants:QUANTIZED_ONNX_WITH_A_VERY_LONG_NAME"
# Times of a call over the baseline's; the widest matrix that is measured here reaches from 1 to 25.
OF_BASE = {
    BASELINE: 1.0,
    CONTROL: 1.001,
    "torchscript": 0.77,
    "native": 0.055,
    "compile": 0.47,
    "export-aoti": 0.40,
    "onnx": 0.31,
    "openvino": 0.29,
    "torchscript-frozen": 0.71,
    "torchscript-optimized": 0.70,
    "persistent": 0.0552,  # not told apart from native
    "bf16": 1.9,
    "int8": 0.52,
    "int8-torchscript": 0.44,
    "onnx-int8": 0.2,
    "openvino-int8": 0.19,
    "native-int8": 0.04,
}
HARDWARE = (  # device, cores, and the time of a call over the first's
    ("AMD EPYC 9R14 96-Core Processor", 1.0),
    ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 1.3),
    ("AMD EPYC 7B13", 1.6),
    ("Neoverse-V2", 0.9),
)
SLOW = 7  # the station that is slower than the others of its class
GONE = "the launch server ended before the launch did: exit status -9"
MISSING = "no package openvino: pip install openvino"


@dataclass(frozen=True)
class Measured(Case):
    """A trial whose calls, turns and launches scatter as real ones do, the same each time."""

    seed: int = 0

    def launches(self) -> list[LaunchResult]:
        random = np.random.default_rng(self.seed)
        return [
            made_launch(
                {
                    name: ms * np.exp(self.noise * (random.normal() + random.gamma(1.5, 2.0, (self.rounds, 3))))
                    for name, ms in self.ms.items()
                },
                index,
                self.rounds,
                3,
                {name: facts for name, facts in self.facts.items() if name in self.ms},
                elapsed_s=14.0 * (index + 1),
            )
            for index in range(self.count)
        ]


def decision(
    variants: int = 17, stations: int = 1, cold: bool = False, load: bool = False, trouble: bool = False
) -> RunView:
    """A finished run of so many variants, the baseline and its control among them, on so many stations.

    Args:
        variants: 3 to 17.
        stations: in four hardware classes, one of which has a slow station.
        cold: starts were measured.
        load: trials under load were measured, on the first station.
        trouble: an invalid variant, a skipped one, a failed trial, and one that is undecided.
    """
    names = list(OF_BASE)[:variants]
    cases = [_case(names, number, trouble) for number in range(stations)]
    view = made_view(cases, {"onnx-int8": LONG_LABEL}, run="20261130-091500-decide")
    rows = [_with_costs(row, cold) for row in view.rows]
    if trouble:
        rows = [_troubled(row) for row in rows]
    view = replace(view, rows=tuple(rows))
    if not load:
        return view
    every = [row for way in _ways() for row in _under_load(names, *way)]
    points = {row.trial_id: _windows([one for one in every if one.trial_id == row.trial_id]) for row in every}
    return replace(view, load_rows=tuple(every), points=points)


def _case(names: Sequence[str], number: int, trouble: bool) -> Case:
    """A trial of a station; one that is slow runs approximate variants as fast as others do, so speedups differ."""
    device, times = HARDWARE[number % len(HARDWARE)]
    slow = 1.25 if number == SLOW else 1.0
    base = 42.7 * times * slow
    failed = trouble and number == 2
    facts = {"torchscript-frozen": VariantFacts(invalid=INVALID, replies=63, identical=32)}
    return Measured(
        {name: base * OF_BASE[name] / (1 if name in (BASELINE, CONTROL) else slow) for name in names},
        Workload(),
        f"inference-node-{number + 1:02}.eu-central-1.compute.internal:cpu",
        device,
        "failed" if failed else "done",
        GONE if failed else None,
        facts if trouble else {},
        noise=0.06 if trouble and number == 3 else 0.003,
        count=6,
        rounds=4,
        seed=number,
    )


def _with_costs(row: Row, cold: bool) -> Row:
    if row.p50_ms is None:
        return row
    place = list(OF_BASE).index("onnx-int8" if row.variant == LONG_LABEL else row.variant)
    row = replace(row, peak_memory_mb=412.0 + 57 * (place * 7 % 11), limit_ms=2.1, of_limit=2.1 / row.p50_ms)
    if not cold:
        return row
    told: dict[str, float] = {"artifact_mb": 12.3 * place, "weights_mb": 44.0, "kept_share": 0.03}
    for state, times in (("empty", 3.0), ("cached", 1.0), ("warm", 0.2)):
        seconds = times * (1.43 + (place * 5 % 7) * 0.9)
        told |= {f"to_first_reply_s_{state}": seconds}
        told |= {f"to_first_reply_s_{state}_low": 0.96 * seconds, f"to_first_reply_s_{state}_high": 1.05 * seconds}
        told |= {f"import_s_{state}": 0.5 * seconds, f"load_s_{state}": 0.1 * seconds}
        told |= {f"prepare_cold_s_{state}": 0.35 * seconds, f"first_reply_ms_{state}": 50 * seconds}
    if row.verdict == "faster":
        for state, replies in (("empty", 3120.0), ("cached", 215.0)):
            told |= {f"pays_after_{state}": replies * place, f"pays_after_{state}_low": 0.8 * replies * place}
            told |= {f"pays_after_{state}_high": 1.3 * replies * place}
    return replace(row, **told)  # type: ignore[arg-type]


def _troubled(row: Row) -> Row:
    if row.variant == "openvino":
        unknown = dict.fromkeys(name for name in COLUMNS if name.startswith(("p50", "p9", "speedup", "peak")))
        nothing = {"verdict": None, "samples": None, "launches": None, "identical_replies": None, "of_limit": None}
        return replace(row, **{**unknown, **nothing}, status="skipped", reason=MISSING)  # type: ignore[arg-type]
    return row


# Under load


def _ways() -> list[tuple[str, int, str]]:
    return [("server", 1, "process"), ("server", 2, "process"), ("server", 4, "thread"), ("offline", 2, "process")]


def _under_load(names: Sequence[str], scenario: str, replicas: int, kind: str) -> list[Row]:
    device, _ = HARDWARE[0]
    asked = {
        "run_id": "20261130-091500-decide",
        "trial_id": f"{scenario}-{replicas}",
        "station": "inference-node-01.eu-central-1.compute.internal:cpu",
        "host": "inference-node-01.eu-central-1.compute.internal",
        "device": "cpu",
        "device_name": device,
        "model": "small",
        "batch": 1,
        "prompt_tokens": 8,
        "reply_tokens": 10,
        "threads": 1,
        "baseline": BASELINE,
        "scenario": scenario,
        "slo": "p99=250ms" if scenario == "server" else None,
        "replicas": replicas,
        "replica_kind": kind,
        "max_batch": 1,
        "samples": 8000,
        "launches": 8,
        "compared_replies": 8000,
        "identical_replies": 1.0,
    }
    gain = replicas ** (0.9 if kind == "process" else 0.5) * (1.3 if scenario == "offline" else 1.0)
    rows = []
    for name in names:
        ratio, rps = 1 / OF_BASE[name], 14.2 * gain / OF_BASE[name]
        over = None if name == BASELINE else ratio
        verdict = "baseline" if name == BASELINE else "same" if name == CONTROL else "faster" if ratio > 1 else "slower"
        figures = {"capacity_rps": rps, "capacity_rps_low": 0.97 * rps, "capacity_rps_high": 1.02 * rps}
        figures |= {"capacity_ratio": ratio, "capacity_ratio_low": over and 0.985 * over}
        figures |= {"capacity_ratio_high": over and 1.012 * over, "cost_per_million": 0.096 * replicas / rps / 3.6e-3}
        shown = LONG_LABEL if name == "onnx-int8" else name
        rows.append(
            Row(variant=shown, exact=VARIANTS[name].exact, capacity_verdict=verdict, **asked, **figures)  # type: ignore[arg-type]
        )
    return rows


def _windows(rows: Sequence[Row]) -> tuple[Point, ...]:
    if rows[0].slo is None:
        return ()
    made = []
    for row in rows:
        rate = row.capacity_rps or 0.0
        for share in (0.3, 0.6, 0.9, 0.97, 1.03, 1.2):
            p50 = 1e3 / rate * (1 + share**6)
            made.append(
                Point(
                    row.variant, 0, rate * share, rate * share, p50, max(1.4 * p50, 220 * share**4), share > 1.1, True
                )
            )
    return tuple(made)
