"""Tiny volumes with masks, that tests share."""

import nibabel as nib
import numpy as np
from diffusers import AutoencoderKL

from voxdiff.data.volume_dataset import VolumeDataset
from voxdiff.training.slice_sources import SliceSource
from voxdiff.volumes import VolumeProcessor

MASK_VALUES = {0: -1.0, 1: 0.0, 2: 1.0}
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def draw_pair(grid, generator):
    """A volume of noise, and a mask with a block of label 1 and one of label 2."""
    labels = np.zeros(grid, np.uint8)
    labels[1:5, 1:3, 2:6] = 1
    labels[2:4, 2:4, 3 : 4 + generator.integers(2)] = 2
    return generator.uniform(size=grid).astype(np.float32), labels


def make_slice_source(*grid, count=3, value_range=(-1.0, 1.0)):
    generator = np.random.default_rng(0)
    subjects = []
    for number in range(count):
        image, mask = (nib.Nifti1Image(values, AFFINE) for values in draw_pair(grid, generator))
        subjects.append({"subject_id": f"subject-{number}", "image": image, "mask": mask})
    processor = VolumeProcessor(size=grid, spacing=(2, 2, 3), intensity="minmax", value_range=value_range)
    return SliceSource(
        dataset=VolumeDataset(subjects, {"image": processor}),
        processor=processor,
        mask_values=MASK_VALUES,
        subject_ids=[subject["subject_id"] for subject in subjects],
        keys=[f"noise-{number}" for number in range(count)],
    )


def make_slice_autoencoder(**changes):
    """A 2D autoencoder that halves a slice."""
    config = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "latent_channels": 3,
        "norm_num_groups": 2,
        "scaling_factor": 0.7,
        **changes,
    }
    return AutoencoderKL(**config).eval()


def write_pairs(folder, names, *, grid=(8, 8, 6), affine=AFFINE):
    """NIfTI files NAME_image and NAME_mask."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for kind, values in zip(("image", "mask"), draw_pair(grid, generator), strict=True):
            nib.save(nib.Nifti1Image(values, affine), folder / f"{name}_{kind}.nii.gz")
