"""What a trial holds of its station while it measures: real locks, and no launch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from launches import made_trial
from locks import holder_of

from ray_jobs.measure.trial import Inputs, Preset
from ray_jobs.process import lease, trial
from ray_jobs.process.cores import CoreChoice, Topology
from ray_jobs.process.lease import Lease
from ray_jobs.process.server import Request, TrialError
from ray_jobs.process.trial import WHOLE, Ask, Share, on_station
from ray_jobs.sides import BASE


class Server:
    """Does the work of its requests where it is asked."""

    warnings = ()

    def __init__(self, _: Any, cores: Sequence[int] = (), *__: Any, **___: Any) -> None:
        self.cores = tuple(cores)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, request: Request) -> Any:
        return request.work()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the locks; the station is two cores of two CPUs each, of which it may use one."""
    monkeypatch.setenv(lease.FOLDER, str(tmp_path))
    monkeypatch.setattr(trial, "LaunchServer", Server)
    monkeypatch.setattr(trial, "topology", lambda: Topology({0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2})
    return tmp_path


def found(work: Callable[[Ask, CoreChoice], Iterator[Any]]) -> list[Any]:
    return list(on_station(made_trial(), Inputs(Preset("tiny"), {}), WHOLE, lambda held: work(held.ask, held.chosen)))


def test_the_siblings_of_measured_cores_are_held_too() -> None:
    """Another run pinned to one of them would slow this one down."""
    held, free = found(lambda _, chosen: iter([holder_of([f"core-{chosen.empty[0]}"]), holder_of(["core-1"])]))
    assert str(held).startswith("core-3 is held by run run, trial trial ")
    assert free is None


def test_what_starts_anew_for_a_launch_stays_within_the_share_of_the_station() -> None:
    """On all its cores, as nothing is measured meanwhile; on others another trial may measure."""
    for share, cores in ((WHOLE, (0, 2)), (Share((2,)), (2,))):
        told = on_station(made_trial(), Inputs(Preset("tiny"), {}), share, lambda held: iter([held.start(BASE)]))
        (server,) = told
        assert isinstance(server, Server)
        assert server.cores == cores


def test_a_lock_that_somebody_removed_and_took_ends_the_trial_at_its_next_launch(folder: Path) -> None:
    launched: list[int] = []

    def work(ask: Ask, chosen: CoreChoice) -> Iterator[Any]:
        name = f"core-{chosen.cpus[0]}"
        yield ask(lambda: launched.append(1))
        (folder / f"{name}.lock").unlink()
        with Lease([name], "the quick one") as theirs:
            assert theirs.take() is None
            yield ask(lambda: launched.append(2))

    with pytest.raises(TrialError, match="a lock was removed while this trial held it, and now core-2 is held by the"):
        found(work)
    assert launched == [1]
