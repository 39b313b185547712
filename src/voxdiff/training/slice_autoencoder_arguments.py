"""Arguments on the autoencoder of single slices that is trained, and on its losses."""

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL

from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import refuse
from voxdiff.training.informed_slice_arguments import InformedSliceArguments
from voxdiff.training.objective_slice_autoencoder import SliceAutoencoderLossWeights

_PERCEPTUAL = ("lpips_weights", "lpips_heads")
_NETWORK = ("latent_channels", "vae_channels")
_ALL = (*_NETWORK, "mask_share", "kl_weight", "perceptual_weight", *_PERCEPTUAL, "num_held_out")


@dataclass
class SliceAutoencoderArguments:
    """The autoencoder stage: the network, whose widths stand with those of the other stages, and its losses.

    None means that an option was not given.
    """

    latent_channels: int | None = option(None, "Channels of the latent; default: 4.")
    vae_channels: int | None = option(None, "Channels of the autoencoder's images: 1 (default), or 3 as published.")
    mask_share: float | None = option(None, "Share of mask slices among those it learns; default: 0.25.")
    kl_weight: float | None = option(None, "Weight of the divergence in nats per slice; default: 1e-6.")
    perceptual_weight: float | None = option(
        None, "Weight of the perceptual loss beside the absolute error; default: 0.5, 0 does without."
    )
    lpips_weights: str | None = option(
        None, "VGG-16 as safetensors (voxdiff convert-extractor vgg16); default: a substitute, the cohort-2d extractor."
    )
    lpips_heads: str | None = option(None, "LPIPS heads (voxdiff convert-extractor lpips-vgg); default: torchmetrics'.")
    num_held_out: int | None = option(None, "Volumes that are kept for the report; default: 8.")

    def __post_init__(self) -> None:
        if self.vae_channels not in (None, 1, 3):
            raise ValueError(f"--vae_channels is {self.vae_channels}; choose 1 or 3.")
        for name in ("latent_channels", "num_held_out"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; give a whole number of at least 1.")
        for name in ("kl_weight", "perceptual_weight"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"--{name} is {value}; give a number of at least 0.")
        if not 0 <= self.share_of_masks < 1:
            raise ValueError(f"--mask_share is {self.mask_share}; give a share from 0 up to, but not, 1.")
        if not self.loss_weights.perceptual:
            refuse(self, _PERCEPTUAL, "belongs to a --perceptual_weight above 0")

    def require_stage(self, model: InformedSliceArguments) -> None:
        """Raise ValueError if an option was given that the stage or the pretrained autoencoder leaves no room for."""
        if model.stage != "autoencoder":
            refuse(self, _ALL, "belongs to --stage autoencoder")
        elif model.pretrained_model_name_or_path is not None:
            refuse(self, _NETWORK, "comes from the pretrained model")

    @property
    def share_of_masks(self) -> float:
        """Share of mask slices among those it learns."""
        return 0.25 if self.mask_share is None else self.mask_share

    @property
    def number_held_out(self) -> int:
        """Volumes that are kept for the report."""
        return 8 if self.num_held_out is None else self.num_held_out

    @property
    def loss_weights(self) -> SliceAutoencoderLossWeights:
        """Weights of the terms."""
        given = {"kl": self.kl_weight, "perceptual": self.perceptual_weight}
        return SliceAutoencoderLossWeights(**{name: value for name, value in given.items() if value is not None})

    def make_autoencoder(self, model: InformedSliceArguments, size: int) -> AutoencoderKL:
        """An untrained autoencoder.

        Args:
            model: Widths, layers and groups.
            size: Longest side of the slices in pixels.

        Raises:
            ValueError: If the settings contradict each other.
        """
        settings: dict[str, Any] = model.common_settings()
        levels = len(settings["block_out_channels"])
        channels = self.vae_channels or 1
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=self.latent_channels or 4,
            sample_size=size,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **settings,
        )
