"""Looks at locks without keeping them."""

from collections.abc import Sequence

from ray_jobs.process.lease import Lease


def holder_of(names: Sequence[str]) -> str | None:
    """The holder of the first of these locks that is taken; None if all are free."""
    with Lease(names, "a look at who holds it") as lease:
        return lease.take()
