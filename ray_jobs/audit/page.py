"""An audit on one page of Markdown, the same text that the terminal shows; and its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ray_jobs.audit.cost import LEAST_TIMED_SHARE, MOST_OWN_CORES, MOST_SAMPLE_US
from ray_jobs.audit.rates import CLAIMED, LEAST_FOUND, MOST_FALSE, PROMISED_PERCENT

EVERY_S = 30.0  # between lines of progress
PEER_NAMES = {
    "torch_benchmark": "torch.utils.benchmark, one after the other",
    "mean_of_100": "mean of 100 calls, one after the other",
}
Part = Mapping[str, Any]


def page(audit: Mapping[str, Any]) -> str:
    """The whole audit: ``audit.json`` in words."""
    station = audit["environment"].get("station", {})
    driver = audit["environment"].get("driver", {})
    where = (
        f"{station.get('cpu')}, {station.get('cores')} cores, kernel {station.get('kernel')}" if station else "nowhere"
    )
    packages = driver.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "ray", "numpy") if packages.get(name))
    lines = [
        f"# Audit {audit['run_id']}",
        "",
        f"{audit['started']}, {audit['seconds'] / 60:.0f} minutes, on {where}; Python {driver.get('python')}, "
        f"{versions}; sources {driver.get('source_hash')}.",
        f"Command: `{' '.join(audit['command'])}`.",
        "",
        *(section(part) + "\n" for part in audit["parts"]),
    ]
    return "\n".join(lines)


def section(part: Part) -> str:
    """One part of the audit."""
    if part["part"] == "faults":
        return _faults(part)
    if part["part"] == "cost":
        return _cost(part)
    return _effect(part) if "found" in part else _identical(part)


def _identical(part: Part) -> str:
    load = ", beside a background load on every core" if part["part"].endswith("load") else ", quiet"
    spec, count = part["spec"], part["comparisons"]
    rows = [
        ("this tool", part["false_verdicts"], part["rate_low"], part["rate_high"], part["seconds_each"], count),
        *(
            (PEER_NAMES[name], p["false_verdicts"], p["rate_low"], p["rate_high"], p["seconds_each"], p["comparisons"])
            for name, p in part["peers"].items()
            if p["comparisons"]
        ),
    ]
    return "\n".join(
        [
            f"## Identical programs{load}",
            "",
            f"Model {spec['model']}, {spec['budget']:g} s a trial, margin {spec['margin']:.0%}. Promise: the interval "
            f"of the rate reaches below {CLAIMED:.0%} and ends under {MOST_FALSE:.0%}: **{part['promise']}**.",
            "",
            *_table(
                ("", "called different", "rate (95%)", "seconds each"),
                [
                    (who, f"{wrong} of {of}", _percents(wrong / of if of else None, low, high), _number(each, ".1f"))
                    for who, wrong, low, high, each, of in rows
                ],
            ),
            "",
            f"Intervals that miss 1: {part['intervals_missing_1']} of {count} "
            f"({part['missing_low']:.1%} to {part['missing_high']:.1%}; 5% claimed). Median half-width "
            f"{_number(part['median_half_width'], '.2%')}; called the same: {part['same']}; disturbed rounds "
            f"{_number(part['disturbed_share'], '.1%')}; failed trials: {part['failed']}.",
            *_worst_errors(part),
        ]
    )


def _worst_errors(part: Part) -> list[str]:
    worst = [
        f"{PEER_NAMES[name].split(',')[0]} {p['worst_error']:.1%}"
        for name, p in part["peers"].items()
        if p["comparisons"]
    ]
    return (
        [f"Largest difference that the others showed between identical programs: {', '.join(worst)}."] if worst else []
    )


def _effect(part: Part) -> str:
    spec, count = part["spec"], part["comparisons"]
    asked = f"at least {LEAST_FOUND:.0%} found" if part["percent"] >= PROMISED_PERCENT else "no promise at this size"
    return "\n".join(
        [
            f"## A slowdown of {part['percent']}%" + (", beside a background load" if "load" in part["part"] else ""),
            "",
            f"Model {spec['model']}, at most {spec['budget']:g} s a trial. "
            f"Promise ({asked}, no bias): **{part['promise']}**.",
            "",
            *_table(
                ("found", "share (95%)", "bias (95%)", "median half-width", "seconds each", "longest"),
                [
                    (
                        f"{part['found']} of {count}",
                        _percents(
                            part["found"] / count if count else None, part["found_low"], part["found_high"], ".0%"
                        ),
                        _percents(part["bias"], part["bias_low"], part["bias_high"], "+.2%"),
                        _number(part["median_half_width"], ".2%"),
                        _number(part["seconds_each"], ".1f"),
                        _number(part["most_seconds"], ".1f"),
                    )
                ],
            ),
        ]
    )


def _faults(part: Part) -> str:
    caught = sum(fault["caught"] for fault in part["faults"])
    rows = [(f["fault"], "yes" if f["caught"] else "**no**", f["by"].replace("|", "/")) for f in part["faults"]]
    return "\n".join(
        [
            "## Planted mistakes",
            "",
            f"{caught} of {len(rows)} caught, each in a trial of its own (model {part['spec']['model']}).",
            "",
            *_table(("mistake", "caught", "by"), rows),
        ]
    )


def _cost(part: Part) -> str:
    least, most = f"at least {LEAST_TIMED_SHARE:.0%}", f"at most {MOST_OWN_CORES:.0%}"
    rows = [
        ("time inside timed calls / time of the trial", _number(part["timed_share"], ".0%"), least),
        ("overhead of a sample, all of it", _number(part["sample_us"], ".1f", " us"), f"at most {MOST_SAMPLE_US:g} us"),
        ("... of it between the readings of the clock", _number(part["inside_us"], ".2f", " us"), ""),
        ("our other processes while launches run", _number(part["own_cores"], ".1%", " of a core"), most),
        ("Ray's own processes", _number(part["ray_cores"], ".1%", " of a core"), ""),
    ]
    return "\n".join(
        [
            "## What it costs",
            "",
            f"One trial of {part['launches']} launches in {part['seconds']:.0f} s, model {part['spec']['model']}. "
            + (f"Missed: {', '.join(part['missed'])}." if part["missed"] else "Every target met."),
            "",
            *_table(("", "measured", "target"), rows),
        ]
    )


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of one kind as an Arrow table."""
    return pa.Table.from_pylist([dict(row) for row in rows])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _percents(value: float | None, low: float | None, high: float | None, form: str = ".1%") -> str:
    if value is None or low is None or high is None:
        return "-"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
