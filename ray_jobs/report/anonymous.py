"""Makes a run anonymous by a list of what is kept. Everything else is left out.

A key is kept if a file of this program has it; a number with it. A text is kept by the rule of its key: one of a closed
set, a version, a hash, a moment, a name that was given here, or a sentence as far as it consists of this program's own
words.
"""

import ast
import getpass
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from chatbot.variants import DEVICES, OWN_NAME, VARIANTS, Workload
from ray_jobs import provenance, sides
from ray_jobs.matrix.rows import COLUMNS, Status
from ray_jobs.measure.cold import Cold, Start, Starts, State
from ray_jobs.measure.dynamo import Compilation
from ray_jobs.measure.method import METHODS, Method
from ray_jobs.measure.replies import ReplyComparison
from ray_jobs.measure.requests import Served, Window
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.roofline import Limit, Speeds
from ray_jobs.results.schema import each_text
from ray_jobs.scenario import BOUND, TIME, Load, ReplicaKind, Scenario, Through, price_of
from ray_jobs.spec import CHOICES, ISOLATIONS, Spec
from ray_jobs.statistics import Centre, Verdict

GONE = "***"
CUT = "not kept in a compacted run"
RECORDS: tuple[Any, ...] = (
    Workload,
    VariantFacts,
    LaunchResult,
    Launch,
    Limit,
    Speeds,
    ReplyComparison,
    Compilation,
    Method,
    Cold,
    Starts,
    Start,
    Load,
    Served,
    Window,
)
KEYS = {
    *COLUMNS, *Spec.model_fields,
    *(one.name for kind in RECORDS for one in fields(kind)), *State,
    # run.json
    "schema_version", "started", "resumed", "seconds", "command", "spec", "identity", "plan", "environment", "trials",
    "code", "prompts", "driver", "parts", "python", "packages", "git_commit", "source_hash",
    # of a station, and of the process of a launch
    "cpu", "cpu_model", "quota_cpus", "cores", "compiler", "affinity", "memory_gb", "niceness",
    "deterministic", "torch", "numpy",
    # of a trial
    "workload", "load", "lost_launches", "limits", "compared", "compiled", "not_known", "memory", "moments", "attempts",
    "attempt", "index",
    "started_unix_s", "at_s", "begun", "launch began", "launch", "launch lost", "worker lost", "ended",
    "speeds", "read", "gflops", "float32", "bfloat16", "float16", "tf32",
    # of sides
    "environments", "cpu_capability", "preloaded", "sources", "commit", "built_s", "waits", "count", "longest_s",
}  # fmt: skip
SETS = {
    "status": Status, "verdict": Verdict, "side_verdict": Verdict,
    "device": (*DEVICES, "all"), "bound": ("memory", "compute", "latency", "overhead"),
    "stations": CHOICES, "isolation": ISOLATIONS, "estimator": tuple(method.estimator for method in METHODS.values()),
    "centre": Centre, "scenario": Scenario, "replica_kind": ReplicaKind, "through": Through,
    "capacity_verdict": Verdict,
}  # fmt: skip
FORMS = {
    name: re.compile(form)
    for form, names in {
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+\d\d:\d\d|Z)": ("started", "resumed"),
        r"\d+(\.\d+[\w.]*)?(\+(cpu|cu\d+))?": ("python", "packages", "torch", "numpy"),
        r"[0-9a-f]{1,64}\+?": ("git_commit", "source_hash", "identity", "sources", "commit"),
        r"[\w+. -]+": ("cpu_capability", "preloaded"),
        rf"[0-9a-f]{{12,64}}|{'|'.join(VARIANTS)}": ("program",),
        r"(eager|torchscript|inductor|aoti?|onnxruntime|openvino|native|cuda-graph|persistent|export)[a-z-]*"
        r"|process|thread": ("kind",),
        BOUND.pattern: ("slo",),
        TIME.pattern: ("batch_window",),
    }.items()
    for name in names
}
NAMES = ("variant", "variants", "baseline", "built", "cases", "parts", "side", "sides")
SENTENCES = ("reason", "warnings", "bound_why", "failed", "invalid", "skipped", "not_known", "why", "lost")
HARDWARE = ("hardware", "device_name", "cpu", "cpu_model", "compiler")
# Words of reasons and warnings that no text of this program holds as they are shown: parts of them are filled in, or
# they are from runs of earlier versions.
MORE_WORDS = """
    become cannot caught comparing compute-bound count devices ending exact float16 foreign frequency gb get gflop hard
    host's hung int16 it's lessen memory's memory-bound nobody oom overhead-bound pressure process's qint8
    ray_worker_niceness refused round sigabrt sigbus sigill sigkill sigsegv silent slow steal stolen tells throttled
    throttling tie
""".split()
BEFORE_A_NAME = {"user"}
NUMBER = re.compile(r"[±x]?\d+(\.\d+)?%?|\d+([,-]\d+)*")
NUMBERS = re.compile(r"\d+(\.\d+)?%?(,\d+(\.\d+)?%?)*")
ADDRESS = re.compile(r"\d+(\.\d+){3}|[0-9a-f]*:[0-9a-f:]+|.*[/\\@=~].*", re.IGNORECASE)
FILE = re.compile(r"[\w.+-]+\.(pt|tar|tsv|txt|jsonl|toml)")
FLAG = re.compile(r"--?[a-z][a-z-]*")
# A trial's id before its place.
SIZES = re.compile(
    r"(cpu|cuda)\d*(-[bprt]\d+)+(-eos)?"
    rf"(-({'|'.join(Scenario)})-x\d+(-({'|'.join(ReplicaKind)}))?(-b\d+)?(-({'|'.join(Through)}))?)?"
)
NODE = re.compile(r"#\d+$")  # of several on one host
PLACE_OF_DEVICE = re.compile(r"(cpu|cuda)\d*")
SPOKEN = {
    "python", "-m", "ray_jobs", "latency-matrix", "matrix", "trace", "small", "tutorial", "chitchat", "none",
    "off", "online", "offline", "auto", "local", *Scenario, *ReplicaKind, *Through, *DEVICES, *CHOICES, *ISOLATIONS,
    *VARIANTS,
}  # fmt: skip


