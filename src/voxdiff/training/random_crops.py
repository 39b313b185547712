"""Random cubes of volumes, turned and mirrored: what a 3D autoencoder sees in training (3D MedDiffusion)."""

from collections.abc import Sequence

import torch

from voxdiff.training.batches import SampleNoise

_DRAWS = 32


class RandomCrops:
    """Cuts crops out of each volume of a batch, at uniformly drawn places.

    A crop whose voxels are all alike is drawn again, at most 31 times. With augmentation a crop is mirrored along x and
    along y and, where those sides are equal, turned by a quarter in the x-y plane, each with probability 1/2.

    Args:
        size: Sides of the crop along x, y and z in voxels; None takes whole volumes.
        augment: Whether to mirror and turn.
        count: Crops of each volume (published: one); more of them share the cost of reading it.
    """

    def __init__(self, size: Sequence[int] | None, *, augment: bool = True, count: int = 1) -> None:
        self.size = size
        self.augment = augment
        self.count = count

    def __call__(self, volumes: torch.Tensor, noise: SampleNoise) -> torch.Tensor:
        """Crops ``(batch * count, channels, *size)`` of ``(batch, channels, x, y, z)``, drawn from each sample's stream.

        Raises:
            ValueError: If the crop is larger than the volumes.
        """
        grid = tuple(volumes.shape[2:])
        size = grid if self.size is None else tuple(self.size)
        if any(side > whole for side, whole in zip(size, grid, strict=True)):
            raise ValueError(f"Crops of {size} voxels do not fit into volumes of {grid}; choose smaller ones.")
        return torch.stack(
            [
                self._turn(self._cut(volume, size, generator), generator)
                for volume, generator in zip(volumes, noise.generators, strict=True)
                for _ in range(self.count)
            ]
        )

    def _cut(self, volume: torch.Tensor, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        for _ in range(_DRAWS):
            crop = volume
            for axis, side in enumerate(size, start=1):
                places = volume.shape[axis] - side + 1
                crop = crop.narrow(axis, int(torch.randint(places, (1,), generator=generator)), side)
            if crop.shape == volume.shape or crop.min() < crop.max():
                break
        return crop

    def _turn(self, crop: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if not self.augment:
            return crop
        mirror_x, mirror_y, quarter = (torch.rand(3, generator=generator) < 0.5).tolist()
        crop = crop.flip([axis for axis, mirrored in ((1, mirror_x), (2, mirror_y)) if mirrored])
        return crop.rot90(dims=(1, 2)) if quarter and crop.shape[1] == crop.shape[2] else crop
