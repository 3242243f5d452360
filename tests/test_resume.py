"""A run that was cut off and goes on: the matrix comes out as if nothing had happened, or says why it does not.

The main job itself, on stations that are made up and a clock that launches alone advance.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launches import made_launch, prompts

from chatbot.errors import UsageError
from ray_jobs.cluster.events import (
    Event,
    Job,
    LaunchDone,
    Station,
    TrialEnded,
    TrialStarted,
    WorkerLost,
)
from ray_jobs.driver import run
from ray_jobs.driver.resume import PARTS, Earlier
from ray_jobs.measure import method
from ray_jobs.measure.result import Launch, LaunchResult, Limits, Memory
from ray_jobs.measure.roofline import Limit, Speeds
from ray_jobs.measure.trial import Inputs, Preset, Trial
from ray_jobs.process import lease
from ray_jobs.process.trial import Committed, Failure, launches
from ray_jobs.process.untimed import Alive
from ray_jobs.report.compact import compact
from ray_jobs.report.terminal import Reporter
from ray_jobs.results.filesystem import StoreError
from ray_jobs.results.samples import to_table
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import Spec, read_spec
from ray_jobs.wandb_sink.sink import WandbSink

PACKAGES = {"torch": "2.13.0", "numpy": "2.4.6", "ray": "2.60.0"}
ASKED: dict[str, Any] = {"variants": "eager", "budget": 14, "model": "tutorial"}
SPEC = read_spec(None, {**ASKED, "batch": [1, 2]})
TRIALS = ("cpu-b1-p8-r10-t1@a", "cpu-b1-p8-r10-t1@b", "cpu-b2-p8-r10-t1@a", "cpu-b2-p8-r10-t1@b")
FIRST, SECOND, LAST = TRIALS[0], TRIALS[1], TRIALS[-1]
LEAST = 4
LAUNCHES = 6  # of each trial: what 14 s at 2 s each have room for, in whole blocks
PEAK = {"eager": 300.0, "eager-again": 301.0}
PREPARING = {"eager": 200.0}
LIMITS = Limits(
    Speeds(((1 << 20, 90.5), (1 << 28, 20.25)), {"float32": 100.0, "int8": 440.0}),
    {"eager": Limit(ms=4.0, memory_ms=4.0, compute_ms=2.0, moved_mb=400.0, gflop=0.2, int8_share=0.25)},
)


def station(name: str = "a", kind: str = "EPYC", cores: int = 4, **packages: str) -> Station:
    facts = {"host": name, "cpu": kind, "packages": {**PACKAGES, **packages}}
    return of_facts(name, kind, cores, facts)


def of_facts(name: str, kind: str, cores: int, facts: dict[str, Any]) -> Station:
    return Station(f"{name}:cpu", name, "cpu", kind, f"node-{name}", 4.0, tuple(range(cores)), facts=facts)


BOTH = (station("a"), station("b"))


def outcome(trial: Trial, launch: Launch) -> LaunchResult:
    """What follows from the trial and the launch's index alone."""
    rng = np.random.default_rng([zlib.crc32(trial.id.encode()), launch.index])
    walls = {name: 5.0 * np.exp(rng.normal(0, 0.1, (2, 2))) for name in trial.variants}
    made = made_launch(walls, launch.index, rounds=2, calls=2, machine={"pid": 1000 + launch.index})
    return replace(made, launch=launch)


class Cut(BaseException):
    """The driver ends here."""


