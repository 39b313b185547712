"""Volumes with their masks, before they are encoded: of the digital cohort, or of files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from rich.console import Console
from rich.progress import track

from voxdiff.data.brain_masks import BRAIN_MASK_VALUES, brain_mask_labels
from voxdiff.data.cohort import CohortDataset, subject_id
from voxdiff.data.ct_anatomy import ORGANS
from voxdiff.data.mr_signal import MR_CONTRASTS
from voxdiff.data.subject import COHORT_VERSIONS
from voxdiff.data.volume_dataset import VolumeDataset, find_subjects
from voxdiff.pipelines.mask_values import MaskEncoder, linear_mask_values
from voxdiff.training.class_sources import file_state
from voxdiff.training.data_arguments import COHORTS
from voxdiff.volume_files import make_image
from voxdiff.volume_grids import centred_affine, grid_map, model_grid, regrid
from voxdiff.volumes import VolumeProcessor, load_volume

Grid = tuple[int, int, int]

MASKED_COHORTS = (*MR_CONTRASTS, "ct")
"""Volumes of the digital cohort that have masks: brains with tumours, and CT with organs."""

VolumeFile = str | Path | SpatialImage


@dataclass(frozen=True)
class SliceSource:
    """Volumes with masks on one grid.

    Attributes:
        dataset: The volumes in the column ``image``; its subjects have their masks in ``mask``.
        processor: How the volumes are brought to the grid, which is its size.
        mask_values: Label -> what the networks see; no mask has another label.
        subject_ids: Whose volume each one is.
        keys: For each volume a text that no other voxels have, its mask's included.
    """

    dataset: VolumeDataset
    processor: VolumeProcessor
    mask_values: Mapping[int, float]
    subject_ids: Sequence[str]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``image`` float32 ``(1, x, y, z)`` in the processor's value range, ``mask`` int16 ``(x, y, z)``."""
        return {"image": self.image(index), "mask": self.mask(index)}

    def image(self, index: int) -> torch.Tensor:
        """The volume ``(1, x, y, z)`` in the processor's value range."""
        return self.dataset[index]["image"]

    def mask(self, index: int) -> torch.Tensor:
        """The labels ``(x, y, z)``, int16, on the volume's grid.

        Raises:
            ValueError: See :func:`mask_on_model_grid`.
        """
        volumes = self.dataset.volumes(index, ("image", "mask"))
        return mask_on_model_grid(volumes["mask"], volumes["image"], self.processor, MaskEncoder(self.mask_values))


def mask_on_model_grid(
    mask: VolumeFile, image: VolumeFile, processor: VolumeProcessor, encoder: MaskEncoder
) -> torch.Tensor:
    """A mask on the grid on which a processor sees the mask's volume, by nearest neighbour.

    The two lie where their affines say; they need not share a grid. Outside the mask's field of view is the lowest label.

    Args:
        mask: The mask: path or NIfTI image.
        image: Its volume: path or NIfTI image.
        processor: How the volume is brought to the model's grid.
        encoder: The labels there are.

    Returns:
        int16 ``(x, y, z)``.

    Raises:
        OSError, ValueError: If a file cannot be read, the mask lies beside its volume, or holds other values.
    """
    picture, drawing = load_volume(image), load_volume(mask)
    name = f"The mask {str(mask)!r}" if isinstance(mask, str | Path) else "The mask"
    to_image = grid_map(picture.affine, drawing.affine)
    middle = to_image @ np.array([*((np.array(drawing.shape) - 1) / 2), 1.0])
    if (middle[:3] < -0.5).any() or (middle[:3] > np.array(picture.shape) - 0.5).any():
        raise ValueError(f"{name} lies beside its volume; repair the affine of one of the two.")
    values = np.asarray(drawing.dataobj)
    encoder.index(values, name)
    grid, shape = model_grid(
        picture.affine, picture.shape, processor.orientation, processor.spacing, processor.size, processor.padding
    )
    labels = torch.from_numpy(values.astype(np.float32))[None]
    to_mask = grid_map(drawing.affine, grid)
    return regrid(labels, to_mask, shape, fill=encoder.background, nearest=True)[0].to(torch.int16)


