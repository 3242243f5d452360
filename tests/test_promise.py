"""What a plan promises a run will tell, held against simulated launches."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launches import ALL, made_launch
from profiles import QUICK
from runs import finished_run, trial_at

from chatbot.variants import Workload
from ray_jobs.driver.plan import plan_lines, promised
from ray_jobs.driver.promise import POWER, Earlier, promise
from ray_jobs.measure.method import recorded
from ray_jobs.results.store import RunDirectory
from ray_jobs.spec import read_spec
from ray_jobs.statistics import LEAST_LAUNCHES, speedup

TRIALS = 500 if QUICK else 4000
SPEC = read_spec(None, {})
WORKLOAD = Workload()


def earlier(scatter: float, launch_s: float = 2.0) -> Earlier:
    return Earlier("before", scatter, launch_s)


@pytest.mark.parametrize(("scatter", "budget_s"), [(0.01, 120.0), (0.02, 120.0), (0.05, 60.0)])
def test_a_difference_that_is_promised_is_found_as_often(scatter: float, budget_s: float) -> None:
    told = promise(earlier(scatter), 0.01, budget_s, block=3)
    launches = round(told.seconds / 2.0)
    rng = np.random.default_rng(launches)
    logs = math.log1p(told.found) + scatter * rng.standard_normal((TRIALS, launches))
    intervals = [speedup(list(one)) for one in logs]
    found = np.mean([one is not None and one.low > 1 for one in intervals])
    widths = np.median([one.half_width for one in intervals if one is not None])
    assert abs(found - POWER) < 4 * math.sqrt(POWER * (1 - POWER) / TRIALS) + 0.01, "t is a little wider than normal"
    assert widths == pytest.approx(told.half_width, rel=0.1)


@given(
    st.floats(1e-4, 0.3),
    st.floats(0.001, 0.05),
    st.floats(1.0, 5000.0),
    st.floats(0.2, 60.0),
    st.integers(2, 20),
)
def test_it_ends_where_the_rule_for_stopping_does(
    scatter: float, precision: float, budget_s: float, launch_s: float, block: int
) -> None:
    told = promise(earlier(scatter, launch_s), precision, budget_s, block)
    launches = round(told.seconds / launch_s)
    assert launches % block == 0
    assert launches >= LEAST_LAUNCHES
    assert told.in_time == (told.half_width <= precision)
    if told.in_time and launches - block >= LEAST_LAUNCHES:
        fewer = promise(earlier(scatter, launch_s), precision, (launches - block) * launch_s, block)
        assert not fewer.in_time, "a block less would not have sufficed"
    if not told.in_time:
        assert told.seconds + block * launch_s > budget_s, "as long as the budget lasts"
    assert told.found > told.half_width


def test_more_scatter_tells_less() -> None:
    little, much = (promise(earlier(scatter), 0.01, 120.0, 3) for scatter in (0.01, 0.1))
    assert (little.in_time, much.in_time) == (True, False)
    assert little.seconds < much.seconds
    assert little.found < much.found
    assert little.text.startswith("it should tell speedups to ±")
    assert "% in about" in little.text
    assert "% when the budget ends, after" in much.text
    assert much.text.endswith("9 times in 10 (from the scatter of run before)")


def run_of(folder: Path, scatter: float, seconds: float, budget: float = SPEC.budget) -> None:
    """A finished run whose torchscript scatters so from launch to launch."""
    rng, directory = np.random.default_rng(1), RunDirectory.named(str(folder), "before")
    speeds = [{**dict.fromkeys(ALL, 10.0), "torchscript": 8.0 * math.exp(scatter * x)} for x in rng.normal(size=12)]
    launches = [made_launch(walls, index, rounds=4) for index, walls in enumerate(speeds)]
    finished_run(directory, [(trial_at("before", ALL, WORKLOAD), launches)])
    path = folder / "before" / "run.json"
    record = json.loads(path.read_text())
    record["method"] = recorded()
    record["spec"] = {**SPEC.model_dump(mode="json"), "budget": budget}
    for trial in record["trials"].values():
        trial |= {"seconds": seconds, "status": "done"}
    path.write_text(json.dumps(record))


def test_a_plan_tells_it_from_the_latest_run_like_it(tmp_path: Path) -> None:
    run_of(tmp_path, 0.02, 24.0)
    told = promised(SPEC, WORKLOAD, str(tmp_path))
    assert told is not None
    assert told.run_id == "before"
    assert told.seconds % (3 * 2.0) == 0, "blocks of three launches, of which each took 2 s"
    scatter = float(np.std(np.random.default_rng(1).normal(size=12), ddof=1)) * 0.02
    expected = promise(earlier(scatter), SPEC.precision, SPEC.budget, 3)
    assert told.half_width == pytest.approx(expected.half_width, rel=1e-5)
    assert told.found == pytest.approx(expected.found, rel=1e-5)
    (line,) = [line for line in plan_lines(SPEC, str(tmp_path)) if "it should tell" in line]
    assert line.strip() == told.text


def test_a_run_of_another_budget_or_without_rows_promises_nothing(tmp_path: Path) -> None:
    run_of(tmp_path, 0.02, 24.0, budget=SPEC.budget + 1)
    assert promised(SPEC, WORKLOAD, str(tmp_path)) is None
    assert promised(SPEC, WORKLOAD, "nowhere") is None
    (tmp_path / "before" / "matrix.json").write_text("{")
    assert promised(read_spec(None, {"budget": SPEC.budget + 1}), WORKLOAD, str(tmp_path)) is None