@dataclass
class Cluster:
    """Stations that measure one trial after another."""

    stations: Sequence[Station] = BOTH
    cut_after: int | None = None  # launches, of all trials
    said: dict[str, list[Event]] = field(default_factory=dict)  # before the launches of a trial
    fails: dict[str, int] = field(default_factory=dict)  # trials that fail, after how many launches
    ran: list[tuple[str, int]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def find(self, devices: Iterable[str], by_device: bool, cores_per_gpu: int | None) -> dict[str, list[Station]]:
        return {device: [s for s in self.stations if s.device == device] for device in devices}

    def measure(self, jobs: Iterable[Job], inputs: Inputs) -> Iterator[Event]:
        for job in jobs:
            self.jobs.append(job.trial.id)
            yield from self._trial(job)

    def _trial(self, job: Job) -> Iterator[Event]:
        """As the worker tells it."""
        name, mine = job.trial.id, []
        yield Event(name, TrialStarted())
        yield Event(name, Alive())
        yield from self.said.get(name, [])
        for found in launches(
            job.trial, lambda launch: self._launch(job.trial, launch), lambda: self.seconds, job.committed
        ):
            assert isinstance(found, LaunchResult)
            mine.append(found)
            yield Event(name, LaunchDone(Committed.of(found), to_table(name, found)))
            self.ran.append((name, found.launch.index))
            if len(mine) == self.fails.get(name):
                yield Event(name, TrialEnded("its worker was lost 3 times"))
                return
            if len(self.ran) == self.cut_after:
                raise Cut
        yield Event(name, Memory(PEAK, prepare_mb=PREPARING))
        yield Event(name, LIMITS)
        yield Event(name, TrialEnded(None))

    def _launch(self, trial: Trial, launch: Launch) -> LaunchResult:
        self.seconds += 2.0
        return outcome(trial, launch)


@pytest.fixture(autouse=True)
def made_up(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, no model; locks of its own."""
    inputs = Inputs(Preset("tiny"), {8: prompts(50)})
    monkeypatch.setenv(lease.FOLDER, str(tmp_path_factory.mktemp("locks")))
    monkeypatch.setattr(run, "inputs_of", lambda spec: inputs)
    monkeypatch.setattr(run, "connected", lambda address: nullcontext())
    monkeypatch.setattr(run, "wait_for_resources", lambda *_: None)
    monkeypatch.setattr("ray_jobs.provenance.driver_facts", dict)
    monkeypatch.setattr("ray_jobs.process.trial.LEAST_LAUNCHES", LEAST)
    monkeypatch.setattr(run, "draw_or_say", lambda directory: None)  # else half of the time goes to pages nobody reads


Rows = list[dict[str, Any]]


def start(root: Path, cluster: Cluster, spec: Spec = SPEC) -> Path:
    """A new run; where it is, finished or cut off."""
    return go(RunDirectory.named(str(root), "r1"), cluster, spec, None)


def resume(place: Path, cluster: Cluster) -> Path:
    earlier = Earlier.of(str(place), "nowhere")
    return go(earlier.directory, cluster, earlier.spec, earlier)


def go(directory: RunDirectory, cluster: Cluster, spec: Spec, earlier: Earlier | None) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "find_stations", cluster.find)
        patch.setattr(run, "measure", cluster.measure)
        arguments = (run.Where("local"), WandbSink("off", directory), Reporter(1.0, 0.01), earlier)
        try:
            run.run(spec, "r1", directory, *arguments)
        except Cut:
            assert cluster.cut_after is not None
        else:
            assert cluster.cut_after is None, "it was over before"
    assert directory.local_path is not None
    return Path(directory.local_path)


def rows(place: Path) -> Rows:
    found: Rows = json.loads((place / "matrix.json").read_text())
    return found


def rows_of_trial(place: Path, trial: str) -> Rows:
    return [row for row in rows(place) if row["trial_id"] == trial]


def told(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / "run.json").read_text())
    return content


def sample(place: Path, trial: str, index: int) -> Path:
    return place / "samples" / f"{trial}.{index:04d}.parquet"


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as refused:
        act()
    (line,) = str(refused.value).splitlines()
    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was never cut off. Read only."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(lease.FOLDER, str(root / "locks"))
        patch.setattr(run, "inputs_of", lambda spec: Inputs(Preset("tiny"), {8: prompts(50)}))
        patch.setattr(run, "connected", lambda address: nullcontext())
        patch.setattr(run, "wait_for_resources", lambda *_: None)
        patch.setattr("ray_jobs.provenance.driver_facts", dict)
        patch.setattr("ray_jobs.process.trial.LEAST_LAUNCHES", LEAST)
        yield start(root, Cluster())


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The same, to be written in."""
    return Path(shutil.copytree(whole, tmp_path / "copied" / "r1"))


def edited(place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The run with another run.json."""
    content = told(place)
    change(content)
    (place / "run.json").write_text(json.dumps(content))
    return place


ALL = [(trial, index) for trial in TRIALS for index in range(LAUNCHES)]


def test_the_made_up_run_is_a_whole_one(whole: Path) -> None:
    assert {(row["status"], row["launches"]) for row in rows(whole)} == {("done", LAUNCHES)}
    assert [row["trial_id"] for row in rows(whole)] == [trial for trial in TRIALS for _ in SPEC.variants]
    assert len(list((whole / "samples").iterdir())) == len(ALL)


# Cut off, and gone on with


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("after", [1, 5, LAUNCHES, LAUNCHES + 1, 3 * LAUNCHES + 5, 4 * LAUNCHES])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    after: int, killed: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed: run.json is left as it was when the measurement began."""
    with monkeypatch.context() as patch:
        if killed:
            written: list[run.Run] = []

            def once(this: run.Run, write: Callable[[run.Run], None] = run.write_run) -> None:
                if not written:
                    write(this)
                written.append(this)

            patch.setattr(run, "write_run", once)
        place = start(tmp_path, Cluster(cut_after=after))
    assert not (place / "matrix.json").exists()
    begun = told(place)["started"]

    cluster = Cluster()
    assert resume(place, cluster) == place
    assert cluster.ran == ALL[after:], "what was committed is not run again, and all else is"
    assert rows(place) == rows(whole)
    assert sorted(p.name for p in (place / "samples").iterdir()) == sorted(sample(place, *one).name for one in ALL)
    content = told(place)
    assert (content["started"], len(content["resumed"]), content["run_id"]) == (begun, 1, "r1")
    standing = [(name, record["status"], record["launches"]) for name, record in content["trials"].items()]
    assert standing == [(trial, "done", LAUNCHES) for trial in TRIALS]


def test_a_run_may_be_cut_off_again_and_again(whole: Path, tmp_path: Path) -> None:
    clusters = [Cluster(cut_after=count) for count in (5, 3, 1, 9)]
    place = start(tmp_path, clusters[0])
    for cluster in clusters[1:]:
        resume(place, cluster)
    last = Cluster()
    resume(place, last)
    assert [one for cluster in (*clusters, last) for one in cluster.ran] == ALL
    assert rows(place) == rows(whole)
    assert len(told(place)["resumed"]) == 4


def test_a_resumed_trial_gets_exactly_its_committed_launches(tmp_path: Path) -> None:
    place = start(tmp_path, Cluster(cut_after=LAUNCHES + 5))
    jobs: dict[str, Job] = {}

    class Looking(Cluster):
        def measure(self, given: Iterable[Job], inputs: Inputs) -> Iterator[Event]:
            jobs.update({job.trial.id: job for job in given})
            raise Cut
            yield

    resume(place, Looking(cut_after=0))
    assert list(jobs) == [SECOND, *TRIALS[2:]], "the first one is over"
    for name, job in jobs.items():
        expected = [
            replace(outcome(job.trial, Launch(i, 0)), elapsed_s=2.0 * (i + 1)) for i in range(5 * (name == SECOND))
        ]
        assert job.committed == tuple(map(Committed.of, expected))
        assert (job.station.name, job.trial.run_id, job.trial.id) == (f"{name[-1]}:cpu", "r1", name)


def test_a_finished_run_is_gone_on_with_without_measuring(copied: Path, whole: Path) -> None:
    cluster = Cluster()
    resume(copied, cluster)
    assert cluster.jobs == []
    assert rows(copied) == rows(whole)
    assert [r["attempts"] for r in told(copied)["trials"].values()] == [[]] * 4
    assert [r["seconds"] for r in told(copied)["trials"].values()] == [
        r["seconds"] for r in told(whole)["trials"].values()
    ]
    assert [r["peak_memory_mb"] for r in told(copied)["trials"].values()] == [PEAK] * 4
    assert {row["prepare_memory_mb"] for row in rows(copied) if row["variant"] == "eager"} == {200.0}
    for place in (whole, copied):
        records = told(place)["trials"].values()
        assert all(r["limits"] == {name: asdict(limit) for name, limit in LIMITS.of.items()} for r in records)
        assert all(Speeds.of(r["speeds"]) == LIMITS.speeds for r in records)
        assert {row["bound"] for row in rows(place) if row["variant"] in LIMITS.of} == {"memory"}


def test_a_run_from_before_there_were_limits_has_none(copied: Path) -> None:
    record = told(copied)
    for trial in record["trials"].values():
        del trial["limits"], trial["speeds"]
    (copied / "run.json").write_text(json.dumps(record))
    resume(copied, Cluster())
    assert {row["limit_ms"] for row in rows(copied)} == {None}
    assert all((r["limits"], r["speeds"]) == ({}, None) for r in told(copied)["trials"].values())


def test_each_attempt_is_recorded_with_what_it_had_brought_home(tmp_path: Path) -> None:
    lost = Event(FIRST, Failure(Launch(0, seed=1), "it hung"))
    said: dict[str, list[Event]] = {FIRST: [Event(FIRST, WorkerLost(1, "it died")), lost]}
    place = start(tmp_path, Cluster(cut_after=3, said=said))
    resume(place, Cluster(fails={FIRST: 2}))
    record = told(place)["trials"][FIRST]
    assert (record["status"], record["reason"], record["launches"]) == ("failed", "its worker was lost 3 times", 5)
    resume(place, Cluster())
    record = told(place)["trials"][FIRST]
    assert (record["status"], record["reason"], record["launches"]) == ("done", None, LAUNCHES)
    assert record["attempts"] == [
        {"reason": "it died", "launches": 0},
        {"reason": "the run was cut off", "launches": 3},
        {"reason": "its worker was lost 3 times", "launches": 5},
    ]
    assert record["lost_launches"] == [{"launch": 0, "attempt": 1, "reason": "it hung"}]


def test_a_trial_that_failed_is_measured_again_behind_its_launches(whole: Path, tmp_path: Path) -> None:
    place = start(tmp_path, Cluster(fails={SECOND: 5}))
    assert {row["status"] for row in rows_of_trial(place, SECOND)} == {"failed"}
    assert {row["launches"] for row in rows_of_trial(place, SECOND)} == {5}
    cluster = Cluster()
    resume(place, cluster)
    assert cluster.ran == [(SECOND, index) for index in range(5, LAUNCHES)]
    assert rows(place) == rows(whole)


# What is missing or broken among the launches


@pytest.mark.parametrize(
    ("content", "index"),
    [(None, 0), (None, 4), (None, LAUNCHES - 1), (b"", 4), (b"PAR1", 4), (b"PAR1 half of a fi", 4), ("half", 4)],
)
def test_a_launch_that_is_missing_or_unreadable_is_measured_again(
    content: bytes | str | None, index: int, copied: Path, whole: Path
) -> None:
    path = sample(copied, SECOND, index)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[: path.stat().st_size // 2])
    cluster = Cluster()
    resume(copied, cluster)
    assert cluster.ran == [(SECOND, index)]
    assert rows(copied) == rows(whole)


def test_several_missing_launches_are_measured_again_in_order(copied: Path, whole: Path) -> None:
    for trial, index in ((FIRST, 4), (FIRST, 2), (LAST, 5)):
        sample(copied, trial, index).unlink()
    cluster = Cluster()
    resume(copied, cluster)
    assert cluster.ran == [(FIRST, 2), (FIRST, 4), (LAST, 5)]
    assert rows(copied) == rows(whole)


def test_a_run_whose_launches_are_all_gone_is_measured_again(copied: Path, whole: Path) -> None:
    shutil.rmtree(copied / "samples")
    (copied / "samples").mkdir()
    cluster = Cluster()
    resume(copied, cluster)
    assert cluster.ran == ALL
    assert rows(copied) == rows(whole)


def test_half_written_files_are_taken_away(copied: Path) -> None:
    sample(copied, LAST, 3).rename(sample(copied, LAST, 3).with_suffix(".parquet.part"))
    cluster = Cluster()
    resume(copied, cluster)
    assert cluster.ran == [(LAST, 3)]
    assert not list((copied / "samples").glob("*.part"))


@pytest.mark.parametrize("identity", [b"", b"0123456789abcdef"])
def test_a_launch_of_another_run_is_refused_by_its_name(identity: bytes, copied: Path, whole: Path) -> None:
    path = sample(copied, SECOND, 4)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"identity": identity}), path)
    cluster = Cluster()
    said = refusal(lambda: resume(copied, cluster))
    assert said == f"{copied} can't be resumed: samples/{path.name} is of another run"
    assert cluster.jobs == []
    assert told(copied) == told(whole), "nothing was written"


@pytest.mark.parametrize("name", ["launches.parquet", "notes.parquet", "x.y.parquet", "cpu@a.00x1.parquet"])
def test_another_file_among_the_launches_is_refused_by_its_name(name: str, copied: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), copied / "samples" / name)
    said = refusal(lambda: resume(copied, Cluster()))
    assert said == f"{copied} can't be resumed: samples/{name} is not one of its launches"


