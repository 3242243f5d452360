"""Two runs beside each other: what is matched, how often a gate is wrong, what it finds, and how it ends."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from launches import ALL, WORKLOAD, made_launch, made_trial
from numpy.typing import NDArray
from runs import IDENTITY, finished_run, launches_in, trial_at
from typer.testing import CliRunner

from chatbot.errors import UsageError
from chatbot.variants import CONTROL
from ray_jobs.cli.app import app
from ray_jobs.cli.options import share
from ray_jobs.compare import gate
from ray_jobs.compare.gate import ChangeVerdict, Exit
from ray_jobs.compare.match import Cell, cells_of, match
from ray_jobs.matrix.hardware import speedup_of
from ray_jobs.matrix.rows import Row, rows_of
from ray_jobs.measure.result import LaunchResult, VariantFacts
from ray_jobs.measure.trial import Place, Trial
from ray_jobs.results.run import FinishedRun
from ray_jobs.results.store import RunDirectory
from ray_jobs.statistics import NOMINAL, Estimate, quantile, speedup

ROOT = Path(__file__).resolve().parent.parent
GATE = 0.03
BLOCK = 3  # launches: as many as variants

# Estimates


estimates = st.builds(Estimate, st.floats(-2, 2), st.floats(1e-4, 0.5), st.integers(1, 100))


@given(estimates, estimates)
def test_swapping_the_runs_turns_the_ratio_over(base: Estimate, new: Estimate) -> None:
    there, back = gate.ratio(base, new), gate.ratio(new, base)
    assert there.low <= there.value <= there.high
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


@given(estimates, estimates, st.floats(0.005, 0.5), st.floats(1.001, 5))
def test_a_wider_gate_never_fails_what_a_narrower_one_passes(
    base: Estimate, new: Estimate, narrow: float, times: float
) -> None:
    passing = {ChangeVerdict.SAME, ChangeVerdict.FASTER, ChangeVerdict.NOT_SLOWER}
    wide = min(narrow * times, 0.99)
    if gate.outcome(base, new, narrow, 1) in passing:
        assert gate.outcome(base, new, wide, 1) in passing
    if gate.outcome(base, new, wide, 1) == ChangeVerdict.SLOWER:
        assert gate.outcome(base, new, narrow, 1) == ChangeVerdict.SLOWER


@given(estimates, estimates, st.integers(1, 50))
def test_more_cells_never_make_one_slower_beyond_doubt(base: Estimate, new: Estimate, tests: int) -> None:
    if gate.outcome(base, new, GATE, tests) == ChangeVerdict.SLOWER:
        assert gate.outcome(base, new, GATE, 1) == ChangeVerdict.SLOWER


@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=40).filter(lambda logs: np.std(logs) > 1e-4))
def test_a_row_gives_back_the_estimate_that_its_samples_give(logs: list[float]) -> None:
    found, interval = Estimate.of(logs), speedup(logs)
    assert found is not None
    assert interval is not None
    made = Row("r", "t", "s", "h", "cpu", "d", "m", 1, 4, 5, 1, "torchscript", "eager", True, launches=len(logs))
    row = replace(made, speedup=interval.value, speedup_low=interval.low, speedup_high=interval.high)
    again = speedup_of(row)
    assert again is not None
    assert again.value == pytest.approx(found.value, abs=1e-9)
    assert again.error == pytest.approx(found.error, rel=1e-6)
    assert again.degrees == found.degrees


def test_welchs_interval_is_that_of_a_table() -> None:
    """By hand: errors 0.01 and 0.02 of 10 and 20 launches have 26.2 degrees of freedom and 0.02236 together."""
    found = gate.ratio(Estimate(0.0, 0.01, 9), Estimate(0.1, 0.02, 19), 0.95)
    degrees = (1e-4 + 4e-4) ** 2 / (1e-8 / 9 + 16e-8 / 19)
    assert degrees == pytest.approx(26.23, abs=0.01)
    reach = 2.0546 * math.sqrt(5e-4)  # t(26.23, 97.5%)
    assert math.log(found.low) == pytest.approx(0.1 - reach, abs=1e-5)
    assert math.log(found.high) == pytest.approx(0.1 + reach, abs=1e-5)


# How often it is wrong, and what it finds: simulated runs under the rule for stopping


def simulated(rng: np.random.Generator, log: float, precision: float = 0.01) -> Estimate:
    """A run's estimate: normal launches that scatter by 1.5%, in blocks, at least 12, until it is precise or 60."""
    logs: NDArray[np.float64] = log + 0.015 * rng.standard_normal(60)
    for count in range(12, 61, BLOCK):
        error = float(np.std(logs[:count], ddof=1)) / math.sqrt(count)
        if quantile(count - 1, NOMINAL) * error <= precision:
            break
    found = Estimate.of(logs[:count].tolist())
    assert found is not None
    return found


