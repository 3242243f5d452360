"""Traces through the command line: a real run of the matrix, whose traces are then made and read without torch."""

import itertools
import json
from pathlib import Path
from typing import Any

import commands
import pyarrow.parquet as pq
import pytest
import torch
import traces
from commands import Arguments, Done
from torch.profiler import profile
from traces import NODE, slices

from chatbot import checkpoint, corpus
from chatbot.prompts import prompt_pool
from chatbot.variants import VARIANTS, Workload
from ray_jobs.cluster.times import Kind
from ray_jobs.process.profile.profiler import REPLIES

pytestmark = pytest.mark.process

Rows = list[dict[str, Any]]
VARIANTS_TRACED = ("eager", "torchscript")
STEPS = 3  # of a reply
PHASES = ["encode", *(f"decode step {step}" for step in range(1, STEPS + 1))]
needs_node = pytest.mark.skipif(NODE is None, reason="Perfetto's trace processor needs node to run in")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def run(home: Path, asking_toy: Arguments) -> Path:
    """A finished run of the matrix."""
    done = commands.run(home, "matrix", *asking_toy, "--wandb", "off", "--run-id", "run")
    assert done.code == 0, done.err
    return home / "results" / "run"


@pytest.fixture(scope="module")
def done(home: Path, run: Path) -> Done:
    return commands.run(home, "trace", "--run", "run", "--json")


@pytest.fixture(scope="module")
def folder(run: Path, done: Done) -> Path:
    assert done.code == 0, done.err
    return run / "traces"


@pytest.fixture(scope="module")
def index(folder: Path) -> Rows:
    content: Rows = json.loads((folder / "index.json").read_text())
    return content


@pytest.fixture(scope="module")
def files(folder: Path, index: Rows) -> dict[str, Path]:
    """The trace of each variant."""
    return {entry["variant"]: folder / entry["file"] for entry in index if entry["kind"] == "trace"}


@pytest.fixture(scope="module")
def operators(folder: Path) -> Rows:
    content: Rows = pq.read_table(folder / "operators.parquet").to_pylist()
    return content


def test_the_index_names_every_file_and_every_file_is_in_it(folder: Path, index: Rows, run: Path) -> None:
    assert {entry["file"] for entry in index} | {"index.json"} == {path.name for path in folder.iterdir()}
    assert all(set(entry) == {"file", "title", "trial_id", "variant", "kind"} for entry in index)
    assert sorted(entry["kind"] for entry in index) == ["operators", "operators", "timeline", "trace", "trace"]
    (trial,) = json.loads((run / "run.json").read_text())["trials"]
    assert [(e["trial_id"], e["variant"], e["file"]) for e in index if e["kind"] == "trace"] == [
        (trial, name, f"{trial}.{name}.json.gz") for name in VARIANTS_TRACED
    ]


def test_the_run_itself_is_left_as_it_was(run: Path, done: Done) -> None:
    content = json.loads((run / "run.json").read_text())
    assert [trial["status"] for trial in content["trials"].values()] == ["done"]
    assert "purpose" not in content
    assert len(json.loads((run / "matrix.json").read_text())) == 3


def test_every_trace_keeps_the_rules_of_its_format(folder: Path, index: Rows) -> None:
    for entry in index:
        if entry["file"].endswith(".json.gz"):
            content = traces.read((folder / entry["file"]).read_bytes())
            assert not {"host_name", "traceName"} & set(content)


@needs_node
def test_perfetto_reads_every_trace_without_an_error(folder: Path, index: Rows) -> None:
    sql = "select 'errors: ' || coalesce(group_concat(name || '=' || value), 'none') from stats "
    sql += "where value > 0 and severity in ('error', 'data_loss')"
    loaded = [traces.ask(folder / e["file"], sql) for e in index if e["file"].endswith(".json.gz")]
    assert loaded == ["errors: none"] * 3


@needs_node
def test_perfetto_refuses_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    path.write_text("this is no trace")
    with pytest.raises(ValueError, match="trace"):
        traces.slices(path)


