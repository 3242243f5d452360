"""What a launch under load keeps: its requests as arrays, and of each variant what all replicas found out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_jobs.load.generator import Flow
from ray_jobs.measure.interference import ABSENT
from ray_jobs.measure.requests import Requests, Window
from ray_jobs.measure.result import SERVED, Samples, VariantFacts

OF_A_REQUEST = ("due", "seen", "sent", "began", "ended", "done", "replica")  # lists of a ``Flow``


def worst(every: Sequence[VariantFacts]) -> VariantFacts:
    """The first replica's facts, with any fault that another one found, and the replies of all."""

    def first(name: str) -> Any:
        return next((value for one in every if (value := getattr(one, name)) is not None), None)

    return replace(
        every[0],
        failed=first("failed"),
        invalid=first("invalid"),
        skipped=first("skipped"),
        replies=sum(one.replies for one in every),
        identical=sum(one.identical for one in every),
        tokens=sum(one.tokens for one in every),
        differing=tuple(step for one in every for step in one.differing),
    )


def arrays(flows: Sequence[tuple[Window, int, Flow]]) -> tuple[Samples, Requests]:
    """All answered requests, in the order in which they were due; the first due is at 0."""
    parts: list[dict[str, NDArray[np.int64]]] = []
    for window, position, flow in flows:
        count = len(numbers := flow.answered())
        told = {name: flow.array(name) for name in OF_A_REQUEST}
        same = {"variant": window.variant, "round": window.round, "position": position}
        parts.append({**told, "call": numbers, **{name: np.full(count, one) for name, one in same.items()}})
    empty = np.zeros(0, dtype=np.int64)
    names = (*OF_A_REQUEST, "call", "variant", "round", "position")
    whole = {name: np.concatenate([empty, *(part[name] for part in parts)]) for name in names}
    origin = int(whole["due"].min(initial=np.iinfo(np.int64).max)) if len(whole["due"]) else 0
    order = np.argsort(whole["due"], kind="stable")
    whole = {name: column[order] for name, column in whole.items()}
    absent = np.full(len(order), ABSENT, dtype=np.int64)
    samples = Samples(
        variant=whole["variant"].astype(np.int16),
        phase=np.full(len(order), SERVED, dtype=np.int8),
        round=whole["round"].astype(np.int32),
        position=whole["position"].astype(np.int16),
        call=whole["call"].astype(np.int32),
        start_ns=whole["due"] - origin,
        wall_ns=whole["done"] - whole["due"],
        device_ns=absent,
        cpu_ns=np.zeros(len(order), dtype=np.int64),
        involuntary_switches=np.zeros(len(order), dtype=np.int32),
    )
    times = {f"{name}_ns": whole[name] - origin for name in ("seen", "sent", "began", "ended")}
    return samples, Requests(replica=whole["replica"].astype(np.int16), **times)
