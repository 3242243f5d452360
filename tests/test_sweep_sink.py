"""A sweep in W&B, and a training for W&B's agent: what is told, and that no trouble of W&B ends a sweep."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wandb

from chatbot.checkpoint import load
from chatbot.errors import UsageError
from ray_jobs.results.store import RunDirectory
from ray_jobs.sweep import agent
from ray_jobs.sweep.folder import Record
from ray_jobs.sweep.sink import SweepSink
from ray_jobs.sweep.spec import make_spec
from ray_jobs.sweep.table import TrialStatus, Validation, row_of
from ray_jobs.wandb_sink.mode import destination

pytestmark = pytest.mark.process

SPEC = make_spec({"trials": 2, "iterations": 20, "validate_every": 10, "size": "tiny"})
TRIALS = SPEC.plan(17)
DONE, STOPPED, FAILED = TrialStatus
ROWS = [Validation(0, step, 1.0, 3.0, 3.0 - step / 10, 4.0, 3.0 - step / 10, 0.1, "h") for step in (10, 20)]


@dataclass
class FakeRun:
    asked: dict[str, Any]
    told: list[tuple[Any, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.told.append((step, values))

    def log_artifact(self, artifact: Any) -> None:
        self.told.append(("artifact", artifact))

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Every run that is opened; nothing of W&B is started."""
    opened: list[FakeRun] = []

    def init(**asked: Any) -> FakeRun:
        opened.append(FakeRun(asked))
        return opened[-1]

    monkeypatch.setattr(wandb, "init", init)
    return opened


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{}")
    return Record(RunDirectory.existing(str(tmp_path / "s"), "sweep.json"), SPEC, "data")


def swept(sink: SweepSink, record: Record) -> None:
    """A sweep of one trial that is done and one that failed."""
    sink.started(TRIALS[0])
    for row in ROWS:
        record.validations.append(row)
        sink.validated(row)
    sink.started(TRIALS[1])
    for ended in (row_of(TRIALS[0], ROWS, DONE), row_of(TRIALS[1], [], FAILED, "it burst")):
        record.end(ended, b"weights")
        sink.ended(ended)
    sink.finish()


def test_a_sweep_is_a_group_with_a_run_a_trial_and_one_for_the_whole(runs: list[FakeRun], record: Record) -> None:
    swept(SweepSink("offline", record), record)
    assert [run.asked["id"] for run in runs] == ["s-0000", "s-0001", "s-sweep"]
    assert {run.asked["group"] for run in runs} == {"s"}
    assert all(run.asked["settings"].x_disable_meta and run.asked["settings"].host == "hidden" for run in runs)
    first, second, whole = runs
    assert first.asked["config"]["learning_rate"] == TRIALS[0].settings["learning_rate"]
    assert [(step, values["validation_loss"]) for step, values in first.told] == [(10, 2.0), (20, 1.0)]
    assert set(first.told[0][1]) == {"epoch", "train_loss", "validation_loss", "free_running_loss", "best_loss"}
    assert (first.summary["best_loss"], first.summary["status"], first.exit_code) == (1.0, "done", 0)
    assert (second.told, second.summary["reason"], second.exit_code) == ([], "it burst", 1)
    assert whole.summary == {"best_trial": 0, "best_loss": 1.0}
    assert [len(values["trials"].data) for step, values in whole.told if step is None] == [2]
    assert [type(values) for step, values in whole.told if step == "artifact"] == [wandb.Artifact]


def test_a_resumed_trial_is_told_from_its_start(runs: list[FakeRun], record: Record) -> None:
    record.validations = list(ROWS)
    SweepSink("online", record).started(TRIALS[0])
    assert [step for step, _ in runs[0].told] == [10, 20]
    assert runs[0].asked["resume"] == "allow"


def test_where_an_upload_goes_is_said_before_it_begins(
    runs: list[FakeRun], record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    SweepSink("offline", record)
    SweepSink("online", record)
    assert capsys.readouterr().err == f"{destination()}\n"
    assert runs == []


def test_off_opens_nothing(runs: list[FakeRun], record: Record) -> None:
    swept(SweepSink("off", record), record)
    assert runs == []


def test_a_server_out_of_reach_is_one_line_and_the_runs_go_offline(
    runs: list[FakeRun], record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = wandb.init

    def init(**asked: Any) -> Any:
        if asked["mode"] == "online":
            raise wandb.errors.CommError("no answer")
        return opened(**asked)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    sink = SweepSink("online", record)
    swept(sink, record)
    assert [run.asked["mode"] for run in runs] == ["offline"] * 3
    _, line = capsys.readouterr().err.splitlines()
    assert line == "wandb: CommError: no answer; the sweep's runs are written offline"
    assert sink.sync_command == f"wandb sync {record.directory.shown}/wandb/offline-run-*"


def test_a_client_that_fails_does_not_end_the_sweep(
    record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**asked: Any) -> Any:
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", init)
    swept(SweepSink("offline", record), record)
    assert capsys.readouterr().err.splitlines() == ["wandb: RuntimeError: no service; the sweep goes on"]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--learning_rate=0.001", "--clip=none"], {"learning_rate": 0.001, "clip": None}),
        (["--hidden", "16", "--decoder-layers=1"], {"hidden": 16, "decoder_layers": 1}),
        ([], {}),
    ],
)
def test_the_agents_arguments_are_hyperparameters(arguments: list[str], settings: dict[str, Any]) -> None:
    assert agent.parse(arguments) == settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--momentum=0.9"], "unknown hyperparameter 'momentum'; choose from: learning_rate"),
        (["--clip=0"], "which zeroes every gradient"),
        (["--hidden"], "--hidden has no value"),
        (["hidden=3"], "'hidden' is no option"),
    ],
)
def test_other_arguments_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        agent.parse(arguments)


def test_a_training_for_the_agent_tells_the_run_that_it_opened_and_is_judged_as_a_trial_is(
    runs: list[FakeRun], toy_tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    asked = {"size": "tiny", "corpus": str(toy_tsv), "min_count": 1, "iterations": 20, "validate_every": 10, "seed": 4}
    settings = agent.parse(["--learning_rate=0.01", "--hidden=8"])
    assert agent.run_agent(settings, make_spec(asked), str(tmp_path), "cpu", "online") == 0
    (run,) = runs
    assert run.asked["id"] == "abc"
    assert [step for step, _ in run.told] == [10, 20]
    trained = load(tmp_path / "abc.pt")
    assert trained.notes["validation_loss"] == run.told[-1][1]["best_loss"]
    assert (trained.notes["options"]["seed"], trained.notes["options"]["split_seed"]) == (4, 0)
    assert trained.chatbot.config.hidden == 8


def test_a_training_for_the_agent_that_diverges_says_so(
    runs: list[FakeRun], toy_tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"size": "tiny", "corpus": str(toy_tsv), "min_count": 1, "iterations": 20, "validate_every": 10}
    settings = agent.parse(["--learning_rate=1e36", "--optimizer=sgd", "--clip=none"])
    assert agent.run_agent(settings, make_spec(asked), str(tmp_path), "cpu", "offline") == 1
    assert runs[0].summary["status"] == "failed"
    assert "lower the learning rate" in runs[0].summary["reason"]
    assert runs[0].exit_code == 1
    assert "lower the learning rate" in capsys.readouterr().err
