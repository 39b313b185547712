"""Adversarial losses of the autoencoders: hinge loss and feature matching, as 3D MedDiffusion uses them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from voxdiff.models.discriminator_patch_3d import PatchDiscriminator3D

__all__ = ["PatchDiscriminator3D", "adversarial_loss", "feature_matching_loss", "hinge_loss"]


def hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Loss of the discriminator: pushes real logits above 1 and fake ones below -1; a scalar."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def adversarial_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Loss of the generator: minus the mean logit of its volumes; a scalar."""
    return -fake_logits.mean()


def feature_matching_loss(fake: Sequence[torch.Tensor], real: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean absolute difference of the discriminator's maps, summed over its blocks; no gradient to the real ones."""
    differences = [F.l1_loss(fake_map, real_map.detach()) for fake_map, real_map in zip(fake, real, strict=True)]
    return torch.stack(differences).sum()
