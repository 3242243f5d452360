"""How large a launch under load is: rounds of windows, and requests of a window."""

import math
from collections.abc import Mapping

from ray_jobs.measure.result import Launch
from ray_jobs.scenario import Bound, Load
from ray_jobs.statistics import least_samples

ROUNDS = 6  # of a launch: enough for a search to come close, and to tell a window that was disturbed
LEAST_CALLS = 400  # of a window whose percentile needs fewer: so that a fast one lasts longer than a hiccup
OFFLINE_CALLS, LEAST_OFFLINE = 200, 10  # of each replica


def most_calls(load: Load) -> int:
    """Requests that a window would have, of all replicas together."""
    bound = load.bound
    if bound is None:
        return OFFLINE_CALLS * load.replicas * load.max_batch
    return max(LEAST_CALLS, 2 * least_samples(bound.share))


def sizes(load: Load, launch: Launch, seconds: Mapping[str, float], room: int, most_s: float) -> tuple[int, int]:
    """(rounds, requests of a window, of ``offline`` for each replica), as asked or by time and inputs.

    Args:
        load: the scenario.
        launch: whose sizes may be known already.
        seconds: that each variant's window takes for each of its requests, about.
        room: how many calls inputs suffice for.
        most_s: what all windows of a launch may take.

    Raises:
        ValueError: time or inputs do not suffice.
    """
    if launch.rounds is not None and launch.calls is not None:
        return launch.rounds, launch.calls
    bound = load.bound
    least = LEAST_OFFLINE * load.max_batch if bound is None else least_samples(bound.share)
    each = load.replicas if bound is None else 1
    per_call_s = ROUNDS * sum(seconds.values())
    calls = min(most_calls(load) // each, max(least, int(launch.seconds / per_call_s)), room // (ROUNDS * each))
    if bound is None:
        calls -= calls % load.max_batch  # each call is full
    if calls < least:
        raise ValueError(f"{room} different inputs do not suffice for {ROUNDS} windows of {least * each} requests")
    if calls * per_call_s > most_s:
        why = "" if bound is None else f" that a {bound.percentile} needs"
        raise ValueError(
            f"{ROUNDS} windows of {calls * each} requests{why} would take {calls * per_call_s:.0f} s of a launch, and "
            f"it has {most_s:.0f}: give a lower percentile, a larger --launch-timeout, or fewer variants"
        )
    return ROUNDS, calls


def spare(bound: Bound, calls: int) -> int:
    """How many of so many requests may take longer than the bound."""
    return calls - math.ceil(bound.share * calls)
