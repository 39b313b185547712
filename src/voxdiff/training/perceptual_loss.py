"""The autoencoders' tri-plane perceptual loss: LPIPS on slices of the three planes (3D MedDiffusion, section III-B)."""

import torch

from voxdiff.metrics.perceptual import PerceptualBackbone, slice_lpips
from voxdiff.training.batches import SampleNoise


class TriPlanePerceptualLoss:
    """LPIPS of a random share of the slices along each axis: the mean of each plane, summed over the three.

    Args:
        backbone: From :func:`voxdiff.metrics.perceptual.load_perceptual`: VGG-16 with its LPIPS heads from local files,
            or without them the substitute, the maps of the shipped extractor "cohort-2d", weighed alike. Losses of the
            two are of different size.
        share: Of the slices of each sample along each axis; at least one is taken. 0.2 is published.

    Raises:
        ValueError: If the share is not in (0, 1].
    """

    def __init__(self, backbone: PerceptualBackbone, share: float = 0.2) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"The share of slices for the perceptual loss is {share}; give one above 0 and up to 1.")
        self.backbone = backbone
        self.share = share

    def __call__(self, volumes: torch.Tensor, others: torch.Tensor, noise: SampleNoise) -> torch.Tensor:
        """A scalar with gradients to ``volumes``.

        Args:
            volumes: ``(batch, channels, x, y, z)`` in [-1, 1]; each channel is a grey image of its own.
            others: The same shape; no gradient.
            noise: Draws the slices, each sample's from its own stream; a sample may give several volumes in a row.

        Raises:
            ValueError: If a side has fewer voxels than the backbone needs.
        """
        if min(volumes.shape[2:]) < self.backbone.smallest:
            raise ValueError(
                f"{self.backbone.name} was given patches of {tuple(volumes.shape[2:])} voxels; it needs "
                f"{self.backbone.smallest} a side: use larger patches, or --perceptual_weight 0."
            )
        pair = torch.stack([volumes, others.detach()]).add(1).div(2)
        return torch.stack([self._plane_distance(pair, axis, noise) for axis in (2, 3, 4)]).sum()

    def _plane_distance(self, pair: torch.Tensor, axis: int, noise: SampleNoise) -> torch.Tensor:
        side = pair.shape[axis + 1]
        count = max(1, round(self.share * side))
        slices = []
        crops = pair.shape[1] // len(noise.generators)  # of each sample, one after the other
        for place in range(pair.shape[1]):
            chosen = torch.randperm(side, generator=noise.generators[place // crops])[:count].to(pair.device)
            slices.append(pair[:, place].index_select(axis, chosen).movedim(axis, 1).flatten(1, 2))
        images, others = torch.cat(slices, dim=1).unsqueeze(2)
        return slice_lpips(images, others, self.backbone).mean().to(pair.device)
