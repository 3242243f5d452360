"""Cold starts of a trial's variants: processes that import everything afresh, states and variants interleaved.

A launch's process is forked from one that has imported PyTorch, so it can't tell what a start costs. Here it only
executes a program of its own (``cold_program``) and waits for it, pinned and bounded like a launch.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from chatbot import cache
from chatbot.variants import Workload
from ray_jobs.measure.cold import STARTS, Cold, Start, Starts, State
from ray_jobs.measure.trial import Checkpoint, CheckpointBytes, Inputs, ModelSource, Trial, cold_s
from ray_jobs.process import page_cache
from ray_jobs.process.cold_program import MARK
from ray_jobs.process.page_cache import Dropped
from ray_jobs.process.search import search_of
from ray_jobs.process.server import Loss, LossKind
from ray_jobs.process.untimed import Alive, Allowance, Part

PREFIX = "cold-"  # of folders within the cache
COMMAND = ("-P", "-m", "ray_jobs.process.cold_program")

AskStart = Callable[[Callable[[], Any], float], Any]  # work for a fresh pinned process, which has so many seconds


@dataclass(frozen=True)
class Asked:
    """One start: of which variant, and what it finds."""

    workload: Workload
    model: Mapping[str, Any]  # as ``cold_program`` takes it
    prompts: Sequence[Sequence[int]]
    variant: str
    cache: str  # the folder of what is compiled
    forgotten: tuple[str, ...] = ()  # files that leave the page cache before


@dataclass(frozen=True)
class Told:
    """What one start found out."""

    fresh: Start
    live: Start  # of the second model in the same process
    files: tuple[str, ...]  # that it had in its memory at the end
    weights: int  # bytes
    dropped: Dropped


def run_start(asked: Asked) -> Told | str:
    """Runs in a process that is pinned, and starts the program there; the reason where it told nothing."""
    dropped = page_cache.drop(asked.forgotten)
    content = {
        "workload": vars(asked.workload),
        "model": dict(asked.model),
        "prompts": [list(prompt) for prompt in asked.prompts],
        "variant": asked.variant,
        "cores": sorted(os.sched_getaffinity(0)),
        "last": list(search_of(asked.workload, None).last),
        "began_ns": time.monotonic_ns(),
    }
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            text=True,
            env=_environment(asked),
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(content))
        process.stdin.close()
        code = process.wait()  # for itself, not for the end of what it has left running
        lines, said = ([line.rstrip("\n") for line in file if line.strip()] for file in map(_rewound, (out, err)))
    line = next((line for line in lines if line.startswith(MARK)), None)
    if line is None:
        return f"its start ended with {code}: {said[-1] if said else 'it said nothing'}"
    told = json.loads(line.removeprefix(MARK))
    if "lost" in told:
        return str(told["lost"])
    return Told(Start(**told["fresh"]), Start(**told["warm"]), tuple(told["files"]), told["weights"], dropped)


def _rewound(file: IO[str]) -> IO[str]:
    file.seek(0)
    return file


def _environment(asked: Asked) -> dict[str, str]:
    """This process's, with every cache of compiled code in one place; Inductor's lies there unless it is named."""
    kept = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    places = {"TRITON_CACHE_DIR": "triton", "CUDA_CACHE_PATH": "cuda"}
    return {**kept, cache.CACHE: asked.cache, **{name: f"{asked.cache}/{place}" for name, place in places.items()}}


def cold(
    trial: Trial, inputs: Inputs, names: Sequence[str], ask: AskStart, allowance: Allowance
) -> Iterator[Alive | Cold]:
    """Starts each of these variants ``STARTS`` times in every state, as far as the time goes; ends with what it found.

    The first start of each is not counted: it tells which files a start reads, and what it compiles is what the
    starts of ``CACHED`` find. Launches are not lost where nothing can be kept.
    """
    try:
        cache.folder()
    except cache.CacheError as error:
        yield Cold(lost=dict.fromkeys(names, str(error)))
        return
    with _folder() as root:
        stage = _Stage(trial, inputs, root, ask, allowance)
        for name in names:
            yield Alive(Part.COLD, name)
            stage.first(name)
        rng = np.random.default_rng(trial.seed)
        for _ in range(STARTS):
            units = [(name, state) for name in stage.going for state in (State.EMPTY, State.CACHED)]
            for place in rng.permutation(len(units)):
                name, state = units[place]
                if allowance.left_s and name in stage.going:
                    yield Alive(Part.COLD, name)
                    stage.start(name, state)
        yield stage.found()


@dataclass
class _Stage:
    """The starts of a trial in progress."""

    trial: Trial
    inputs: Inputs
    root: Path
    ask: AskStart
    allowance: Allowance
    firsts: dict[str, Told] = field(default_factory=dict)  # of the variants that can start
    starts: dict[str, dict[str, list[Start]]] = field(default_factory=dict)
    kept: dict[str, Dropped] = field(default_factory=dict)  # the worst of the starts of ``EMPTY``
    lost: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = _model(self.inputs.model, self.root)
        own = self.trial.workload.own_model
        pool = [] if own else self.inputs.pool(self.trial.workload)[: self.trial.workload.batch].tolist()
        self.prompts: list[list[int]] = pool

    @property
    def going(self) -> list[str]:
        return [name for name in self.firsts if name not in self.lost]

    def first(self, name: str) -> None:
        """The start that is not counted."""
        told = self._asked(name, self._kept(name))
        if told is not None:
            self.firsts[name] = told

    def start(self, name: str, state: State) -> None:
        """One that is."""
        if state == State.CACHED:
            told = self._asked(name, self._kept(name))
        else:
            own = f"{self.root}/"  # what was compiled stays as it is for the starts that find it
            files = [file for file in self.firsts[name].files if not file.startswith(own)]
            files += [self.model["path"]] if "path" in self.model else []
            with tempfile.TemporaryDirectory(dir=self.root, ignore_cleanup_errors=True) as empty:
                told = self._asked(name, Path(empty), files)
        if told is None:
            return
        mine = self.starts.setdefault(name, {})
        mine.setdefault(state, []).append(told.fresh)
        if state == State.CACHED:
            mine.setdefault(State.WARM, []).append(told.live)
        elif told.dropped.kept >= self.kept.get(name, Dropped()).kept:
            self.kept[name] = told.dropped

    def found(self) -> Cold:
        """All of them."""
        of = {name: self._of(name, by_state) for name, by_state in self.starts.items()}
        few = {name: min((len(one) for one in starts.of.values()), default=0) for name, starts in of.items()}
        for name in self.going:
            if few.get(name, 0) < STARTS:
                self.lost[name] = f"{few.get(name, 0)} of {STARTS} starts fitted in {self._time}"
        return Cold(of, self.lost)

    @property
    def _time(self) -> str:
        return f"{self.allowance.seconds:.0f} s; give a larger --budget"

    def _of(self, name: str, by_state: Mapping[str, list[Start]]) -> Starts:
        weights = Path(str(self.model.get("path", "")))
        artifacts = [*self._kept(name).rglob("*"), *([weights] if "path" in self.model else [])]
        size = sum(file.stat().st_size for file in artifacts if file.is_file() and not file.is_symlink())
        kept, first = self.kept.get(name, Dropped()), self.firsts[name]
        of: dict[str, Sequence[Start]] = {state: tuple(by_state.get(state, ())) for state in State}
        return Starts(of, size / 1e6, first.weights / 1e6, kept.total / 1e6, kept.kept / 1e6)

    def _kept(self, name: str) -> Path:
        """The folder of what its first start has compiled."""
        place = self.root / f"variant-{self.trial.variants.index(name)}"
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    def _asked(self, name: str, place: Path, forgotten: Sequence[str] = ()) -> Told | None:
        if not self.allowance.left_s:
            self.lost[name] = f"there was no time left for its starts within {self._time}"
            return None
        asked = Asked(self.trial.workload, self.model, self.prompts, name, str(place), tuple(forgotten))
        outcome: Told | str | Loss = self.ask(partial(run_start, asked), self.allowance.left_s)
        if isinstance(outcome, Told):
            return outcome
        late = isinstance(outcome, Loss) and outcome.kind == LossKind.LATE
        if late and name in self.starts and not self.allowance.left_s:
            return None  # the time is over: those before count
        if late:
            self.lost[name] = f"a start did not end within {self._time}"
        else:
            self.lost[name] = outcome.reason if isinstance(outcome, Loss) else outcome
        return None


def _model(source: ModelSource, root: Path) -> dict[str, Any]:
    """The model as ``cold_program`` takes it: weights become a file on a disk, as a deployment has them."""
    if not isinstance(source, (Checkpoint, CheckpointBytes)):
        return asdict(source)
    content = source.content if isinstance(source, CheckpointBytes) else Path(source.path).read_bytes()
    path = root / "weights.pt"
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # what is not written yet can't leave the page cache
    return {"path": str(path)}


def prefix() -> str:
    """Of the folders of processes that this one can see: others may share the cache, by a home that several mount."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return f"{PREFIX}{boot}-{os.stat('/proc/self/ns/pid').st_ino}-"


@contextmanager
def _folder() -> Iterator[Path]:
    """One in the private cache, where what is compiled may be executed; those of processes that were killed go."""
    mine = prefix()
    for left in cache.folder().glob(f"{mine}*"):
        pid = left.name.removeprefix(mine).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    place = tempfile.mkdtemp(dir=cache.folder(), prefix=f"{mine}{os.getpid()}-")
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def allowance_of(trial: Trial, clock: Callable[[], float]) -> Allowance:
    """The time allowed for cold starts."""
    return Allowance(cold_s(trial.budget_s), clock)
