"""A clean sample, noised to a random time, and what the network has to predict of it."""

from typing import Any

import torch

from voxdiff.training.batches import SampleNoise


def diffuse(scheduler: Any, clean: torch.Tensor, noise: SampleNoise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise a batch, each sample to its own uniformly drawn time.

    Args:
        scheduler: One of the supported schedulers; its ``prediction_type`` sets the target (flow matching: the velocity
            from data to noise).
        clean: ``(batch, channels, x, y, z)``.
        noise: Source of times and noise.

    Returns:
        The noised samples, their timesteps ``(batch,)`` and the target, on the device of ``clean``.
    """
    num_timesteps = scheduler.config.num_train_timesteps
    if "FlowMatch" in type(scheduler).__name__:
        sigma = noise.uniform().to(clean.device)
        draw = noise.normal_like(clean)
        return torch.lerp(clean, draw, sigma.view(-1, 1, 1, 1, 1)), sigma * num_timesteps, draw - clean
    timesteps = noise.integers(num_timesteps).to(clean.device)
    draw = noise.normal_like(clean)
    # `alphas_cumprod` is common to all supported schedulers; `add_noise` of the sigma schedulers does not scale x0.
    alpha_cumprod = scheduler.alphas_cumprod.to(clean.device)[timesteps].view(-1, 1, 1, 1, 1)
    alpha, sigma = alpha_cumprod.sqrt(), (1 - alpha_cumprod).sqrt()
    targets = {
        "sample": lambda: clean,
        "epsilon": lambda: draw,
        "v_prediction": lambda: alpha * draw - sigma * clean,
    }
    return alpha * clean + sigma * draw, timesteps, targets[scheduler.config.prediction_type]()
