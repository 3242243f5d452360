"""The process of a side in one launch, as the conductor has it: it works while it is asked, and only then."""

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from ray_jobs.measure.channel import NO_ARRAYS, Arrays, Channel
from ray_jobs.measure.result import Launch
from ray_jobs.measure.session import Session
from ray_jobs.measure.trial import Inputs, Trial, mode_of
from ray_jobs.process.resting import Resting, awake, strays
from ray_jobs.process.server import GRACE_S, LaunchServer, Loss, LossKind, Request, TrialError
from ray_jobs.sides import BASE

REST_S = 1.0  # for the threads of a side to fall asleep: OpenMP's go on spinning for milliseconds after their work
LOOK_EVERY_S = 50e-6
HUNG_UP_S = 10.0  # for a process to end once nobody tells it anything any more

Ends = tuple[str, str]  # the paths of a process's ends of two pipes: to read from, to write to


class LostError(Exception):
    """The process of a side has ended, or must not go on."""

    def __init__(self, side: str, loss: Loss) -> None:
        super().__init__(loss.reason if side == BASE else f"{side}: {loss.reason}")
        self.side, self.loss = side, loss


def play(
    trial: Trial, inputs: Inputs, variants: Sequence[str], share: tuple[int, ...] | None, launch: Launch, ends: Ends
) -> None:
    """Runs in the process of a side, until the conductor hangs up."""
    channel = Channel(open(ends[0], "rb"), open(ends[1], "wb"))  # noqa: SIM115 (the process ends with them)
    with mode_of(inputs.model):
        pool = inputs.pool(trial.workload)
        Session(trial.workload, variants, inputs.model, pool, launch, share).serve(channel)


@contextmanager
def served(side: str) -> Iterator[None]:
    """A side whose server is gone is lost; without that of ``base`` the trial is."""
    try:
        yield
    except TrialError as error:
        if side == BASE:
            raise
        raise LostError(side, Loss(LossKind.RAISED, str(error))) from None


@dataclass
class Waits:
    """How long the conductor waited for the threads of those who had ended their work."""

    count: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.count, self.seconds = self.count + 1, self.seconds + seconds
        self.longest_s = max(self.longest_s, seconds)


class Player:
    """A side's process; ``leave`` ends it."""

    def __init__(
        self,
        side: str,
        server: LaunchServer,
        work: Callable[[Ends], None],
        request: Callable[[Callable[[], None]], Request],
        waits: Waits,
    ) -> None:
        """Starts it; ``request`` makes a request of its work.

        Raises:
            LostError: it has ended already.
            TrialError: its server died or hangs.
        """
        theirs, outgoing = os.pipe()
        incoming, theirs_too = os.pipe()
        self.side, self._server, self._waits = side, server, waits
        self._channel = Channel(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb"))
        self._over = False
        self._resting = Resting()
        self._waiting = select.poll()
        for descriptor in (incoming, server.fileno()):
            self._waiting.register(descriptor, select.POLLIN)
        paths = [f"/proc/{os.getpid()}/fd/{end}" for end in (theirs, theirs_too)]
        asked = request(partial(work, (paths[0], paths[1])))
        self._deadline = time.monotonic() + asked.timeout_s
        self._cores, self._threads = frozenset(asked.cores), asked.threads
        self.pid = 0
        try:
            with self._served():
                server.begin(asked)
            told = self.ask("hello")
        except BaseException:
            self._channel.close()
            raise
        finally:  # from now on its end is seen as the end of a pipe
            os.close(theirs)
            os.close(theirs_too)
        self.pid, self.weights = int(told["pid"]), str(told["weights"])
        self._rests(None)

    def ask(self, do: str, arrays: Arrays = NO_ARRAYS, **asked: Any) -> dict[str, Any]:
        """As ``ask_all``, without arrays in the answer."""
        return self.ask_all(do, arrays, **asked)[0]

    def ask_all(
        self, do: str, arrays: Arrays = NO_ARRAYS, **asked: Any
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Lets the process do something (a method of ``Session``) and returns what it told, once it sleeps again.

        Raises:
            LostError: it ended, went on computing, or did not stay where it was put.
            TrialError: its server died or hangs.
        """
        self._rested()
        with self._served():
            try:
                self._channel.send({"do": do, **asked}, arrays)
                if not self._answered():
                    raise self._lost()
                told = self._channel.receive()
            except (EOFError, OSError):
                raise self._lost() from None
        self._stays(told[0].pop("threads"), asked.get("variant"))
        self._rests(asked.get("variant"))
        return told

    @contextmanager
    def _served(self) -> Iterator[None]:
        try:
            with served(self.side):
                yield
        except LostError:
            self._over = True
            raise

    def leave(self) -> None:
        """Hangs up and waits for the process to end."""
        self._channel.close()
        if not self._over:
            self._over = True
            with suppress(TrialError):  # the next request of its server says so
                self._server.outcome(HUNG_UP_S)

    def _answered(self) -> bool:
        """Waits for an answer; False where there will be none."""
        left_s = max(0.0, self._deadline - time.monotonic()) + GRACE_S
        ready = dict(self._waiting.poll(left_s * 1000))
        if not ready:
            raise TrialError("the launch server hangs: it did not end its launch at the deadline")
        return self._channel.incoming.fileno() in ready

    def _lost(self) -> LostError:
        self._over = True
        outcome = self._server.outcome(max(0.0, self._deadline - time.monotonic()))
        ended = Loss(LossKind.DIED, "it ended before its launch did")
        return LostError(self.side, outcome if isinstance(outcome, Loss) else ended)

    def _stays(self, threads: int, variant: str | None) -> None:
        """Checks that it is where it was put: what a variant changes in its turn it may have put back by the end."""
        cores = next(strays(self.pid, self._cores), self._cores) if self.pid else self._cores
        if cores != self._cores or threads != self._threads:
            after = f", after a turn of {variant}" if variant else ""
            reason = f"it ended on cores {sorted(cores)} with {threads} threads, not as pinned{after}"
            raise LostError(self.side, Loss(LossKind.MOVED, reason, variant))

    def _rests(self, variant: str | None) -> None:
        """Waits until every thread of the process sleeps: another side's turn would be measured beside it."""
        start = time.monotonic()
        while self.pid and (threads := awake(self.pid)):
            if time.monotonic() - start > REST_S:
                reason = f"it went on computing for {REST_S:g} s after its turn, in {', '.join(threads)}"
                raise LostError(self.side, Loss(LossKind.RESTLESS, reason, variant))
            time.sleep(LOOK_EVERY_S)
        self._waits.add(time.monotonic() - start)
        self._resting.begin(self.pid)

    def _rested(self) -> None:
        """Checks that it slept while others had their turns: it may have been seen asleep and have woken up again."""
        self._resting.end(self.pid)
        if self._resting.too_much:
            used, of = self._resting.used_s * 1e3, self._resting.seconds * 1e3
            reason = f"it went on computing in the turns of others: for {used:.0f} of {of:.0f} ms"
            raise LostError(self.side, Loss(LossKind.RESTLESS, reason))  # by which variant nobody knows
