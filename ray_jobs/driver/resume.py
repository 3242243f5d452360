"""Continues an interrupted run from its committed launches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from chatbot.errors import UsageError
from chatbot.variants import Workload, variant_named
from ray_jobs import provenance
from ray_jobs.cluster.times import Moments
from ray_jobs.driver.trials import Store, TrialState, trial_of
from ray_jobs.machine import another_machine
from ray_jobs.matrix.hardware import same_class
from ray_jobs.matrix.rows import Status
from ray_jobs.measure import method
from ray_jobs.measure.cold import Cold, Start, Starts
from ray_jobs.measure.dynamo import Compilation
from ray_jobs.measure.replies import ReplyComparison
from ray_jobs.measure.result import Limits, Memory, one_line
from ray_jobs.measure.roofline import Limit, Speeds
from ray_jobs.measure.trial import Place
from ray_jobs.process.trial import Committed, changed_programs
from ray_jobs.results import schema
from ray_jobs.results.filesystem import below
from ray_jobs.results.run import read_record
from ray_jobs.results.samples import to_result
from ray_jobs.results.store import BROKEN, RunDirectory
from ray_jobs.scenario import Load
from ray_jobs.spec import Spec, spec_of

PARTS = {
    "code": "the sources of this program",
    "model": "the model's weights",
    "model_code": "the sources of the model",
    "prompts": "the corpus or the vocabulary",
    "revisions": "the commit that rev= names",
    "spec": "the spec",
    "variants": "the sources of own variants",
}
TRACES = "traces"  # the purpose of a run that times nothing


@dataclass(frozen=True)
class Earlier:
    """An interrupted run as it was left."""

    directory: RunDirectory
    run: Mapping[str, Any]  # run.json
    spec: Spec

    @classmethod
    def of(cls, place: str, root: str) -> "Earlier":
        """The run at a place, or of that name in the results root. Raises UsageError."""
        try:
            directory = RunDirectory.existing(place)
        except UsageError as error:
            if "/" in place:
                raise
            try:
                directory = RunDirectory.existing(below(root, place))
            except UsageError:
                raise error from None
        try:
            run = read_record(directory)
            return cls(directory, run, spec_of(run["spec"]))
        except schema.NewerVersionError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{place} can't be resumed: its run.json says too little ({error})") from None

    @property
    def id(self) -> str:
        return str(self.run["run_id"])

    def check(self, identity: Mapping[str, str]) -> None:
        """Raises UsageError if new launches could not be combined with the committed ones."""
        if self.run.get("purpose") == TRACES:
            raise UsageError(f"{self.directory.shown} can't be resumed: it holds traces, and nothing was timed")
        before = self.run.get("identity") or {}
        if not before:
            raise UsageError(f"{self.directory.shown} can't be resumed: it is from before runs could be")
        changed = [text for part, text in PARTS.items() if before.get(part) != identity.get(part)]
        if method.version_in(self.run) != method.METHOD.version:
            changed.append("the method")
        if changed:
            raise UsageError(
                f"{self.directory.shown} can't be resumed: {' and '.join(changed)} changed since; start a new run"
            )

    def restore(self, trials: Mapping[str, TrialState], store: Store, identity: str) -> dict[str, TrialState]:
        """Restores the trials' states: finished ones stay finished, others continue from their launches."""
        committed = self._committed(identity)
        records = {name: record for name, record in self.run["trials"].items() if record["status"] != Status.SKIPPED}
        states = dict(trials)
        for name, record in records.items():
            known = committed.get(name, [])
            if changed := changed_programs(one.programs for one in known):
                raise UsageError(
                    f"{self.directory.shown} can't be resumed: launches of {name} ran different programs as "
                    f"{' and '.join(changed)}; start a new run"
                )
            state = states.get(name) or self._absent(name, record)
            states[name] = self._restored(state, record, known, store)
        return states

    def _restored(
        self, state: TrialState, record: Mapping[str, Any], known: list[Committed], store: Store
    ) -> TrialState:
        fault = state.reason or self._another(state, record)
        state.place = schema.known(Place, record)  # where its launches were measured
        state.committed, state.rows = known, []
        state.memory, state.limits = _found(record)
        state.cold = cold_of(record.get("cold") or {})
        state.environments = dict(record.get("environments") or {})
        state.lost = list(record["lost_launches"])
        state.attempts = list(record["attempts"])
        state.moments = Moments.of_record(record.get("moments"))
        if record["status"] == Status.DONE and len(known) == record["launches"]:
            state.end(Status.DONE, None, store, record["seconds"])
            return state
        state.attempts.append({"reason": record["reason"] or "the run was cut off", "launches": len(known)})
        if fault is not None:
            state.end(Status.FAILED, f"{fault}; {len(known)} launches of an earlier attempt are kept", store)
        return state

    def _absent(self, name: str, record: Mapping[str, Any]) -> TrialState:
        """Restores a trial whose station is not in the cluster now."""
        load = schema.known(Load, record["load"]) if "load" in record else None
        trial = trial_of(self.spec, self.id, schema.known(Workload, record["workload"]), name, load=load)
        return TrialState(trial, Place(), reason=f"its station {record['station']} is not in the cluster now")

    def _another(self, state: TrialState, record: Mapping[str, Any]) -> str | None:
        """The reason why launches on the present station can't be combined with the earlier ones."""
        if state.station is None:
            return "it can't be measured now"
        then = self.run["environment"]["stations"].get(state.station.name, {})
        now = state.station.facts
        if not same_class(str(record["hardware"]), str(state.station.hardware)):
            return f"its station was {record['hardware']} and is {state.station.hardware}"
        if another_machine(then, now):
            return f"its station {state.station.name} is another machine of the same name and kind"
        programs = provenance.programs_of(map(variant_named, self.spec.variants))
        changed = provenance.changed(then, now, programs)
        return next((f"its station had {name} {before} and has {after}" for name, before, after in changed), None)

    def _committed(self, identity: str) -> dict[str, list[Committed]]:
        """The committed launches of each trial, in order. Raises UsageError at a launch of another run."""
        found: dict[str, list[Committed]] = {}
        for name in self.directory.sample_files():
            trial, _, number = name.removesuffix(".parquet").rpartition(".")
            if not trial or not number.isdecimal():
                raise UsageError(f"{self.directory.shown} can't be resumed: samples/{name} is not one of its launches")
            try:
                table = self.directory.launch(trial, int(number))
            except (pa.ArrowException, OSError):  # half a file, on a file system that can't rename: measured again
                continue
            if (table.schema.metadata or {}).get(b"identity", b"").decode() != identity:
                raise UsageError(f"{self.directory.shown} can't be resumed: samples/{name} is of another run")
            try:
                found.setdefault(trial, []).append(Committed.of(to_result(table)))
            except BROKEN as error:
                raise UsageError(
                    f"{self.directory.shown} can't be resumed: samples/{name} can't be read: {one_line(error)}"
                ) from None
        return found