def test_a_table_of_something_else_is_refused_by_its_name(copied: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), sample(copied, FIRST, 3))
    said = refusal(lambda: resume(copied, Cluster()))
    assert said == f"{copied} can't be resumed: samples/{sample(copied, FIRST, 3).name} is of another run"


def test_a_launch_that_makes_no_sense_is_refused_by_its_name(copied: Path) -> None:
    path = sample(copied, FIRST, 3)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"launch": b"{}"}), path)
    said = refusal(lambda: resume(copied, Cluster()))
    assert said.startswith(f"{copied} can't be resumed: samples/{path.name} can't be read: KeyError")


def test_launches_of_different_programs_are_refused_by_the_variants_name(copied: Path) -> None:
    """Whatever the reason: all else that is known of the two is the same."""
    for index, program in ((2, "an older one"), (3, "a newer one")):
        path = sample(copied, FIRST, index)
        table = pq.read_table(path)
        launch = json.loads(table.schema.metadata[b"launch"])
        launch["facts"]["eager"]["program"] = program
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"launch": json.dumps(launch)}), path)
    said = refusal(lambda: resume(copied, Cluster()))
    assert said == f"{copied} can't be resumed: launches of {FIRST} ran different programs as eager; start a new run"


def test_a_compacted_run_is_refused_in_one_line(whole: Path, tmp_path: Path) -> None:
    compact(RunDirectory.existing(str(whole)), RunDirectory.named(str(tmp_path), "small"))
    said = refusal(lambda: resume(tmp_path / "small", Cluster()))
    assert said == f"{tmp_path}/small can't be resumed: samples/launches.parquet is not one of its launches"


