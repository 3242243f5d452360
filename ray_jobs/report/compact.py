"""Makes a run small and anonymous, fit to be committed: one sample file, and of its texts what ``anonymous`` keeps."""

import json
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import pyarrow as pa

from ray_jobs.matrix.rows import grouped
from ray_jobs.report.anonymous import Anonymous, names_of, own_names, users_in
from ray_jobs.report.write import draw_or_say
from ray_jobs.results import schema
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
    launches = list(source.each_launch(lambda table: (table, _launch(table))))
    tables = {trial: [table for _, (table, _) in mine] for trial, mine in grouped(launches, itemgetter(0)).items()}
    contents = [content for _, (_, content) in launches]
    names = names_of(run.run, rows, tables)
    private = users_in([run.run, rows, contents]) | {host.lower() for host in names.hosts}
    clean = Anonymous(names, own_names(run.run.get("spec") or {}, run.run.get("parts") or ()), private)
    with target.created():
        kept = {names.trials[trial]: [_kept(one, clean) for one in launches] for trial, launches in tables.items()}
        target.add_launches(kept, COMPACT_FILE)
        target.write_json("run.json", {**clean.value(run.run), "run_id": target.run_id})
        cleaned = [{**clean.value(row), "run_id": target.run_id} for row in rows]
        target.write_json("matrix.json", cleaned)
        target.write_table("matrix.parquet", rows_table(cleaned))
        draw_or_say(target)


def _launch(table: pa.Table) -> dict[str, Any]:
    content: dict[str, Any] = schema.renamed(json.loads(table.schema.metadata[b"launch"]))
    return content


def _kept(table: pa.Table, clean: Anonymous) -> pa.Table:
    return table.replace_schema_metadata({"launch": json.dumps(clean.value(_launch(table)))})
