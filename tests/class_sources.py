"""Tiny sources of volumes to encode, that tests share."""

import torch

from voxdiff.data.volume_dataset import VolumeDataset
from voxdiff.training.class_sources import VolumeSource
from voxdiff.volumes import VolumeProcessor


def make_source(*grid, class_name=None, count=3, scalars=None, value_range=(-1.0, 1.0)):
    """Volumes of noise."""
    processor = VolumeProcessor(size=grid, spacing=(2, 2, 2), intensity="minmax", value_range=value_range)
    generator = torch.Generator().manual_seed(sum(grid))
    subjects = [{"image": torch.rand(grid, generator=generator)} for _ in range(count)]
    return VolumeSource(
        dataset=VolumeDataset(subjects, {"image": processor}),
        processor=processor,
        keys=[f"{class_name}-{index}" for index in range(count)],
        scalars=scalars or [{}] * count,
        class_name=class_name,
    )


def two_classes():
    """Two classes, one of them on two grids; the first knows its subjects' age."""
    ages = [{"age": 40.0}, {"age": 50.0}, {"age": 60.0}]
    return [
        make_source(16, 8, 8, class_name="mr", scalars=ages),
        make_source(8, 8, 8, class_name="ct", count=2),
        make_source(16, 8, 8, class_name="ct", count=2),
    ]
