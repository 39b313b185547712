"""Sets of known quality, made from real volumes, that every reported number stands beside."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

BLUR_SIGMA = 1.0
"""Of the blurred real set, in voxels of the prepared grid."""


ANCHORS = ("real", "blurred real", "mean image", "one repeated")
"""Names of the anchors, the floor first."""


class TransformedVolumes(Sequence[torch.Tensor]):
    """Volumes `(1, x, y, z)` that are made from others when asked for."""

    def __init__(self, volumes: Sequence[torch.Tensor]) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no volume {index}; there are {len(self)}.")
        return self.make(index)

    def make(self, index: int) -> torch.Tensor:
        """The volume at a place."""
        return self.volumes[index]


class BlurredVolumes(TransformedVolumes):
    """Each volume under a Gaussian blur of `sigma` voxels."""

    def __init__(self, volumes: Sequence[torch.Tensor], sigma: float = BLUR_SIGMA) -> None:
        super().__init__(volumes)
        self.sigma = sigma

    def make(self, index: int) -> torch.Tensor:
        """The volume at a place, blurred."""
        return gaussian_blur(self.volumes[index], self.sigma)


class RepeatedVolume(TransformedVolumes):
    """One volume as often as there are volumes."""

    def __init__(self, volumes: Sequence[torch.Tensor], volume: torch.Tensor) -> None:
        super().__init__(volumes)
        self.volume = volume

    def make(self, index: int) -> torch.Tensor:
        """The one volume."""
        return self.volume


def anchor_sets(reals: Sequence[torch.Tensor]) -> dict[str, Sequence[torch.Tensor]]:
    """The anchors by name, as many volumes each as there are reals: the reals themselves are the floor."""
    sets = (
        reals,
        BlurredVolumes(reals),
        RepeatedVolume(reals, mean_image(reals)),
        RepeatedVolume(reals, reals[0]),
    )
    return dict(zip(ANCHORS, sets, strict=True))


def mean_image(volumes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Voxelwise mean (1, x, y, z), summed in float64."""
    total = torch.zeros_like(volumes[0], dtype=torch.float64)
    for index in range(len(volumes)):
        total += volumes[index]
    return (total / len(volumes)).float()


def random_halves(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of two disjoint random halves, sorted; the second is the larger one of an odd number."""
    order = np.random.default_rng(seed).permutation(number)
    return np.sort(order[: number // 2]), np.sort(order[number // 2 :])


def gaussian_blur(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian blur of (1, x, y, z) over four standard deviations, edges repeated."""
    reach = max(1, int(np.ceil(4 * sigma)))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None]
    for axis in (1, 2, 3):
        lines = volume.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
        volume = F.conv1d(padded, kernel).reshape(lines.shape).movedim(-1, axis)
    return volume.contiguous()
