"""The command line: a table of commands, each imported when it is invoked or its own help is asked for."""

import os
import sys
from importlib import import_module
from typing import Any

import typer

from chatbot import console
from chatbot.errors import UsageError
from ray_jobs.cluster.signals import terminable

COMMANDS = {  # name: (module in this folder, its function or group, one line)
    "matrix": ("matrix", "matrix", "Measure every variant on every station and print the latency matrix."),
    "variants": ("variants", "variants", "List the ways to execute the chatbot, and whether each can run here."),
    "report": ("report", "report", "Show finished runs, side by side where there are several."),
    "compare": ("compare", "compare", "Compare two runs by their speedups over the baseline."),
    "trace": ("trace", "trace", "Show where a reply's time goes."),
    "sweep": ("sweep", "sweep", "Search for good hyperparameters on Ray Tune, and report which of them mattered."),
    "sweep-trial": ("sweep_trial", "sweep_trial", "Train once with the arguments of `wandb agent`, and report to W&B."),
    "audit": ("audit", "app", "How often is this tool wrong, on this machine?"),
    "fetch": ("fetch", "fetch", "Copy a submitted job's run directory to this machine."),
    "compact": ("compact", "compact", "Copy a run small and anonymous, fit to be committed."),
    "publish": ("publish", "publish", "Send a run to W&B from its directory alone."),
    "clean": ("clean", "clean", "Remove what --against has built on this machine."),
}


SETTINGS = {"sweep-trial": {"allow_extra_args": True, "ignore_unknown_options": True}}  # any hyperparameter


NEED_LINUX = ("matrix", "trace", "sweep", "sweep-trial", "audit")  # pinned cores, fork, /proc


class Commands(console.Commands):
    """Lists the table, and imports the one command that is invoked."""

    program = "ray_jobs"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        if found and name in NEED_LINUX and (sys.platform != "linux" or not hasattr(os, "sched_setaffinity")):
            this = sys.platform if sys.platform != "linux" else "a Python that can't pin a process to its cores"
            raise UsageError(f"Linux is needed, and this is {this}: run {name} on a Linux machine")
        return name, found and loaded(str(name)), rest


app = typer.Typer(
    cls=Commands,
    help="How fast does the chatbot answer, run this way on this hardware, and is that really faster?",
    no_args_is_help=True,
    epilog=console.HELP,
    rich_markup_mode=None,  # "[default: ...]" would be markup
)
for _name, (_, _, _told) in COMMANDS.items():
    app.command(_name, help=_told)(lambda: None)


def loaded(name: str) -> Any:
    """The command of that name in the table, with its options."""
    module, place, _ = COMMANDS[name]
    found = getattr(import_module(f"ray_jobs.cli.{module}"), place)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, context_settings=SETTINGS.get(name))(found)
    return typer.main.get_command(alone)


def main() -> None:
    """Runs the command line; a mistake of the user's is one line and exit code 2."""
    console.prepare()
    with console.ending(Commands.program), terminable():
        app()
