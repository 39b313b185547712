"""What the network of the informed-slice pipeline is conditioned on, as latents: masks and informed slices."""

from collections.abc import Sequence
from typing import Any

import torch

from voxdiff.models.slice_positions import slice_position
from voxdiff.pipelines.base import VolumePipeline
from voxdiff.pipelines.informed_slice_checks import check_latents
from voxdiff.pipelines.informed_slice_requests import InformedSlice, MaskRequest, crop_in_plane, pad_in_plane
from voxdiff.pipelines.slice_codec import slice_compression


def encode_masks(pipe: VolumePipeline, requests: Sequence[MaskRequest]) -> torch.Tensor:
    """Latents ``(batch, channels, x, y, z)`` of masks, padded in plane with their background."""
    encoder = pipe.mask_encoder
    volumes = torch.stack([encoder.encode_index(request.places)[None] for request in requests])
    sides = requests[0].padded_sides(pipe.size_divisor)
    return pipe.encode(pad_in_plane(volumes, sides, encoder.values[encoder.background]))


@torch.no_grad()
def reconstruct(pipe: VolumePipeline, volume: torch.Tensor) -> torch.Tensor:
    """A volume ``(1, x, y, z)`` in the value range through the autoencoder, which bounds what the model can make."""
    low, high = pipe.volume_processor.value_range
    own, divisor = volume.shape[1:3], pipe.size_divisor
    padded = pad_in_plane(volume[None], [-(-side // divisor) * divisor for side in own], low)
    return crop_in_plane(pipe.decode(pipe.encode(padded)), own)[0].clamp(low, high).cpu()


def prepare_mask_latents(
    pipe: VolumePipeline, given: torch.Tensor | None, requests: Sequence[MaskRequest], depth: int
) -> torch.Tensor:
    """Latents of the masks, given or encoded now, the last slice repeated up to `depth`.

    Raises:
        ValueError: If given latents are not of these masks.
    """
    slices = requests[0].depth
    shape = (len(requests), *_slice_shape(pipe, requests), slices)
    latents = encode_masks(pipe, requests) if given is None else given
    check_latents("mask_latents", latents, [shape], "encode_masks of these masks")
    latents = torch.cat([latents, latents[..., -1:].expand(*shape[:-1], depth - slices)], dim=-1)
    return latents.to(pipe._execution_device, torch.float32)


def prepare_informed_latents(
    pipe: VolumePipeline,
    slices: Sequence[InformedSlice] | None,
    latents: torch.Tensor | None,
    requests: Sequence[MaskRequest],
    *,
    start: int,
    **sampling: Any,
) -> torch.Tensor:
    """Latents ``(batch, channels, x, y)`` of the informed slices: given as such, of given slices, or generated.

    Raises:
        ValueError: If given latents have another size.
    """
    size = requests[0].padded_sides(pipe.size_divisor)
    if latents is not None:
        shape = (len(requests), *_slice_shape(pipe, requests))
        check_latents("informed_slice_latents", latents, [shape, (1, *shape[1:])], f"generate_slice of the size {size}")
        return latents.to(pipe._execution_device, torch.float32).expand(shape)
    if slices is None:
        position = slice_position(start, requests[0].depth, pipe.config["position_rule"])
        return pipe.generate_slice(position, size, batch_size=len(requests), **sampling)
    outside = pipe.volume_processor.value_range[0]
    return pipe.encode(torch.cat([pad_in_plane(one.values[..., None], size, outside) for one in slices]))[..., 0]


def _slice_shape(pipe: VolumePipeline, requests: Sequence[MaskRequest]) -> tuple[int, ...]:
    """Channels, x and y of the latent of a slice."""
    sides = (side // slice_compression(pipe.vae) for side in requests[0].padded_sides(pipe.size_divisor))
    return (pipe.vae.config["latent_channels"], *sides)
