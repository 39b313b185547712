"""What every feature extractor has in common: a network, what it must be fed, and where its weights come from."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn


class Features(NamedTuple):
    """What an extractor says about a batch.

    Attributes:
        values: (batch, features), float32.
        probabilities: (batch, classes), or None where the extractor does not classify.
    """

    values: torch.Tensor
    probabilities: torch.Tensor | None = None


@dataclass(kw_only=True)
class FeatureExtractor:
    """A pretrained network that turns volumes (or slices) into features; subclasses override `forward`.

    Attributes:
        name: as it appears in reports, such as "cohort-3d".
        network: in evaluation mode.
        spatial_dims: 3 for volumes, 2 for slices.
        num_features: length of a feature vector.
        sha256: of the weights, so that a report pins them.
        input_size: grid (x, y, z) or (height, width) the network sees; None keeps the one that comes in.
        classes: names of the classes, where the extractor classifies.
        note: what a reader of a report must know, such as what the network was trained on.
    """

    name: str
    network: nn.Module
    spatial_dims: int
    num_features: int
    sha256: str
    input_size: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the network."""
        self.network.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """What pins the extractor in a report, as plain values."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "spatial_dims": self.spatial_dims,
            "num_features": self.num_features,
            "input_size": list(self.input_size) if self.input_size else None,
            "classes": list(self.classes),
            "note": self.note,
        }

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Features:
        """Features of a batch.

        Args:
            images: (batch, 1, x, y, z), or (batch, 1, height, width) for a 2D extractor, in [0, 1].

        Raises:
            ValueError: the images have another rank.
        """
        if images.ndim != self.spatial_dims + 2 or images.shape[1] != 1:
            axes = "x, y, z" if self.spatial_dims == 3 else "height, width"
            raise ValueError(f"The extractor {self.name} was given {tuple(images.shape)}; give (batch, 1, {axes}).")
        images = images.to(self.device, torch.float32)
        if self.input_size is not None:
            images = resize(images, self.input_size)
        features = self.forward(images)
        probabilities = None if features.probabilities is None else features.probabilities.float().cpu()
        return Features(features.values.float().cpu(), probabilities)

    def forward(self, images: torch.Tensor) -> Features:
        """Features of images in [0, 1] on the extractor's own grid."""
        return Features(self.network(images))


def resize(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Bring images (batch, channels, …) to a grid: padded with their background to equal sides, then resampled.

    A coarser grid takes means over a voxel's extent first, so that detail is not aliased.
    """
    if tuple(images.shape[2:]) == tuple(size):
        return images
    if len(set(size)) == 1:
        images = _pad_to_cube(images)
    factors = [max(1, old // new) for old, new in zip(images.shape[2:], size, strict=True)]
    if max(factors) > 1:
        pool = F.avg_pool3d if images.ndim == 5 else F.avg_pool2d
        images = pool(images, factors)
    mode = "trilinear" if images.ndim == 5 else "bilinear"
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode=mode, align_corners=False)


def _pad_to_cube(images: torch.Tensor) -> torch.Tensor:
    """Pad with zeros, the lower end of [0, 1], evenly on both sides of the shorter axes."""
    longest = max(images.shape[2:])
    padding: list[int] = []
    for length in reversed(images.shape[2:]):
        missing = longest - length
        padding += [missing // 2, missing - missing // 2]
    return F.pad(images, padding) if any(padding) else images
