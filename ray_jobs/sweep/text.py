"""A sweep's output in the terminal."""

import time
from collections.abc import Sequence

import typer

from chatbot.safe_text import printable
from ray_jobs.sweep import page
from ray_jobs.sweep.charts import settings_of, whole_percent
from ray_jobs.sweep.folder import BEST, Listener, Record
from ray_jobs.sweep.space import Space
from ray_jobs.sweep.spec import SweepTrial
from ray_jobs.sweep.table import TrialRow, TrialStatus, Validation, best_trial

EVERY_S = 30.0  # between lines while nothing ends


class SweepReporter(Listener):
    """Prints a line whenever a trial ends, and one now and then in between."""

    def __init__(self, record: Record, trials: Sequence[SweepTrial]) -> None:
        self._record, self._total = record, len(trials)
        self._varied = Space.of(record.spec.space).varied
        self._ended_before = len(record.rows)
        self._start = self._said = time.monotonic()

    def opening(self, pairs: int, tokens: int) -> None:
        spec = self._record.spec
        early = f", stopped early from {spec.grace_iterations:,} on" if spec.asha else ""
        left = f", {self._total - self._ended_before} left" if self._ended_before else ""
        self._say(
            f"{self._record.directory.shown}: {self._total} trials{left} of at most {spec.iterations:,} "
            f"iterations{early}; {pairs:,} pairs, {tokens:,} tokens"
        )

    def validated(self, row: Validation) -> None:
        if time.monotonic() - self._said < EVERY_S:
            return
        ended = len(self._record.rows)
        done = ended - self._ended_before
        spent = time.monotonic() - self._start
        left = f"; about {spent / done * (self._total - ended) / 60:.0f} min left" if done else ""
        self._say(
            f"trial {row.trial} at {row.iteration:,}: loss {row.validation_loss:.4f}; "
            f"{ended} of {self._total} ended{left}"
        )

    def restarted(self, number: int, restarts: int) -> None:
        self._say(f"trial {number}: its worker was lost; it goes on from its last validation (restart {restarts})")

    def ended(self, row: TrialRow) -> None:
        loss = "no loss" if row.best_loss is None else f"loss {row.best_loss:.4f} at {row.best_iteration:,}"
        end = f" ({row.reason})" if row.status == TrialStatus.FAILED else ""
        star = " <- best so far" if best_trial(self._record.rows) is row else ""
        told = f"trial {row.trial} {row.status}{end}: {loss}, {row.iterations:,} iterations"
        self._say(f"{told}; {settings_of(row.settings, self._varied)}{star}")

    def closing(self, sync_command: str | None) -> None:
        """The last lines, on stdout."""
        record, place = self._record, self._record.directory.shown
        best = record.best
        typer.echo("\n" + (f"no trial has a loss; {place}/sweep.html says why" if best is None else self._praise(best)))
        if record.importances is not None:
            typer.echo(f"what mattered: {page.findings(record.importances)}")
            for name, share, low, high in record.importances.known:
                typer.echo(f"  {name:<24}{whole_percent(share):>5}  ({whole_percent(low)} to {whole_percent(high)})")
        files = ["sweep.html", "trials.parquet", "epochs.parquet", "sweep.json", *([BEST] if best else [])]
        typer.echo(f"{place}: {', '.join(files)}")
        if best is not None:
            typer.echo(f"use it: python -m chatbot chat --model {place}/{BEST}")
        if sync_command:
            typer.echo(f"W&B: written offline; to upload: {sync_command}")

    def _praise(self, best: TrialRow) -> str:
        rows = self._record.rows
        counts = {status: sum(row.status == status for row in rows) for status in TrialStatus}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return (
            f"best of {len(rows)} trials ({told}): trial {best.trial}, validation loss {best.best_loss:.4f} "
            f"(perplexity {page.perplexity(best.best_loss)}) at {best.best_iteration:,} iterations\n"
            f"  {printable(settings_of(best.settings))}"
        )

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        typer.echo(printable(line), err=True)
