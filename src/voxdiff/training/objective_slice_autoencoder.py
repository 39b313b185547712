"""What the autoencoder of single slices learns: to reconstruct images and masks, its latents near a normal distribution.

The masks of informed-slice models are encoded by the autoencoder of the images, so it learns them too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from voxdiff.metrics.perceptual import PerceptualBackbone, slice_lpips
from voxdiff.training.batches import SampleNoise


@dataclass(frozen=True, kw_only=True)
class SliceAutoencoderLossWeights:
    """Weights of the terms beside the mean absolute error, which counts 1.

    Attributes:
        perceptual: LPIPS of the slices.
        kl: Divergence of the posterior in nats per slice (latent diffusion's weight).
    """

    perceptual: float = 0.5
    kl: float = 1e-6


class SliceAutoencoderObjective:
    """Loss of an :class:`diffusers.AutoencoderKL` on random axial slices of images and masks.

    Args:
        vae: The autoencoder; with three channels grey slices are repeated.
        slices_per_volume: Slices drawn from each volume of a batch, uniformly and with repetition.
        mask_share: Share of them that are slices of the mask.
        weights: Of the terms.
        perceptual: From :func:`voxdiff.metrics.perceptual.load_perceptual`; None does without.

    Attributes:
        terms: Unweighted parts of the last loss.

    Raises:
        ValueError: If the share is not in [0, 1).
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        *,
        slices_per_volume: int = 8,
        mask_share: float = 0.25,
        weights: SliceAutoencoderLossWeights | None = None,
        perceptual: PerceptualBackbone | None = None,
    ) -> None:
        if not 0 <= mask_share < 1:
            raise ValueError(f"The share of mask slices is {mask_share}; give one from 0 up to, but not, 1.")
        self.vae = vae
        self.slices_per_volume = slices_per_volume
        self.mask_share = mask_share
        self.weights = weights or SliceAutoencoderLossWeights()
        self.perceptual = perceptual
        self.terms: dict[str, torch.Tensor] = {}

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch.

        Args:
            model: The autoencoder, possibly wrapped by Accelerate.
            batch: ``image`` and ``mask`` ``(batch, 1, x, y, slices)``, both as the network sees them.
            noise: Draws the slices and the posterior's noise.
        """
        real = self.draw_slices(batch, noise).expand(-1, self.vae.config["in_channels"], -1, -1)
        generators = [generator for generator in noise.generators for _ in range(self.slices_per_volume)]
        with _posterior_of(self.vae) as posteriors:
            fake = model(real, sample_posterior=True, generator=generators, return_dict=False)[0].float()
        terms = {"l1": F.l1_loss(fake, real), "kl": posteriors[-1].kl().mean()}
        loss = terms["l1"] + self.weights.kl * terms["kl"]
        if self.perceptual is not None:
            reconstructed, original = (images[:, :1].add(1).div(2) for images in (fake, real))
            terms["perceptual"] = slice_lpips(reconstructed, original, self.perceptual).mean().to(loss.device)
            loss = loss + self.weights.perceptual * terms["perceptual"]
        self.terms = {name: term.detach() for name, term in terms.items()}
        return loss

    def draw_slices(self, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Random slices ``(batch * slices_per_volume, 1, x, y)``, a volume's one after the other."""
        slices = []
        for _ in range(self.slices_per_volume):
            places = noise.integers(batch["image"].shape[-1]).tolist()
            kinds = ["mask" if draw < self.mask_share else "image" for draw in noise.uniform().tolist()]
            drawn = [
                batch[kind][sample, ..., place] for sample, (kind, place) in enumerate(zip(kinds, places, strict=True))
            ]
            slices.append(torch.stack(drawn))
        return torch.stack(slices, dim=1).flatten(0, 1)


@contextmanager
def _posterior_of(vae: AutoencoderKL) -> Iterator[list[DiagonalGaussianDistribution]]:
    """The posterior of each forward pass inside, which the autoencoder's own output leaves out."""
    posteriors: list[DiagonalGaussianDistribution] = []
    moments = vae.encoder if vae.quant_conv is None else vae.quant_conv
    handle = moments.register_forward_hook(
        lambda _module, _inputs, output: posteriors.append(DiagonalGaussianDistribution(output.float()))
    )
    try:
        yield posteriors
    finally:
        handle.remove()
