"""Generated volumes at another spacing than the model's own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from voxdiff.volume_grids import grid_map, regrid
from voxdiff.volumes import VolumeProcessor


def resample_volume(
    volume: torch.Tensor, processor: VolumeProcessor, spacing: Sequence[float]
) -> tuple[torch.Tensor, VolumeProcessor]:
    """Bring a generated volume to another spacing, as the volume contract does it.

    Args:
        volume: ``(channels, x, y, z)``, float32 on the CPU, in the processor's value range, with its spacing.
        processor: That of the volume.
        spacing: Wanted voxel size in mm (x, y, z).

    Returns:
        The volume on the grid about the same centre whose extent comes nearest to the old one, and its processor.

    Raises:
        ValueError: If the spacing is not three positive numbers.
    """
    resampled = replace(processor, spacing=spacing, size=None)
    source = processor.model_affine(volume.shape[1:])
    extent = np.linalg.norm(source[:3, :3], axis=0) * volume.shape[1:]
    x, y, z = (max(1, round(length / edge)) for length, edge in zip(extent, spacing, strict=True))
    matrix = grid_map(source, resampled.model_affine((x, y, z)))
    nearest = processor.intensity == "labels"
    return regrid(volume, matrix, (x, y, z), fill=processor.value_range[0], nearest=nearest), resampled