def verdicts(slower: float, cells: int, runs: int, limit: float = GATE) -> list[list[ChangeVerdict]]:
    """Of many comparisons of that many cells, all slower by that share."""
    rng = np.random.default_rng(5)
    return [
        [
            gate.outcome(simulated(rng, 0.3), simulated(rng, 0.3 - math.log(1 + slower)), limit, cells)
            for _ in range(cells)
        ]
        for _ in range(runs)
    ]


def test_an_interval_of_two_runs_that_stopped_when_precise_holds_its_promise() -> None:
    rng = np.random.default_rng(7)
    found = [gate.ratio(simulated(rng, 0.3), simulated(rng, 0.3)) for _ in range(3000)]
    missed = sum(not one.low <= 1 <= one.high for one in found) / len(found)
    assert 0.02 < missed < 0.055


def test_equal_runs_never_fail_and_are_mostly_told_to_be_the_same() -> None:
    found = [one for (one,) in verdicts(0.0, cells=1, runs=1000)]
    assert found.count(ChangeVerdict.SLOWER) == 0
    assert found.count(ChangeVerdict.SAME) > 900


@pytest.mark.parametrize("cells", [1, 8])
def test_a_slowdown_of_just_the_gate_fails_in_few_comparisons_however_many_cells(cells: int) -> None:
    """A false alarm is one of a cell at the gate; each comparison has them in 2.5% at most, by its one side."""
    failed = sum(ChangeVerdict.SLOWER in one for one in verdicts(GATE, cells, runs=1000 // cells))
    assert failed <= {1: 37, 8: 7}[cells]  # of 1000 and 125, which 2.5% do not exceed with 99%


def test_a_slowdown_of_just_the_gate_seldom_passes() -> None:
    found = [one for (one,) in verdicts(GATE, cells=1, runs=1000)]
    assert sum(one not in (ChangeVerdict.SLOWER, ChangeVerdict.UNDECIDED) for one in found) <= 37


def test_a_slowdown_of_five_percent_is_found() -> None:
    found = [one for (one,) in verdicts(0.05, cells=1, runs=500)]
    assert found.count(ChangeVerdict.SLOWER) > 0.7 * len(found)
    assert sum(one in (ChangeVerdict.SAME, ChangeVerdict.FASTER, ChangeVerdict.NOT_SLOWER) for one in found) == 0


def test_a_gain_is_called_one_and_passes() -> None:
    found = [one for (one,) in verdicts(-0.06, cells=1, runs=300)]
    assert found.count(ChangeVerdict.FASTER) > 0.9 * len(found)


# What stands beside what


def row(**given: Any) -> Row:
    """Of a measured cell."""
    values = {"variant": "torchscript", "station": "a:cpu", "hardware": "cpu Intel", "verdict": "faster", **given}
    made = Row("r", "t", None, "a", "cpu", "Intel", "small", 1, 4, 5, 1, "torchscript", "eager", True)
    return replace(made, **values)


def cell(**given: Any) -> Cell:
    return Cell(row(**given), Estimate(0.1, 0.001, 11))


@pytest.mark.parametrize(
    ("base", "new", "pairs"),
    [
        ([{}], [{}], 1),
        ([{}], [{"station": "b:cpu"}], 1),  # another name, the same class
        ([{}], [{"hardware": "cpu AMD"}], 0),  # the same name on another processor
        ([{}], [{"batch": 2}], 0),
        ([{}], [{"threads": 2}], 0),
        ([{}, {"station": "b:cpu"}], [{"station": "b:cpu"}, {}], 2),
        ([{}, {"station": "b:cpu"}], [{"station": "b:cpu"}, {"station": "c:cpu"}], 2),  # what is left of the class
        ([{}, {"station": "b:cpu"}], [{"station": "c:cpu"}, {"station": "d:cpu"}], 0),  # which is which?
        ([{"station": None}], [{"station": None}], 0),
        ([{"hardware": None}], [{}], 1),  # from before classes: by the device's name
        ([{"hardware": None}], [{"device_name": "AMD"}], 0),
        ([{"hardware": None}], [{"station": "b:cpu"}, {"station": "c:cpu"}], 0),
    ],
)
def test_cells_stand_for_the_same_by_station_then_by_class(
    base: list[dict[str, Any]], new: list[dict[str, Any]], pairs: int
) -> None:
    found = match([cell(**one) for one in base], [cell(**one) for one in new])
    assert len(found.both) == pairs
    stationed = [sum(one.get("station", "a:cpu") is not None for one in side) for side in (base, new)]
    assert [len(found.only_base) + pairs, len(found.only_new) + pairs] == stationed


def on(machine_id: str | None, **given: Any) -> Cell:
    return replace(cell(**given), facts={"machine_ids": {"dmi": None, "machine_id": machine_id}})


def test_cells_of_one_machine_stand_for_the_same_whatever_their_names() -> None:
    base = [on("1", station="a:cpu"), on("2", station="b:cpu")]
    new = [on("2", station="a:cpu"), on("1", station="b:cpu")]
    found = match(base, new)
    assert {(one.row.station, other.row.station) for one, other in found.both} == {
        ("a:cpu", "b:cpu"),
        ("b:cpu", "a:cpu"),
    }


def test_two_machines_of_one_name_are_not_paired_while_another_could_be_meant() -> None:
    found = match([on("1"), on("2", station="b:cpu")], [on("3"), on("4", station="c:cpu")])
    assert found.both == ()
    assert len(match([on("1")], [on("2")]).both) == 1  # by their class
    assert len(match([on("1")], [on(None)]).both) == 1  # not told


def test_a_class_with_a_model_is_paired_with_one_from_before_models_were_told() -> None:
    rome, milan = "EPYC [23.49.0, AVX2], 4 cores", "EPYC [25.1.1, AVX2], 4 cores"
    for station in ("a:cpu", "b:cpu"):
        assert len(match([cell(hardware="EPYC, 4 cores")], [cell(hardware=milan, station=station)]).both) == 1
        assert match([cell(hardware=rome)], [cell(hardware=milan, station=station)]).both == ()
    assert (
        len(
            match(
                [cell(hardware=rome), cell(hardware=milan, station="b:cpu")], [cell(hardware=milan, station="c")]
            ).both
        )
        == 1
    )


# The command, on the directories of two runs


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str


class Runs:
    """Makes run directories and compares them."""

    def __init__(self, folder: Path, usual: Path | None = None) -> None:
        self.folder = folder
        self._usual = usual  # what ``make("base")`` would make

    def base(self) -> Path:
        """Puts the usual run there as ``base``: a copy, since most tests of this file begin with it."""
        assert self._usual is not None
        return Path(shutil.copytree(self._usual, self.folder / "base"))

    def make(
        self,
        name: str,
        torchscript: float = 1.25,
        scatter: float = 0.002,
        count: int = 12,
        facts: Mapping[str, VariantFacts] | None = None,
        identity: Mapping[str, str] = IDENTITY,
        variants: Sequence[str] = ALL,
        place: tuple[Trial, Place] | None = None,
        more: Sequence[Row] = (),
        baseline_ms: float = 10.0,
    ) -> Path:
        """A run in which torchscript is so many times as fast as eager, and the control as fast."""
        speeds = {name: torchscript if name == "torchscript" else 1.0 for name in variants}
        launches = [self._launch(i, speeds, scatter, baseline_ms, facts) for i in range(count)]
        run_dir = RunDirectory.named(str(self.folder), name)
        finished_run(run_dir, [(place or trial_at(name, tuple(variants)), launches)], identity, more)
        return self.folder / name

    def _launch(
        self,
        index: int,
        speeds: Mapping[str, float],
        scatter: float,
        baseline_ms: float,
        facts: Mapping[str, VariantFacts] | None,
    ) -> LaunchResult:
        luck = np.exp(scatter * np.random.default_rng(index).standard_normal(len(speeds)))
        luck[0] = 1
        walls = {name: baseline_ms / speed * float(x) for (name, speed), x in zip(speeds.items(), luck, strict=True)}
        return made_launch(walls, index=index, rounds=4, facts=facts, sentinel_ns=(10**6, 10**6))

    def compare(self, base: str, new: str, *options: str) -> Done:
        arguments = ["compare", str(self.folder / base), str(self.folder / new), *options]
        result = CliRunner().invoke(app, arguments)
        if result.exit_code == 2:
            raise UsageError(result.stderr.removeprefix("ray_jobs: ").strip())
        return Done(result.exit_code, result.output)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Runs(tmp_path_factory.mktemp("usual")).make("base")


@pytest.fixture
def runs(tmp_path: Path, usual: Path) -> Runs:
    return Runs(tmp_path, usual)


def facts(**given: Any) -> Mapping[str, VariantFacts]:
    return {"torchscript": VariantFacts(**{"prepare_s": 0.5, "replies": 12, "identical": 12, **given})}


@pytest.mark.parametrize(
    ("new", "code", "verdict"),
    [
        ({"torchscript": 1.25}, Exit.WITHIN, "same"),
        ({"torchscript": 1.25 / 1.015}, Exit.WITHIN, "same"),
        ({"torchscript": 1.25 / 1.05}, Exit.BEYOND, "slower"),
        ({"torchscript": 1.25 / 1.03}, Exit.UNDECIDED, "undecided"),
        ({"torchscript": 1.25, "scatter": 0.1}, Exit.UNDECIDED, "undecided"),
        ({"torchscript": 1.4}, Exit.WITHIN, "faster"),
        ({"facts": facts(invalid="its replies differ")}, Exit.BEYOND, "broken"),
        ({"facts": facts(failed="it could not be built")}, Exit.BEYOND, "broken"),
        ({"facts": facts(identical=11)}, Exit.BEYOND, "broken"),
        ({"count": 1}, Exit.UNDECIDED, "undecided"),
        ({"baseline_ms": 13.0}, Exit.WITHIN, "same"),  # all of it on a slower machine
    ],
)
def test_the_gate_ends_with_what_it_found(new: dict[str, Any], code: Exit, verdict: str, runs: Runs) -> None:
    runs.base()
    runs.make("new", **new)
    done = runs.compare("base", "new", "--gate", "3%", "--format", "json")
    found = json.loads(done.out)
    cells = {cell["variant"]: cell for cell in found["cells"]}
    assert (done.code, cells["torchscript"]["verdict"]) == (code, verdict)
    assert found["exit_code"] == code
    assert cells["torchscript"]["gates"]
    assert not cells[CONTROL]["gates"]
    assert runs.compare("base", "new").code == 0  # without a gate nothing fails


def test_runs_of_two_methods_decide_nothing(runs: Runs) -> None:
    runs.base()
    record = runs.make("new", torchscript=1.0) / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "method": {"version": 2}}))
    done = runs.compare("base", "new", "--gate", "3%")
    assert done.code == Exit.UNDECIDED
    assert "undecided; measure one of the runs again, by the method of the other" in done.out
    assert "nothing is decided: the runs were measured by methods 1 and 2" in done.out
    assert runs.compare("base", "base", "--gate", "3%").code == Exit.WITHIN


