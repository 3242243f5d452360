"""The sides of a trial on its station: which of them can take part, what their environments are, and their launches."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ray_jobs.measure import environment
from ray_jobs.measure.environment import Found
from ray_jobs.measure.result import Launch, LaunchResult, VariantFacts
from ray_jobs.measure.trial import Pair, present
from ray_jobs.process.conductor import Stage, conduct
from ray_jobs.process.server import Loss, LossKind, TrialError
from ray_jobs.sides import AGAIN, BASE, Side, interpreter_fault, label_of


@dataclass(frozen=True)
class Environments:
    """What the sides of a trial are; each launch has it too, with a hash in place of a list of packages."""

    of: Mapping[str, Found]


@dataclass(frozen=True)
class Sides:
    """The sides of a trial; without a comparison ``base`` alone, which ``launch`` is not for."""

    stage: Stage
    found: Mapping[str, Found] = field(default_factory=dict)  # the environment of each
    faults: Mapping[str, str] = field(default_factory=dict)  # why a side can't take part

    @classmethod
    def of(cls, stage: Stage, ask: Callable[..., Any]) -> "Sides":
        """Asks each side's process (``ask(work, side=name)``) what its environment is.

        Raises:
            TrialError: ``base`` can't say.
        """
        sides = stage.trial.sides
        revised = any(side.revision for side in sides)
        code_of = stage.trial.workload if revised else None
        listed = any(side.python for side in sides)
        work = partial(environment.environment, environment.variables_of(sides), code_of, listed)
        found: dict[str, Found] = {}
        faults: dict[str, str] = {}
        for side in sides:
            fault = interpreter_fault(side)
            told: Found | Loss = Loss(LossKind.RAISED, fault) if fault else ask(work, side=side.name)
            if isinstance(told, Loss):
                faults[side.name] = told.reason
            else:
                found[side.name] = {**told, "commit": side.commit or sides[0].commit} if revised else told
        if BASE in faults:
            raise TrialError(faults[BASE])
        return cls(stage, found, environment.faults(sides, found) | faults)

    @property
    def environments(self) -> Environments:
        """What is recorded of the trial: the packages of ``base``, and of each side that has others."""
        base = self.found.get(BASE, {}).get("installed")

        def kept(side: str, told: Found) -> Found:
            as_base = side != BASE and told.get("installed") == base
            return {name: one for name, one in told.items() if name != "installed"} if as_base else told

        return Environments({side: kept(side, told) for side, told in self.found.items()})

    @property
    def prepared(self) -> tuple[str, ...]:
        """The sides whose variants compile for themselves: the control finds what ``base`` left."""
        names = [side.name for side in self.stage.trial.sides] or [BASE]
        return tuple(name for name in names if name != AGAIN and name not in self.faults)

    @property
    def able(self) -> list[Pair]:
        """The pairs that can run here, which launches are balanced over."""
        trial = self.stage.trial
        able = present(trial.workload, trial.variants)
        return [pair for pair in trial.pairs if pair.variant in able and pair.side not in self.faults]

    def left_out(self, told: Mapping[str, Mapping[str, VariantFacts]]) -> dict[str, VariantFacts]:
        """By label, what launches leave out: of sides with a fault all, of the others what preparing ``told``."""
        faults = {label: fault for side, fault in self.faults.items() for label in self.labels(side)}
        every = {**told, **({AGAIN: told[BASE]} if self.stage.trial.sides else {})}
        labelled = {label_of(side, name): facts for side, mine in every.items() for name, facts in mine.items()}
        return {**labelled, **{label: VariantFacts(failed=fault) for label, fault in faults.items()}}

    def labels(self, side: str) -> list[str]:
        """All variants of a side; none of ``base``, without which there is no launch."""
        return [pair.label for pair in self.stage.trial.pairs if pair.side == side != BASE]

    def launch(self, launch: Launch, left_out: Mapping[str, VariantFacts]) -> LaunchResult:
        """A launch of all sides. Raises LostError and TrialError, as ``conduct``."""
        result = conduct(self.stage, launch, self.able, left_out)
        environments = {side: _hashed(told) for side, told in self.found.items()}
        return replace(result, machine={**result.machine, "environments": environments})


def _hashed(found: Found) -> Found:
    """With a hash in place of the list of packages, which each launch would hold."""
    if "installed" not in found:
        return found
    return {**found, "installed": hashlib.sha256(json.dumps(found["installed"]).encode()).hexdigest()[:16]}


def startable(sides: Sequence[Side]) -> list[Side]:
    """The sides that need a launch server of their own, and have an interpreter here."""
    return [side for side in sides if side.name != BASE and interpreter_fault(side) is None]
