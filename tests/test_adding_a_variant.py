"""The walk through adding a variant, walked."""

import re
import tomllib
from pathlib import Path

import pytest
from launches import prompts

from chatbot.variants import BASELINE, CONTROL, Variant, Workload, engines, variant_named
from ray_jobs.measure import launch
from ray_jobs.measure.result import Launch
from ray_jobs.measure.trial import Preset

ROOT = Path(__file__).resolve().parent.parent
NAME = "examples.without_mask:WITHOUT_MASK"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.process
@pytest.mark.parametrize(("batch", "skipped"), [(1, None), (2, "give --batch 1")])
def test_the_example_is_measured_as_the_walk_says(batch: int, skipped: str | None) -> None:
    workload = Workload(batch=batch, prompt_tokens=4, reply_tokens=5, model="tiny")
    names = (BASELINE, CONTROL, NAME)
    result = launch.measure(workload, names, Preset("tiny"), prompts(200), Launch(0, 1, rounds=3, calls=2))
    facts = result.facts[NAME]
    assert (facts.failed, facts.invalid) == (None, None)
    assert (skipped or "") in (facts.skipped or "")
    assert facts.replies == (0 if skipped else 3 * (1 + 2))
    assert facts.identical == facts.replies


def test_the_walk_shows_the_example_as_it_is_and_names_what_exists() -> None:
    walk, example = (ROOT / "docs/adding-a-variant.md").read_text(), (ROOT / "examples/without_mask.py").read_text()
    entry = example[example.index("WITHOUT_MASK = ") :].strip()
    assert entry in walk
    assert NAME in walk
    assert set(re.findall(r"^\| `(\w+)` \|", walk, re.MULTILINE)) <= set(Variant.__dataclass_fields__)
    assert isinstance(variant_named(NAME), Variant)
    assert all((ROOT / place).exists() for place in re.findall(r"`((?:chatbot|tests)/[\w/.]+)`", walk))
    assert engines.READERS


def test_what_a_missing_package_asks_for_is_an_extra_of_this_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "".join(path.read_text() for path in (ROOT / "chatbot/variants").glob("*.py"))
    asked = set(re.findall(r"latency-matrix\[(\w+)\]", sources))
    assert asked
    assert asked <= set(extras)
