"""Tiny slice-conditioned pipelines that tests share: slices of eight voxels, stages of three, four slices of context."""

import torch
from slice_conditioned_unets import make_slice_conditioned_unet

from voxdiff import SliceConditionedPipeline, VolumeProcessor
from voxdiff.schedulers import make_scheduler


def make_slice_unet(**config):
    """The tiny network with a small output: the first step divides it by 0.0063, rounding included."""
    unet = make_slice_conditioned_unet(**config)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.01)
    return unet


def make_slice_processor(**changes):
    return VolumeProcessor(**{"size": (8, 8, 12), "spacing": (2, 2, 3), "intensity": "minmax", **changes})


def make_slice_pipeline(unet=None, scheduler="fdm-dpm++", processor=None, **config):
    pipe = SliceConditionedPipeline(
        unet or make_slice_unet(),
        make_scheduler(scheduler),
        processor=(processor or make_slice_processor()).to_dict(),
        **{"stage_size": 3, "context_size": 4, "max_slices": 7, **config},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