def test_the_figures_are_those_of_a_hand_written_calculation(runs: Runs) -> None:
    runs.base()
    runs.make("new", torchscript=1.2, count=20)
    (found,) = [one for one in json.loads(runs.compare("base", "new", "--format", "json").out)["cells"] if one["gates"]]
    means, variances, degrees = [], [], []
    for name in ("base", "new"):
        by_trial = launches_in(RunDirectory.existing(str(runs.folder / name)))
        logs = [launch.log_speedups()["torchscript"] for (launches) in by_trial.values() for launch in launches]
        means.append(np.mean(logs))
        variances.append(np.var(logs, ddof=1) / len(logs))
        degrees.append(len(logs) - 1)
    df = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    reach = scipy.stats.t.ppf((1 + NOMINAL) / 2, df) * math.sqrt(sum(variances))
    expected = [math.exp(means[1] - means[0] + side * reach) for side in (-1, 0, 1)]
    assert [found["low"], found["ratio"], found["high"]] == pytest.approx(expected)
    assert found["source"] == "samples"


def test_a_run_without_samples_is_compared_by_its_rows(runs: Runs) -> None:
    runs.base()
    runs.make("new", torchscript=1.2)
    whole = json.loads(runs.compare("base", "new", "--format", "json").out)["cells"]
    shutil.rmtree(runs.folder / "base" / "samples")
    bare = json.loads(runs.compare("base", "new", "--format", "json").out)["cells"]
    assert [one["source"] for one in bare] == ["rows and samples"] * 2
    for before, after in zip(whole, bare, strict=True):
        assert [after[key] for key in ("low", "ratio", "high")] == pytest.approx(
            [before["low"], before["ratio"], before["high"]]
        )


