"""What ``torch.compile`` compiled of a program: graphs, breaks, what was compiled among its rounds, time outside.

Read from the counters that Dynamo keeps of the whole process, and from a profile of a few untimed calls.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KIND = "inductor"  # of the programs that Dynamo takes apart
CALLS = 5  # that are profiled
CALL, COMPILED = "latency-matrix call", "## Call CompiledFxGraph"  # how the names of a profile's events begin
COUNTERS = ("frames", "stats", "graph_break", "unimplemented")  # of Dynamo's, by their names there
RECURRENT = "Attempted to wrap RNN, GRU, or LSTM"
LAYER = re.compile(r"debug context: (\w+)\(")


@dataclass(frozen=True)
class Compilation:
    """What was compiled of one variant in a process that ran no other."""

    graphs: int
    breaks: int
    why: str | None = None  # the most frequent break, in words
    outside: float | None = None  # the share of the host's time of a call


def looked_at() -> int:
    """How many functions Dynamo has looked at in this process, to compile them or not."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["frames"]["total"])


def _counters() -> dict[str, Counter[str]]:
    """Dynamo's counters; empty where nothing has imported it, which takes a second."""
    utils = sys.modules.get("torch._dynamo.utils")
    return {name: Counter() if utils is None else Counter(utils.counters[name]) for name in COUNTERS}


class Counted:
    """Counts from now on."""

    def __init__(self) -> None:
        self._before = _counters()

    def found(self, call: Callable[[], object]) -> Compilation:
        """What has been compiled since then; ``call`` is profiled.

        A function that is left to eager as a whole counts as a break where Dynamo counts none.
        """
        now = _counters()
        for name, before in self._before.items():
            now[name].subtract(before)
        breaks, frames = now["graph_break"], now["frames"]
        number = breaks.total() or frames["total"] - frames["ok"]
        reasons = (+breaks or +now["unimplemented"]).most_common(1) if number else ()
        why = next((_in_words(text) for text, _ in reasons), None)
        return Compilation(now["stats"]["unique_graphs"], number, why, _outside(call))


def _in_words(text: str) -> str:
    """The reason for a break: Dynamo's own first line but for recurrent layers, which it never takes."""
    line = text.strip().splitlines()[0].strip() if text.strip() else "it says no reason"
    layer = LAYER.search(text)
    if line.startswith(RECURRENT) and layer is not None:
        return f"nn.{layer[1]} is left to eager by Dynamo"
    return f"Dynamo: {line.rstrip('.')}"


def _outside(call: Callable[[], object]) -> float:
    """The share of a call's time on the host that no compiled graph is running in."""
    from torch.profiler import ProfilerActivity, profile, record_function  # not where rows are read

    with profile(activities=[ProfilerActivity.CPU]):  # the first one prepares the profiler itself
        call()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(CALLS):
            with record_function(CALL):
                call()
    return outside_of(seen.key_averages())


def outside_of(events: Any) -> float:
    """The share, of the summed events of a profile."""
    whole = sum(one.cpu_time_total for one in events if one.key == CALL)
    inside = sum(one.cpu_time_total for one in events if one.key.startswith(COMPILED))
    return float(max(0.0, 1 - inside / whole))


def warnings(found: Compilation | None, recompiled: int | None) -> list[str]:
    """Sentences about a program that is not one graph a network, or was compiled while it was timed."""
    said = []
    if found is not None and (found.breaks or not found.graphs):
        why = found.why or "nothing of it was compiled"
        said.append(f"{_number(found.graphs, 'graph')}, {_number(found.breaks, 'break')}: {why}")
    if recompiled:
        said.append(
            f"Dynamo looked at {_number(recompiled, 'function')} anew within the rounds, which its calls paid for: "
            "they were given inputs of another shape, precision or layout than when it was prepared"
        )
    return said


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
