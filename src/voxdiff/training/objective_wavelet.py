"""What wavelet diffusion learns: the scheduler's prediction target in coefficient space (Friedrich 2024, eq. 6)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.pipelines.pipeline_wavelet_diffusion import WaveletDiffusionPipeline
from voxdiff.training.batches import SampleNoise
from voxdiff.training.diffusion_target import diffuse


class WaveletDiffusionObjective:
    """Mean squared error of the network on noised coefficients, unweighted over the scaled bands.

    The noise is drawn in coefficient space: the transform is orthonormal and only the signal is scaled, so this is the
    published rule. Conditions enter clean.

    Args:
        pipeline: Gives the transform, the scheduler (its ``prediction_type`` sets the target) and the volume names.
    """

    def __init__(self, pipeline: WaveletDiffusionPipeline) -> None:
        self.pipeline = pipeline

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch: name → ``(batch, 1, x, y, z)`` volumes in the value range.

        Args:
            model: The network, possibly wrapped by Accelerate.
            batch: Collated items of the data set.
            noise: Source of timesteps and noise.
        """
        clean = self._encode(batch, self.pipeline.output_names)
        conditions = [self._encode(batch, self.pipeline.condition_names)] if self.pipeline.condition_names else []
        noised, timesteps, target = diffuse(self.pipeline.scheduler, clean, noise)
        prediction = model(torch.cat([noised, *conditions], dim=1), timesteps, return_dict=False)[0]
        return F.mse_loss(prediction.float(), target)

    def _encode(self, batch: dict[str, Any], names: list[str]) -> torch.Tensor:
        return self.pipeline.encode(torch.cat([batch[name] for name in names], dim=1))
