"""``from ray_jobs.own import OwnModel``, as models that were written for it have it."""

from ray_jobs.measure.custom_model import OwnModel

__all__ = ["OwnModel"]
