"""The sampling loop that all pipelines share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from voxdiff.pipelines.base import Generators, VolumePipeline


def run_sampling_loop(
    pipe: VolumePipeline,
    latents: torch.Tensor,
    predict: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor],
    *,
    generator: Generators,
    eta: float = 0.0,
    callback: Callable[..., dict] | None = None,
    callback_tensors: Sequence[str] = ("latents",),
) -> torch.Tensor:
    """Go from noise to clean latents with the pipeline's scheduler, whose timesteps are set.

    Args:
        pipe: Gives scheduler and progress bar; the callback gets it.
        latents: Initial noise, scaled as the scheduler wants it.
        predict: Network output in float32 of (latents, number of the call, timestep), as the scheduler steps with it.
        generator: Of the steps' noise: none, one, or one an entry of the batch.
        eta: Noise of DDIM's steps, which other schedulers do not take.
        callback: Called as ``callback(pipe, index, timestep, tensors)`` after each step; returns the tensors, changed or
            not.
        callback_tensors: Which tensors it gets.
    """
    arguments: dict[str, Any] = {**pipe.step_arguments(generator), **({"eta": eta} if eta else {})}
    for index, timestep in pipe.iterate_timesteps():
        prediction = predict(latents, index, timestep)
        latents = pipe.scheduler.step(prediction, timestep, latents, **arguments).prev_sample
        if callback is not None:
            latents = callback(pipe, index, timestep, dict.fromkeys(callback_tensors, latents)).get("latents", latents)
    return latents
