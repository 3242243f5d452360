"""The cluster's timeline as a Chrome trace with one row per station."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_jobs.cluster.times import Kind, Moment, Moments

CLUSTER = 1  # the process that all rows belong to
COLOURS = {"done": "good", "failed": "terrible"}  # chrome://tracing's names; Perfetto has its own

BETWEEN = {Kind.LAUNCH_BEGAN: "starting", Kind.ENDED: "ending"}  # what lies before these, where it takes more than
SHORT_S = 0.05

Slice = tuple[str, str, float, float]  # name, category, from and to in seconds after the trial was started


def timeline(run: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the trace of a run's ``run.json``; times are those of arrival, by the driver's clock.

    A trial is a slice on its station's row; within it lie ``waiting`` (for its worker or its station), ``starting``,
    its launches, and what follows them. Raises ValueError if the run has no times.
    """
    moments = {name: Moments.of_record(trial.get("moments")) for name, trial in run["trials"].items()}
    trials = {name: trial for name, trial in run["trials"].items() if moments[name].of_kind(Kind.ENDED)}
    if not trials:
        raise ValueError("its run.json has no times: it is older than they are, or nothing was started")
    first = min(trial["moments"]["started_unix_s"] for trial in trials.values())
    rows = {station: row for row, station in enumerate(sorted({t["station"] for t in trials.values()}), 1)}
    traced: list[dict[str, Any]] = [_about("process_name", 0, name=f"run {run['run_id']}")]
    for station, row in rows.items():
        traced += [_about("thread_name", row, name=station), _about("thread_sort_index", row, sort_index=row)]
    for name, trial in trials.items():
        began = trial["moments"]["started_unix_s"] - first
        traced += _trial(name, trial, moments[name], rows[trial["station"]], began)
    meta = {"run": run["run_id"], "clock": "the driver's", "began": run["started"]}
    return {"displayTimeUnit": "ms", "traceEvents": traced, "otherData": meta}


def _about(what: str, row: int, **said: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": CLUSTER, "tid": row, "ts": 0, "args": said}


def _trial(
    name: str, trial: Mapping[str, Any], moments: Moments, row: int, offset_s: float
) -> Iterator[dict[str, Any]]:
    told = {key: trial[key] for key in ("status", "reason", "launches")}
    for start, end in _attempts(moments):
        yield {
            **_slice((name, "trial", start, end), row, offset_s),
            "args": told,
            "cname": COLOURS.get(str(trial["status"]), "bad"),
        }
        earlier = sum(time < start for time in moments.of_kind(Kind.LAUNCH))
        for part in parts(_within(moments, start, end), earlier):
            yield _slice(part, row, offset_s)


def _attempts(moments: Moments) -> list[tuple[float, float]]:
    """The spans from each start of a trial to its end, or its next start if its worker or the driver was lost."""
    starts, last = moments.of_kind(Kind.STARTED), moments.of_kind(Kind.ENDED)[-1]
    heard = sorted(time for times in moments.at.values() for time in times)
    ends = []
    for start, following in zip(starts, [*starts[1:], float("inf")], strict=True):
        # A driver that was cut off heard nothing more: what it heard last ends its attempt.
        ends.append(max((time for time in heard if start <= time < following), default=start))
    return [(start, min(end, last)) for start, end in zip(starts, ends, strict=True)]


def _within(moments: Moments, start: float, end: float) -> list[tuple[float, Moment]]:
    """The events of an attempt, in order; of simultaneous ones, the end of a launch precedes the start of the next."""
    order = {Kind.STARTED: 0, Kind.LAUNCH_BEGAN: 2, Kind.ENDED: 3}
    heard = [(time, moment) for moment, times in moments.at.items() for time in times if start <= time <= end]
    return sorted(heard, key=lambda one: (one[0], order.get(one[1].kind, 1)))


def parts(heard: list[tuple[float, Moment]], launches: int = 0) -> Iterator[Slice]:
    """The consecutive slices of an attempt of a trial, after the given number of earlier launches."""
    boundary, waiting = heard[0][0], "waiting for its worker"
    for time, moment in heard:
        kind = moment.kind
        if kind is Kind.WAITING:
            waiting = moment.text
            continue
        if kind is Kind.LAUNCH:
            yield f"launch {launches}", kind, boundary, time
            launches += 1
        elif kind in (Kind.LOST, Kind.MEMORY, Kind.WORKER_LOST, Kind.TRACE):
            yield moment.text, kind, boundary, time
        elif waiting and kind is not Kind.STARTED:
            yield waiting, Kind.WAITING, boundary, time
        elif time - boundary > SHORT_S:
            yield BETWEEN.get(kind, kind), "between", boundary, time
        waiting = waiting if kind is Kind.STARTED else ""
        boundary = max(boundary, time)


def _slice(one: Slice, row: int, offset_s: float) -> dict[str, Any]:
    name, category, start, end = one
    begin = round((start + offset_s) * 1e6)
    length = max(0, round((end + offset_s) * 1e6) - begin)
    return {"ph": "X", "name": name, "cat": category, "pid": CLUSTER, "tid": row, "ts": begin, "dur": length}