# Another cluster


def telling(name: str = "b", **facts: Any) -> Station:
    """A station that tells of its machine, as earlier versions did not."""
    known = {"machine_ids": {"dmi": None, "machine_id": "1"}, "settings": {}, "compiler": "g++ 12.2.0"}
    return of_facts(
        name, "EPYC", 4, {"host": name, "packages": PACKAGES, "cpu_model": "25.1.1, AVX2", **known, **facts}
    )


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"machine_ids": {"dmi": None, "machine_id": "2"}}, "its station b:cpu is another machine of the same name"),
        ({"cpu_model": "25.17.1, AVX-512"}, "its station was EPYC [25.1.1, AVX2], 4 cores and is EPYC [25.17.1, AVX-"),
        ({"settings": {"MKL_CBWR": "AVX2"}}, "its station had MKL_CBWR unset and has AVX2"),
    ],
)
def test_another_machine_or_setting_of_the_same_name_is_not_gone_on_with(
    now: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    place = start(tmp_path, Cluster([BOTH[0], telling()], cut_after=LAUNCHES + 5))
    cluster = Cluster([BOTH[0], telling(**now)])
    resume(place, cluster)
    assert cluster.jobs == [TRIALS[2]]
    assert all(row["reason"].startswith(reason) for row in rows_of_trial(place, SECOND))


@pytest.mark.parametrize("same", [telling(), telling(compiler="g++ 13"), telling(machine_ids={})])
def test_what_no_variant_uses_and_what_is_not_told_hinders_nothing(same: Station, tmp_path: Path) -> None:
    place = start(tmp_path, Cluster([BOTH[0], telling()], cut_after=LAUNCHES + 5))
    cluster = Cluster([BOTH[0], same])
    resume(place, cluster)
    assert cluster.jobs == [SECOND, TRIALS[2], LAST]


def test_another_version_of_a_program_that_a_variant_uses_is_not_gone_on_with(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"variants": (*SPEC.variants, "native")})
    place = start(tmp_path, Cluster([BOTH[0], telling()], cut_after=LAUNCHES + 5), spec)
    cluster = Cluster([BOTH[0], telling(compiler="g++ 13.2.0")])
    resume(place, cluster)
    assert cluster.jobs == [TRIALS[2]]
    reason = "its station had compiler g++ 12.2.0 and has g++ 13.2.0; 5 launches of an earlier attempt are kept"
    assert {row["reason"] for row in rows_of_trial(place, SECOND)} == {reason}


