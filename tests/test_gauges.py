"""A run's gauges, read back from Ray's own metrics port."""

import time
import urllib.request
from collections.abc import Callable

import pytest
import ray
from launches import made_launch

from chatbot.variants import BASELINE
from ray_jobs.cluster.connection import connected
from ray_jobs.cluster.gauges import Gauges, widest_of
from ray_jobs.process.trial import Committed
from ray_jobs.statistics import speedup

EXPORTED_S = 60.0
COLLECTED_MS = "500"  # how often Ray collects metrics; every ten seconds unless told


def committed(count: int) -> list[Committed]:
    walls = [
        {BASELINE: 10.0, "torchscript": 5.0 * (1 + 0.01 * i), "compile": 5.0 * (1 + 0.1 * i)} for i in range(count)
    ]
    return [Committed.of(made_launch(ms, index=i)) for i, ms in enumerate(walls)]


def test_the_widest_half_width_is_that_of_the_worst_speedup() -> None:
    launches = committed(10)
    known = speedup([one.log_speedups["compile"] for one in launches])
    assert known is not None
    assert widest_of(launches) == known.half_width
    assert widest_of(launches[:1]) is widest_of([]) is None


def metrics_until(enough: Callable[[str], bool]) -> str:
    """What Ray's port tells, as soon as it is enough."""
    port, end = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + EXPORTED_S
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told = str(answer.read().decode())
        if enough(told) or time.monotonic() > end:
            return told
        time.sleep(0.5)


@pytest.mark.process
def test_ray_tells_what_a_run_has_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", COLLECTED_MS)
    with connected("local"):
        gauges = Gauges("run-1")
        gauges.count([None, None, "failed"])
        gauges.count(["done", None, "failed"])
        launches = committed(12)
        gauges.stand("trial-1", launches)
        told = metrics_until(lambda told: "latency_matrix_half_width" in told)
    found = {line.partition("{")[0]: line for line in told.splitlines() if line.startswith("ray_latency_matrix_")}
    states = [line for line in told.splitlines() if line.startswith("ray_latency_matrix_trials{")]
    assert 'trial="trial-1"' in found["ray_latency_matrix_launches"]
    assert float(found["ray_latency_matrix_launches"].rpartition(" ")[2]) == 12
    assert float(found["ray_latency_matrix_discarded_rounds"].rpartition(" ")[2]) == 0
    assert float(found["ray_latency_matrix_half_width"].rpartition(" ")[2]) == pytest.approx(
        widest_of(launches), rel=1e-3
    )
    for state in ("done", "running", "failed"):
        (line,) = [one for one in states if f'state="{state}"' in one]
        assert 'run="run-1"' in line
        assert float(line.rpartition(" ")[2]) == 1
