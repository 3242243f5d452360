"""The process that speaks to W&B: ``python -m ray_jobs.wandb_sink.client MODE FOLDER SOCKET DRIVER``.

A separate process can be ended at any moment, whatever W&B's client is waiting for, and can't disturb the driver. It
reads the run directory, which is the first thing that it hears through the socket, learns there when there is news in
it, and reports there what became of it.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from chatbot.errors import UsageError
from ray_jobs.matrix.rows import COLUMNS
from ray_jobs.measure.result import one_line
from ray_jobs.results.run import FinishedRun, read_record
from ray_jobs.results.store import RunDirectory
from ray_jobs.wandb_sink.content import (
    AGAINST_BASE,
    Head,
    against_base,
    distributions_of,
    files_of,
    speedups_of,
    summary_of,
    table_cells,
)
from ray_jobs.wandb_sink.mode import LONGEST_MESSAGE, PROJECT

TROUBLE = re.compile(r"ERROR|Fatal error|Timed out", re.IGNORECASE)  # in what W&B's client prints
# Of the machine, the user and the command line W&B gets what a run directory holds, and nothing else.
PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "hidden",
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
SEND_EVERY_S = 2.0  # what was logged; W&B's own 15 s would be too late for a run that is cut short


class NotWholeError(RuntimeError):
    """W&B's client gave up part of an upload."""


def publish(place: str, mode: str, folder: Path, line: socket.socket, printed: IO[str]) -> None:
    """Opens the run, follows it until the driver says that it has finished, and sends all of it.

    Args:
        place: the run directory, as the user names it.
        mode: ``online`` or ``offline``.
        folder: for the files of W&B's client.
        line: the connection to the driver.
        printed: where W&B's client prints; some of its failures appear nowhere else.
    """
    run = _open(Head.of(read_record(RunDirectory.existing(place))), mode, folder)
    _tell(line, {"open": run.url})
    if not _follow(run, line):
        return
    _send(run, FinishedRun.of(place), folder)
    printed.flush()
    if trouble := [text for text in Path(printed.name).read_text().splitlines() if TROUBLE.search(text)]:
        raise NotWholeError(trouble[0].removeprefix("wandb: "))
    _tell(line, {"done": run.url, "log": None if mode == "online" else str(Path(run.dir).parent)})


def start_wandb_run(settings: Mapping[str, Any], **asked: Any) -> Any:
    """``wandb.init`` with these arguments, in the project that the user names, and private."""
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return wandb.init(project=project, settings=wandb.Settings(**PRIVATE, **settings), **asked)


def _open(head: Head, mode: str, folder: Path) -> Any:
    if mode == "offline":  # the same told again: an earlier log, sent after this one, would tell it a second time
        for earlier in (folder / "wandb").glob(f"offline-run-*-{head.id}"):
            shutil.rmtree(earlier)
    return start_wandb_run(
        {"silent": False, "x_file_stream_transmit_interval": SEND_EVERY_S},  # it prints into a file of ours
        dir=folder,
        mode=mode,
        id=head.id,
        resume="allow" if mode == "online" else None,  # so that W&B tells whether it has the step of history
        name=head.name,
        group=os.environ.get("WANDB_RUN_GROUP", head.group),
        tags=head.tags,
        config=dict(head.config),
    )


def _follow(run: Any, line: socket.socket) -> bool:
    """Passes on summaries; returns whether the run has finished, rather than its driver died."""
    while content := line.recv(LONGEST_MESSAGE):
        message = json.loads(content)
        if "summary" not in message:
            return True
        run.summary.update(message["summary"])
    return False


def _send(run: Any, finished: FinishedRun, folder: Path) -> None:
    """The summary, one step of history (tables and charts), and the files; returns when W&B has them.

    Summaries and files replace those of the same name; steps do not. So if W&B already has the step, its content goes
    only into the summary, from which tables and charts are drawn.
    """
    import wandb

    shown, chart = _shown(finished)
    if run.starting_step == 0:
        run.log({**shown, "speedup": chart}, step=0)
        shown = {}
    else:
        shown["speedup_table"] = chart.table  # as ``log`` calls what the chart is drawn from
    run.summary.update({**shown, **summary_of(finished.rows)})
    sent = []
    for kind, files in files_of(finished.directory, folder / "files").items():
        artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
        for name, path in files.items():
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        sent.append(run.log_artifact(artifact))
    if not run.offline:
        for artifact in sent:
            artifact.wait()
    run.finish()


def _shown(finished: FinishedRun) -> tuple[dict[str, Any], Any]:
    """(table of cells and distributions, chart of speedups)."""
    import wandb

    speedups = wandb.Table(columns=["cell", "speedup"], data=[list(cell) for cell in speedups_of(finished.rows)])
    chart = wandb.plot.bar(speedups, "cell", "speedup", title="Speedup over the baseline")
    shown = {"matrix": wandb.Table(columns=list(COLUMNS), data=table_cells(finished.rows))}
    if sides := against_base(finished.rows):
        shown = {"against_base": wandb.Table(columns=list(AGAINST_BASE), data=sides), **shown}
    for cell, one in distributions_of(finished).items():
        histogram = one.counts.tolist(), one.edges_ms.tolist()
        shown[f"latency_ms/{cell}"] = wandb.Histogram(np_histogram=histogram)
    return shown, chart


def _tell(line: socket.socket, message: dict[str, Any]) -> None:
    line.send(json.dumps(message).encode())


def main() -> None:
    """Never outlives its driver, and never prints to the terminal."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    mode, folder, number, driver = sys.argv[1:]
    if os.getppid() != int(driver):  # it died before that was said
        return
    line = socket.socket(fileno=int(number))
    with tempfile.NamedTemporaryFile("w+") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        try:
            publish(line.recv(LONGEST_MESSAGE).decode(), mode, Path(folder), line, printed)
        except BaseException as error:
            _tell(line, {"failed": one_line(error), "unusable": isinstance(error, UsageError)})


if __name__ == "__main__":
    main()
