"""The Patch-Volume autoencoder of 3D MedDiffusion (arXiv 2412.13059): encoded patch by patch, decoded as a whole."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from voxdiff.models.autoencoder_3d import Autoencoder3D, DecoderOutput
from voxdiff.models.vector_quantizer import VectorQuantizerEMA

_RANGE_TOLERANCE = 0.01  # of the range: rounding a codebook to 16 bits moves its ends by less


@dataclass
class AutoencoderPatchVolumeOutput(BaseOutput):
    """Output of :meth:`AutoencoderPatchVolume.encode`.

    Attributes:
        latents: ``(batch, latent_channels, x, y, z)``, neither quantised nor normalised.
    """

    latents: torch.Tensor


@dataclass
class PatchVolumeReconstructionOutput(BaseOutput):
    """Output of :meth:`AutoencoderPatchVolume.forward`.

    Attributes:
        sample: Reconstructed volume ``(batch, out_channels, x, y, z)``.
        commitment_loss: Scalar.
        perplexity: Scalar, at most the number of codebook entries.
    """

    sample: torch.Tensor
    commitment_loss: torch.Tensor
    perplexity: torch.Tensor


class AutoencoderPatchVolume(Autoencoder3D):
    """Vector-quantised autoencoder whose encoder sees cubes and whose decoder sees the whole latent.

    The defaults are the published eight-fold configuration; the four-fold one has ``block_out_channels=(48, 96, 96)``.
    With ``patch_size=None`` the whole volume is encoded at once: a plain VQ-GAN. Sizes and axes are x, y, z outside,
    whatever the network's own order; volumes are in [-1, 1].

    Args:
        in_channels: Channels of the volume.
        out_channels: Channels of the reconstruction.
        latent_channels: Channels of the latent, which is also the width of the codebook.
        block_out_channels: Width of each level, the finest first; every level but the last halves each side.
        num_attention_heads: Heads of the attention at the lowest resolution.
        attention_head_dim: Width of a head.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
        num_embeddings: Entries of the codebook.
        patch_size: Side in voxels of the cubes that are encoded apart, or None.
        axis_order: Order in which the network sees x, y and z: ``"zxy"`` as published, or ``"xyz"``.
        latent_min: Smallest value in the codebook, see :meth:`update_latent_range`.
        latent_max: Largest value in the codebook.

    Raises:
        ValueError: On an unknown ``axis_order``, a width that ``norm_num_groups`` does not divide, a ``patch_size`` that
            the levels cannot halve, or a latent range of one end or without extent.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        latent_channels: int = 8,
        block_out_channels: tuple = (48, 96, 192, 192),
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        norm_num_groups: int = 24,
        norm_eps: float = 1e-6,
        num_embeddings: int = 8192,
        patch_size: int | None = 64,
        axis_order: str = "zxy",
        latent_min: float | None = None,
        latent_max: float | None = None,
    ) -> None:
        super().__init__()
        unset = latent_min is None and latent_max is None
        if not unset and (latent_min is None or latent_max is None or not latent_min < latent_max):
            raise ValueError(
                f"The latent range is {latent_min} to {latent_max}; give latent_min below latent_max, or neither."
            )
        self._build(encoded_channels=latent_channels)
        self.quantize = VectorQuantizerEMA(num_embeddings, latent_channels)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any):
        """Load as every :class:`VolumeModel`, and check the latent range of the config against the codebook.

        Raises:
            ValueError: Also if ``latent_min`` and ``latent_max`` are not those of the codebook.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._check_latent_range(pretrained_model_name_or_path)
        return loaded

    @apply_forward_hook
    def encode(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderPatchVolumeOutput | tuple[torch.Tensor]:
        """Encode a volume, its cubes a few at a time; the latents are not quantised (in the paper, z0 = E(x)).

        Args:
            sample: ``(batch, in_channels, x, y, z)`` in [-1, 1], every side divisible by :attr:`size_divisor`.
            return_dict: Whether to return an :class:`AutoencoderPatchVolumeOutput` instead of a tuple.

        Raises:
            ValueError: If the channels or the grid do not fit.
        """
        latents = self._encode(sample)
        return AutoencoderPatchVolumeOutput(latents=latents) if return_dict else (latents,)

    def quantize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Numbers ``(batch, x, y, z)`` of the codebook entries nearest to ``(batch, latent_channels, x, y, z)``."""
        return self.quantize.nearest(latents)

    @apply_forward_hook
    def decode(
        self, latents: torch.Tensor, quantize: bool = True, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode the whole latent at once, or slab by slab after :meth:`enable_slab_decoding`.

        Args:
            latents: ``(batch, latent_channels, x, y, z)`` as :meth:`encode` or :meth:`denormalize_latents` give them.
            quantize: Whether to replace them by their nearest codebook entries first.
            return_dict: Whether to return a :class:`DecoderOutput` instead of a tuple.

        Raises:
            ValueError: If the channels do not fit.
        """
        sample = self._decode(self.quantize.quantize(latents) if quantize else latents)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_patches(
        self, latents: torch.Tensor, quantize: bool = True, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode each patch on its own, as in the first training stage; patch borders show.

        Takes the arguments of :meth:`decode`.

        Raises:
            ValueError: If the model has no patch size or the latent does not consist of whole patches.
        """
        if self.config["patch_size"] is None:
            raise ValueError("This autoencoder has no patch_size, so there are no patches to decode; use decode.")
        quantized = self.quantize.quantize(latents) if quantize else latents
        sample = self._decode(quantized, self.config["patch_size"] // self.compression)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_codes(self, codes: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode codes ``(batch, x, y, z)`` of :meth:`quantize_latents`.

        Raises:
            ValueError: If a code is no whole number, or no entry's number.
        """
        return self.decode(self.quantize.lookup(codes), quantize=False, return_dict=return_dict)

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Map latents so that the range of the codebook becomes [-1, 1]; a little may lie outside.

        Raises:
            ValueError: If the config has no latent range.
        """
        low, high = self._latent_range()
        return 2 * (latents - low) / (high - low) - 1

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`normalize_latents`."""
        low, high = self._latent_range()
        return (latents + 1) / 2 * (high - low) + low

    def update_latent_range(self) -> None:
        """Write the smallest and largest value of the codebook into the config, as ``latent_min`` and ``latent_max``."""
        entries = self.quantize.embedding
        self.register_to_config(latent_min=float(entries.min()), latent_max=float(entries.max()))

    def freeze_encoder(self) -> None:
        """Freeze encoder and codebook, see :meth:`Autoencoder3D.freeze_encoder`."""
        super().freeze_encoder()
        self.quantize.freeze()

    def forward(
        self, sample: torch.Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> PatchVolumeReconstructionOutput | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode, quantise and decode jointly; a training step of either stage.

        Args:
            sample: ``(batch, in_channels, x, y, z)`` in [-1, 1], every side divisible by :attr:`size_divisor`.
            generator: CPU generator of the codebook's random restarts in training (default: torch's global one).
            return_dict: Whether to return a :class:`PatchVolumeReconstructionOutput` instead of a tuple.

        Raises:
            ValueError: If the channels or the grid do not fit.
        """
        quantized = self.quantize(self._encode(sample), generator)
        output = PatchVolumeReconstructionOutput(
            sample=self._decode(quantized.latents),
            commitment_loss=quantized.commitment_loss,
            perplexity=quantized.perplexity,
        )
        return output if return_dict else output.to_tuple()

    def _latent_range(self) -> tuple[float, float]:
        low, high = self.config["latent_min"], self.config["latent_max"]
        if low is None or high is None:
            raise ValueError(
                "The autoencoder's config has no latent_min and latent_max; call update_latent_range() after training."
            )
        return low, high

    def _check_latent_range(self, location: object) -> None:
        if self.config["latent_min"] is None:
            return
        low, high = self._latent_range()
        entries = self.quantize.embedding
        found = float(entries.min()), float(entries.max())
        if max(abs(found[0] - low), abs(found[1] - high)) > _RANGE_TOLERANCE * (high - low):
            raise ValueError(
                f"The config in {location} gives the latent range {low:g} to {high:g}, but the codebook runs from "
                f"{found[0]:g} to {found[1]:g}; use weights and config of the same model."
            )