@cache
def words() -> frozenset[str]:
    """The words of this program's own sentences: what its sources say, but for what comes before a name."""
    found = {*MORE_WORDS, *VARIANTS}
    for path in [path for folder in provenance.PACKAGE_FOLDERS for path in folder.rglob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.update(map(_plain, node.value.split() if " " in node.value.strip() else ()))
    return frozenset(found - BEFORE_A_NAME)


def _plain(word: str) -> str:
    return word.strip("(),.:;").lower()


def sentence(text: str, private: Callable[[str], bool] = lambda word: False) -> str:
    """The beginning of a text that holds only words of ours and numbers, none of them ``private``."""
    kept: list[str] = []
    for word in text.split():
        plain = _plain(word)
        if private(plain) or (plain and plain not in words() and not NUMBER.fullmatch(plain)):
            break
        kept.append(word)
    return " ".join(kept).rstrip(" (,:;")


@dataclass(frozen=True)
class Names:
    """The new name of every host, station and trial: ``host-1``, ``host-1#2:cpu``, ``cpu-b1-p8-r10-t1@host-1#2``."""

    hosts: dict[str, str] = field(default_factory=dict)
    stations: dict[str, str] = field(default_factory=dict)
    trials: dict[str, str] = field(default_factory=dict)

    def add(self, host: str | None, station: str | None, trial: str | None) -> None:
        """Gives each of these that is known a new name."""
        place, _, device = (station or "").rpartition(":")
        left, _, right = (trial or "").partition("@")
        new = "none" if right == "none" else self._place(host, place or right)
        if station:
            self.stations[station] = f"{new}:{device}" if PLACE_OF_DEVICE.fullmatch(device) else new
        if trial:
            self.trials[trial] = f"{left if SIZES.fullmatch(left) else f'trial-{len(self.trials) + 1}'}@{new}"

    def _place(self, host: str | None, place: str) -> str:
        number = NODE.search(place)
        name = host or place.removesuffix(number[0] if number else "")
        return self.hosts.setdefault(name, f"host-{len(self.hosts) + 1}") + (number[0] if number else "")


def names_of(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], trials: Iterable[str]) -> Names:
    """Collects the hosts, stations and trials that a run names, wherever it does."""
    names = Names()
    for row in rows:
        names.add(row["host"], row["station"], row["trial_id"])
    for trial, record in (run.get("trials") or {}).items():
        names.add(record.get("host"), record.get("station"), trial)
    for station, facts in ((run.get("environment") or {}).get("stations") or {}).items():
        names.add(facts.get("host"), station, None)
    for trial in trials:
        if trial not in names.trials:
            names.add(None, None, trial)
    return names


