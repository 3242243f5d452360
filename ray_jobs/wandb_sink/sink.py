"""The driver's side: starts the process that speaks to W&B, waits for it for a limited time, and ends it.

Online the run is opened before the first trial, so that others see it grow; offline it is written after the last,
so that no process of W&B runs beside a local measurement.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from chatbot.safe_text import safe
from ray_jobs.matrix.rows import Row
from ray_jobs.provenance import python_path, typed
from ray_jobs.results.store import RunDirectory
from ray_jobs.wandb_sink.content import summary_of
from ray_jobs.wandb_sink.mode import LONGEST_MESSAGE, destination

PATIENCE_S = 10.0  # with the server, over the whole run
OPENING_S = 5.0  # of those, before the first trial; afterwards it may open beside it
WORDLESS = b'{"failed": "its process ended without a word"}'
PREFIX = "latency-matrix-wandb-"
WRITING_S = 60.0  # offline: no server is waited for, only this machine's disk


class WandbSink:
    """One W&B run for one matrix. Every method returns, whatever W&B does; failures are reported in one line."""

    def __init__(self, mode: str, run_dir: RunDirectory, patience_s: float | None = None) -> None:
        self._mode, self._directory, self._local = mode, run_dir, run_dir.local_path
        self._left_s = patience_s or (PATIENCE_S if mode == "online" else WRITING_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._end: dict[str, Any] = {}  # what became of it

    @property
    def failed(self) -> bool:
        """True if something that should have been published was not."""
        return "failed" in self._end

    @property
    def unusable(self) -> bool:
        """True if the run directory can't be read: sending it again would not help."""
        return bool(self._end.get("unusable"))

    @property
    def result(self) -> str | None:
        """The address of the run, or the command that uploads it; None if there is neither."""
        if "done" not in self._end:
            return None
        if log := self._end["log"]:
            return f"W&B: written offline; to upload: wandb sync {shlex.quote(log)}"
        return f"W&B: {safe(str(self._end['done']))}"

    def start(self) -> None:
        """Opens the run if online; ``run.json`` is in its directory."""
        if self._mode == "online":
            print(destination(), file=sys.stderr)
            self._begin()
            self._listen(OPENING_S, "open")

    def progress(self, rows: Sequence[Row]) -> None:
        """Publishes the rows of a finished trial if online, unless W&B is too slow for them."""
        if self._line is not None and not self._end:
            with suppress(OSError):
                self._line.setblocking(False)
                self._line.send(json.dumps({"summary": summary_of(rows)}).encode())

    def finish(self) -> None:
        """Publishes the whole run directory, or reports what prevented it and how to do so later."""
        if self._mode == "off":
            return
        if self._process is None:
            self._begin()
        if not self._end and self._line is not None:
            began = time.monotonic()
            with suppress(OSError):  # it has ended, and what it said is still to be heard; or it does not listen
                self._line.settimeout(max(self._left_s, 0.01))
                self._line.send(b'{"finish": true}')
            self._left_s -= time.monotonic() - began
            self._listen(self._left_s, "done")
        self.stop()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._scratch = TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        arguments = [self._mode, self._folder(), str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ray_jobs.wandb_sink.client", *arguments],
                env={**os.environ, "PYTHONPATH": python_path(), "TMPDIR": self._scratch.name},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._line = ours
        with suppress(OSError):  # it has ended already: what became of it is still to be heard
            ours.send(self._directory.place.encode())  # not among the arguments, which every user of the machine sees

    def _folder(self) -> str:
        """The folder for W&B's client: temporary for an upload, else next to the run if that is local."""
        if self._mode == "online":
            return self._scratch.name
        return self._local or mkdtemp(prefix=PREFIX)

    def _listen(self, seconds: float, awaited: str) -> None:
        """Listens until the awaited message or a failure arrives, or time is up."""
        assert self._line is not None
        began, message = time.monotonic(), dict[str, Any]()
        end = began + min(seconds, self._left_s)
        with suppress(TimeoutError):
            while awaited not in message and "failed" not in message:
                self._line.settimeout(max(end - time.monotonic(), 0.01))
                with suppress(ConnectionResetError):  # it ended before it read what it was told: its last word is next
                    message = json.loads(self._line.recv(LONGEST_MESSAGE) or WORDLESS)
        self._left_s -= time.monotonic() - began
        if awaited == "done" and awaited not in message:
            message.setdefault("failed", "W&B did not answer in time")
        if "done" in message or "failed" in message:
            self._end = message
            self._say()

    def _say(self) -> None:
        if self.unusable:
            print(f"wandb: {safe(str(self._end['failed']))}", file=sys.stderr)
        elif self.failed:
            again = f"{typed()} publish {shlex.quote(self._directory.shown)}"
            what = safe(str(self._end["failed"]))
            print(f"wandb: {what}; the run is unharmed, send it later: {again}", file=sys.stderr)

    def stop(self) -> None:
        """Ends the process, whatever it is doing, and its scratch folder. W&B's own service notices and ends too."""
        if self._process is not None and self._line is not None:
            self._line.close()
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._scratch.cleanup()