def test_a_cell_that_was_asked_for_and_not_measured_can_not_pass(runs: Runs) -> None:
    on_gpu = replace(WORKLOAD, device="cuda")
    runs.make("base", place=trial_at("base", ALL, on_gpu, hardware="cuda H100", device_name="H100"))
    nowhere = made_trial("cuda-b1-p4-r5-t1@none", run_id="new", workload=on_gpu)
    skipped = rows_of(nowhere, Place(), "skipped", "no station of kind cuda")
    runs.make("new", more=skipped)
    done = runs.compare("base", "new", "--gate", "3%")
    assert done.code == Exit.UNDECIDED
    assert "not measured in NEW, though asked for: torchscript, batch 1, prompt 4" in done.out
    assert "only in NEW: " in done.out


def test_a_variant_that_is_no_longer_asked_for_is_named_and_fails_nothing(runs: Runs) -> None:
    runs.base()
    runs.make("new", variants=("eager", "eager-again"))
    done = runs.compare("base", "new", "--gate", "3%")
    assert "only in BASE: torchscript, batch 1" in done.out
    assert done.code == Exit.UNDECIDED  # nothing went through the gate


def test_a_text_says_what_the_baseline_and_the_machine_did(runs: Runs) -> None:
    runs.base()
    runs.make("new", baseline_ms=11.0)
    out = runs.compare("base", "new", "--gate", "0.03").out
    assert out.startswith("new against base: 1 cell, within the gate (no variant more than 3% slower)\n")
    assert "p50 10.00 -> 11.00 ms (x1.100); the sentinel x1.000" in out
    assert "no gate" in out