@dataclass(frozen=True)
class Anonymous:
    """Cleans the plain values of one run."""

    names: Names = field(default_factory=Names)
    own: frozenset[str] = frozenset()  # code of the user's own that was measured: package.module:NAME
    private: frozenset[str] = frozenset()  # words that no kept text may hold

    def value(self, value: Any, key: str = "") -> Any:
        """A value as it may be seen; None for a text without a rule."""
        if isinstance(value, Mapping):
            pairs = ((self._key(name, key), inner) for name, inner in value.items())
            return {name: self.value(inner, self._rule(name, key)) for name, inner in pairs if name is not None}
        if isinstance(value, (list, tuple)):
            return [one for one in (self.value(inner, key) for inner in value) if one is not None or key != "warnings"]
        return self._text(value, key) if isinstance(value, str) else value

    def _key(self, name: str, within: str) -> str | None:
        of_stations = dict.fromkeys(("stations", "built_s"), self.names.stations)
        for place, names in {"trials": self.names.trials, **of_stations}.items():
            if within == place:
                return names.get(name)
        if name in KEYS or name in VARIANTS or name in self.own:
            return name
        return name if within == "packages" and re.fullmatch(r"[a-z][a-z0-9-]*", name) else None

    @staticmethod
    def _rule(name: str, within: str) -> str:
        """The key whose rule a value follows: of packages, hashes and lost figures that of the mapping."""
        return within if within in ("packages", "identity", "not_known", "lost") else name

    def _text(self, text: str, key: str) -> str | None:
        given = {"trial_id": self.names.trials, "station": self.names.stations, "host": self.names.hosts}
        if key in given:
            return given[key].get(text)
        if key in SETS:
            return text if text in tuple(SETS[key]) else None
        if form := FORMS.get(key):
            return text if form.fullmatch(text) else None
        if key in NAMES:
            return text if text in VARIANTS or text in self.own else None
        if key in SENTENCES:
            return sentence(text, self._tells) or (CUT if key != "warnings" else None)
        ways: dict[str, Callable[[str], str]] = {"model": self._source, "corpus": self._source, "command": self._word}
        ways |= {"dtype": self._word, "cores": lambda text: sentence(text, self._tells)} | dict.fromkeys(
            HARDWARE, self._hardware
        )
        ways |= {"against": sides.plain, "price": self._price}
        return ways[key](text) if key in ways else None

    def _source(self, text: str) -> str:
        """A model or a corpus: a name of ours, code of the user's by its name, or the last part of a path."""
        if text in SPOKEN or text in self.own:
            return text
        last = text.rstrip("/").rpartition("/")[2]
        return last if FILE.fullmatch(last) and not self._tells(last) else "file"

    def _word(self, word: str) -> str:
        """A word of a command line."""
        flag, equals, value = word.partition("=")
        if FLAG.fullmatch(flag):
            return f"{flag}={self._word(value)}" if equals else flag
        parts = word.split(",")
        if BOUND.fullmatch(word):
            return word
        if all(part in SPOKEN or part in self.own or NUMBERS.fullmatch(part) for part in parts):
            return word
        return GONE if self._source(word) == "file" else self._source(word)

    def _price(self, text: str) -> str:
        """What an hour of a processor or a GPU costs."""
        hardware, price = price_of(text)
        return f"{self._hardware(hardware)}={price:g}"

    def _hardware(self, text: str) -> str:
        """The name of a processor or a GPU."""
        return " ".join(word for word in text.split() if word == "@" or self._harmless(word.strip("(),;")))

    def _harmless(self, word: str) -> bool:
        return not (ADDRESS.fullmatch(word) or self._tells(word))

    def _tells(self, word: str) -> bool:
        return any(name in word.lower() for name in self.private)


def own_names(spec: Mapping[str, Any], parts: Iterable[str] = ()) -> frozenset[str]:
    """What a spec names beside this program's own variants and models.

    The variants and the model that are code of the user's own, the ``parts`` of that model, and sides.
    """
    model, cases = str(spec.get("model")), list(map(str, spec.get("cases") or ()))
    variants = list(map(str, spec.get("variants") or ()))
    own = {name for name in (*variants, model) if OWN_NAME.fullmatch(name.partition("#")[0])}
    compared = sides.names_of(list(map(str, spec.get("against") or ())))
    labels = [sides.label_of(side, name) for side in compared for name in variants]
    return frozenset(own.union(cases, parts, (f"{model}#{case}" for case in cases), compared, labels))


def users_in(values: Iterable[Any]) -> frozenset[str]:
    """The users named in a run's texts, and the current user."""
    found: set[str] = set()
    with suppress(KeyError, OSError):
        found.add(getpass.getuser())

    def look(text: str) -> str:
        found.update(re.findall(r"(?:/(?:home|Users)/|\buser )([\w.-]+)", text))
        return text

    for value in values:
        each_text(value, look)
    return frozenset(name.lower() for name in found if len(name) > 2)
