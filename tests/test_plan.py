"""How long a trial will take: as long as the latest like it, else what its bytes suggest."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.config import PRESETS, Config
from chatbot.variants import Workload
from ray_jobs.driver.plan import Duration, estimate, reply_seconds, typical
from ray_jobs.measure.method import FIRST, recorded
from ray_jobs.spec import Spec, read_spec

CONFIG = PRESETS["small"]
SPEC = read_spec(None, {})
WORKLOAD = Workload()
RESULTS = Path(__file__).resolve().parent.parent / "results"
FROM_BYTES = "estimated from the bytes read"
WORKLOADS = st.builds(
    Workload,
    st.just("cpu"),
    batch=st.integers(1, 256),
    prompt_tokens=st.integers(2, 64),
    reply_tokens=st.integers(1, 64),
    threads=st.integers(1, 16),
)


def keep_run(
    root: Path,
    run_id: str,
    seconds: list[float | None],
    age_s: float = 0,
    spec: Spec = SPEC,
    made_by: Mapping[str, Any] = MappingProxyType(recorded()),
    **workload: Any,
) -> Path:
    """A finished run with one trial for each of ``seconds``, this many seconds old."""
    like = {**vars(WORKLOAD), **workload}
    trials = {f"t{i}": {"status": "done", "workload": like, "seconds": s} for i, s in enumerate(seconds)}
    path = root / run_id / "run.json"
    path.parent.mkdir(parents=True)
    content = {"run_id": run_id, "spec": spec.model_dump(mode="json"), "trials": trials, "method": dict(made_by)}
    path.write_text(json.dumps(content))
    os.utime(path, (2e9 - age_s, 2e9 - age_s))
    return path


def time(root: Path | str, spec: Spec = SPEC, **workload: Any) -> Duration:
    return estimate(spec, replace(WORKLOAD, **workload), CONFIG, str(root))


# From a run


def test_a_like_run_tells_how_long_it_took(tmp_path: Path) -> None:
    keep_run(tmp_path, "yesterday", [41.0])
    assert time(tmp_path) == Duration(41.0, 41.0, "run yesterday")


def test_the_latest_like_run_counts_whatever_it_is_called(tmp_path: Path) -> None:
    keep_run(tmp_path, "c-first", [10.0], age_s=300)
    keep_run(tmp_path, "a-last", [30.0], age_s=100)
    keep_run(tmp_path, "b-second", [20.0], age_s=200)
    assert time(tmp_path) == Duration(30.0, 30.0, "run a-last")


def test_several_stations_of_a_run_are_averaged(tmp_path: Path) -> None:
    keep_run(tmp_path, "two-nodes", [30.0, 50.0, None])
    assert time(tmp_path) == Duration(40.0, 40.0, "run two-nodes")


@pytest.mark.parametrize("other", [{"batch": 2}, {"threads": 2}, {"model": "tutorial"}, {"reply_tokens": 11}])
def test_a_run_of_another_workload_says_nothing(other: dict[str, Any], tmp_path: Path) -> None:
    keep_run(tmp_path, "other", [41.0], **other)
    assert time(tmp_path).source == FROM_BYTES
    assert time(tmp_path, **other) == Duration(41.0, 41.0, "run other")


@pytest.mark.parametrize("other", [{"variants": "eager"}, {"precision": 0.02}, {"budget": 60.0}])
def test_a_run_with_other_demands_says_nothing(other: dict[str, Any], tmp_path: Path) -> None:
    keep_run(tmp_path, "other", [41.0], spec=read_spec(None, other))
    assert time(tmp_path).source == FROM_BYTES


def test_a_run_by_another_method_says_nothing(tmp_path: Path) -> None:
    keep_run(tmp_path, "other", [41.0], made_by={"version": FIRST})
    keep_run(tmp_path, "older", [41.0], made_by={})
    assert time(tmp_path).source == FROM_BYTES


def test_a_run_with_another_seed_or_margin_is_alike(tmp_path: Path) -> None:
    keep_run(tmp_path, "other", [41.0], spec=read_spec(None, {"seed": 9, "margin": 0.1}))
    assert time(tmp_path).source == "run other"


def test_an_unlike_or_unfinished_later_run_does_not_hide_a_like_one(tmp_path: Path) -> None:
    keep_run(tmp_path, "like", [41.0], age_s=300)
    keep_run(tmp_path, "unlike", [9.0], age_s=200, batch=64)
    keep_run(tmp_path, "unfinished", [None], age_s=100)
    assert time(tmp_path) == Duration(41.0, 41.0, "run like")


def test_a_trial_that_failed_early_does_not_tell_how_long_one_takes(tmp_path: Path) -> None:
    path = keep_run(tmp_path, "broken", [2.0])
    path.write_text(path.read_text().replace('"done"', '"failed"'))
    assert time(tmp_path).source == FROM_BYTES


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"spec": {}}', '{"spec": 5, "trials": []}', "null"])
def test_a_damaged_run_is_passed_over(content: str, tmp_path: Path) -> None:
    keep_run(tmp_path, "like", [41.0], age_s=300)
    keep_run(tmp_path, "damaged", [9.0]).write_text(content)
    assert time(tmp_path).source == "run like"


@pytest.mark.parametrize("root", ["nowhere", "s3://bucket/results", ""])
def test_without_earlier_runs_it_says_that_it_guesses(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert time(root).source == FROM_BYTES


# From the bytes


@given(WORKLOADS, st.sampled_from(["batch", "prompt_tokens", "reply_tokens"]), st.integers(1, 64))
def test_a_larger_workload_never_takes_less(workload: Workload, size: str, more: int) -> None:
    larger = replace(workload, **{size: getattr(workload, size) + more})
    assert reply_seconds(CONFIG, larger) >= reply_seconds(CONFIG, workload)


@given(WORKLOADS, st.integers(1, 16))
def test_more_threads_never_take_longer(workload: Workload, more: int) -> None:
    assert reply_seconds(CONFIG, replace(workload, threads=workload.threads + more)) <= reply_seconds(CONFIG, workload)


@given(WORKLOADS, st.sampled_from(["hidden", "encoder_layers", "decoder_layers", "vocabulary"]))
def test_a_larger_network_takes_longer(workload: Workload, size: str) -> None:
    small = Config(hidden=128, vocabulary=1000)
    larger = replace(small, **{size: getattr(small, size) + 1})
    assert reply_seconds(larger, workload) > reply_seconds(small, workload)


@given(WORKLOADS, st.floats(1, 1000), st.sampled_from(list(PRESETS)))
def test_a_trial_takes_some_time_and_at_most_no_less_than_at_least(
    workload: Workload, budget: float, preset: str
) -> None:
    found = estimate(read_spec(None, {"budget": budget}), workload, PRESETS[preset], "nowhere")
    assert 0 < found.least_s <= found.most_s
    assert found.most_s >= budget


@given(WORKLOADS, st.floats(1, 500), st.floats(0, 500))
def test_a_larger_budget_never_takes_less(workload: Workload, budget: float, more: float) -> None:
    small, large = (
        estimate(read_spec(None, {"budget": b}), workload, CONFIG, "nowhere") for b in (budget, budget + more)
    )
    assert small.least_s <= large.least_s
    assert small.most_s <= large.most_s


@pytest.mark.parametrize(
    ("run", "model"), [("variants-tutorial-2", "tutorial"), ("make-matrix", "small"), ("seed", "tutorial")]
)
def test_the_time_is_within_a_quarter_where_the_machines_speed_is_known_and_in_the_range_where_not(
    run: str, model: str
) -> None:
    """Each took the least launches; its own eager latency tells how fast its machine was."""
    record, rows = (json.loads((RESULTS / run / name).read_text()) for name in ("run.json", "matrix.json"))
    asked = {key: record["spec"][key] for key in ("budget", "precision")}
    spec = read_spec(None, {**asked, "variants": ",".join(record["spec"]["variants"])})
    (took,) = (trial["seconds"] for trial in record["trials"].values() if trial["status"] == "done")
    (eager_ms,) = (row["p50_ms"] for row in rows if row["variant"] == "eager" and row["status"] == "done")
    assert typical(spec, WORKLOAD, eager_ms / 1e3).least_s == pytest.approx(took, rel=0.25)
    guessed = estimate(spec, WORKLOAD, PRESETS[model], "nowhere")
    assert guessed.least_s <= took <= guessed.most_s


@given(WORKLOADS)
def test_with_budget_to_spare_another_variant_takes_more_time(workload: Workload) -> None:
    few, many = (read_spec(None, {"variants": names, "budget": 1e9}) for names in ("eager", "eager,torchscript"))
    assert estimate(few, workload, CONFIG, "nowhere").least_s < estimate(many, workload, CONFIG, "nowhere").least_s
