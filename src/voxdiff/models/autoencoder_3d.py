"""What the 3D autoencoders share: patch-wise encoding, joint decoding, and the volume's axes and sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import nn

from voxdiff.models.axis_order import check_axis_order, from_network, to_network
from voxdiff.models.base import VolumeModel
from voxdiff.models.layers_3d import nearest_valid_sizes
from voxdiff.models.layers_autoencoder_3d import Decoder3D, Encoder3D
from voxdiff.models.slab_decoding import SlabDecoder

_VOXELS_AT_ONCE = 4 * 64**3
_VOXELS_AT_ONCE_ON_CPU = 64**3  # four times as many took 15 % longer and three times the memory


@dataclass
class DecoderOutput(BaseOutput):
    """Output of an autoencoder's ``decode``.

    Attributes:
        sample: Volume ``(batch, out_channels, x, y, z)``; not clamped.
    """

    sample: torch.Tensor


class Autoencoder3D(VolumeModel):
    """Base of the 3D autoencoders; subclasses put a quantiser or a normal distribution between encoder and decoder."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["AutoencoderResnetBlock3D", "Attention3D"]
    _skip_layerwise_casting_patterns = ["norm"]

    def _build(self, encoded_channels: int) -> None:
        """Create encoder, decoder and the 1x1x1 convolutions between them from the config."""
        config = self.config
        widths, patch_size, groups = config["block_out_channels"], config["patch_size"], config["norm_num_groups"]
        check_axis_order(config["axis_order"])
        if any(width % groups for width in widths):
            raise ValueError(
                f"block_out_channels {tuple(widths)} cannot be split into {groups} groups; choose norm_num_groups so "
                "that it divides every width."
            )
        if patch_size is not None and (patch_size < self.compression or patch_size % self.compression):
            raise ValueError(
                f"patch_size is {patch_size}, but {len(widths)} levels halve it {len(widths) - 1} times; choose a "
                f"multiple of {self.compression}, or None for encoding the whole volume."
            )
        layers = {
            "block_out_channels": tuple(widths),
            "num_attention_heads": config["num_attention_heads"],
            "attention_head_dim": config["attention_head_dim"],
            "norm_num_groups": groups,
            "norm_eps": config["norm_eps"],
        }
        self.encoder = Encoder3D(config["in_channels"], encoded_channels, **layers)
        self.quant_conv = nn.Conv3d(encoded_channels, encoded_channels, 1)
        self.post_quant_conv = nn.Conv3d(config["latent_channels"], config["latent_channels"], 1)
        self.decoder = Decoder3D(config["latent_channels"], config["out_channels"], **layers)
        self._slab_decoder: SlabDecoder | None = None

    @property
    def compression(self) -> int:
        """Voxels per latent voxel along each axis."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @property
    def size_divisor(self) -> int:
        """What every side of an encoded volume must be divisible by: the patch, or else the compression."""
        return self.config["patch_size"] or self.compression

    def latent_shape(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """Shape ``(channels, x, y, z)`` of the latents of a volume of ``size`` voxels along x, y and z.

        Raises:
            ValueError: If :attr:`size_divisor` does not divide a side.
        """
        self._check_grid(size, self.size_divisor, "volume", "patches" if self.config["patch_size"] else "latent voxels")
        x, y, z = (side // self.compression for side in size)
        return self.config["latent_channels"], x, y, z

    def enable_slab_decoding(self, max_memory_gb: float) -> None:
        """Decode slab by slab within a memory budget, with the result of the whole decode to rounding.

        Args:
            max_memory_gb: Memory in GiB that decoding may allocate beside the weights and the latents.

        Raises:
            ValueError: If ``max_memory_gb`` is not positive; decoding raises it if the budget is too small.
        """
        self._slab_decoder = SlabDecoder(self.decoder, max_memory_gb)

    def disable_slab_decoding(self) -> None:
        """Decode the whole volume at once again."""
        self._slab_decoder = None

    def freeze_encoder(self) -> None:
        """Leave only the decoder and ``post_quant_conv`` to train, as in the second stage of 3D MedDiffusion."""
        self.encoder.requires_grad_(False)
        self.quant_conv.requires_grad_(False)

    def _encode(self, sample: torch.Tensor) -> torch.Tensor:
        """Encoder and ``quant_conv``, patch by patch if the config has a patch size."""
        channels, patch_size = self.config["in_channels"], self.config["patch_size"]
        if sample.ndim != 5 or sample.shape[1] != channels:
            raise ValueError(
                f"The encoder got a tensor of shape {tuple(sample.shape)}; it takes (batch, {channels}, x, y, z)."
            )
        self.latent_shape(sample.shape[2:])
        turned = to_network(sample, self.config["axis_order"])
        encoded = apply_patchwise(
            lambda patches: self.quant_conv(self.encoder(patches)),
            turned,
            patch_size,
            self._patches_at_once(sample.device),
        )
        return from_network(encoded, self.config["axis_order"])

    def _decode(self, latents: torch.Tensor, patch_size: int | None = None) -> torch.Tensor:
        """``post_quant_conv`` and decoder, jointly or in patches of that many latent voxels."""
        channels = self.config["latent_channels"]
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ValueError(
                f"The decoder got a tensor of shape {tuple(latents.shape)}; it takes (batch, {channels}, x, y, z)."
            )
        if patch_size is not None:
            self._check_grid(latents.shape[2:], patch_size, "latent", "patches")
        decoder = self._slab_decoder or self.decoder
        turned = to_network(latents, self.config["axis_order"])
        decoded = apply_patchwise(
            lambda patches: decoder(self.post_quant_conv(patches)),
            turned,
            patch_size,
            self._patches_at_once(latents.device),
        )
        return from_network(decoded, self.config["axis_order"])

    def _patches_at_once(self, device: torch.device) -> int:
        voxels = _VOXELS_AT_ONCE_ON_CPU if device.type == "cpu" else _VOXELS_AT_ONCE
        return max(1, voxels // self.size_divisor**3)

    def _check_grid(self, size: Sequence[int], divisor: int, what: str, parts: str) -> None:
        for axis, side in zip("xyz", size, strict=True):
            if side % divisor or not side:
                raise ValueError(
                    f"The {what} grid is {tuple(size)}, but whole {parts} need every side divisible by {divisor}: use "
                    f"{nearest_valid_sizes(side, divisor)} along {axis}."
                )


def apply_patchwise(
    network: Callable[[torch.Tensor], torch.Tensor],
    volume: torch.Tensor,
    patch_size: int | None,
    patches_at_once: int,
) -> torch.Tensor:
    """Apply a network to non-overlapping cubes, a few at a time, and put the results in the places of the cubes.

    Args:
        network: From ``(number, channels, p, p, p)`` to ``(number, other channels, q, q, q)``.
        volume: ``(batch, channels, x, y, z)``, its sides divisible by the patch size.
        patch_size: Side p of a cube; None applies the network to the volume as it is.
        patches_at_once: How many cubes the network gets in one call.

    Returns:
        ``(batch, other channels, q x / p, q y / p, q z / p)``.
    """
    if patch_size is None:
        return network(volume)
    batch = volume.shape[0]
    counts = [side // patch_size for side in volume.shape[2:]]
    split = volume.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    patches = split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(0, 3)
    results = torch.cat([network(few) for few in patches.split(patches_at_once)])
    placed = results.unflatten(0, (batch, *counts)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return placed.flatten(6, 7).flatten(4, 5).flatten(2, 3)
