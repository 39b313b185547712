"""What a 3D autoencoder learns: to reconstruct, to look real, and to keep its latents in shape (3D MedDiffusion)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.models.autoencoder_kl_3d import AutoencoderKL3D
from voxdiff.training.batches import SampleNoise
from voxdiff.training.discriminator import (
    PatchDiscriminator3D,
    adversarial_loss,
    feature_matching_loss,
    hinge_loss,
)
from voxdiff.training.perceptual_loss import TriPlanePerceptualLoss
from voxdiff.training.random_crops import RandomCrops


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossWeights:
    """Weights of the terms; the defaults are 3D MedDiffusion's, that of the KL divergence is latent diffusion's.

    Attributes:
        l1: Mean absolute error of the voxels.
        perceptual: Tri-plane perceptual distance.
        adversarial: The discriminator's verdict, and its own loss.
        feature_matching: Mean absolute error of the discriminator's maps, summed over its blocks.
        kl: Divergence of the posterior in nats per volume, for an :class:`AutoencoderKL3D`.
    """

    l1: float = 4.0
    perceptual: float = 2.0
    adversarial: float = 2.0
    feature_matching: float = 4.0
    kl: float = 1e-6


class AutoencoderObjective:
    """Loss of an autoencoder on random crops, and of the discriminator that judges them.

    The commitment loss of a codebook enters with the weight that the quantiser gives it. The discriminator is trained on
    the reconstructions that the autoencoder was just trained with.

    Args:
        vae: The autoencoder, :class:`AutoencoderPatchVolume` or :class:`AutoencoderKL3D`.
        crops: What is cut out of the volumes.
        weights: Of the terms.
        perceptual: None does without.
        adversary: The discriminator; None does without.
        adversarial_start: First step with the discriminator; it is neither asked nor trained before.

    Attributes:
        terms: Unweighted parts of the last loss; those of the discriminator are 0 before it plays.
    """

    def __init__(
        self,
        vae: Autoencoder3D,
        *,
        crops: RandomCrops,
        weights: AutoencoderLossWeights | None = None,
        perceptual: TriPlanePerceptualLoss | None = None,
        adversary: PatchDiscriminator3D | None = None,
        adversarial_start: int = 0,
    ) -> None:
        self.regularisers = ("kl",) if isinstance(vae, AutoencoderKL3D) else ("commitment", "perplexity")
        self.crops = crops
        self.weights = weights or AutoencoderLossWeights()
        self.perceptual = perceptual
        self.adversary = adversary
        self.adversarial_start = adversarial_start
        self.terms: dict[str, torch.Tensor] = {}
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, model: nn.Module, batch: dict[str, Any], noise: SampleNoise) -> torch.Tensor:
        """Loss of one batch.

        Args:
            model: The autoencoder, possibly wrapped by Accelerate.
            batch: ``volume`` ``(batch, channels, x, y, z)`` in [-1, 1].
            noise: Draws crops, slices, and the codebook's restarts or the posterior's noise.
        """
        weights = self.weights
        real = self.crops(batch["volume"], noise)
        # Seeded by the first sample, on the first process, whose restarts count; each sample's stream moves on alike
        generator = torch.Generator().manual_seed(int(noise.integers(2**31)[0]))
        fake, *regularisers = model(real, generator=generator, return_dict=False)
        terms = {"l1": F.l1_loss(fake, real), **dict(zip(self.regularisers, regularisers, strict=True))}
        loss = weights.l1 * terms["l1"]
        loss = loss + (weights.kl * terms["kl"] if "kl" in terms else terms["commitment"])
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(fake, real, noise)
            loss = loss + weights.perceptual * terms["perceptual"]
        if self.adversary is not None:
            plays = batch["step"][0] >= self.adversarial_start
            judged = self._judge(self.adversary, fake, real) if plays else [fake.new_zeros(())] * 2
            terms |= dict(zip(("adversarial", "feature_matching"), judged, strict=True))
            loss = loss + weights.adversarial * judged[0] + weights.feature_matching * judged[1]
            terms["discriminator"] = fake.new_zeros(())
            self._pair = (real, fake.detach()) if plays else None
        self.terms = {name: term.detach() for name, term in terms.items()}
        return loss

    def adversary_loss(self, adversary: nn.Module) -> torch.Tensor | None:
        """Hinge loss of the discriminator on the last batch, weighted; None before it plays.

        Args:
            adversary: The discriminator, possibly wrapped by Accelerate.
        """
        if self._pair is None:
            return None
        (real, _), (fake, _) = (adversary(volumes, return_dict=False) for volumes in self._pair)
        loss = hinge_loss(real, fake)
        self.terms["discriminator"] = loss.detach()
        return self.weights.adversarial * loss

    @staticmethod
    def _judge(adversary: PatchDiscriminator3D, fake: torch.Tensor, real: torch.Tensor) -> list[torch.Tensor]:
        with _untrained(adversary):
            logits, features = adversary(fake, return_dict=False)
        with torch.no_grad():
            _, real_features = adversary(real, return_dict=False)
        return [adversarial_loss(logits), feature_matching_loss(features, real_features)]


@contextmanager
def _untrained(network: nn.Module) -> Iterator[None]:
    """The network's weights get no gradients from what it computes inside."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
