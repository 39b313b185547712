"""Volumes to latents and back, one axial slice at a time, by a 2D autoencoder."""

import hashlib

import torch
from diffusers import AutoencoderKL

SLICES_PER_CALL = 8


def encode_slices(
    vae: AutoencoderKL,
    volumes: torch.Tensor,
    *,
    device: torch.device | None = None,
    slices_per_call: int = SLICES_PER_CALL,
) -> torch.Tensor:
    """Latents of volumes: the posterior's mean times the scaling factor, slice by slice.

    The official code samples the posterior; the mean makes the latents of a mask or an informed slice a fact. Equal
    slices, such as the empty ones of a mask, are encoded once.

    Args:
        vae: Autoencoder of 2D images with one channel, or with three (a slice is then repeated).
        volumes: ``(batch, 1, x, y, z)`` in the range of the autoencoder, x and y divisible by its compression.
        device: Where the autoencoder computes, if not where it is now: an offloaded one waits elsewhere.
        slices_per_call: How many slices the autoencoder sees at once.

    Returns:
        ``(batch, channels, x / compression, y / compression, z)``, float32 on that device.

    Raises:
        ValueError: If the volumes have another shape.
    """
    compression = slice_compression(vae)
    if volumes.ndim != 5 or volumes.shape[1] != 1 or any(side % compression for side in volumes.shape[2:4]):
        raise ValueError(
            f"The volumes to encode have the shape {tuple(volumes.shape)}; give (batch, 1, x, y, z) with x and y divisible "
            f"by {compression}."
        )
    batch, depth = len(volumes), volumes.shape[-1]
    slices = volumes.permute(0, 4, 1, 2, 3).flatten(0, 1)
    chosen, places = _distinct(slices)
    parts = [_encode(vae, slices[some], device or vae.device) for some in _groups(chosen, slices_per_call)]
    latents = torch.cat(parts)[places]
    return latents.unflatten(0, (batch, depth)).permute(0, 2, 3, 4, 1).contiguous()


def decode_slices(
    vae: AutoencoderKL,
    latents: torch.Tensor,
    *,
    device: torch.device | None = None,
    slices_per_call: int = SLICES_PER_CALL,
) -> torch.Tensor:
    """Volumes of latents, slice by slice; of three image channels the first is kept.

    Args:
        vae: Autoencoder of 2D images.
        latents: ``(batch, channels, x, y, z)``, scaled by the scaling factor.
        device: Where the autoencoder computes, if not where it is now.
        slices_per_call: How many slices the autoencoder sees at once.

    Returns:
        ``(batch, 1, x * compression, y * compression, z)``, float32, in the range of the autoencoder, not clipped.

    Raises:
        ValueError: If a latent is not finite.
    """
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The latents to decode are not finite; sample in float32 or bfloat16, or use another checkpoint."
        )
    batch, _, _, _, depth = latents.shape
    slices = (
        (latents / vae.config["scaling_factor"])
        .permute(0, 4, 1, 2, 3)
        .flatten(0, 1)
        .to(device or vae.device, vae.dtype)
    )
    parts = [vae.decode(some).sample[:, :1].float() for some in slices.split(slices_per_call)]
    return torch.cat(parts).unflatten(0, (batch, depth)).permute(0, 2, 3, 4, 1).contiguous()


def slice_compression(vae: AutoencoderKL) -> int:
    """How many times shorter the sides of a latent are than those of its slice."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def _encode(vae: AutoencoderKL, slices: torch.Tensor, device: torch.device) -> torch.Tensor:
    images = slices.expand(-1, vae.config["in_channels"], -1, -1).to(device, vae.dtype)
    return vae.encode(images).latent_dist.mode().float() * vae.config["scaling_factor"]


def _distinct(slices: torch.Tensor) -> tuple[list[int], list[int]]:
    """The first of each group of equal slices, and for every slice the place of its first among those."""
    chosen: list[int] = []
    found: dict[bytes, int] = {}
    places = []
    for number, values in enumerate(slices.detach().float().cpu().contiguous().numpy()):
        digest = hashlib.sha256(values.tobytes()).digest()
        if digest not in found:
            found[digest] = len(chosen)
            chosen.append(number)
        places.append(found[digest])
    return chosen, places


def _groups(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[begin : begin + size] for begin in range(0, len(numbers), size)]
