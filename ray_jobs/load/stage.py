"""One launch under load, once it is pinned: replicas prepare every variant, of which one answers at a time.

Windows of the variants take turns: in a round each has one, in balanced order, all with the same inputs. In ``server``
the requests of all windows of a launch are due at the same random times, drawn beforehand, at one rate or another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatbot.variants import Workload
from ray_jobs.load import queueing, record, sizes
from ray_jobs.load.behind import Behind
from ray_jobs.load.crew import Line
from ray_jobs.load.generator import Flow, Patience, all_busy, open_loop
from ray_jobs.load.points import Point, given_up_s, points
from ray_jobs.load.search import LEAST, Search, Seen
from ray_jobs.measure import busy, interference, orders
from ray_jobs.measure.interference import per_round
from ray_jobs.measure.launch import machine_facts
from ray_jobs.measure.method import METHOD
from ray_jobs.measure.requests import Served, Window
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.rounds import WarmUp
from ray_jobs.measure.trial import ModelSource, present
from ray_jobs.measure.watch import Counters, MachineWatch
from ray_jobs.scenario import Load, ReplicaKind, Scenario

MOST_SHARE = 0.6  # of a launch's time, for its windows
COMPARE_S = 10.0  # for answers of the baseline that another replica gave
TURNS, ARRIVALS, OFFSETS = 11, 12, 13  # keep these draws apart from those of a launch


@dataclass(frozen=True)
class Asked:
    """A launch under load."""

    workload: Workload
    variants: tuple[str, ...]
    model: ModelSource
    pool: NDArray[np.int64]  # (N, T) distinct prompts
    launch: Launch
    load: Load
    cores: tuple[int, ...]  # that of who sends requests first, in ``server``
    share: tuple[int, ...] | None = None  # the station's, where others of the machine belong to other trials
    left_out: Mapping[str, VariantFacts] = field(default_factory=dict)  # variants that are not run, and why
    timeout_s: float = 60.0  # after which it is ended
    send: Callable[..., Flow] = open_loop
    behind: Behind | None = None  # of a load through Ray Serve

    def draws(self, what: int) -> np.random.Generator:
        """Of this launch alone."""
        return np.random.default_rng([self.launch.seed, self.launch.index, what])


class HasLines(Protocol):
    """The replicas of a launch, however requests reach them."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """How each is told what to do."""


@dataclass
class Stage:
    """A launch in progress."""

    asked: Asked
    crew: HasLines
    facts: dict[str, VariantFacts]
    windows: list[Window] = field(default_factory=list)
    flows: list[tuple[Window, int, Flow]] = field(default_factory=list)  # with the place of the window in its round
    searches: dict[str, Search] = field(default_factory=dict)
    seen: list[tuple[str, int, Seen]] = field(default_factory=list)  # variant and round of what windows said
    gone: set[str] = field(default_factory=set)  # variants that could not answer, or hold the bound at no rate

    @property
    def lines(self) -> tuple[Line, ...]:
        """The replicas."""
        return self.crew.lines

    def run(self) -> LaunchResult:
        asked = self.asked
        watch = self._watch(self._met())
        self.lines[0].ask("sentinel")
        built = self._built()
        able = [name for name in built if self._prepared(name)]
        self._each("examine")
        warm = self._warmed(able)
        going = [name for name in asked.variants if name in warm]
        room = min(int(told["room"]) for told in self._told("room"))
        room = self._paced(warm, room)
        rounds, calls = sizes.sizes(asked.load, asked.launch, self._seconds(warm), room, MOST_SHARE * asked.timeout_s)
        readings = [watch.read()]
        for number in range(rounds):
            self._round(number, calls, going, warm)
            readings.append(watch.read())
            self._learn(interference.kept(per_round(readings)))
        self.lines[0].ask("sentinel")
        self._each("compare", seconds=COMPARE_S)
        told = self._told("finish")
        self._take_facts(told)
        return self._result(built, (rounds, calls), readings, told)

    def _all(self, do: str, **asked: Any) -> list[tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
        """Lets every replica do something, all at once."""
        for line in self.lines:
            line.tell(do, **asked)
        return [line.hear() for line in self.lines]

    def _told(self, do: str, **asked: Any) -> list[dict[str, Any]]:
        """As ``_all``, without arrays."""
        return [told for told, _ in self._all(do, **asked)]

    def _each(self, do: str, **asked: Any) -> list[dict[str, Any]]:
        """Lets every replica do something, one after the other: what one finds out must not depend on the others."""
        return [line.ask(do, **asked) for line in self.lines]

    def _watch(self, met: Sequence[Mapping[str, Any]]) -> MachineWatch:
        """Of the replicas; how late who sends requests was is told by each request."""
        generators = self.asked.load.generators
        cores = self.asked.cores[generators:]
        return MachineWatch(cores, counted=self.asked.share, sides=processes(met), itself=not generators)

    def _met(self) -> list[dict[str, Any]]:
        """What the replicas say of themselves. Raises RuntimeError where they have not the same weights."""
        told = self._each("hello")
        if len({one["weights"] for one in told}) > 1:
            raise RuntimeError("its replicas have different weights: make them the same in each process")
        return told

    def _prepared(self, name: str) -> bool:
        with noted(name):
            threads = self.asked.load.kind == ReplicaKind.THREAD
            every = self._each("prepare", variant=name) if threads else self._told("prepare", variant=name)
        return all(one["able"] for one in every)

    def _seconds(self, warm: Mapping[str, WarmUp]) -> dict[str, float]:
        """About how long each variant's window lasts for each of its requests."""
        load, bound = self.asked.load, self.asked.load.bound
        if bound is None:
            return {name: one.typical_ns / 1e9 / load.max_batch for name, one in warm.items()}
        gaps = queueing.arrivals(sizes.most_calls(load), self.asked.draws(ARRIVALS))
        return {name: 1 / self._search(name, one, gaps).first for name, one in warm.items()}

    def _built(self) -> list[str]:
        """The order of building: balanced over those that can run here, then the others, which are skipped at once."""
        asked = self.asked
        able = present(asked.workload, asked.variants)
        order = [able[i] for i in orders.building_order(len(able), asked.launch.index, asked.launch.seed)]
        every = [*order, *(name for name in asked.variants if name not in able)]
        return [name for name in every if name not in asked.left_out]

    def _warmed(self, able: Sequence[str]) -> dict[str, WarmUp]:
        """What takes turns, each as its slowest replica."""
        found: dict[str, WarmUp] = {}
        for place, name in enumerate(able):
            with noted(name):
                warm = [WarmUp(**told) for told in self._told("warm", variant=name, place=place)]
            if not any(one.failed or one.skipped for one in warm):
                found[name] = max(warm, key=lambda one: one.typical_ns)
        return found

    def _paced(self, warm: Mapping[str, WarmUp], room: int) -> int:
        """Finds out at what pace variants answer, where warm-ups do not tell; returns how many inputs are left."""
        return room

    def _each_s(self, name: str, warm: WarmUp) -> tuple[float, float]:
        """(about how long, how long at least) a replica needs for each call."""
        return warm.typical_ns / 1e9, warm.typical_ns / 1e9

    def _sent(self, due_ns: Sequence[int], patience: Patience) -> Flow:
        """A window in which requests are due at these times."""
        return self.asked.send(self.crew, due_ns, patience)

    def _round(self, number: int, calls: int, going: Sequence[str], warm: Mapping[str, WarmUp]) -> None:
        """A window of each variant. The order is balanced over rounds of all launches."""
        launch = self.asked.launch
        order = orders.building_order(len(going), launch.index * sizes.ROUNDS + number, launch.seed + TURNS)
        for position, i in enumerate(order):
            name = going[i]
            if name in self.gone:
                continue
            server = self.asked.load.scenario == Scenario.SERVER
            with noted(name):
                window, flow = (self._server if server else self._offline)(name, number, calls, warm[name])
            self.windows.append(window)
            self.flows.append((window, position, flow))
            if flow.broken:
                self.gone.add(name)
            elif server:
                self._see(name, window, flow)

    def _server(self, name: str, number: int, calls: int, warm: WarmUp) -> tuple[Window, Flow]:
        bound = self.asked.load.bound
        assert bound is not None
        gaps = queueing.arrivals(calls, self.asked.draws(ARRIVALS))
        if name not in self.searches:
            self.searches[name] = self._search(name, warm, gaps)
        search = self.searches[name]
        offsets = self.asked.draws(OFFSETS).uniform(-0.5, 0.5, sizes.ROUNDS)
        rate = search.next(float(offsets[number % sizes.ROUNDS]))
        waited_s = 0.0 if search.at_the_end else given_up_s(bound)
        patience = Patience(round(bound.seconds * 1e9), sizes.spare(bound, calls), round(waited_s * 1e9))
        self._ready("answer", name, [number * calls] * len(self.lines), calls)
        due = np.round(gaps / rate * 1e9).astype(np.int64).tolist()
        flow = self._sent(due, patience)
        _require_all(flow)
        return Window(number, self.asked.variants.index(name), calls, rate, flow.abandoned), flow

    def _search(self, name: str, warm: WarmUp, gaps: NDArray[np.float64]) -> Search:
        """Where a variant begins to look: at what a queue with its warm-up's latency would hold."""
        load, (service_s, least_s) = self.asked.load, self._each_s(name, warm)
        least = LEAST * least_s / service_s
        bound = load.bound
        assert bound is not None
        together = (load.max_batch, load.batch_window_ns / 1e9)
        first = queueing.capacity_of(gaps, service_s, load.replicas, bound.share, bound.seconds, LEAST, together)
        return Search(bound.seconds * 1e3, first, load.max_batch * load.replicas / least_s, least=least)

    def _offline(self, name: str, number: int, calls: int, warm: WarmUp) -> tuple[Window, Flow]:
        firsts = [(number * len(self.lines) + line.number) * calls for line in self.lines]
        self._ready("saturate", name, firsts, calls)
        return Window(number, self.asked.variants.index(name), calls * len(self.lines)), all_busy(self.lines, calls)

    def _ready(self, do: str, name: str, firsts: Sequence[int], calls: int) -> None:
        for line, first in zip(self.lines, firsts, strict=True):
            line.tell(do, variant=name, first=first, count=calls)
        for line in self.lines:
            line.hear_ready()

    def _see(self, name: str, window: Window, flow: Flow) -> None:
        """Notes what a window says, unless it does not count as requests were sent late."""
        alone = replace(window, round=0)
        of_it = self._of([(alone, 0, flow)], (alone,), rounds=1)
        found: list[Point] = points(of_it)
        for point in found:
            if point.kept and point.offered_rps is not None and point.bound_ms is not None:
                self.seen.append((name, window.round, (point.offered_rps, point.bound_ms)))

    def _learn(self, kept: NDArray[np.bool_]) -> None:
        """Lets the searches go by the rounds that count so far; which do follows from the counters of all of them."""
        for name, search in self.searches.items():
            search.seen = [one for whose, number, one in self.seen if whose == name and kept[number]]
            if search.hopeless:
                self.gone.add(name)

    def _take_facts(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Of each variant what its worst replica found; replies are summed."""
        for name in self.asked.variants:
            every = [VariantFacts.told(one["facts"][name]) for one in told if name in one["facts"]]
            if every:
                self.facts[name] = record.worst(every)

    def _result(
        self,
        built: Sequence[str],
        shape: tuple[int, int],
        readings: Sequence[Counters],
        told: Sequence[Mapping[str, Any]],
    ) -> LaunchResult:
        self._require_in_place(told)
        result = self._of(self.flows, tuple(self.windows), shape[0])
        machine = {**told[0]["machine"], "cores": sorted(self.asked.cores), "generator": machine_facts()["cores"]}
        return replace(
            result,
            built=tuple(built),
            calls=shape[1],
            facts=self.facts,
            machine=machine,
            interference=per_round(readings),
            sentinel_ns=tuple(told[0]["sentinel_ns"]),
        )

    def _require_in_place(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Raises RuntimeError where a replica did not end on its cores, with its number of threads."""
        for line, machine in zip(self.lines, (one["machine"] for one in told), strict=True):
            cores, threads = machine["cores"], machine["threads"]
            if cores != sorted(line.cores) or threads != self.asked.workload.threads:
                who = f"replica {line.number}"
                raise RuntimeError(f"{who} ended on cores {cores} with {threads} threads, not as pinned")

    def _of(self, flows: Sequence[tuple[Window, int, Flow]], windows: tuple[Window, ...], rounds: int) -> LaunchResult:
        """A launch of these windows."""
        samples, requests = record.arrays(flows)
        asked = self.asked
        return LaunchResult(
            asked.launch,
            asked.variants,
            (),
            rounds,
            0,
            {},
            samples,
            method=METHOD.version,
            served=Served(asked.load, windows, requests),
        )


def processes(met: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Those that replicas are in, from what each says of itself."""
    return tuple(sorted({int(one["pid"]) for one in met}))


def _require_all(flow: Flow) -> None:
    """Raises RuntimeError where requests have no answer though nothing kept them from one."""
    missing = flow.count - len(flow.answered())
    if missing and not (flow.abandoned or flow.broken):
        raise RuntimeError(f"{missing} of {flow.count} requests were dropped")


@contextmanager
def noted(name: str) -> Iterator[None]:
    """What replicas are busy with, for who finds them dead: where this is left by an error, the note stays."""
    busy.on(name)
    yield
    busy.at(None)
