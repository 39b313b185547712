"""Whether an autoencoder and a network belong together."""

import math
from collections.abc import Mapping

import torch

from voxdiff.models.autoencoder_kl_3d import AutoencoderKL3D
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.models.biflownet_3d import BiFlowNet3DModel
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel


def check_parts(
    vae: AutoencoderPatchVolume | AutoencoderKL3D,
    unet: BiFlowNet3DModel | WaveletUNet3DModel,
    *,
    clip_latents: bool,
    latent_range: Mapping[str, float] | None,
) -> dict[str, float]:
    """What -1 and 1 of the network are among the autoencoder's latents: ``{"low": ..., "high": ...}``.

    Args:
        vae: The autoencoder, the range or the statistics of its latents set.
        unet: The network on its normalised latents.
        clip_latents: Whether normalised latents are kept within [-1, 1].
        latent_range: The result for the autoencoder that the network was trained with; None: this one.

    Raises:
        ValueError: If the channels or the latent ranges differ, a range has no ends, or latents without bounds would be
            clipped.
    """
    channels = vae.config["latent_channels"]
    received = unet.config["in_channels"], unet.config["out_channels"]
    if received != (channels, channels):
        raise ValueError(
            f"The autoencoder has {channels} latent channels, but the network takes {received[0]} and gives "
            f"{received[1]}; use an autoencoder and a network that were trained together."
        )
    low, high = vae.denormalize_latents(torch.tensor([-1.0, 1.0])).tolist()
    if clip_latents and "latent_min" not in vae.config:
        raise ValueError(
            f"clip_latents is True, but the normalised latents of {type(vae).__name__} have no bounds; pass "
            "clip_latents=False."
        )
    known = latent_range or {"low": low, "high": high}
    if not isinstance(known, Mapping) or set(known) != {"low", "high"}:
        raise ValueError(f'latent_range is {known!r}; give {{"low": ..., "high": ...}}, or leave it out.')
    if not all(math.isclose(known[end], found, rel_tol=1e-5) for end, found in (("low", low), ("high", high))):
        raise ValueError(
            f"The network was trained on latents scaled from {known['low']:g} to {known['high']:g}, but this autoencoder "
            f"scales them from {low:g} to {high:g}; use the autoencoder that it was trained with."
        )
    return dict(known)
