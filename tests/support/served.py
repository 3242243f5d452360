"""Made-up launches under load: windows of a queue that is simulated, and of replicas that are always busy."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_jobs.load.queueing import arrivals, latencies
from ray_jobs.measure.interference import ABSENT
from ray_jobs.measure.requests import Requests, Served, Window
from ray_jobs.measure.result import SERVED, Launch, LaunchResult, Samples, VariantFacts
from ray_jobs.scenario import Load, Scenario

CALLS = 200
Column = NDArray[np.int64]
Floats = NDArray[np.float64]


def made_served(
    load: Load,
    service_ms: Mapping[str, float],
    rates: Sequence[float] | Floats = (),
    index: int = 0,
    late_ns: int = 0,
    facts: Mapping[str, VariantFacts] | None = None,
) -> LaunchResult:
    """A launch in which each call takes so many ms: a window at each of these rates, of ``offline`` two windows."""
    names = tuple(service_ms)
    windows: list[Window] = []
    parts: list[dict[str, Column]] = []
    every = rates if load.scenario == Scenario.SERVER else (None, None)
    gaps = arrivals(CALLS, np.random.default_rng(index))
    for number, rate in enumerate(every):
        for variant, ms in enumerate(service_ms.values()):
            ns = round(ms * 1e6)
            part = _busy(ns, load.replicas) if rate is None else _queued(gaps / rate * 1e9, ns, load.replicas, late_ns)
            count = len(part["due"])
            windows.append(Window(number, variant, count, rate))
            same = {"variant": variant, "round": number, "position": variant}
            parts.append({**part, "call": np.arange(count), **{k: np.full(count, v) for k, v in same.items()}})
    whole = {name: np.concatenate([part[name] for part in parts]).astype(np.int64) for name in parts[0]}
    count = len(whole["due"])
    samples = Samples(
        whole["variant"].astype(np.int16),
        np.full(count, SERVED, dtype=np.int8),
        whole["round"].astype(np.int32),
        whole["position"].astype(np.int16),
        whole["call"].astype(np.int32),
        whole["due"],
        whole["done"] - whole["due"],
        np.full(count, ABSENT, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=np.int32),
    )
    requests = Requests(whole["replica"].astype(np.int16), whole["seen"], whole["sent"], whole["began"], whole["ended"])
    known = {name: VariantFacts(0.5, name, "eager", replies=count, identical=count) for name in names}
    return LaunchResult(
        Launch(index, seed=0),
        names,
        names,
        len(every),
        CALLS,
        {**known, **(facts or {})},
        samples,
        served=Served(load, tuple(windows), requests),
    )


def _queued(due_ns: NDArray[np.float64], ns: int, replicas: int, late_ns: int) -> dict[str, Column]:
    due = np.round(due_ns).astype(np.int64)
    done = due + np.round(latencies(due.astype(float), np.full(len(due), float(ns)), replicas)).astype(np.int64)
    began = done - ns
    whom = np.arange(len(due)) % replicas
    return {"due": due, "seen": due + late_ns, "sent": began, "began": began, "ended": done, "done": done} | {
        "replica": whom
    }


def _busy(ns: int, replicas: int) -> dict[str, Column]:
    each = np.arange(CALLS) * ns
    began = np.concatenate([each] * replicas)
    times = dict.fromkeys(("due", "seen", "sent", "began"), began)
    whom = np.repeat(np.arange(replicas), CALLS)
    return {**times, "ended": began + ns, "done": began + ns, "replica": whom}
