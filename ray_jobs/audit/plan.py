"""The comparisons of each part of the audit, and their spec, known without measuring."""

from dataclasses import dataclass

from chatbot.variants import BASELINE, CONTROL
from ray_jobs.scenario import Load, Scenario
from ray_jobs.sides import AGAIN, BASE, Side
from ray_jobs.spec import Spec, read_spec

DELAYED = {percent: f"ray_jobs.audit.mistakes:DELAYED_{percent}" for percent in (1, 2, 5, 200, 900)}
SPUN = "ray_jobs.audit.mistakes:SPUN"  # slower by the percentage that ``SPIN`` holds, in whose side it does
SPIN = "LATENCY_MATRIX_AUDIT_SPIN"
FULL_BUDGET_S = 60.0
MOST = 1000  # comparisons, so that no two --seed share a trial's seed


@dataclass(frozen=True)
class Plan:
    """The comparisons of a part of the audit."""

    comparisons: int
    percent: int = 0  # 0: identical programs
    beside_load: bool = False
    with_peers: bool = False
    of_sides: bool = False  # the same program of two sides; else two programs of one process
    load: Load | None = None  # compared by the requests a second that each holds; None: by their calls

    @property
    def variant(self) -> str:
        """The program compared with the baseline, or with itself in ``base``."""
        if self.of_sides:
            return SPUN if self.percent else BASELINE
        return DELAYED[self.percent] if self.percent else CONTROL

    @property
    def sides(self) -> tuple[Side, ...]:
        """``base`` and what is compared with it: the same environment, or one in which programs spin."""
        if not self.of_sides:
            return ()
        slower = Side(f"env {SPIN}={self.percent}", variables=((SPIN, str(self.percent)),))
        return Side(BASE), slower if self.percent else Side(AGAIN)

    @property
    def name(self) -> str:
        """The plan's name in trial ids and on the page."""
        part = (f"effect-{self.percent}" if self.percent else "aa") + "-sides" * self.of_sides
        part += f"-{self.load.scenario}" if self.load is not None else ""
        return f"{part}-beside-load" if self.beside_load else part


def audit_spec(
    model: str,
    budget: float,
    precision: float,
    margin: float,
    seed: int,
    threads: int = 1,
    slo: str | None = None,
) -> Spec:
    """The spec of the audit's trials; the same defaults as the matrix for what it does not name."""
    flags = {"variants": CONTROL, "model": model, "budget": budget, "precision": precision, "margin": margin}
    under_load = {} if slo is None else {"scenario": Scenario.SERVER, "slo": slo}
    return read_spec(None, {**flags, **under_load, "seed": seed, "threads": threads})