@needs_node
def test_perfetto_finds_the_phases_of_an_eager_reply(files: dict[str, Path], operators: Rows) -> None:
    found = slices(files["eager"], "s.name = 'reply' or s.name = 'encode' or s.name glob 'decode step *'")
    assert [one["name"] for one in found] == ["reply", *PHASES] * REPLIES
    assert all(one["parent"] == ("" if one["name"] == "reply" else "reply") for one in found)
    whole = [row["total_cpu_us"] for row in operators if (row["variant"], row["operator"]) == ("eager", "reply")]
    assert whole == [pytest.approx(sum(one["dur"] for one in found if one["name"] == "reply") / 1e3, abs=0.01)]


@needs_node
def test_perfetto_finds_operators_within_the_phases(files: dict[str, Path]) -> None:
    steps = slices(files["eager"], "s.name = 'aten::gru'")
    assert [one["parent"] for one in steps] == PHASES * REPLIES


@needs_node
def test_a_scripted_reply_is_one_phase(files: dict[str, Path]) -> None:
    found = slices(files["torchscript"], "s.name = 'reply' or s.name = 'encode' or s.name glob 'decode step *'")
    assert [one["name"] for one in found] == ["reply"] * REPLIES


@needs_node
def test_perfetto_shows_the_launches_on_the_stations_row(folder: Path, run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    ((name, trial),) = content["trials"].items()
    found = slices(folder / "timeline.json.gz")
    assert {one["row"] for one in found} == {trial["station"]}
    whole, *parts = found
    assert (whole["name"], whole["depth"]) == (name, 0)
    assert all(one["depth"] == 1 and one["parent"] == name for one in parts)
    launches = [one for one in parts if one["name"].startswith("launch ")]
    assert [one["name"] for one in launches] == [f"launch {number}" for number in range(trial["launches"])]
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in itertools.pairwise(parts))
    # What was waited for the station is no part of a trial's seconds; another process may have held it for a moment.
    waited = sum(one["dur"] for one in parts if one["name"].startswith(Kind.WAITING))
    assert (whole["dur"] - waited) / 1e9 - 1.0 <= trial["seconds"] <= whole["dur"] / 1e9 + 1.0
    assert sum(one["dur"] for one in launches) > 0.3 * whole["dur"]


@pytest.mark.parametrize("variant", VARIANTS_TRACED)
def test_the_operators_are_what_the_trace_itself_adds_up_to(
    variant: str, files: dict[str, Path], operators: Rows
) -> None:
    from_trace = traces.self_times(traces.read(files[variant].read_bytes()))
    mine = {row["operator"]: row for row in operators if row["variant"] == variant and row["self_cpu_us"]}
    assert set(from_trace) == set(mine)
    for name, (calls, self_us) in from_trace.items():
        assert mine[name]["calls"] == calls
        assert mine[name]["self_cpu_us"] == pytest.approx(self_us, abs=0.005 * calls + 0.1)
    replies = sum(row["total_cpu_us"] for row in mine.values() if row["operator"] == "reply")
    assert sum(row["self_cpu_us"] for row in mine.values()) == pytest.approx(replies, rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS_TRACED)
def test_the_operators_are_those_of_a_profile_written_by_hand(
    variant: str, operators: Rows, toy_checkpoint: Path, toy_tsv: Path
) -> None:
    model = checkpoint.load(toy_checkpoint)
    pool = torch.from_numpy(prompt_pool(corpus.load(str(toy_tsv)), model.vocabulary, 5, 20))
    with torch.inference_mode():
        reply = VARIANTS[variant].prepare(model.chatbot, Workload(prompt_tokens=5, reply_tokens=STEPS))
        for prompt in pool[:10]:
            reply(prompt[None], torch.tensor([5]))
        batch, lengths = pool[10][None], torch.tensor([5])
        with profile(profile_memory=True) as profiler:
            reply(batch, lengths)
    by_hand = {e.key: (e.count, e.self_cpu_memory_usage) for e in profiler.key_averages() if "::" in e.key}
    mine = {
        row["operator"]: (row["calls"] / REPLIES, row["self_memory_bytes"] / REPLIES)
        for row in operators
        if row["variant"] == variant and "::" in row["operator"]
    }
    assert {name: calls for name, (calls, _) in mine.items()} == pytest.approx(
        {name: calls for name, (calls, _) in by_hand.items()}
    )
    assert mine["aten::addmm"][1] == by_hand["aten::addmm"][1] > 0


