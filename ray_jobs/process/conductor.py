"""One launch of several sides: a process for each, all pinned to the same cores, of which one works at any moment.

The conductor runs on cores beside. Orders, rounds and checks are those of a launch in one process, over pairs of a side
and a variant; what a process does in a turn is the same code (``rounds.Turns``).

Every process does the same things equally often, and is first in them equally often: where ``base`` alone read the
counters and was always first, it was slower than its equal.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np

from ray_jobs.measure import orders, steps
from ray_jobs.measure.channel import Arrays
from ray_jobs.measure.interference import per_round
from ray_jobs.measure.method import METHOD
from ray_jobs.measure.result import Launch, LaunchResult, Samples, VariantFacts
from ray_jobs.measure.rounds import WarmUp
from ray_jobs.measure.trial import Inputs, Pair, Trial
from ray_jobs.measure.watch import Counters
from ray_jobs.process.player import LostError, Player, Waits, play, served
from ray_jobs.process.server import LaunchServer, Loss, LossKind, Request
from ray_jobs.sides import BASE

WEIGHTS = "its weights are not those of base: nothing of it can be compared"


@dataclass(frozen=True)
class Stage:
    """Where the launches of a trial take place."""

    trial: Trial
    inputs: Inputs
    start: Callable[[str], LaunchServer]  # of a side
    cores: tuple[int, ...]
    beside: tuple[int, ...]  # cores for everything else; none: anywhere
    share: tuple[int, ...] | None = None

    def request(self, work: Callable[[], Any]) -> Request:
        """A request for a process as launches have it."""
        return Request(work, self.cores, self.trial.workload.threads, self.trial.launch_timeout_s)


def conduct(stage: Stage, launch: Launch, able: Sequence[Pair], left_out: Mapping[str, VariantFacts]) -> LaunchResult:
    """Runs a launch; orders are balanced over those ``able``. ``left_out``: labels of pairs that are not run, and why.

    Raises:
        LostError: a side was lost, and the launch with it.
        TrialError: a launch server died or hangs.
    """
    performance = _Performance(stage, launch, able, dict(left_out))
    with _pinned(stage.beside), performance.servers:
        try:
            result = performance.run()
        except Exception:
            performance.leave()
            raise
        performance.leave()
    return result


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keeps this thread on these cores; a worker of Ray's has other tasks after this one."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores or before)
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class _Performance:
    """A launch in progress."""

    stage: Stage
    launch: Launch
    able: Sequence[Pair]
    facts: dict[str, VariantFacts]  # by label
    cast: dict[str, list[str]] = field(default_factory=dict)  # the variants of each side that take part
    players: dict[str, Player] = field(default_factory=dict)
    waits: Waits = field(default_factory=Waits)
    servers: ExitStack = field(default_factory=ExitStack)

    @property
    def base(self) -> Player:
        return self.players[BASE]

    def run(self) -> LaunchResult:
        rng = self.launch.rng()
        rng.permutation(len(self.stage.inputs.pool(self.stage.trial.workload)))  # the draws of a launch in one process
        built = self._built()
        self._enter(built)
        self._all("sentinel")
        going = self._warmed([pair for pair in built if self._ask(pair, "prepare")["able"]])
        rounds, calls = self._sized(going)
        readings = self._rounds(going, orders.round_orders(len(going), rounds, rng))
        self._all("sentinel")
        self._check()
        told = {side: player.ask_all("finish") for side, player in self.players.items()}
        return self._result(built, (rounds, calls), readings, told)

    def leave(self) -> None:
        """Ends every process, one after the other."""
        players = [self.players[name] for name in sorted(self.players)]
        for i in orders.leaving_order(len(players), self.launch.index, self.launch.seed):
            players[i].leave()

    def _enter(self, built: Sequence[Pair]) -> None:
        """Starts the processes, one after the other, in the order of what is built in them first."""
        trial, inputs = self.stage.trial, self.stage.inputs
        for pair in trial.pairs:
            if pair.label not in self.facts:
                self.cast.setdefault(pair.side, []).append(pair.variant)
        servers = self._started(_sides_in(built))
        for side, server in servers.items():
            work = partial(play, trial, inputs, self.cast[side], self.stage.share, self.launch)
            self.players[side] = Player(side, server, work, self.stage.request, self.waits)
        for side, player in self.players.items():
            if player.weights != self.base.weights:
                raise LostError(side, Loss(LossKind.RAISED, WEIGHTS))

    def _started(self, sides: Sequence[str]) -> dict[str, LaunchServer]:
        """Launch servers of this launch alone, which start at the same time, on all cores: nothing is measured yet.

        The forks of one server share its addresses and its hashes of words. A side whose launches all came from one was
        slower or faster than its equal for a whole trial, of which an interval over launches knows nothing.
        """
        servers = {side: self.servers.enter_context(self.stage.start(side)) for side in sides}
        for side, server in servers.items():
            with served(side):
                server.wait()
            server.stay_on(self.stage.beside)
        return servers

    def _built(self) -> list[Pair]:
        """The pairs in the order of their building: balanced over those able, then the others, skipped at once."""
        indices = orders.building_order(len(self.able), self.launch.index, self.launch.seed)
        order = [self.able[i] for i in indices]
        others = [pair for pair in self.stage.trial.pairs if pair not in self.able]
        return [pair for pair in (*order, *others) if pair.label not in self.facts]

    def _warmed(self, prepared: Sequence[Pair]) -> dict[Pair, WarmUp]:
        """What takes turns, in the order of the pairs."""
        self._all("examine")
        warm = {pair: WarmUp(**self._ask(pair, "warm", place=place)) for place, pair in enumerate(prepared)}
        left = [pair for pair in self.stage.trial.pairs if pair in warm]
        return {pair: warm[pair] for pair in left if not (warm[pair].failed or warm[pair].skipped)}

    def _sized(self, going: Mapping[Pair, WarmUp]) -> tuple[int, int]:
        rounds, calls = steps.sizes(self.launch, going)
        told = self._all("held", rounds=rounds, calls=calls, turns=len(going))
        rounds, calls = (min(int(one[name]) for one in told) for name in ("rounds", "calls"))
        self._all("begin", rounds=rounds, calls=calls)
        return rounds, calls

    def _rounds(self, going: Mapping[Pair, WarmUp], turns: orders.Orders) -> list[Counters]:
        """The counters before the first round, and after each."""
        pairs = list(going)
        for player in self.players.values():
            others = [other.pid for other in self.players.values() if other is not player]
            player.ask("watch", sides=others, beside=[os.getpid()])
        readings = [self._read(list(self.players))]
        for number, order in enumerate(turns):
            sides = _sides_in([pairs[i] for i in order])
            self._all("round", sides, number=number)
            for position, i in enumerate(order):
                self._ask(pairs[i], "turn", position=position)
            self._all("rest", sides)
            readings.append(self._read(sides))
        return readings

    def _read(self, sides: Sequence[str]) -> Counters:
        """The counters as ``base`` reads them; every side does."""
        told = dict(zip(sides, self._all("read", sides), strict=True))
        return Counters(*told[BASE]["counters"])

    def _check(self) -> None:
        """Checks every side's answers, the others' against those of ``base``."""
        _, expected = self.base.ask_all("check")
        for side, player in self.players.items():
            if side != BASE:
                player.ask("check", expected)

    def _ask(self, pair: Pair, do: str, **asked: Any) -> dict[str, Any]:
        return self.players[pair.side].ask(do, variant=pair.variant, **asked)

    def _all(self, do: str, sides: Sequence[str] = (), **asked: Any) -> list[dict[str, Any]]:
        """Asks every side, or these, in their order."""
        return [self.players[side].ask(do, **asked) for side in sides or self.players]

    def _result(
        self,
        built: Sequence[Pair],
        sizes: tuple[int, int],
        readings: Sequence[Counters],
        told: Mapping[str, tuple[dict[str, Any], Arrays]],
    ) -> LaunchResult:
        pairs = self.stage.trial.pairs
        for side, (content, _) in told.items():
            self.facts |= {Pair(side, name).label: VariantFacts.told(one) for name, one in content["facts"].items()}
        waits = {"count": self.waits.count, "seconds": self.waits.seconds, "longest_s": self.waits.longest_s}
        return LaunchResult(
            self.launch,
            tuple(pair.label for pair in pairs),
            tuple(pair.label for pair in built),
            *sizes,
            self.facts,
            self._samples(told),
            machine={**told[BASE][0]["machine"], "waits": waits},
            interference=per_round(readings),
            sentinel_ns=tuple(told[BASE][0]["sentinel_ns"]),
            sides=tuple(pair.side for pair in pairs),
            method=METHOD.version,
        )

    def _samples(self, told: Mapping[str, tuple[dict[str, Any], Arrays]]) -> Samples:
        """Those of all sides, in the order of the calls: their clocks are one, CLOCK_MONOTONIC."""
        pairs, parts = self.stage.trial.pairs, []
        for side, (content, arrays) in told.items():
            places = np.array([pairs.index(Pair(side, name)) for name in self.cast[side]], dtype=np.int16)
            moved = {"variant": places[arrays["variant"]], "start_ns": arrays["start_ns"] + content["origin_ns"]}
            parts.append({**arrays, **moved})
        whole = {one.name: np.concatenate([part[one.name] for part in parts]) for one in fields(Samples)}
        order = np.argsort(whole["start_ns"], kind="stable")
        whole["start_ns"] -= whole["start_ns"][order[:1]]
        return Samples(**{name: column[order] for name, column in whole.items()})


def _sides_in(pairs: Sequence[Pair]) -> list[str]:
    """The sides in the order of their first pair."""
    return list(dict.fromkeys(pair.side for pair in pairs))
