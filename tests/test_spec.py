"""What a person may ask for, how, and what a mistake is answered with."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chatbot.errors import UsageError
from chatbot.variants import BASELINE, CONTROL, DEVICES, VARIANTS, Workload
from ray_jobs.driver.trials import trial_id
from ray_jobs.spec import Spec, read_spec

SIZES = ("batch", "prompt_tokens", "reply_tokens", "threads")
KEYS = (
    *("variants", "device", "batch", "prompt_tokens", "reply_tokens", "threads", "model", "corpus", "precision"),
    *("margin", "budget", "seed", "stations", "isolation", "cores_per_gpu", "stop_at_eos", "cold", "launch_timeout"),
    *(
        "cases",
        "against",
        "scenario",
        "slo",
        "replicas",
        "replica_kind",
        "max_batch",
        "batch_window",
        "through",
        "price",
    ),
)
MANY = st.lists(st.integers(2, 99), min_size=1, max_size=4)


def asked(**flags: Any) -> Spec:
    return read_spec(None, flags)


def refusal(path: Path | None = None, **flags: Any) -> str:
    """The line that a mistake is answered with."""
    with pytest.raises(UsageError) as refused:
        read_spec(path, flags)
    lines = str(refused.value).splitlines()
    assert len(lines) == 1
    return lines[0]


def toml(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return path


# What may be asked


def test_without_a_word_the_seed_table_on_this_cpu_is_asked() -> None:
    spec = asked()
    assert spec.variants == (BASELINE, CONTROL, "torchscript")
    assert spec.plan() == [Workload("cpu", batch=1, prompt_tokens=8, reply_tokens=10, threads=1, model="small")]
    assert (spec.corpus, spec.precision, spec.margin, spec.budget, spec.seed) == ("chitchat", 0.01, 0.02, 120.0, 0)


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        (4, (4,)),
        ("4", (4,)),
        ([4], (4,)),
        ((4, 2), (4, 2)),
        ([4, 2], (4, 2)),
        ("4,2", (4, 2)),
        (" 4 , 2, ", (4, 2)),
        ([4, 2, 4], (4, 2)),
        ("4,2,4", (4, 2)),
    ],
)
def test_sizes_are_one_or_several_each_once(key: str, given_as: Any, expected: tuple[int, ...]) -> None:
    assert getattr(asked(**{key: given_as}), key) == expected


def test_one_size_written_in_two_ways_is_one_size() -> None:
    assert asked(batch="4,04").batch == (4,)


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        ("cpu", ("cpu",)),
        ("cuda", ("cuda",)),
        ("cuda,cpu", ("cuda", "cpu")),
        ("all", DEVICES),
        (["cuda", "all"], ("cuda", "cpu")),
    ],
)
def test_devices_are_named_or_all(given_as: Any, expected: tuple[str, ...]) -> None:
    assert asked(device=given_as).device == expected


@pytest.mark.parametrize(
    ("given_as", "others"),
    [
        ("torchscript", ("torchscript",)),
        ("eager", ()),
        ([], ()),
        ("torchscript,eager-again,eager,torchscript", ("torchscript",)),
        ("all", tuple(name for name in VARIANTS if name not in (BASELINE, CONTROL))),
        (
            ["torchscript", "all"],
            ("torchscript", *(n for n in VARIANTS if n not in (BASELINE, CONTROL, "torchscript"))),
        ),
    ],
)
def test_baseline_and_control_stand_first_asked_for_or_not(given_as: Any, others: tuple[str, ...]) -> None:
    assert asked(variants=given_as).variants == (BASELINE, CONTROL, *others)


@given(st.lists(st.sampled_from([*VARIANTS, "all"]), max_size=6))
def test_every_trial_has_baseline_and_control_first_and_each_variant_once(names: list[str]) -> None:
    for given_as in (names, ",".join(names)):
        found = asked(variants=given_as).variants
        assert found[:2] == (BASELINE, CONTROL)
        assert len(found) == len(set(found))
        assert set(found) == {BASELINE, CONTROL, *(VARIANTS if "all" in names else names)}


@given(st.sampled_from(["cpu", "cuda", "cpu,cuda"]), MANY, MANY, MANY, MANY)
def test_the_plan_is_every_combination_in_the_order_of_the_lists(
    device: str, batch: list[int], prompt: list[int], reply: list[int], threads: list[int]
) -> None:
    flags = {"batch": batch, "prompt_tokens": prompt, "reply_tokens": reply, "threads": threads}
    plan = asked(device=device, model="tutorial", **flags).plan()
    sizes = product(*(dict.fromkeys(given_as) for given_as in flags.values()))
    expected = product(device.split(","), sizes)
    assert plan == [Workload(d, b, p, r, t, model="tutorial") for d, (b, p, r, t) in expected]


def test_a_spec_cant_be_changed() -> None:
    spec = asked()
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1
    assert isinstance(spec.batch, tuple)
    assert hash(spec) == hash(asked())


@given(MANY, st.lists(st.sampled_from(list(VARIANTS))), st.floats(0.001, 0.5), st.integers(0, 2**40))
def test_a_spec_reads_itself(batch: list[int], variants: list[str], precision: float, seed: int) -> None:
    spec = asked(batch=batch, variants=variants, precision=precision, seed=seed)
    assert asked(**spec.model_dump()) == spec


def test_without_a_word_every_node_measures_alone_and_a_launch_may_take_its_trials_budget() -> None:
    spec = asked()
    assert (spec.stations, spec.isolation, spec.cores_per_gpu, spec.launch_timeout) == ("all", "node", None, None)


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        ("all", "all"),
        ("one-per-hardware", "one-per-hardware"),
        ("zone=a", "zone=a"),
        ("zone=a,ray.io/node-type=big", "zone=a,ray.io/node-type=big"),
        (" zone=a , disk=ssd ", "zone=a,disk=ssd"),
        ("zone=a=b", "zone=a=b"),
    ],
)
def test_stations_are_all_or_one_of_each_hardware_or_told_by_their_labels(given_as: str, expected: str) -> None:
    assert asked(stations=given_as).stations == expected


@pytest.mark.parametrize("given_as", ["node", "device"])
def test_a_trial_has_a_node_or_a_device_to_itself(given_as: str) -> None:
    assert asked(isolation=given_as).isolation == given_as


@pytest.mark.parametrize("given_as", [4, "4"])
def test_a_gpus_share_of_the_cores_is_a_count(given_as: Any) -> None:
    assert asked(cores_per_gpu=given_as).cores_per_gpu == 4


@pytest.mark.parametrize(
    ("budget", "given_as", "expected"),
    [(120, None, 120), (20, None, 60), (60, None, 60), (1, "0.5", 0.5), (3600, 30, 30), (1, 7200, 7200)],
)
def test_a_launch_may_take_as_long_as_is_said_or_else_the_budget_and_at_least_a_minute(
    budget: float, given_as: Any, expected: float
) -> None:
    assert asked(budget=budget, launch_timeout=given_as).launch_timeout_s == expected


def test_many_variants_have_more_time_for_a_launch_which_has_as_many_rounds() -> None:
    everything = asked(variants="all", budget=30)
    assert everything.launch_timeout_s == 15 * len(VARIANTS)
    assert asked(variants="all", budget=3600).launch_timeout_s == 3600


def test_where_and_how_a_trial_runs_may_stand_in_a_file(tmp_path: Path) -> None:
    text = 'stations = "zone=a"\nisolation = "device"\ncores_per_gpu = 4\nlaunch_timeout = 90\n'
    spec = read_spec(toml(tmp_path, text), {"isolation": "node"})
    assert (spec.stations, spec.isolation, spec.cores_per_gpu, spec.launch_timeout) == ("zone=a", "node", 4, 90.0)
    assert asked(**spec.model_dump()) == spec


# Files and flags


def test_a_file_says_what_flags_may_say(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        'variants = "all"\ndevice = ["cpu", "cuda"]\nbatch = [1, 8]\n'
        'prompt_tokens = 12\nbudget = 60\nmodel = "tutorial"\n',
    )
    spec = read_spec(path, {})
    expected = asked(variants="all", device="all", batch="1,8", prompt_tokens=12, budget=60, model="tutorial")
    assert spec == expected


def test_flags_override_the_file_and_absent_ones_do_not(tmp_path: Path) -> None:
    path = toml(tmp_path, 'batch = [1, 8]\nseed = 5\ndevice = "all"\n')
    spec = read_spec(path, {"batch": "2", "seed": None, "device": "cpu", "threads": "2"})
    assert (spec.batch, spec.seed, spec.device, spec.threads) == ((2,), 5, ("cpu",), (2,))


def test_an_empty_file_asks_for_the_defaults(tmp_path: Path) -> None:
    assert read_spec(toml(tmp_path, ""), {}) == asked()


# Mistakes


def test_an_unknown_key_is_answered_with_the_valid_ones(tmp_path: Path) -> None:
    line = refusal(toml(tmp_path, "batches = [1]\n"))
    assert line == f"unknown spec key 'batches'; choose from: {', '.join(KEYS)}"


def test_a_table_in_the_file_is_an_unknown_key(tmp_path: Path) -> None:
    assert refusal(toml(tmp_path, "[matrix]\nbatch = 1\n")).startswith("unknown spec key 'matrix'; choose from: ")


@pytest.mark.parametrize("given_as", ["torchscrpt", "eager,torchscrpt", ["torchscrpt"], " torchscrpt "])
def test_an_unknown_variant_is_answered_with_the_valid_ones(given_as: Any) -> None:
    names = ", ".join([*VARIANTS, "package.module:NAME"])
    assert refusal(variants=given_as) == f"unknown variant 'torchscrpt'; choose from: {names}"


@pytest.mark.parametrize("given_as", ["chatbot.none:X", "eager,chatbot.none:X", ["chatbot.none:X"]])
def test_a_variant_that_cant_be_imported_is_answered_with_the_cause(given_as: Any) -> None:
    said = "variant 'chatbot.none:X' can't be imported: No module named 'chatbot.none'"
    assert refusal(variants=given_as) == said


def test_a_place_that_holds_no_variant_is_answered_with_what_it_holds() -> None:
    said = "variant 'chatbot.variants:BASELINE' is a str, not a chatbot.variants.Variant"
    assert refusal(variants="chatbot.variants:BASELINE") == said


def test_a_variant_of_another_module_keeps_its_place_as_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from chatbot.variants import VARIANTS\nEAGER = VARIANTS['eager']\n"
    (tmp_path / "spec_test_variant.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "spec_test_variant:EAGER"
    assert asked(variants=f"{name},torchscript,{name}").variants == (BASELINE, CONTROL, name, "torchscript")


@pytest.mark.parametrize("given_as", ["gpu", "cpu,gpu", ["gpu"]])
def test_an_unknown_device_is_answered_with_the_valid_ones(given_as: Any) -> None:
    assert refusal(device=given_as) == "unknown device 'gpu'; choose from: cpu, cuda, all"


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("given_as", [0, -1, "0", "-3", [4, 0], 1.5, "1.5", "two", "4,two", []])
def test_a_size_that_is_no_count_is_refused_by_its_name(key: str, given_as: Any) -> None:
    assert refusal(**{key: given_as}).startswith(f"{key} is ")


@pytest.mark.parametrize("text", ["true", "[[4]]", "{ a = 4 }"])
def test_a_size_of_another_kind_in_a_file_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    assert refusal(toml(tmp_path, f"batch = {text}\n")).startswith("batch is ")


def test_a_prompt_of_one_token_has_no_word() -> None:
    assert refusal(prompt_tokens=1) == "prompt_tokens is 1: input should be greater than or equal to 2"
    assert asked(prompt_tokens=2, reply_tokens=1).plan() == [Workload(prompt_tokens=2, reply_tokens=1)]


@pytest.mark.parametrize("key", ["precision", "margin"])
@pytest.mark.parametrize("value", [0, -0.01, 1, 5, "wide", float("nan"), float("inf")])
def test_a_share_lies_between_nothing_and_all(key: str, value: Any) -> None:
    assert refusal(**{key: value}).startswith(f"{key} is {value!r}: ")


@pytest.mark.parametrize("value", [0, -1, "long", float("nan"), float("inf")])
def test_a_budget_is_some_seconds(value: Any) -> None:
    assert refusal(budget=value).startswith(f"budget is {value!r}: ")


@pytest.mark.parametrize("value", [-1, 0.5, "x"])
def test_a_seed_is_a_count(value: Any) -> None:
    assert refusal(seed=value).startswith(f"seed is {value!r}: ")


@pytest.mark.parametrize("given_as", ["", " ", "some", "All", "=a", "zone=", "zone", "zone=a,", "all,zone=a", ","])
def test_another_choice_of_stations_is_answered_with_the_valid_ones(given_as: str) -> None:
    said = f"unknown choice of stations {given_as!r}; choose from: all, one-per-hardware, label=value"
    assert refusal(stations=given_as) == said


@pytest.mark.parametrize("given_as", ["", "gpu", "Node", "node,device"])
def test_another_isolation_is_answered_with_the_valid_ones(given_as: str) -> None:
    assert refusal(isolation=given_as) == f"unknown isolation {given_as!r}; choose from: node, device"


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", [4]])
def test_a_gpus_share_that_is_no_count_is_refused_by_its_name(value: Any) -> None:
    assert refusal(cores_per_gpu=value).startswith(f"cores_per_gpu is {value!r}: ")


@pytest.mark.parametrize("value", [0, -1, "long", float("nan"), float("inf")])
def test_a_launchs_time_is_some_seconds(value: Any) -> None:
    assert refusal(launch_timeout=value).startswith(f"launch_timeout is {value!r}: ")


@pytest.mark.parametrize("key", ["model", "corpus", "stations", "isolation"])
def test_a_name_is_a_text(key: str) -> None:
    five: Any = {key: 5}
    assert refusal(**five).startswith(f"{key} is 5: ")


def test_a_device_must_be_given() -> None:
    assert refusal(device="").startswith("device is ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refusal(path) == f"spec {path} can't be read: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"spec {tmp_path} can't be read: Is a directory"


@pytest.mark.parametrize("content", [b"batch = [1,", b"batch = 1\nbatch = 2\n", b"\xff\xfe", b"batch: 1\n"])
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"spec {path} is not TOML: ")


def test_workloads_stop_at_the_end_of_a_reply_only_where_that_is_asked() -> None:
    assert [workload.stop_at_eos for workload in read_spec(None, {}).plan()] == [False]
    assert all(workload.stop_at_eos for workload in read_spec(None, {"stop_at_eos": True, "batch": "1,2"}).plan())


def test_a_trial_that_stops_has_a_name_of_its_own() -> None:
    asked = (Workload(), Workload(stop_at_eos=True))
    assert len({trial_id(workload, None) for workload in asked}) == 2
    assert trial_id(asked[0], None) == "cpu-b1-p8-r10-t1@none"
