"""``latency-matrix publish``."""

from typing import Annotated

import typer

from chatbot.console import ExitCode
from chatbot.errors import UsageError
from ray_jobs.cli.options import require_run
from ray_jobs.wandb_sink.mode import resolve_mode

MODES = "auto, online or offline"


def publish(
    run: Annotated[str, typer.Argument(help="Directory of a finished run: a folder or any pyarrow.fs URI.")],
    wandb: Annotated[str, typer.Option(help=f"W&B mode: {MODES}.")] = "auto",
    timeout: Annotated[float, typer.Option(min=1, help="Maximum seconds to wait for W&B.")] = 600.0,
) -> None:
    """Send a run to W&B from its directory alone; repeating it replaces what was sent before.

    Exits 0 when W&B has all of it (or its offline log), 1 when not, 2 on unusable arguments or an unreadable run.
    """
    mode = resolve_mode(wandb)
    if mode == "off":
        raise UsageError(f"--wandb {wandb} publishes nothing (WANDB_MODE counts too); choose from: {MODES}")
    require_run(run)
    from ray_jobs.results.run import FinishedRun
    from ray_jobs.wandb_sink.sink import WandbSink

    sink = WandbSink(mode, FinishedRun.of(run).directory, timeout)
    sink.start()
    sink.finish()
    if sink.result:
        typer.echo(sink.result)
    raise typer.Exit(ExitCode.USAGE if sink.unusable else int(sink.failed))