def told_of(place: Path, **facts: Any) -> None:
    content = json.loads((place / "run.json").read_text())
    stations = {row["station"]: facts for row in json.loads((place / "matrix.json").read_text())}
    content["environment"] = {**content.get("environment", {}), "stations": stations}
    (place / "run.json").write_text(json.dumps(content))


def test_machines_settings_and_programs_that_differ_quietly_are_noted(runs: Runs) -> None:
    told_of(
        runs.base(),
        machine_ids={"machine_id": "1"},
        settings={"ATEN_CPU_CAPABILITY": "default"},
        packages={"onnxruntime": "1.22.0", "openvino": None},
        compiler="g++ 12.2.0",
    )
    told_of(
        runs.make("new"),
        machine_ids={"machine_id": "2"},
        settings={"LD_PRELOAD": "libjemalloc.so.2"},
        packages={"onnxruntime": "1.23.0", "openvino": "2025.1"},
        compiler="g++ 13.2.0",
    )
    said = runs.compare("base", "new", "--format", "json")
    notes = json.loads(said.out)["notes"]
    assert [note.removeprefix("differs between the runs: ") for note in notes if note.startswith("differs")] == [
        "onnxruntime 1.22.0 -> 1.23.0",
        "compiler g++ 12.2.0 -> g++ 13.2.0",
        "ATEN_CPU_CAPABILITY default -> unset",
        "LD_PRELOAD unset -> libjemalloc.so.2",
    ]
    assert sum("is another machine than" in note for note in notes) == 1


def test_runs_of_one_machine_and_setting_are_noted_in_nothing(runs: Runs) -> None:
    same = {"machine_ids": {"machine_id": "1"}, "settings": {"MKL_CBWR": "AVX2"}, "packages": {"onnxruntime": "1.22.0"}}
    for name in ("base", "new"):
        told_of(runs.make(name), **same)
    assert json.loads(runs.compare("base", "new", "--format", "json").out)["notes"] == []


