"""``make cluster-table``: every fault of a cluster on real Ray processes, and the table of docs/cluster.md.

A quarter of an hour. As root the nodes are hosts of their own, in network namespaces; else the faults that need them
are left out. Exits 0 where every fault was reported and nothing was lost, else 1.
"""

import secrets
import signal
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from testbed import TIGHT, Testbed, can_partition

from breakage import table
from breakage.bench import Bench, Fault, Seen
from chatbot.errors import one_of
from ray_jobs import provenance
from ray_jobs.results.schema import VERSION
from ray_jobs.results.store import RunDirectory


def main(
    only: Annotated[str | None, typer.Option(help="Faults whose names hold this; all by default.")] = None,
    model: Annotated[str, typer.Option(help="The model that the trials measure.")] = "small",
    out: Annotated[str, typer.Option(help="The results root.")] = "results",
    run_id: Annotated[str | None, typer.Option(help="The folder in it; a new one by default.")] = None,
    page: Annotated[Path | None, typer.Option(help="A Markdown file whose table of faults is replaced.")] = None,
) -> None:
    """Break a Ray cluster of real processes on this machine: what is seen, how soon, and is anything lost?"""
    chosen = [fault for fault in table.FAULTS if only is None or only in fault.name]
    if not chosen:
        raise one_of("fault", str(only), [fault.name for fault in table.FAULTS])
    text = None if page is None else page.read_text()
    if text is not None:
        table.with_table(text, [])  # a page without one is reported before ten minutes have passed
    name = run_id or f"audit-cluster-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    directory = RunDirectory.named(out, name)
    found: list[Seen] = []
    with directory.created(samples=False):
        _keep(directory, model, found)
        for seen in _broken(chosen, model):
            found.append(seen)
            _keep(directory, model, found)  # as they come: an interrupt loses none
    if page is not None and text is not None:
        page.write_text(table.with_table(text, found))
    typer.echo(table.table(found))
    typer.echo(f"\n{directory.shown}: summary.md, cluster.json")
    raise typer.Exit(0 if all(map(table.sound, found)) else 1)


def _keep(directory: RunDirectory, model: str, found: Sequence[Seen]) -> None:
    """Writes what was seen so far, and on what test bed; nothing that names this machine."""
    facts = provenance.station_facts()
    here = {name: facts[name] for name in ("cpu", "cores", "packages", "source_hash")}
    about = {
        "schema_version": VERSION,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        **here,
        "model": model,
        "settings": TIGHT,
    }
    directory.write("summary.md", table.summary(about, found).encode())
    directory.write_json("cluster.json", {**about, "faults": table.facts(found)})


def _broken(faults: Sequence[Fault], model: str) -> Iterator[Seen]:
    """Injects them one by one, with a line on stderr for each; SIGTERM too leaves nothing of the test bed behind."""
    without = can_partition()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Testbed(hosts=without is None) as bed:
        bench = Bench(bed, ("--model", model))
        for fault in faults:
            if fault.hosts and without is not None:
                typer.echo(f"{fault.name}: left out, {without}", err=True)
                continue
            seen = table.inject(bench, fault)
            typer.echo(f"{fault.name}: {seen.shows} ({seen.seconds} s), lost: {seen.lost}", err=True)
            yield seen


if __name__ == "__main__":
    typer.run(main)
