"""One trial in a worker of Ray: ``chatbot.training.fit``, whose every validation is kept and sent to the driver.

Tune restarts a worker that dies, possibly elsewhere, and it continues from the state in the keeper: an actor next to
the driver, so that trials need no shared file system and only the driver writes.
"""

import io
import json
import platform
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray import tune

from chatbot import training
from chatbot.corpus import Pair
from chatbot.errors import UsageError
from chatbot.vocabulary import Vocabulary
from ray_jobs.measure.result import one_line
from ray_jobs.sweep.spec import SweepTrial
from ray_jobs.sweep.table import Validation

KEEPER_S = 120.0  # for the keeper's answer, which carries a whole state


@dataclass(frozen=True)
class Data:
    """The pairs that every trial trains on and is evaluated with."""

    pairs: tuple[Pair, ...]
    vocabulary: Vocabulary
    notes: dict[str, Any]  # of the checkpoints


@dataclass(frozen=True)
class Terms:
    """The settings of a trial's run."""

    threads: int
    device: str
    half: bool


class States:
    """The last state of each running trial, in memory."""

    def __init__(self) -> None:
        self._of: dict[int, bytes] = {}

    def put(self, number: int, state: bytes) -> None:
        self._of[number] = state

    def get(self, number: int) -> bytes | None:
        return self._of.get(number)

    def drop(self, number: int) -> bytes | None:
        return self._of.pop(number, None)


def pack_trial(rows: Sequence[Validation], path: Path) -> bytes:
    """Packs a trial's validations, its best checkpoint at ``path`` and the state next to it into one file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("validations.json", json.dumps([asdict(row) for row in rows]))
        archive.write(path, "best.pt")
        archive.write(training.state_path(path), "resume.pt")
    return content.getvalue()


def unpack(state: bytes, path: Path) -> list[Validation]:
    """Puts the files back and returns the validations."""
    with zipfile.ZipFile(io.BytesIO(state)) as archive:
        path.write_bytes(archive.read("best.pt"))
        training.state_path(path).write_bytes(archive.read("resume.pt"))
        return [Validation(**row) for row in json.loads(archive.read("validations.json"))]


def checkpoint_in(state: bytes) -> bytes:
    """The best checkpoint of a trial."""
    with zipfile.ZipFile(io.BytesIO(state)) as archive:
        return archive.read("best.pt")


def train(config: dict[str, Any], *, trials: Sequence[SweepTrial], data: Data, terms: Terms, keeper: Any) -> None:
    """Tune's trainable: ``config`` names a trial. Reports Validations; if it fails, ``failure`` and a reason."""
    trial = next(one for one in trials if one.number == config["trial"])
    torch.set_num_threads(terms.threads)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "best.pt"
        state = ray.get(keeper.get.remote(trial.number), timeout=KEEPER_S)
        rows = [] if state is None else unpack(state, path)
        for row in rows:  # the driver takes those that it lacks
            tune.report(asdict(row))
        teller = _Teller(trial, rows, path, keeper, len(trial.options.split(data.pairs)[0]))
        try:
            training.fit(
                trial.config,
                data.pairs,
                data.vocabulary,
                trial.options,
                path,
                device=terms.device,
                resume=state is not None,
                half=terms.half,
                notes={**data.notes, "trial": trial.number},
                free_running=True,
                on_validation=teller.tell,
            )
        except Exception as error:  # running it again would end the same way
            reason = str(error) if isinstance(error, UsageError) else one_line(error)
            tune.report({"failure": reason})


class _Teller:
    """Turns progress into rows; keeps the state before it reports."""

    def __init__(self, trial: SweepTrial, rows: list[Validation], path: Path, keeper: Any, pairs: int) -> None:
        self._trial, self._rows, self._path, self._keeper = trial, rows, path, keeper
        self._per_epoch = max(1, pairs // min(trial.options.batch, pairs))
        self._since = time.monotonic()

    def tell(self, progress: training.Progress) -> None:
        row = Validation(
            trial=self._trial.number,
            epoch=progress.iteration / self._per_epoch,
            seconds=round(time.monotonic() - self._since, 3),
            host=platform.node(),
            **asdict(progress),
        )
        self._rows.append(row)
        ray.get(self._keeper.put.remote(self._trial.number, pack_trial(self._rows, self._path)), timeout=KEEPER_S)
        tune.report(asdict(row))
        self._since = time.monotonic()