def test_a_run_from_before_machines_were_told_goes_on(tmp_path: Path) -> None:
    place = start(tmp_path, Cluster(cut_after=LAUNCHES + 5))
    cluster = Cluster([telling("a"), telling("b")])
    resume(place, cluster)
    assert cluster.jobs == [SECOND, TRIALS[2], LAST]


def test_a_quota_below_the_threads_skips_the_trial_before_it_measures(tmp_path: Path) -> None:
    cluster = Cluster([telling(quota_cpus=0.5), telling("a", quota_cpus=1.0)])
    place = start(tmp_path, cluster)
    assert cluster.jobs == [FIRST, TRIALS[2]]
    reason = "1 thread can't run all the time: the quota of its control group (cpu.max, docker's --cpus, a pod's limit)"
    assert {(row["status"], row["reason"]) for row in rows_of_trial(place, SECOND)} == {
        ("skipped", f"{reason} is 0.5 CPUs")
    }


def test_without_its_station_a_trial_fails_and_keeps_its_launches(whole: Path, tmp_path: Path) -> None:
    place = start(tmp_path, Cluster(cut_after=LAUNCHES + 5))
    cluster = Cluster([BOTH[0]])
    resume(place, cluster)
    assert cluster.jobs == [TRIALS[2]], "what the other station can still do"
    expected = "its station b:cpu is not in the cluster now"
    assert {(row["status"], row["reason"], row["launches"]) for row in rows_of_trial(place, SECOND)} == {
        ("failed", f"{expected}; 5 launches of an earlier attempt are kept", 5)
    }
    assert {(row["status"], row["reason"], row["launches"]) for row in rows_of_trial(place, LAST)} == {
        ("failed", f"{expected}; 0 launches of an earlier attempt are kept", None)
    }
    for row in rows_of_trial(place, SECOND):
        assert (row["station"], row["host"], row["device_name"], row["batch"]) == ("b:cpu", "b", "EPYC", 1)
    for trial in (FIRST, TRIALS[2]):
        assert rows_of_trial(place, trial) == rows_of_trial(whole, trial)
    resume(place, Cluster())
    assert rows_by_trial(place) == rows_by_trial(whole), "it is back"


