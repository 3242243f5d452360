"""``python -m ray_jobs sweep`` on real Ray processes: the same table twice, also when the driver is killed half-way."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from commands import Done, run, run_here, start

from chatbot import cli, training
from chatbot.checkpoint import load
from chatbot.corpus import Pair
from chatbot.vocabulary import Vocabulary
from ray_jobs.sweep.spec import make_spec

# Trial 0 diverges, 1 is trained to its end, 2 is stopped: seen with this seed, and held to below.
SPACE = """
learning_rate = [1e-3, 1e-2, 1e36]
optimizer = ["adam", "sgd"]
clip = ["none", 50]
decoder_learning_ratio = 1
hidden = [8, 16]
encoder_layers = 1
decoder_layers = 1
batch = 16
"""
ASKED = (
    *("--trials", "3", "--seed", "27", "--iterations", "600", "--validate-every", "100", "--grace", "300"),
    *("--concurrent", "1", "--min-count", "1"),
)
TIMES = ("seconds", "host")  # columns that do not follow from the seed
PATIENCE_S = 500.0
pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]  # the machine may be busy


@dataclass(frozen=True)
class Swept:
    """A sweep's directory and what its command said."""

    place: Path
    done: Done

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A table without its times."""
        table = pq.read_table(self.place / f"{name}.parquet").to_pylist()
        return [{key: value for key, value in row.items() if key not in TIMES} for row in table]


def arguments(home: Path, tsv: Path, name: str, *more: str) -> list[str | Path]:
    space = home / "space.toml"
    space.write_text(SPACE)
    asked: list[str | Path] = [
        "sweep",
        "--space",
        space,
        "--corpus",
        tsv,
        "--size",
        "tiny",
        *ASKED,
    ]
    return [*asked, "--out", home, "--run-id", name, "--wandb", "off", *more]


def killed(home: Path, tsv: Path, name: str, validations: int) -> Path:
    """A sweep whose driver was killed after that many validations. Nothing of it is left running."""
    process = start(home, *arguments(home, tsv, name))
    family: list[psutil.Process] = []
    try:
        place = home / name
        wait_for(place, validations, process)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
        _, left = psutil.wait_procs(family, timeout=3)  # two of Ray's agents stay for longer than half a minute
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    return place


def wait_for(place: Path, validations: int, process: "subprocess.Popen[str]") -> None:
    """Returns when the sweep has kept that many validations."""
    end = time.monotonic() + PATIENCE_S
    while count(place) < validations:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def count(place: Path) -> int:
    with suppress(FileNotFoundError):
        return int(pq.read_metadata(place / "epochs.parquet").num_rows)
    return 0


@pytest.fixture(scope="module")
def both(toy_tsv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, Swept]:
    """(an unbroken sweep, one of the same seed whose driver was killed and which was resumed); beside each other."""
    home = tmp_path_factory.mktemp("sweeps")
    unbroken = start(home, *arguments(home, toy_tsv, "whole", "--json"))
    try:
        place = killed(home, toy_tsv, "broken", 4)  # within the best trial, after the rung that the last is held to
        assert json.loads((place / "sweep.json").read_text())["status"] == "running"
        resumed = run(home, "sweep", "--resume", place, "--wandb", "off", "--json")
        out, err = unbroken.communicate(timeout=PATIENCE_S)
    finally:
        unbroken.kill()
        unbroken.communicate()
    whole = Swept(home / "whole", Done(unbroken.returncode, out, err))
    return whole, Swept(place, resumed)


def test_a_sweep_ends_well_and_says_what_it_found(both: tuple[Swept, Swept]) -> None:
    for swept in both:
        assert swept.done.code == 0, swept.done.err
        rows = json.loads((swept.place / "trials.json").read_text())
        best = min((row for row in rows if row["status"] != "failed"), key=lambda row: row["best_loss"])
        assert swept.done.json["best"] == best
        assert f"trial {best['trial']}, validation loss {best['best_loss']:.4f}" in swept.done.out
        assert f"--model {swept.place}/best.pt" in swept.done.out
        assert json.loads((swept.place / "sweep.json").read_text())["status"] == "done"


def test_two_sweeps_of_one_seed_have_the_same_tables_though_one_was_killed_half_way(both: tuple[Swept, Swept]) -> None:
    whole, broken = both
    assert len(whole.rows("epochs")) > 8
    assert whole.rows("epochs") == broken.rows("epochs")
    assert whole.rows("trials") == broken.rows("trials")
    assert {row["status"] for row in whole.rows("trials")} == {"done", "stopped", "failed"}


def test_the_best_weights_are_the_same_bit_for_bit(both: tuple[Swept, Swept]) -> None:
    ours, theirs = (load(swept.place / "best.pt") for swept in both)
    for part in ("encoder", "decoder"):
        mine, others = getattr(ours.chatbot, part).state_dict(), getattr(theirs.chatbot, part).state_dict()
        assert all(mine[name].equal(others[name]) for name in mine)
    assert ours.notes["trial"] == both[0].done.json["best"]["trial"]
    assert ours.notes["validation_loss"] == both[0].done.json["best"]["best_loss"]


def test_a_trial_that_diverges_is_a_failed_row_with_its_reason_and_nothing_else_suffers(
    both: tuple[Swept, Swept],
) -> None:
    for swept in both:
        failed = [row for row in swept.rows("trials") if row["status"] == "failed"]
        assert failed
        assert all("lower the learning rate" in row["reason"] for row in failed)
        assert all(row["learning_rate"] == 1e36 for row in failed)
        assert all(row["best_loss"] is not None for row in swept.rows("trials") if row["status"] != "failed")
        losses = [row[name] for row in swept.rows("epochs") for name in row if name.endswith("loss")]
        assert all(0 < loss < 100 for loss in losses)  # false for NaN


def test_every_trial_has_a_seed_of_its_own_and_is_judged_on_the_same_pairs(both: tuple[Swept, Swept]) -> None:
    rows = both[0].rows("trials")
    assert len({row["seed"] for row in rows}) == len(rows)
    notes = load(both[0].place / "best.pt").notes
    assert notes["options"]["split_seed"] == 0
    assert notes["options"]["seed"] in {row["seed"] for row in rows}


def test_the_best_checkpoint_is_judged_by_the_chatbot_as_the_sweep_judged_it(
    both: tuple[Swept, Swept], toy_tsv: Path
) -> None:
    place = both[0].place
    done = run_here(place, "evaluate", "--model", place / "best.pt", "--corpus", toy_tsv, "--json", main=cli.main)
    assert done.code == 0, done.err
    found = done.json
    best = both[0].done.json["best"]
    assert found["held_out"]
    assert found["loss"] == pytest.approx(best["best_loss"], rel=1e-5)
    assert found["free_running_loss"] == pytest.approx(best["free_running_loss"], rel=1e-5)


def test_nothing_but_results_is_left_in_the_directory(both: tuple[Swept, Swept]) -> None:
    for swept in both:
        assert sorted(path.name for path in swept.place.iterdir()) == [
            *("best.pt", "epochs.parquet", "sweep.html", "sweep.json", "trials.json", "trials.parquet")
        ]


def test_the_page_holds_every_trial(both: tuple[Swept, Swept]) -> None:
    page = (both[1].place / "sweep.html").read_text()
    for row in both[1].rows("trials"):
        assert f'data-trial="{row["trial"]}"' in page


LONG = ("--trials", "2", "--iterations", "2400", "--validate-every", "200", "--no-asha", "--patience", "none")


@pytest.fixture
def under_way(toy_tsv: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command of a sweep in ``tmp_path / "sweep"`` whose first trial has been judged twice, of twelve times."""
    space = tmp_path / "long.toml"
    space.write_text(SPACE.replace("1e36", "2e-2"))
    asked = arguments(tmp_path, toy_tsv, "sweep", "--json")
    process = start(tmp_path, *asked, *LONG, "--space", space)
    try:
        wait_for(tmp_path / "sweep", 2, process)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_killed_worker_goes_on_and_its_trial_is_what_it_would_have_been(
    under_way: "subprocess.Popen[str]", toy_pairs: list[Pair], tmp_path: Path
) -> None:
    os.kill(worker_of(under_way.pid), signal.SIGKILL)
    out, err = under_way.communicate(timeout=PATIENCE_S)
    assert under_way.returncode == 0, err
    assert "its worker was lost; it goes on from its last validation" in err
    swept = Swept(tmp_path / "sweep", Done(under_way.returncode, out, err))
    assert [row["restarts"] for row in swept.rows("trials")] == [1, 0]
    spec = make_spec(json.loads((swept.place / "sweep.json").read_text())["spec"])
    words = Vocabulary.of_pairs(toy_pairs, 1)
    for trial in spec.plan(len(words)):  # trained again, here, without a sweep
        seen: list[training.Progress] = []
        path = tmp_path / "again.pt"
        training.fit(trial.config, toy_pairs, words, trial.options, path, free_running=True, on_validation=seen.append)
        told = [row for row in swept.rows("epochs") if row["trial"] == trial.number]
        for name in ("iteration", "train_loss", "validation_loss", "free_running_loss", "best_loss"):
            assert [row[name] for row in told] == [getattr(progress, name) for progress in seen]


def worker_of(driver: int) -> int:
    """The process that trains."""
    for one in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            if "ImplicitFunc" in " ".join(one.cmdline()):
                return int(one.pid)
    raise AssertionError("no worker trains")


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_go_on_and_has_a_page(
    under_way: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    under_way.send_signal(signal.SIGINT)
    _, err = under_way.communicate(timeout=PATIENCE_S)
    place = tmp_path / "sweep"
    assert under_way.returncode == 130
    assert f"continue with: python -m ray_jobs sweep --resume {place}" in err
    assert json.loads((place / "sweep.json").read_text())["status"] == "interrupted"
    assert "not all trials have ended" in (place / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trials", "0"), "trials is 0"),
        (("--size", "huge"), "unknown size 'huge'; choose from: tutorial, small, tiny"),
        (("--gpus", "1.5"), "gpus is 1.5; give a whole number"),
        (("--resume", "nowhere"), "no run at nowhere: it has no sweep.json"),
        (("--grace", "500", "--iterations", "60"), "grace is 500, more than all 60 iterations"),
        (("--patience", "x"), "patience is 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from ray_jobs.cli.app import main

    monkeypatch.setattr("sys.argv", ["ray_jobs", "sweep", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())