def test_a_control_that_differs_is_spoken_of(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.base()
    runs.make("new")
    monkeypatch.setattr(gate, "outcome", lambda *_: ChangeVerdict.SLOWER)
    assert "the control itself is slower: distrust this comparison" in runs.compare("base", "new").out


def test_markdown_is_a_table_that_nothing_breaks(runs: Runs) -> None:
    for name in ("base", "new"):
        runs.make(name, place=trial_at(name, ALL, hardware="cpu A|B", device_name="A|B"))
    lines = runs.compare("base", "new", "--gate", "3%", "--format", "markdown").out.splitlines()
    assert lines[0].startswith("### Latency: new against base: 1 cell, within the gate")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {7}


def test_markdown_shows_a_reason_as_it_is_and_calls_nobody(runs: Runs) -> None:
    """It goes into a pull request's comment."""
    reason = "@org/team ![x](http://a/b.png) [here](http://c) <img src=y> **all** _of_ a@b my_own_name `x` &lt; ~~no~~"
    runs.base()
    runs.make("new", facts=facts(failed=reason))
    text = runs.compare("base", "new", "--format", "markdown").out
    (line,) = [line for line in text.splitlines() if "broken: " in line]
    assert line.endswith(
        r"failed: @&#8203;org/team !\[x\](http://a/b.png) \[here\](http://c) \<img src=y\> \*\*all\*\* \_of\_ a@b "
        r"my_own_name \`x\` \&lt; \~\~no\~\~"
    )


def test_it_is_written_to_a_file(runs: Runs) -> None:
    runs.base()
    runs.make("new")
    out = runs.folder / "summary.md"
    done = runs.compare("base", "new", "--format", "markdown", "--out", str(out))
    assert done.out == ""
    assert out.read_text().startswith("### Latency")
    with pytest.raises(UsageError, match="can't be written: "):
        runs.compare("base", "new", "--out", str(runs.folder))


@pytest.mark.parametrize(
    ("part", "said"), [("model", "the model's weights differ"), ("prompts", "the prompts differ"), ("code", None)]
)
def test_runs_of_other_weights_or_prompts_are_refused_unless_anyway(part: str, said: str | None, runs: Runs) -> None:
    runs.base()
    runs.make("new", identity={**IDENTITY, part: "other"})
    if said is None:
        assert "differs between the runs: this program's sources" in runs.compare("base", "new").out
        return
    with pytest.raises(UsageError, match=f"^new can't be compared with base: {said}; or say --anyway$"):
        runs.compare("base", "new")
    assert runs.compare("base", "new", "--anyway").code == 0


def test_a_run_from_before_identities_is_compared_with_a_note(runs: Runs) -> None:
    runs.make("base", identity={})
    runs.make("new")
    done = runs.compare("base", "new", "--gate", "3%")
    assert done.code == 0
    assert "whether they are the same was not checked" in done.out


def test_a_run_from_before_identities_is_told_by_its_models_name(runs: Runs) -> None:
    path = runs.make("base", identity={}) / "run.json"
    runs.make("new")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "spec": {**content["spec"], "model": "tutorial"}}))
    with pytest.raises(UsageError, match=r"the models \(tutorial, \w+\) differ; or say --anyway$"):
        runs.compare("base", "new")
    assert runs.compare("base", "new", "--anyway").code == 0


@pytest.mark.parametrize("text", ["3", "0", "-1%", "abc", "100%", "nan", ""])
def test_a_gate_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a share: give 3%"):
        share(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "html"], "unknown format 'html'; choose from: text, markdown, json"),
        (["--gate", "3"], "--gate '3' is not a share"),
    ],
)
def test_unusable_arguments_are_one_line(options: list[str], said: str, runs: Runs) -> None:
    runs.base()
    with pytest.raises(UsageError, match=said):
        runs.compare("base", "base", *options)
    with pytest.raises(UsageError, match="no run at"):
        runs.compare("base", "nowhere")


def test_a_committed_run_is_like_itself() -> None:
    run = FinishedRun.of(str(ROOT / "results" / "seed"))
    cells = cells_of(run)
    found = gate.compare_cells(match(cells, cells), cells, GATE)
    assert found.exit == Exit.WITHIN
    assert [change.ratio.value for change in found.changes if change.ratio] == [1.0, 1.0]