def rows_by_trial(place: Path) -> Rows:
    return sorted(rows(place), key=lambda row: (row["trial_id"], SPEC.variants.index(row["variant"])))


def test_what_is_done_stays_done_when_its_station_is_gone(copied: Path, whole: Path) -> None:
    cluster = Cluster([BOTH[1]])
    resume(copied, cluster)
    assert cluster.jobs == []
    assert rows_by_trial(copied) == rows_by_trial(whole)


OTHERS = {
    "other hardware": (station("b", "Xeon"), "its station was EPYC, 4 cores and is Xeon, 4 cores"),
    "fewer cores": (station("b", cores=2), "its station was EPYC, 4 cores and is EPYC, 2 cores"),
    "other torch": (station("b", torch="2.14.0"), "its station had torch 2.13.0 and has 2.14.0"),
    "other build of torch": (station("b", torch="2.13.0+cu126"), "its station had torch 2.13.0 and has 2.13.0+cu126"),
    "other numpy": (station("b", numpy="2.5.0"), "its station had numpy 2.4.6 and has 2.5.0"),
    "at fault": (replace(station("b"), fault="it did not answer within 60 s"), "it did not answer within 60 s"),
    "at fault and unknown": (
        replace(station("b"), fault="it lacks torch", facts={}, cores=(), device_name="an unknown CPU"),
        "it lacks torch",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_done_stays_done_on_another_station_of_the_same_name(kind: str, copied: Path, whole: Path) -> None:
    cluster = Cluster([BOTH[0], OTHERS[kind][0]])
    resume(copied, cluster)
    assert cluster.jobs == []
    assert rows(copied) == rows(whole)


@pytest.mark.parametrize("kind", OTHERS)
def test_launches_of_two_stations_are_not_mixed_however_often_it_is_tried(
    kind: str, tmp_path: Path, whole: Path
) -> None:
    """A trial whose station is another one now fails and keeps its launches, until the station of then is back."""
    place = start(tmp_path, Cluster(cut_after=LAUNCHES + 5))
    other, reason = OTHERS[kind]
    for jobs in ([TRIALS[2]], []):
        cluster = Cluster([BOTH[0], other])
        resume(place, cluster)
        assert cluster.jobs == jobs, "what the other station can still do"
        found = rows_of_trial(place, SECOND)
        assert {(row["status"], row["reason"], row["launches"]) for row in found} == {
            ("failed", f"{reason}; 5 launches of an earlier attempt are kept", 5)
        }
        assert {row["device_name"] for row in found} == {"EPYC"}, "its launches were measured there"
    resume(place, Cluster())
    assert rows(place) == rows(whole)


def test_another_version_of_what_does_not_compute_is_no_hindrance(tmp_path: Path, whole: Path) -> None:
    place = start(tmp_path, Cluster(cut_after=LAUNCHES + 5))
    resume(place, Cluster([BOTH[0], station("b", ray="2.61.0")]))
    assert rows(place) == rows(whole)


def test_what_was_skipped_is_measured_when_it_can_be(tmp_path: Path) -> None:
    spec = read_spec(None, {**ASKED, "threads": [1, 8]})
    place = start(tmp_path, Cluster([station("a")]), spec)
    assert [row["status"] for row in rows(place)] == ["done"] * 2 + ["skipped"] * 2
    cluster = Cluster([station("a", cores=8)])
    resume(place, cluster)
    assert cluster.jobs == ["cpu-b1-p8-r10-t8@a"]
    assert [row["status"] for row in rows(place)] == ["done"] * 4
    assert told(place)["trials"]["cpu-b1-p8-r10-t8@a"]["attempts"] == []


def test_what_had_no_station_is_measured_when_there_is_one(tmp_path: Path) -> None:
    spec = read_spec(None, {**ASKED, "stations": "zone=1"})
    place = start(tmp_path, Cluster(), spec)
    assert {(row["trial_id"], row["status"]) for row in rows(place)} == {("cpu-b1-p8-r10-t1@none", "skipped")}
    resume(place, Cluster([replace(station("a"), labels={"zone": "1"})]))
    assert {(row["trial_id"], row["status"]) for row in rows(place)} == {(FIRST, "done")}
    assert list(told(place)["trials"]) == [FIRST]


def test_a_station_that_is_new_measures_too(tmp_path: Path, whole: Path) -> None:
    place = start(tmp_path, Cluster([BOTH[0]]))
    cluster = Cluster()
    resume(place, cluster)
    assert cluster.jobs == [SECOND, LAST]
    assert rows(place) == rows(whole)


def test_what_the_stations_were_is_kept(copied: Path) -> None:
    resume(copied, Cluster([BOTH[0], station("c")]))
    environment = told(copied)["environment"]
    assert set(environment["stations"]) == {"a:cpu", "b:cpu", "c:cpu"}


# Which run it is


def test_a_run_is_found_by_its_place_or_by_its_name_in_the_root(
    copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = copied.parent
    for place, where in (
        (str(copied), "nowhere"),
        (f"{copied}/", "nowhere"),
        (copied.as_uri(), "nowhere"),
        ("r1", str(root)),
        ("r1", f"{root}/"),
        ("r1", f"{root.as_uri()}?use_mmap=false"),
    ):
        earlier = Earlier.of(place, where)
        assert (earlier.id, earlier.spec, earlier.run) == ("r1", SPEC, told(copied))
    monkeypatch.chdir(root)
    assert Earlier.of("r1", "nowhere").id == "r1"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root, tmp_path / "is it?")
    assert Earlier.of("r1", str(tmp_path / "is it?")).directory.shown == f"{tmp_path}/is it?/r1"


def test_a_run_that_is_not_there_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(lambda: Earlier.of("r2", str(tmp_path))) == "no run at r2: it has no run.json"
    assert refusal(lambda: Earlier.of("x/r2", str(tmp_path))) == "no run at x/r2: it has no run.json"
    assert refusal(lambda: Earlier.of("s4://b/r2", "x")).startswith("results root 's4://b/r2' is not usable: ")


def test_fields_of_a_later_program_are_ignored_and_what_was_found_is_kept(copied: Path) -> None:
    limit = {"ms": 1.0, "memory_ms": 1.0, "compute_ms": 0.5, "moved_mb": 40.0, "gflop": 0.2, "int8_share": 0.0}
    found = {"replies": 200, "identical": 199, "differing": [3]}
    speeds = {"read": [[1000, 10.0]], "gflops": {"float32": 50.0}}
    new = {"unheard_of": {"x": 1}}

    def change(content: dict[str, Any]) -> None:
        content |= new
        for record in content["trials"].values():
            record |= new | {"workload": record["workload"] | new, "speeds": speeds | new}
            record |= {"limits": {"eager": limit | new}, "compared": {"eager": found | new}}

    resume(edited(copied, change), Cluster())
    for record in told(copied)["trials"].values():
        assert record["limits"]["eager"] == limit | {"stages": 0, "latency_ms": 0.0}, "what a later version added too"
        assert record["speeds"] == speeds | {"stage_s": 0.0}
        assert record["compared"]["eager"] == found
        assert "unheard_of" not in record["workload"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"5", b'"spec"', b"{}", b"\xff", b'{"spec": null}', b'{"spec": []}'),
        *(b'{"spec": "all"}', b'{"spec": {"batches": 1}}', b'{"spec": {"batch": 0}}', b'{"spec": {"seed": {}}}'),
    ],
)
def test_a_broken_run_is_refused_in_one_line(content: bytes, copied: Path) -> None:
    (copied / "run.json").write_bytes(content)
    said = refusal(lambda: Earlier.of(str(copied), "nowhere"))
    assert said.startswith(f"{copied} can't be resumed: its run.json says too little (")


