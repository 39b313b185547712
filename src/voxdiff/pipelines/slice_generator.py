"""Informed slices from nothing but their position in a volume (GEM-3D's slice model, "IG" in the paper)."""

from collections.abc import Sequence
from numbers import Real

import torch

from voxdiff.models.slice_positions import position_context
from voxdiff.pipelines.base import Generators, VolumePipeline
from voxdiff.pipelines.informed_slice_checks import NO_SLICE, check_sampling
from voxdiff.pipelines.sampling_loop import run_sampling_loop
from voxdiff.pipelines.slice_codec import slice_compression
from voxdiff.pipelines.window_batches import spread_generators


def generate_slice_latents(
    pipe: VolumePipeline,
    position: float,
    size: Sequence[int],
    *,
    batch_size: int,
    num_inference_steps: int,
    eta: float,
    generator: Generators,
) -> torch.Tensor:
    """Scaled latents ``(batch, channels, x, y)`` of axial slices.

    Args:
        pipe: With ``slice_unet``, ``vae``, ``scheduler`` and ``size_divisor``.
        position: Where in the volume the slices lie, from 0 to 1.
        size: Of the slices (x, y), divisible by the pipeline's ``size_divisor``.
        batch_size: How many slices.
        num_inference_steps: Solver steps.
        eta: Noise of DDIM's steps, 0 to 1.
        generator: One for the whole batch, or one a slice.

    Raises:
        ValueError: If the pipeline has no ``slice_unet``, or an argument does not fit the model.
    """
    slice_unet, device = pipe.slice_unet, pipe._execution_device
    if slice_unet is None:
        raise ValueError(NO_SLICE)
    if len(size) != 2 or any(count < 1 or count % pipe.size_divisor for count in size):
        raise ValueError(f"size is {tuple(size)}; give (x, y), both divisible by {pipe.size_divisor}.")
    if not isinstance(position, Real) or not 0 <= position <= 1:
        raise ValueError(f"position is {position!r}; give a number from 0 to 1.")
    pipe.check_common_inputs(
        batch_size=batch_size,
        num_inference_steps=num_inference_steps,
        generator=generator,
        output_type="latent",
        callback_on_step_end_tensor_inputs=(),
    )
    check_sampling(pipe.scheduler, num_inference_steps, eta, "clean")
    pipe.scheduler.set_timesteps(num_inference_steps, device=device)
    sides = [count // slice_compression(pipe.vae) for count in size]
    latents = pipe.prepare_latents((batch_size, pipe.vae.config["latent_channels"], *sides), generator)
    positions = torch.full((batch_size,), float(position), device=device)
    context = position_context(positions, slice_unet.config["cross_attention_dim"]).to(slice_unet.dtype)

    def predict(latents: torch.Tensor, index: int, timestep: torch.Tensor) -> torch.Tensor:
        network_input = pipe.scheduler_input(latents, timestep).to(slice_unet.dtype)
        return slice_unet(network_input, timestep, context).sample.float()

    return run_sampling_loop(pipe, latents, predict, generator=spread_generators(generator, batch_size), eta=eta)