def cohort_slice_source(name: str, grid: Grid, cache_dir: Path, *, num_subjects: int, split: str) -> SliceSource:
    """Subjects of the digital cohort with masks: brains with a tumour, or CT with organs.

    Args:
        name: One of :data:`MASKED_COHORTS`.
        grid: Voxels along x, y and z, which span the field of view along the longest side; that side is even.
        cache_dir: Where simulated subjects are kept.
        num_subjects: Number of subjects.
        split: Split of the cohort.

    Raises:
        ValueError: If the cohort cannot be drawn so.
    """
    if name not in MASKED_COHORTS:
        raise ValueError(f"The cohort is {name!r}; choose one of {', '.join(MASKED_COHORTS)}.")
    modality = "ct" if name == "ct" else "mr"
    window, field_of_view, _ = COHORTS[modality]
    cohort = CohortDataset(
        num_subjects,
        split=split,
        size=max(grid),
        contrasts=() if name == "ct" else (name,),
        lesions=name != "ct",
        modality=modality,
        cache_dir=cache_dir,
        cache=False,
    )
    edge = field_of_view / max(grid)
    processor = VolumeProcessor(size=grid, spacing=(edge,) * 3, intensity="window", **window)
    return SliceSource(
        dataset=VolumeDataset(_MaskedCohort(cohort, edge), {"image": processor}, unit=processor.unit),
        processor=processor,
        mask_values=linear_mask_values(len(ORGANS)) if name == "ct" else BRAIN_MASK_VALUES,
        subject_ids=[subject_id(seed) for seed in cohort.seeds],
        keys=[f"{COHORT_VERSIONS[modality]}/{name}/mask/{subject_id(seed)}" for seed in cohort.seeds],
    )


def file_slice_source(
    folder: str,
    processor: VolumeProcessor,
    mask_values: Mapping[int, float],
    *,
    image_column: str,
    mask_column: str,
    split: str | None,
    unit: str | None,
    skip_bad_files: bool,
    cache_dir: Path,
) -> tuple[SliceSource, list[str]]:
    """Files of a folder with their masks, each read once to check it.

    Args:
        folder: Folder that :func:`voxdiff.data.volume_dataset.find_subjects` understands.
        processor: How the volumes are brought to one grid.
        mask_values: Label -> what the networks see.
        image_column: Name of the volumes.
        mask_column: Name of the masks.
        split: Split of the data set.
        unit: Unit of the volumes, where the processor asks for it.
        skip_bad_files: Leave out what cannot be read.
        cache_dir: Where the prepared volumes are kept.

    Returns:
        The source, and a sentence for each subject that was left out.

    Raises:
        OSError, ValueError: If the data are missing or do not fit, such as voxel sizes that differ although no spacing
            was asked for, or a mask with another label.
    """
    encoder = MaskEncoder(mask_values)
    subjects = [
        {"subject_id": subject["subject_id"], "image": subject[image_column], "mask": subject[mask_column]}
        for subject in find_subjects(folder, [image_column, mask_column], split=split)
    ]
    dataset = VolumeDataset(subjects, {"image": processor}, cache_dir=cache_dir, unit=unit)
    left_out = dataset.check(skip_bad_files=skip_bad_files)
    if processor.spacing is None and dataset.spacing is None:
        raise ValueError("The volumes have different voxel sizes; give --spacing to bring them to one.")
    processor = replace(processor, size=dataset.grid, spacing=processor.spacing or dataset.spacing)
    left_out += _check_masks(dataset, processor, encoder, skip_bad_files=skip_bad_files)
    kept = [subjects[place] for place in dataset.indices]
    source = SliceSource(
        dataset=dataset,
        processor=processor,
        mask_values=encoder.values,
        subject_ids=[subject["subject_id"] for subject in kept],
        keys=[f"{file_state(subject['image'])} {file_state(subject['mask'])}" for subject in kept],
    )
    return source, left_out


class _MaskedCohort(Sequence[dict[str, Any]]):
    """Subjects of the cohort with their masks, as NIfTI images that know their voxel size."""

    def __init__(self, cohort: CohortDataset, edge_mm: float) -> None:
        self.cohort = cohort
        self.affine = centred_affine((cohort.size,) * 3, "RAS", (edge_mm,) * 3)

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, index):
        item = self.cohort[index]
        image = item[self.cohort.contrasts[0]][0]
        mask = item["organs"] if self.cohort.modality == "ct" else brain_mask_labels(item["tissue"], item["lesion"])
        volumes = {"image": image.numpy(), "mask": mask[0].numpy()}
        return {"subject_id": item["subject_id"]} | {
            name: make_image(values, self.affine) for name, values in volumes.items()
        }


def _check_masks(
    dataset: VolumeDataset, processor: VolumeProcessor, encoder: MaskEncoder, *, skip_bad_files: bool
) -> list[str]:
    """Read every mask once; a subject with a bad one is left out of the data set, or raises."""
    good, problems = [], []
    for place in track(dataset.indices, "Reading masks", console=Console(stderr=True), transient=True):
        subject = dataset.subjects[place]
        try:
            mask_on_model_grid(subject["mask"], subject["image"], processor, encoder)
        except (OSError, ValueError) as error:
            if not skip_bad_files:
                raise
            problems.append(f"{subject['subject_id']}: {str(error).rstrip('.')}")
            continue
        good.append(place)
    if not good:
        raise ValueError(f"None of the {len(dataset)} masks can be used ({problems[0]}).")
    dataset.indices = good
    return problems