def cold_of(record: Mapping[str, Any]) -> Cold:
    """The cold starts as ``run.json`` has them; none of a run that asked for none."""
    made = {}
    for name, raw in record.get("of", {}).items():
        of: dict[str, Sequence[Start]] = {
            state: tuple(schema.known(Start, one) for one in starts) for state, starts in raw["of"].items()
        }
        made[name] = replace(schema.known(Starts, raw), of=of)
    return Cold(made, dict(record.get("lost", {})))


def _found(record: Mapping[str, Any]) -> tuple[Memory, Limits]:
    """The findings of untimed processes; fewer in older runs."""
    compared = {name: schema.known(ReplyComparison, found) for name, found in record.get("compared", {}).items()}
    limits = {name: schema.known(Limit, limit) for name, limit in record.get("limits", {}).items()}
    speeds = Speeds.of(record["speeds"]) if record.get("speeds") else None
    lost = record.get("not_known", {})
    compiled = {name: schema.known(Compilation, found) for name, found in record.get("compiled", {}).items()}
    preparing = dict(record.get("prepare_memory_mb", {}))
    memory = Memory(dict(record["peak_memory_mb"]), compared, dict(lost.get("memory", {})), compiled, preparing)
    return memory, Limits(speeds, limits, lost.get("limits"))
