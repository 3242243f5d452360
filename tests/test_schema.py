"""A run of every schema version, read by everything that reads runs; a later version; fields of a later program.

``tests/data/version-N`` are small compacted runs as version N wrote them, with a planted mistake among their variants,
all that a trial's record may hold, and a round that was disturbed. A new version adds a folder and changes none.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from chatbot.errors import UsageError
from ray_jobs.audit.folder import make_again
from ray_jobs.audit.mistakes import named
from ray_jobs.compare.match import cells_of as compared_cells
from ray_jobs.compare.match import match
from ray_jobs.driver.resume import Earlier
from ray_jobs.report.compact import compact
from ray_jobs.report.page import page
from ray_jobs.report.view import load
from ray_jobs.results import schema
from ray_jobs.results.run import FinishedRun, read_record
from ray_jobs.results.store import RunDirectory
from ray_jobs.statistics import Verdict
from ray_jobs.sweep.folder import find
from ray_jobs.trace.timeline import timeline
from ray_jobs.wandb_sink.content import Head, distributions_of, summary_of, table_cells

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DATA = HERE / "data"
VERSIONS = range(1, schema.VERSION + 1)
PLANTED = named("SAME_PROGRAM")
FASTER = {PLANTED: 2.045 / 1.5, "eager-again": 2.045 / 2.0}
RUNS = [RESULTS / name for name in ("seed", "make-matrix", "variants-tutorial")]
RUNS += [DATA / f"version-{version}" for version in VERSIONS]


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """A run that a program of version 99 wrote."""
    place = Path(shutil.copytree(DATA / f"version-{schema.VERSION}", tmp_path / "later"))
    edit(place / "run.json", lambda content: content | {"schema_version": 99})
    return place


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize("place", RUNS, ids=lambda place: place.name)
def test_a_run_of_every_version_is_read_by_all_that_reads_runs(place: Path, tmp_path: Path) -> None:
    directory = RunDirectory.existing(str(place))
    run = FinishedRun.of(str(place))
    assert run.run["schema_version"] == schema.VERSION
    measured = {row.trial_id for row in run.rows if row.samples}
    view = load(directory)
    assert view.rows == run.rows
    assert measured.issuperset(view.series)
    assert view.series
    assert run.id in page([view])
    cells = compared_cells(run)
    assert len(match(cells, cells).both) == len({id(cell) for cell in cells if cell.row.station is not None})
    assert Head.of(run.run).name == run.id
    assert len(table_cells(run.rows)) == len(run.rows)
    assert summary_of(run.rows)
    assert distributions_of(run)
    assert Earlier.of(str(place), "nowhere").id == run.id
    small = RunDirectory.named(str(tmp_path), run.id)
    compact(directory, small)
    assert FinishedRun.within(small).rows == run.rows
    if any((trial.get("moments") or {}) for trial in run.run["trials"].values()):
        assert timeline(read_record(directory))["traceEvents"]
    else:
        with pytest.raises(ValueError, match="it is older than they are"):
            timeline(read_record(directory))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_the_same_figures_under_the_names_of_today(version: int) -> None:
    place = DATA / f"version-{version}"
    assert json.loads((place / "run.json").read_text())["schema_version"] == version
    run = FinishedRun.of(str(place))
    rows = {row.variant: row for row in run.rows}
    assert list(rows) == ["eager", "eager-again", PLANTED]
    for variant, speedup in FASTER.items():
        assert rows[variant].speedup == pytest.approx(speedup, rel=1e-3)
        assert rows[variant].verdict == Verdict.FASTER
    for _, launch in run.launches():
        assert launch.variants == launch.built == tuple(rows)
        assert list(launch.facts) == list(rows)
        assert launch.facts[PLANTED].differing == (3,)
        assert launch.interference is not None
        assert set(launch.log_speedups()) == set(FASTER)
    assert Earlier.of(str(place), "nowhere").spec.variants == tuple(rows)


COMMANDS = {
    "report": ("RUN",),
    "compare": ("RUN", "RUN"),
    "publish": ("RUN", "--wandb", "offline"),
    "compact": ("RUN", "--run-id", "small"),
    "trace": ("--run", "RUN"),
    "matrix": ("--resume", "RUN"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_later_version_is_refused_in_one_line(
    command: str, later: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray_jobs.cli.app import main

    monkeypatch.chdir(tmp_path)
    arguments = [str(later) if word == "RUN" else word for word in COMMANDS[command]]
    monkeypatch.setattr("sys.argv", ["latency-matrix", command, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{later} has schema version 99, and this program reads versions up to {schema.VERSION}: update it" in line


@pytest.mark.parametrize(("source", "file"), [("audit-aa", "audit.json"), ("sweep-small", "sweep.json")])
def test_a_later_audit_or_sweep_is_refused_in_one_line(source: str, file: str, tmp_path: Path) -> None:
    place = Path(shutil.copytree(RESULTS / source, tmp_path / source))
    edit(place / file, lambda content: content | {"schema_version": 99})
    with pytest.raises(UsageError, match=r"^\S+ has schema version 99, "):
        make_again(str(place)) if file == "audit.json" else find(str(place), "nowhere")


@pytest.mark.parametrize("version", [0, -1, "2", 1.5, None, True])
def test_what_is_no_version_is_told(version: object) -> None:
    with pytest.raises(ValueError, match="schema_version is"):
        schema.current({"schema_version": version}, "here")


MEMORY = ("peak_memory_mb", "prepare_memory_mb", "memory")
KEYED = ("trials", *MEMORY, "limits", "compared", "at_s", "gflops")  # by names, not fields


def with_more(value: Any, key: str = "") -> Any:
    """Every table in it, but for a spec, with a field of a later program."""
    if isinstance(value, dict) and key != "spec":
        more = {} if key in KEYED else {"unheard_of": {"x": 1}}
        return {name: with_more(inner, name) for name, inner in value.items()} | more
    return [with_more(inner) for inner in value] if isinstance(value, list) else value


def with_more_fields(launch: dict[str, Any]) -> dict[str, Any]:
    facts = {name: with_more(one) for name, one in launch["facts"].items()}
    return {**launch, "launch": with_more(launch["launch"]), "facts": facts, "unheard_of": 1}


def test_fields_of_a_later_program_are_ignored(tmp_path: Path) -> None:
    source = DATA / f"version-{schema.VERSION}"
    place = Path(shutil.copytree(source, tmp_path / source.name))
    edit(place / "matrix.json", with_more)
    edit(place / "run.json", with_more)
    samples = place / "samples" / "launches.parquet"
    table = pq.read_table(samples)
    launches = json.loads(table.schema.metadata[b"launches"])
    more = json.dumps([[trial, count, with_more_fields(launch)] for trial, count, launch in launches])
    pq.write_table(table.replace_schema_metadata({"launches": more}).append_column("new", table["call"]), samples)
    run, plain = FinishedRun.of(str(place)), FinishedRun.of(str(source))
    assert run.rows == plain.rows
    found, expected = ([(trial, one.facts, one.launch) for trial, one in each.launches()] for each in (run, plain))
    assert found == expected
    assert len(expected) == 10
    assert load(run.directory).series
    assert timeline(run.run)["traceEvents"]
    assert Earlier.of(str(place), "nowhere").spec.variants


def test_a_name_that_the_launch_does_not_have_is_not_read_as_another(tmp_path: Path) -> None:
    place = Path(shutil.copytree(DATA / f"version-{schema.VERSION}", tmp_path / "run"))
    samples = place / "samples" / "launches.parquet"
    table = pq.read_table(samples)
    spoilt = json.loads(table.schema.metadata[b"launches"])
    spoilt[0][2]["variants"] = ["eager"]
    pq.write_table(table.replace_schema_metadata({"launches": json.dumps(spoilt)}), samples)
    with pytest.raises(UsageError, match="samples name something else than eager"):
        next(FinishedRun.of(str(place)).launches())


@pytest.mark.parametrize("length", [0, 100, 10_000])
def test_a_sample_file_that_was_cut_short_is_named_in_one_line(length: int, tmp_path: Path) -> None:
    place = Path(shutil.copytree(DATA / f"version-{schema.VERSION}", tmp_path / "run"))
    samples = place / "samples" / "launches.parquet"
    samples.write_bytes(samples.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"^\S+/run: samples/launches\.parquet can't be read: .+$") as refused:
        compared_cells(FinishedRun.of(str(place)))
    assert "\n" not in str(refused.value)