IDENTITY = {
    "code": "1",
    "model": "2",
    "model_code": "3",
    "prompts": "4",
    "spec": "5",
    "variants": "6",
    "revisions": "7",
}
SAID = {
    "code": "the sources of this program",
    "model": "the model's weights",
    "model_code": "the sources of the model",
    "prompts": "the corpus or the vocabulary",
    "revisions": "the commit that rev= names",
    "spec": "the spec",
    "variants": "the sources of own variants",
}


def left(copied: Path, identity: dict[str, str] | None) -> Earlier:
    def change(content: dict[str, Any]) -> None:
        content["identity"] = identity
        if identity is None:
            del content["identity"]

    return Earlier.of(str(edited(copied, change)), "nowhere")


def test_an_unchanged_run_may_go_on(copied: Path) -> None:
    left(copied, IDENTITY).check(dict(reversed(IDENTITY.items())))


def test_a_run_without_own_variants_may_go_on(copied: Path) -> None:
    without = {name: value for name, value in IDENTITY.items() if name != "variants"}
    left(copied, without).check(without)


@pytest.mark.parametrize("part", SAID)
def test_each_part_that_changed_is_named(part: str, copied: Path) -> None:
    said = f"{copied} can't be resumed: {SAID[part]} changed since; start a new run"
    assert refusal(lambda: left(copied, IDENTITY).check({**IDENTITY, part: "other"})) == said
    lacking = {name: value for name, value in IDENTITY.items() if name != part}
    assert refusal(lambda: left(copied, lacking).check(IDENTITY)) == said


