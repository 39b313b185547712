"""Noise schedulers: named presets of diffusers' schedulers and the constraint on x0 that every sampler shares."""

from voxdiff.schedulers.constraint import constrain_prediction
from voxdiff.schedulers.presets import PRESETS, SUPPORTED_SCHEDULERS, check_scheduler, make_scheduler, swap_scheduler

__all__ = [
    "PRESETS",
    "SUPPORTED_SCHEDULERS",
    "check_scheduler",
    "constrain_prediction",
    "make_scheduler",
    "swap_scheduler",
]
