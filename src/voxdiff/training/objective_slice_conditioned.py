"""What slice-conditioned diffusion learns: any slices of a volume from any others (cDPM, arXiv 2212.08034)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.training.batches import SampleNoise
from voxdiff.training.diffusion_target import diffuse
from voxdiff.training.slice_index_sampler import SliceIndexSampler


class SliceConditionedObjective:
    """Mean squared error of the network on target slices, beside observed ones that it is given clean.

    The mean is over the elements of the targets alone: few targets count as much as many. All slices of a volume share
    one time.

    Args:
        scheduler: Its ``prediction_type`` sets the target.
        sampler: Draws target and observed slices.
        slice_axis: Axis of the volumes that the slices run along: 0, 1 or 2.
        column: Name of the volumes in a batch.
    """

    def __init__(self, scheduler: Any, sampler: SliceIndexSampler, *, slice_axis: int = 2, column: str) -> None:
        self.scheduler = scheduler
        self.sampler = sampler
        self.slice_axis = slice_axis
        self.column = column

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch.

        Args:
            model: :class:`voxdiff.SliceConditionedUNetModel`, possibly wrapped by Accelerate.
            batch: Volumes ``(batch, 1, x, y, z)`` in the value range under ``column``, and the ``step`` they are for.
            noise: Draws slices, timesteps and noise.
        """
        volumes = batch[self.column].movedim(2 + self.slice_axis, -1)
        targets, observed = self.sampler.draw(volumes.shape[-1], batch["step"][0], noise)
        indices = torch.cat([targets, observed], dim=1).to(volumes.device)
        clean = volumes.take_along_dim(indices[:, None, None, None], dim=-1)
        noised, timesteps, target = diffuse(self.scheduler, clean, noise)
        count = targets.shape[1]
        known: dict[str, Any] = {}
        if observed.numel():
            flags = torch.arange(indices.shape[1], device=volumes.device) >= count
            known = {"known_slices": clean, "known": flags.expand_as(indices), "num_targets": targets.numel()}
        prediction = model(noised, timesteps, positions=indices.float(), **known, return_dict=False)[0]
        return F.mse_loss(prediction[..., :count].float(), target[..., :count])
