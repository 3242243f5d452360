"""Makes a run small and anonymous, fit to be committed: one sample file, no host names, no paths."""

import re
from dataclasses import asdict
from typing import Any

from ray_jobs.report.write import draw_or_say
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.samples import rows_table
from ray_jobs.results.store import RunDirectory

COMPACT_FILE = "samples/launches.parquet"


def compact(source: RunDirectory, target: RunDirectory) -> None:
    """Copies a finished run into a new directory; hosts become host-1, host-2 and so on, paths their last part.

    Raises:
        UsageError: ``source`` is not a finished run.
    """
    run = FinishedRun.within(source)
    rows = [{**asdict(row), "warnings": list(row.warnings)} for row in run.rows]
    hosts = {host: f"host-{number}" for number, host in enumerate(_hosts(rows), 1)}
    with target.created():
        tables = source.read_tables()
        target.add_launches({_renamed(trial, hosts): launches for trial, launches in tables.items()}, COMPACT_FILE)
        target.write_json("run.json", {**_cleaned(run.run, hosts), "run_id": target.run_id})
        cleaned: list[dict[str, Any]] = [
            {**{name: _cleaned(value, hosts) for name, value in row.items()}, "run_id": target.run_id} for row in rows
        ]
        target.write_json("matrix.json", cleaned)
        target.write_table("matrix.parquet", rows_table(cleaned))
        draw_or_say(target)


def _hosts(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["host"] for row in rows if row["host"]))


def _cleaned(value: Any, hosts: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_renamed(key, hosts): _cleaned(inner, hosts) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cleaned(inner, hosts) for inner in value]
    return _renamed(value, hosts) if isinstance(value, str) else value


def _renamed(text: str, hosts: dict[str, str]) -> str:
    """A host may stand alone, before a device (``host:cpu``), after ``@``, or in a sentence: a word of its own."""
    for host, name in hosts.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-]|\.\w)", name, text)
    if "/" in text and " " not in text and "://" not in text:  # a path among the arguments
        return text.rstrip("/").rsplit("/", 1)[-1]
    return text
