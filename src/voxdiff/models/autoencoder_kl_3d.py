"""The plain 3D latent diffusion baseline's autoencoder: a normal distribution per latent voxel (Rombach et al. 2022)."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from voxdiff.models.autoencoder_3d import Autoencoder3D, DecoderOutput

_LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class LatentNormal:
    """Independent normal distributions, one a latent value.

    Attributes:
        mean: ``(batch, latent_channels, x, y, z)``.
        log_variance: Of the same shape.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean plus standard deviation times noise, with gradients to both; the generator is a CPU one."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + torch.exp(self.log_variance / 2) * noise

    def kl(self) -> torch.Tensor:
        """Divergence from the standard normal distribution: nats per volume, averaged over the batch; a scalar."""
        mean, log_variance = self.mean.float(), self.log_variance.float()
        nats = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        return nats.flatten(1).sum(1).mean()


@dataclass
class AutoencoderKL3DOutput(BaseOutput):
    """Output of :meth:`AutoencoderKL3D.encode`.

    Attributes:
        latents: Mean of the posterior ``(batch, latent_channels, x, y, z)``, not normalised.
        latent_dist: The posterior.
    """

    latents: torch.Tensor
    latent_dist: LatentNormal


@dataclass
class KLReconstructionOutput(BaseOutput):
    """Output of :meth:`AutoencoderKL3D.forward`.

    Attributes:
        sample: Reconstructed volume ``(batch, out_channels, x, y, z)``.
        kl: Nats per volume, a scalar.
    """

    sample: torch.Tensor
    kl: torch.Tensor


class AutoencoderKL3D(Autoencoder3D):
    """Encoder and decoder of :class:`AutoencoderPatchVolume` around a normal posterior instead of a codebook.

    Volumes are in [-1, 1]; by default the whole volume is encoded at once.

    Args:
        in_channels: Channels of the volume.
        out_channels: Channels of the reconstruction.
        latent_channels: Channels of the latent.
        block_out_channels: Width of each level, the finest first; every level but the last halves each side.
        num_attention_heads: Heads of the attention at the lowest resolution.
        attention_head_dim: Width of a head.
        norm_num_groups: Groups of the group norms.
        norm_eps: Epsilon of the group norms.
        patch_size: Side in voxels of cubes that are encoded apart, or None.
        axis_order: Order in which the network sees x, y and z: ``"xyz"`` or ``"zxy"``.
        latent_mean: Mean of the training set's latents, see :meth:`update_latent_range`.
        latent_std: Their standard deviation.

    Raises:
        ValueError: On an unknown ``axis_order``, a width that ``norm_num_groups`` does not divide, a ``patch_size`` that
            the levels cannot halve, or latent statistics of which one is missing or the deviation is not positive.
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
        patch_size: int | None = None,
        axis_order: str = "xyz",
        latent_mean: float | None = None,
        latent_std: float | None = None,
    ) -> None:
        super().__init__()
        unset = latent_mean is None and latent_std is None
        if not unset:
            _check_statistics(latent_mean, latent_std)
        self._build(encoded_channels=2 * latent_channels)

    @apply_forward_hook
    def encode(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKL3DOutput | tuple[torch.Tensor, LatentNormal]:
        """Encode a volume to its posterior and that posterior's mean.

        Args:
            sample: ``(batch, in_channels, x, y, z)`` in [-1, 1], every side divisible by :attr:`size_divisor`.
            return_dict: Whether to return an :class:`AutoencoderKL3DOutput` instead of a tuple.

        Raises:
            ValueError: If the channels or the grid do not fit.
        """
        mean, log_variance = self._encode(sample).chunk(2, dim=1)
        posterior = LatentNormal(mean, log_variance.clamp(*_LOG_VARIANCE_RANGE))
        return AutoencoderKL3DOutput(latents=mean, latent_dist=posterior) if return_dict else (mean, posterior)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode ``(batch, latent_channels, x, y, z)`` at once, or slab by slab after :meth:`enable_slab_decoding`.

        Raises:
            ValueError: If the channels do not fit.
        """
        sample = self._decode(latents)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Shift and scale latents to zero mean and unit variance over the training set.

        Raises:
            ValueError: If the config has no latent statistics.
        """
        mean, std = self._latent_statistics()
        return (latents - mean) / std

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`normalize_latents`."""
        mean, std = self._latent_statistics()
        return latents * std + mean

    def update_latent_range(self, mean: float, std: float) -> None:
        """Write the mean and standard deviation of the training set's latents into the config.

        Raises:
            ValueError: If the standard deviation is not positive.
        """
        _check_statistics(mean, std)
        self.register_to_config(latent_mean=float(mean), latent_std=float(std))

    def forward(
        self, sample: torch.Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> KLReconstructionOutput | tuple[torch.Tensor, torch.Tensor]:
        """Encode, decode a draw of the posterior (in evaluation mode: its mean); a training step.

        Args:
            sample: ``(batch, in_channels, x, y, z)`` in [-1, 1], every side divisible by :attr:`size_divisor`.
            generator: CPU generator of the draw (default: torch's global one).
            return_dict: Whether to return a :class:`KLReconstructionOutput` instead of a tuple.

        Raises:
            ValueError: If the channels or the grid do not fit.
        """
        latents, posterior = self.encode(sample, return_dict=False)
        reconstruction = self._decode(posterior.sample(generator) if self.training else latents)
        output = KLReconstructionOutput(sample=reconstruction, kl=posterior.kl())
        return output if return_dict else output.to_tuple()

    def _latent_statistics(self) -> tuple[float, float]:
        mean, std = self.config["latent_mean"], self.config["latent_std"]
        if mean is None or std is None:
            raise ValueError(
                "The autoencoder's config has no latent_mean and latent_std; call update_latent_range(mean, std) with "
                "the statistics of the training set's latents."
            )
        return mean, std


def _check_statistics(mean: float | None, std: float | None) -> None:
    if mean is None or std is None or not std > 0:
        raise ValueError(
            f"The latent statistics are mean {mean} and standard deviation {std}; give both, the latter above 0."
        )