def test_all_parts_that_changed_are_named_at_once(copied: Path) -> None:
    assert PARTS == SAID
    said = refusal(lambda: left(copied, IDENTITY).check(dict.fromkeys(IDENTITY, "other")))
    assert said == f"{copied} can't be resumed: {' and '.join(SAID.values())} changed since; start a new run"


def test_another_method_is_refused(copied: Path) -> None:
    earlier = left(copied, IDENTITY)
    earlier.check(IDENTITY)
    other = replace(earlier, run={**earlier.run, "method": {"version": method.METHOD.version + 1}})
    said = refusal(lambda: other.check(IDENTITY))
    assert said == f"{copied} can't be resumed: the method changed since; start a new run"
    assert method.version_in({"trials": {}}) == 1, "runs from before it stood in their record"


@pytest.mark.parametrize("identity", [None, {}])
def test_a_run_from_before_runs_could_be_resumed_says_so(identity: dict[str, str] | None, copied: Path) -> None:
    said = refusal(lambda: left(copied, identity).check(IDENTITY))
    assert said == f"{copied} can't be resumed: it is from before runs could be"


def test_other_sources_are_refused_before_anything_is_written(
    copied: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.provenance.source_hash", lambda: "other")
    assert "the sources of this program changed since" in refusal(lambda: resume(copied, Cluster()))
    assert told(copied) == told(whole)


def test_a_run_that_is_still_being_written_is_refused(copied: Path) -> None:
    with RunDirectory.existing(str(copied)).reopened():
        assert " is being written: " in refusal(lambda: resume(copied, Cluster()))


def test_of_a_disk_that_fills_up_the_first_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that can't be written is followed by a run.json that can't, which says nothing of the launch."""

    def full(run_id: str, name: str, *_: object) -> None:
        raise StoreError(f"{name} can't be written: No space left on device")

    def add(directory: RunDirectory, *_: object) -> None:
        monkeypatch.setattr(RunDirectory, "write_json", full)
        full(directory.shown, "samples/1.parquet")

    monkeypatch.setattr(RunDirectory, "add_launch", add)
    with pytest.raises(StoreError, match=r"^samples/1\.parquet can't be written"):
        start(tmp_path, Cluster([station()]))
