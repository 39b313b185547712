"""What wavelet diffusion learns: the scheduler's prediction target in coefficient space (Friedrich 2024, eq. 6)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.pipelines.pipeline_wavelet_diffusion import WaveletDiffusionPipeline
from voxdiff.training.batches import SampleNoise


class WaveletDiffusionObjective:
    """Mean squared error of the network on noised coefficients, unweighted over the scaled bands.

    The noise is drawn in coefficient space: the transform is orthonormal and only the signal is scaled, so this is the
    published rule. Conditions enter clean.

    Args:
        pipeline: Gives the transform, the scheduler (its ``prediction_type`` sets the target) and the volume names.
    """

    def __init__(self, pipeline: WaveletDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.is_flow = "FlowMatch" in type(pipeline.scheduler).__name__

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch: name → ``(batch, 1, x, y, z)`` volumes in the value range.

        Args:
            model: The network, possibly wrapped by Accelerate.
            batch: Collated items of the data set.
            noise: Source of timesteps and noise.
        """
        clean = self._encode(batch, self.pipeline.output_names)
        conditions = [self._encode(batch, self.pipeline.condition_names)] if self.pipeline.condition_names else []
        noised, timesteps, target = self._corrupt(clean, noise)
        prediction = model(torch.cat([noised, *conditions], dim=1), timesteps, return_dict=False)[0]
        return F.mse_loss(prediction.float(), target)

    def _encode(self, batch: dict[str, Any], names: list[str]) -> torch.Tensor:
        return self.pipeline.encode(torch.cat([batch[name] for name in names], dim=1))

    def _corrupt(self, clean: torch.Tensor, noise: SampleNoise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scheduler = self.pipeline.scheduler
        num_timesteps = scheduler.config.num_train_timesteps
        if self.is_flow:
            sigma = noise.uniform().to(clean.device)
            draw = noise.normal_like(clean)
            weight = sigma.view(-1, 1, 1, 1, 1)
            return (1 - weight) * clean + weight * draw, sigma * num_timesteps, draw - clean
        timesteps = noise.integers(num_timesteps).to(clean.device)
        draw = noise.normal_like(clean)
        return self._diffuse(clean, draw, timesteps)

    def _diffuse(
        self, clean: torch.Tensor, draw: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # `alphas_cumprod` is common to all supported schedulers; `add_noise` of the sigma schedulers does not scale x0.
        alpha_cumprod = self.pipeline.scheduler.alphas_cumprod.to(clean.device)[timesteps].view(-1, 1, 1, 1, 1)
        alpha, sigma = alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
        targets = {
            "sample": lambda: clean,
            "epsilon": lambda: draw,
            "v_prediction": lambda: alpha * draw - sigma * clean,
        }
        return alpha * clean + sigma * draw, timesteps, targets[self.pipeline.scheduler.config.prediction_type]()
