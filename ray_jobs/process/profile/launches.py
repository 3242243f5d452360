"""The tracing launches of a trial, each a fresh pinned process of its own; a timed launch is never traced."""

from collections.abc import Iterator
from functools import partial

from chatbot.variants import variant_named
from ray_jobs.measure.trial import Inputs, Trial
from ray_jobs.process.profile.profiler import Traced, trace_variant
from ray_jobs.process.server import Loss
from ray_jobs.process.trial import WHOLE, Holding, Share, Waiting, on_station


def traced_variants(variants: tuple[str, ...], own_model: bool = False) -> tuple[str, ...]:
    """The variants to trace; not the control, which is its baseline's program entered a second time.

    Of an own model not those that need the chatbot's structure.
    """
    entries = (variant_named(name) for name in variants)
    taken = (entry for entry in entries if not own_model or entry.prepare_module is not None)
    return tuple(entry.name for entry in taken if entry.control_of is None)


def run_traces(trial: Trial, inputs: Inputs, share: Share = WHOLE) -> Iterator[Traced | Waiting]:
    """Traces each of the trial's variants; a failed trace has the reason.

    Raises:
        TrialError: the cores do not suffice, or the station stayed busy.
    """

    source, pool = inputs.model, inputs.pool(trial.workload)

    def work(held: Holding) -> Iterator[Traced]:
        for name in trial.variants:
            outcome = held.ask(partial(trace_variant, trial.workload, name, source, pool, trial.id))
            yield Traced(name, failed=outcome.reason) if isinstance(outcome, Loss) else outcome

    yield from on_station(trial, inputs, share, work)
