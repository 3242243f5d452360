"""The content that W&B receives, all from the run directory, so that publishing again sends the same."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatbot.safe_text import keyless
from ray_jobs.matrix.rows import Row, Status, compared_sides
from ray_jobs.results import REPORT
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory

SUMMARY = (
    *("p50_ms", "speedup", "speedup_low", "speedup_high", "verdict"),
    *("side_speedup", "side_speedup_low", "side_speedup_high", "side_verdict"),
    *("capacity_rps", "capacity_rps_low", "capacity_rps_high"),
    *("capacity_ratio", "capacity_ratio_low", "capacity_ratio_high", "capacity_verdict"),
)
AGAINST_BASE = (  # of a row of a side, as a table of its own
    *("trial_id", "side", "variant", "side_speedup", "side_speedup_low", "side_speedup_high", "side_verdict"),
    *("side_p90_speedup", "side_p90_speedup_low", "side_p90_speedup_high", "p50_ms", "identical_replies"),
    *("status", "reason"),
)
MOST_DISTRIBUTIONS = 200  # cells; more histograms than that nobody looks at
BINS = 64
SHOWN = 0.99  # of the calls: the slowest would flatten all others into one bar
LONGEST_TAG, LONGEST_GROUP = 64, 128  # characters that W&B takes


@dataclass(frozen=True)
class Head:
    """The facts of a run that are known before it measures."""

    id: str
    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> "Head":
        """Extracts them from ``run.json``."""
        spec, name = run["spec"], str(run["run_id"])
        model = str(spec["model"]).rstrip("/").rpartition("/")[2]
        trials = [trial for trial in run["trials"].values() if trial.get("station")]
        hardware = sorted({str(trial.get("hardware") or trial["workload"]["device"]) for trial in trials})
        config = {key: run.get(key) for key in ("spec", "environment", "identity", "started")}
        tags = dict.fromkeys([model, *spec["device"], *hardware])
        group = f"{model} on {', '.join(hardware) or 'nothing'}"
        return cls(
            run_id(name, run["started"]), name, group[:LONGEST_GROUP], tuple(t[:LONGEST_TAG] for t in tags), config
        )


def run_id(name: str, started: str) -> str:
    """The run's id in W&B, the same each time it is published.

    The start distinguishes two runs of one name, of which the second would overwrite the first.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:100]
    return f"{plain}-{hashlib.sha256(f'{name} {started}'.encode()).hexdigest()[:6]}"


def summary_of(rows: Iterable[Row]) -> dict[str, Any]:
    """Each cell's figures under a stable name: ``trial/variant/column``."""
    values = [(f"{row.trial_id}/{row.name}/{name}", getattr(row, name)) for row in rows for name in SUMMARY]
    return {key: value for key, value in values if value is not None}


def table_cells(rows: Iterable[Row]) -> list[list[Any]]:
    """The table of cells: every column of every row, a list as one text."""
    return [["; ".join(v) if isinstance(v, tuple) else v for v in asdict(row).values()] for row in rows]


def against_base(rows: Sequence[Row]) -> list[list[Any]]:
    """The table of the comparison with ``base``: ``AGAINST_BASE`` of each row of a side, the control's last."""
    return [[getattr(row, name) for name in AGAINST_BASE] for row in compared_sides(rows)]


def speedups_of(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """(cell, speedup) of the variants that have one, the fastest first."""
    found = [(_cell(row), row.speedup) for row in rows if row.speedup is not None and row.variant != row.baseline]
    return sorted(found, key=lambda cell: -cell[1])


def _cell(row: Row) -> str:
    return f"{row.name} {row.trial_id}"


@dataclass(frozen=True)
class Distribution:
    """The timed calls of one cell in the rounds that count, up to their 99th percentile."""

    counts: NDArray[np.int64]  # (BINS,)
    edges_ms: NDArray[np.float64]  # (BINS + 1,)


def distributions_of(run: FinishedRun) -> dict[str, Distribution]:
    """The distribution of each measured cell, ``trial/variant``, up to ``MOST_DISTRIBUTIONS`` of them.

    Under load there is none: its calls were offered at many rates.
    """
    timed = [row for row in run.rows if not row.under_load]
    measured = [(row.trial_id, row.name) for row in timed if row.status == Status.DONE and row.samples]
    walls: dict[tuple[str, str], list[NDArray[np.float64]]] = {cell: [] for cell in measured[:MOST_DISTRIBUTIONS]}
    trials = {trial for trial, _ in walls}
    for trial, launch in run.launches() if walls else ():
        for variant in launch.variants if trial in trials else ():
            if (trial, variant) in walls:
                walls[trial, variant].append(launch.timed_ms(variant))
    pooled = {f"{trial}/{variant}": np.concatenate(parts) for (trial, variant), parts in walls.items() if parts}
    return {cell: _distribution(calls) for cell, calls in pooled.items() if len(calls)}


def _distribution(calls_ms: NDArray[np.float64]) -> Distribution:
    low, high = float(calls_ms.min()), float(np.quantile(calls_ms, SHOWN, method="lower"))
    counts, edges = np.histogram(calls_ms, bins=BINS, range=(low, high) if low < high else None)
    return Distribution(counts, edges)


def files_of(directory: RunDirectory, folder: Path) -> dict[str, dict[str, Path]]:
    """Each artifact's files by their names in it; those of an object store are copied into ``folder`` first.

    ``samples`` is a run directory as it was, fit for ``compare`` and ``publish``; ``report`` and ``traces`` where the
    run has them.
    """
    top = directory.names()
    asked = {
        "samples": [name for name in top if _is_result(name)]
        + [f"samples/{name}" for name in directory.names("samples") if not name.startswith(".")],
        "report": [REPORT] if REPORT in top else [],
        "traces": [f"traces/{name}" for name in directory.names("traces")],
    }
    return {kind: {name: _local(directory, name, folder) for name in names} for kind, names in asked.items() if names}


def _is_result(name: str) -> bool:
    return name != REPORT and name.endswith((".json", ".parquet"))


def _local(directory: RunDirectory, name: str, folder: Path) -> Path:
    """The file itself, or a copy if it is not on this disk or holds keys, as one of an earlier version may."""
    if directory.local_path is not None and not name.endswith((".json", ".html")):
        return Path(directory.local_path) / name
    found = directory.read(name)
    content = keyless(found.decode()).encode() if name.endswith((".json", ".html")) else found
    if directory.local_path is not None and content == found:
        return Path(directory.local_path) / name
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
