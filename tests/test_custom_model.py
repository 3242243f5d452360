"""A model that is not the chatbot, measured with the same machinery."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import torch
from launches import made_trial

from chatbot.errors import UsageError
from chatbot.variants import BASELINE, CONTROL, INT8, VARIANTS, Workload
from ray_jobs import provenance
from ray_jobs.cli.app import main
from ray_jobs.driver.trials import trial_id
from ray_jobs.matrix.rows import Row, Status, rows_of
from ray_jobs.measure import contract, custom_model
from ray_jobs.measure import launch as measure
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.roofline import Speeds
from ray_jobs.measure.trial import Factory, Inputs, Place, compiling_s, untimed_s
from ray_jobs.process import untimed
from ray_jobs.process.server import LaunchServer, Request
from ray_jobs.report.text import sizes
from ray_jobs.spec import read_spec, spec_of

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "own_model:factory"
STRUCTURE = "it needs the chatbot's structure"
NO_POOL = np.zeros((0, 8), dtype=np.int64)
EXPORTED = ("onnx", "onnx-int8", "openvino", "openvino-int8", "export-aoti")  # see test_engines_of_own_models.py
OF_ANY = [name for name, variant in VARIANTS.items() if variant.prepare_module is not None]
ON_CPU = [name for name in OF_ANY if "cpu" in VARIANTS[name].devices]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def launched(model: str, *names: str, index: int = 0) -> LaunchResult:
    workload, launch = Workload(batch=2, model=model), Launch(index, 1, rounds=4, calls=2)
    return measure.measure(workload, (BASELINE, CONTROL, *names), Factory(model), NO_POOL, launch)


def facts_of(model: str, *names: str) -> dict[str, VariantFacts]:
    return dict(launched(model, *names).facts)


@pytest.mark.usefixtures("emulated_bf16")
def test_every_variant_that_takes_a_module_answers_as_it_promises() -> None:
    found = facts_of(
        "own_models:pair", *[name for name in ON_CPU if name not in (BASELINE, CONTROL, "compile", *EXPORTED)]
    )
    for name, facts in found.items():
        assert (name, facts.failed, facts.skipped) == (name, None, None)
        assert facts.kind == VARIANTS[name].kind
        if VARIANTS[name].exact:
            assert (name, facts.invalid, facts.identical) == (name, None, facts.replies)
            assert facts.replies >= 8
    assert {"torchscript", "torchscript-frozen", "torchscript-optimized", "bf16", "int8"} <= found.keys()


@pytest.mark.process
def test_a_module_of_pytorchs_own_is_compiled() -> None:
    facts = facts_of(EXAMPLE, "compile")["compile"]
    assert (facts.failed, facts.invalid, facts.skipped, facts.kind) == (None, None, None, "inductor")
    assert facts.identical == facts.replies >= 8


def test_what_needs_the_chatbot_says_so() -> None:
    others = [name for name in VARIANTS if name not in OF_ANY]
    found = facts_of("own_models:pair", *others)
    assert {found[name].skipped for name in others} == {STRUCTURE}


def test_a_cuda_graph_of_a_model_is_skipped_where_there_is_no_gpu() -> None:
    found = facts_of("own_models:pair", "cuda-graph", "compile-cudagraph")
    assert {found[name].skipped for name in ("cuda-graph", "compile-cudagraph")} == {"it runs on cuda only"}


def test_a_wrong_answer_is_found_by_the_models_own_word_for_same() -> None:
    found = facts_of("own_models:pair", "own_models:OFF", "own_models:BUFFERED", "own_models:SPOILING")
    assert "same(answer, the baseline's) is False at timed call 1" in str(found["own_models:OFF"].invalid)
    buffered = found["own_models:BUFFERED"]
    assert (buffered.invalid, buffered.failed, buffered.identical) == (None, None, buffered.replies)
    assert buffered.replies >= 8
    assert "changes its inputs" in str(found["own_models:SPOILING"].failed)
    assert found[CONTROL].invalid is None


@pytest.mark.usefixtures("emulated_bf16")
def test_a_near_exact_variant_tells_its_share_and_is_another_model_below_half() -> None:
    lenient, exacting = facts_of(EXAMPLE, "bf16")["bf16"], facts_of("own_models:strict", "bf16")["bf16"]
    assert (lenient.invalid, lenient.replies >= 8) == (None, True)
    assert lenient.identical >= lenient.replies / 2
    none = f"only 0 of its {exacting.replies} answers are the baseline's"
    assert (exacting.invalid, exacting.identical) == (none, 0)


LARGE = """
import resource, sys
from ray_jobs.measure import launch as measure
from test_custom_model import BASELINE, CONTROL, Factory, Launch, NO_POOL, Workload
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
workload, sizes = Workload(batch=2, model="own_models:wide"), Launch(0, 1, rounds=40, calls=2)
facts = measure.measure(workload, (BASELINE, CONTROL), Factory(workload.model), NO_POOL, sizes).facts
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, facts[CONTROL].replies, facts[CONTROL].identical)
"""


@pytest.mark.process
def test_large_answers_are_not_kept_longer_than_their_round() -> None:
    places = (ROOT, ROOT / "tests", ROOT / "tests/support")
    paths = {"PYTHONPATH": os.pathsep.join(map(str, places))}
    done = subprocess.run(
        [sys.executable, "-c", LARGE], env={**os.environ, **paths}, capture_output=True, text=True, check=True
    )
    before, after, compared, same = (int(word) for word in done.stdout.split())
    assert (compared, same) == (80, 80)
    assert after - before < 400, "MB, where all answers take 1,280 and those of a round 32"


def test_a_baseline_that_is_not_the_same_as_itself_is_invalid() -> None:
    assert "same(answer, its own) is False" in str(facts_of("own_models:never")[BASELINE].invalid)


def test_nothing_to_quantise_or_to_rewrite_is_a_reason_to_skip() -> None:
    found = facts_of("own_models:bare", "int8")
    assert "no linear or recurrent layer" in str(found["int8"].skipped)
    assert found[BASELINE].invalid is None  # in evaluation mode, without its dropout


def test_what_can_not_be_traced_is_skipped_with_the_cause() -> None:
    found = facts_of("own_models:nested", "torchscript")
    assert "torch.jit.trace can't take this model: " in str(found["torchscript"].skipped)
    assert found[CONTROL].identical == found[CONTROL].replies >= 8


def test_every_process_has_the_same_weights_and_every_launch_other_inputs() -> None:
    first, second = (custom_model.load("own_models:pair") for _ in range(2))
    state = first.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in second.module.state_dict().items())
    asked = [custom_model.inputs_of(first, i, Workload())[0] for i in (5, 5, 6)]
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])


@torch.inference_mode()
def test_the_examples_same_tells_answers_to_different_inputs_apart() -> None:
    model = custom_model.load(EXAMPLE)
    answers = [model.module(*custom_model.inputs_of(model, i, Workload())) for i in range(20)]
    assert all(model.same(answer, answer) for answer in answers)
    assert not any(model.same(answers[0], other) for other in answers[1:])


def rows() -> list[Row]:
    workload = Workload(batch=2, model="own_models:pair")
    variants = (BASELINE, CONTROL, "native")
    trial = made_trial(trial_id(workload, None), workload=workload, variants=variants)
    made = [launched("own_models:pair", "native", index=i) for i in range(2)]
    return rows_of(trial, Place(), Status.DONE, None, made)


def test_rows_tell_nothing_of_prompts_and_replies() -> None:
    found = rows()
    assert [(row.status, row.prompt_tokens, row.reply_tokens, row.limit_ms) for row in found] == [
        (Status.DONE, None, None, None),
        (Status.DONE, None, None, None),
        (Status.SKIPPED, None, None, None),
    ]
    assert sizes(found[0]) == "model own_models:pair, batch 2, 1 thread"
    assert sizes(Workload(batch=2, model="own_models:pair")) == sizes(found[0])  # the title of a trace
    assert found[0].trial_id == "cpu-b2-t1@none"
    assert found[0].identical_replies == 1.0


def test_every_variant_of_a_model_has_a_limit_in_the_precision_that_it_declares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        untimed, "measure_speeds", lambda _: Speeds(((1 << 28, 20.0),), {"float32": 100.0, "tf32": 800.0})
    )
    trial = made_trial(workload=Workload(batch=2, model=EXAMPLE), variants=tuple(OF_ANY))
    found = untimed.run_limits(trial, Inputs(Factory(EXAMPLE), {8: NO_POOL}))
    assert (found.lost, set(found.of)) == (None, set(OF_ANY))
    moved = {VARIANTS[name].dtype: limit.moved_mb for name, limit in found.of.items()}
    assert max(moved[INT8], moved["bfloat16"]) < moved["float32"]
    assert len(moved) == len({*moved.values()}) == 3


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere:factory", "can't be imported: No module named 'nowhere'"),
        ("own_models:absent", "can't be imported: module 'own_models' has no attribute 'absent'"),
        ("own_models:", "can't be imported"),
        ("own_models:NUMBER", "is a int, not a function that returns an OwnModel"),
        ("own_models:nothing", "returned a NoneType, not a ray_jobs.OwnModel"),
        ("own_models:broken", "can't be made: RuntimeError: no weights on this machine"),
        ("own_models:half", "has weights in float16: give float32"),
        ("own_models:listed", "is a list, not a tuple or dict of tensors"),
        ("own_models:mixed", "is a tuple of Tensor, int, not a tuple or dict of tensors"),
        ("own_models:failing", "inputs(0, workload) of 'own_models:failing' failed"),
    ],
)
def test_a_bad_factory_is_one_line(model: str, said: str) -> None:
    refused = contract.ask(model, [Workload(model=model)], 60.0)
    assert isinstance(refused, contract.Refusal)
    assert said in refused.reason
    assert "\n" not in refused.reason


@pytest.mark.process
def test_a_bad_factory_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["ray_jobs", "matrix", "--model", "own_models:broken", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "can't be made: RuntimeError: no weights on this machine" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags", [{"prompt_tokens": "8"}, {"reply_tokens": "10"}, {"stop_at_eos": True}, {"corpus": "chitchat"}]
)
def test_what_is_of_the_chatbot_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(flags))} is of the chatbot"):
        read_spec(None, {"model": EXAMPLE, **flags})


def test_a_spec_of_an_own_model_can_be_read_back() -> None:
    spec = read_spec(None, {"model": EXAMPLE})
    assert spec_of(json.loads(spec.model_dump_json())) == spec


def test_another_source_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source, identities = (ROOT / "examples/own_model.py").read_text(), []
    for name, text in {"changing_a": source, "changing_b": source, "changing_c": source.replace("12)", "13)")}.items():
        (tmp_path / f"{name}.py").write_text(text)
        custom_model.load(f"{name}:factory")
        identities.append(provenance.own_source(f"{name}:factory"))
    assert identities[0] == identities[1] != identities[2]


def test_the_plan_says_that_the_budget_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ray_jobs", "matrix", "--model", EXAMPLE, "--plan", "--budget", "33"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "cpu, batch 1, threads 1: about 33 s a station" in said
    assert f"up to {compiling_s(33):.0f} s more a trial to try each variant on it once, and to compile" in said
    assert f"up to {untimed_s(33):.0f} s more a trial for each variant's memory, and for limits" in said


@pytest.mark.process
def test_a_launch_finds_the_factory_wherever_its_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LaunchServer(Workload(model=EXAMPLE)) as server:
        cores = tuple(os.sched_getaffinity(0))
        found = server.run(Request(partial(custom_model.load, EXAMPLE), cores, threads=1, timeout_s=60.0))
    assert isinstance(found, custom_model.OwnModel), found
    assert custom_model.places_of("nowhere.at_all:factory") == []


@pytest.mark.process
def test_the_example_is_measured_from_the_folder_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text((ROOT / "examples/own_model.py").read_text())
    asked = ("--model", EXAMPLE, "--variants", "torchscript,int8,native", "--budget", "1")
    done = commands.run(tmp_path, "matrix", *asked, "--run-id", "own", "--wandb", "off", "--json")
    assert done.code == 0, done.err
    run = tmp_path / "results/own"
    found = {row["variant"]: row for row in json.loads((run / "matrix.json").read_text())}
    assert {name: row["status"] for name, row in found.items()} == {
        **dict.fromkeys((BASELINE, CONTROL, "torchscript", "int8"), Status.DONE),
        "native": Status.SKIPPED,
    }
    assert found["native"]["reason"] == STRUCTURE
    assert found["torchscript"]["identical_replies"] == 1.0
    assert found["torchscript"]["verdict"] in ("faster", "slower", "same", "inconclusive")
    assert all(found[name]["peak_memory_mb"] > 50 for name in (BASELINE, "int8"))
    assert all(found[name]["limit_ms"] > 0 and found[name]["bound_why"] for name in (BASELINE, "int8"))
    counts = {key: done.json[key] for key in ("done", "failed", "skipped", "invalid")}
    assert counts == {"done": 1, "failed": 0, "skipped": 0, "invalid": 0}
    assert "model own_model:factory, batch 1, 1 thread" in done.out
    assert "prompt" not in done.out
    page = (run / "report.html").read_text()
    assert "own_model:factory" in page
    assert "None" not in page


def test_the_walk_shows_the_example_as_it_is() -> None:
    walk, example = (ROOT / "docs/own-model.md").read_text(), (ROOT / "examples/own_model.py").read_text()
    assert example[example.index("from torch") :].strip() in walk