def test_the_shares_add_up_and_are_said(folder: Path, done: Done) -> None:
    rows = json.loads((folder / "operators.json").read_text())["variants"]
    assert [row["variant"] for row in rows] == list(VARIANTS_TRACED)
    for row in rows:
        assert row["kernel_ms"] + row["dispatch_ms"] + row["interpreter_ms"] == pytest.approx(row["reply_ms"])
        assert row["kernel_share"] + row["overhead_share"] == pytest.approx(1)
        assert 0 < row["kernel_share"] < 1
        assert row["sentence"] in done.out
    eager, scripted = rows
    assert eager["encode_ms"] + eager["decode_ms"] < eager["reply_ms"]
    assert scripted["encode_ms"] is scripted["decode_ms"] is None
    # This is why scripting helps: the same operators, and less between them.
    assert eager["interpreter_ms"] / eager["reply_ms"] > scripted["interpreter_ms"] / scripted["reply_ms"]


def test_the_table_names_operators_of_both(done: Done) -> None:
    for words in ("eager > torchscript", "aten::addmm", "(between operators)", "others", "inter-"):
        assert words in done.out
    assert done.json["trace"] == 2


def test_the_timeline_can_be_made_again_alone(home: Path, folder: Path, index: Rows) -> None:
    before = (folder / "timeline.json.gz").read_bytes()
    again = commands.run_here(home, "trace", "--run", "run", "--timeline-only")
    assert again.code == 0, again.err
    assert (folder / "timeline.json.gz").read_bytes() == before
    written = json.loads((folder / "index.json").read_text())
    assert sorted(entry["file"] for entry in written) == sorted(entry["file"] for entry in index)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--run", "run", "--batch", "2"), "leave out --batch"),
        (("--run", "nowhere"), "no run at"),
        (("--timeline-only",), "--timeline-only needs a run"),
        (("--variants", "quick"), "quick"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    home: Path,
    run: Path,
    arguments: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray_jobs.cli.app import main

    monkeypatch.chdir(home)
    monkeypatch.setattr("sys.argv", ["ray_jobs", "trace", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_new_run_of_traces_says_what_failed(home: Path, toy_checkpoint: Path, toy_tsv: Path) -> None:
    (home / "broken.py").write_text(
        "from dataclasses import replace\nfrom chatbot.variants import VARIANTS\n"
        "def prepare(chatbot, workload):\n    raise OSError('no such library')\n"
        "NAME = replace(VARIANTS['eager'], name='broken:NAME', prepare=prepare)\n"
    )
    arguments = ("--model", toy_checkpoint, "--corpus", toy_tsv, "--prompt-tokens", "5", "--reply-tokens", "3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(home))
        done = commands.run(
            home, "trace", *arguments, "--run-id", "new", "--variants", "broken:NAME", "--threads", "1,999"
        )
    assert done.code == 1
    folder = home / "results" / "new"
    rows = json.loads((folder / "traces" / "operators.json").read_text())["variants"]
    assert [(row["variant"], row["status"]) for row in rows] == [("eager", "done"), ("broken:NAME", "failed")]
    assert "no such library" in rows[1]["reason"]
    assert "no such library" in done.out
    run = json.loads((folder / "run.json").read_text())
    assert sorted(trial["status"] for trial in run["trials"].values()) == ["done", "skipped"]
    resumed = commands.run(home, "matrix", "--resume", "new")
    assert resumed.code == 2
    assert "it holds traces" in resumed.err
