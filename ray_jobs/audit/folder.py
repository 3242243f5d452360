"""The directory of an audit: figures, tables and page, written as they come and rebuilt from the tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from chatbot.console import ExitCode
from chatbot.errors import UsageError
from ray_jobs.audit import page
from ray_jobs.audit.comparisons import LaunchRow
from ray_jobs.audit.rates import Comparison, effects_found, false_verdicts
from ray_jobs.audit.station import AuditStation
from ray_jobs.measure import method
from ray_jobs.measure.result import one_line
from ray_jobs.provenance import command_line, new_run_id
from ray_jobs.results import schema
from ray_jobs.results.filesystem import open_root
from ray_jobs.results.run import read_record
from ray_jobs.results.samples import schema_of
from ray_jobs.results.store import RunDirectory

COMPARISONS = pa.schema([pa.field("part", pa.string()), *schema_of(Comparison)])


@dataclass
class Audit:
    """One audit: its directory, and its findings so far."""

    directory: RunDirectory
    run_id: str
    started: datetime
    parts: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, station: AuditStation, found: dict[str, Any]) -> dict[str, Any]:
        """Keeps and prints the result of a part."""
        self.environment = station.environment()
        part = {"part": kind, "spec": station.spec.model_dump(), **found}
        self.parts.append(part)
        typer.echo("\n" + page.section(part))
        self.write()
        return found

    def write(self) -> None:
        """``audit.json``, ``comparisons.parquet``, ``launches.parquet`` and the page."""
        content = {
            "schema_version": schema.VERSION,
            "run_id": self.run_id,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "command": command_line(),
            "method": method.recorded(),
            "environment": self.environment,
            "parts": self.parts,
        }
        self.directory.write_json("audit.json", content)
        self.directory.write("summary.md", page.render(content).encode())
        if self.comparisons:
            self.directory.write_table("comparisons.parquet", pa.Table.from_pylist(self.comparisons, COMPARISONS))
            self.directory.write_table("launches.parquet", pa.Table.from_pylist(self.launches, schema_of(LaunchRow)))


@contextmanager
def new_audit(kind: str, out: str, run_id: str | None) -> Iterator[Audit]:
    """A new audit's directory; what was found by the time of an interrupt, or of a crash, is written."""
    directory = RunDirectory.named(out, run_id or new_run_id(f"audit-{kind}"))
    audit = Audit(directory, directory.run_id, datetime.now(UTC))
    with directory.created(samples=False):
        try:
            yield audit
        except KeyboardInterrupt as error:
            audit.write()
            typer.echo(f"ray_jobs: {str(error) or 'interrupted'}; what was found is in {directory.shown}", err=True)
            raise typer.Exit(int(getattr(error, "code", ExitCode.INTERRUPTED))) from None
        except Exception:
            if audit.parts or audit.comparisons:
                audit.write()
            raise
    typer.echo(f"\n{directory.shown}: summary.md, audit.json" + (", comparisons.parquet" if audit.comparisons else ""))


def make_again(place: str) -> str:
    """Figures and page of a finished audit from its table of comparisons; returns the page.

    Raises:
        UsageError: there is no audit with comparisons.
    """
    directory = RunDirectory(*open_root(place), place)
    try:
        content = read_record(directory, "audit.json")
        table = pq.read_table(pa.BufferReader(directory.read("comparisons.parquet")))
        rows = schema.renamed(table.to_pylist())
    except schema.NewerVersionError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"no comparisons of an audit in {place}: {one_line(error)}") from None
    content["parts"] = [_again(part, rows) for part in content["parts"]]
    text = page.render(content)
    directory.write_json("audit.json", content)
    directory.write("summary.md", text.encode())
    return text


def _again(part: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part["part"]]
    done = [schema.known(Comparison, row) for row in own]
    if not done:
        return part
    found = effects_found(done, part["percent"]) if "found" in part else false_verdicts(done, part["spec"]["margin"])
    return {"part": part["part"], "spec": part["spec"], **found}
