"""``latency-matrix clean``."""

from typing import Annotated

import typer

from chatbot.errors import UsageError

MB = 1e6


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
) -> None:
    """Remove the environments and revisions that matrix --against pip= and rev= have built on this machine.

    Each is listed with its size and when a run last began to use it. What a run uses now is kept. The next run that
    needs something builds it again. On a cluster each node has its own: run it there.
    """
    from chatbot.cache import CacheError
    from ray_jobs.process import kept

    removed, freed, would = 0, 0, "would be " if dry_run else ""
    try:
        for one in kept.found():
            goes = kept.remove(one.place, really=not dry_run)
            outcome = f"{would}removed" if goes else "in use: kept"
            name = one.name or f"{one.place.name}, never finished"
            typer.echo(f"{one.kind} {name}: {one.size / MB:.1f} MB, last used {one.used:%Y-%m-%d %H:%M} UTC, {outcome}")
            removed, freed = removed + goes, freed + one.size * goes
    except (CacheError, OSError) as error:
        raise UsageError(str(error)) from None
    typer.echo(f"{removed} {would}removed, {freed / MB:.1f} MB")
