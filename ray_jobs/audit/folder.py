"""The directory of an audit: figures, tables and page, written as they come and rebuilt from the tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from ray_jobs.provenance import command_line, new_run_id, source_hash
from ray_jobs.results import schema
from ray_jobs.results.filesystem import below, open_root
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
    asked: dict[str, Any] = field(default_factory=dict)  # what --resume must ask again
    resumed: list[str] = field(default_factory=list)

    @classmethod
    def restored(cls, directory: RunDirectory, asked: dict[str, Any]) -> "Audit":
        """An audit as it was left. Raises UsageError where it was asked otherwise, or by another program."""
        content = read_record(directory, "audit.json")
        if content.get("asked") != asked:
            raise UsageError(
                f"{directory.shown} can't be resumed: it was asked otherwise, or by other sources; "
                f"it was: {' '.join(content['command'])}"
            )
        names = ("comparisons.parquet", "launches.parquet")
        comparisons, launches = (_rows(directory, name) if directory.holds(name) else [] for name in names)
        started = datetime.fromisoformat(content["started"])
        audit = cls(directory, directory.run_id, started, [], comparisons, launches)
        audit.environment, audit.asked = content["environment"], asked
        audit.resumed = [*content.get("resumed", []), datetime.now(UTC).isoformat(timespec="seconds")]
        return audit

    def earlier(self, part: str) -> list[Comparison]:
        """The comparisons of a part that were kept."""
        return _comparisons(part, self.comparisons)

    def keep(self, part: str, comparison: Comparison, launches: Sequence[dict[str, Any]]) -> None:
        """Keeps a comparison and its launches; ``write`` writes them."""
        self.comparisons.append({"part": part, **asdict(comparison)})
        self.launches += launches

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
            "resumed": self.resumed,
            "command": command_line(),
            "asked": self.asked,
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
def new_audit(
    kind: str, out: str, run_id: str | None, asked: dict[str, Any] | None = None, resume: bool = False
) -> Iterator[Audit]:
    """An audit's directory; what was found by the time of an interrupt, or of a crash, is written.

    ``resume``: the one of that name goes on, if it was ``asked`` the same. Raises UsageError.
    """
    asked = {**(asked or {}), "sources": source_hash()}
    if resume:
        if run_id is None:
            raise UsageError("which audit goes on? give its name as --run-id")
        directory = RunDirectory.existing(below(out, run_id), "audit.json")
        audit, opened = Audit.restored(directory, asked), directory.reopened()
    else:
        directory = RunDirectory.named(out, run_id or new_run_id(f"audit-{kind}"))
        audit, opened = Audit(directory, directory.run_id, datetime.now(UTC), asked=asked), directory.created(False)
    with opened:
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
        rows = _rows(directory, "comparisons.parquet")
    except schema.NewerVersionError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"no comparisons of an audit in {place}: {one_line(error)}") from None
    content["parts"] = [_again(part, rows) for part in content["parts"]]
    text = page.render(content)
    directory.write_json("audit.json", content)
    directory.write("summary.md", text.encode())
    return text


def _rows(directory: RunDirectory, name: str) -> list[dict[str, Any]]:
    """Those of a table, with today's names."""
    rows: list[dict[str, Any]] = schema.renamed(pq.read_table(pa.BufferReader(directory.read(name))).to_pylist())
    return rows


def _comparisons(part: str, rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    own = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
    return [schema.known(Comparison, row) for row in own]


def _again(part: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = _comparisons(part["part"], rows)
    if not done:
        return part
    found = effects_found(done, part["percent"]) if "found" in part else false_verdicts(done, part["spec"]["margin"])
    return {"part": part["part"], "spec": part["spec"], **found}
