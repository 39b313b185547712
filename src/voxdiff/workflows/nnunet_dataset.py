"""Re-sampled volumes as an nnU-Net v2 data set."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxdiff.metrics.nnunet import export_nnunet
from voxdiff.volume_files import load_volume
from voxdiff.workflows.masked_cases import label_image


@dataclass(frozen=True, kw_only=True)
class NnUNetDataset:
    """Where and how volumes are exported.

    Attributes:
        folder: The one that nnU-Net knows as ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Of the data set.
        channel: nnU-Net's name of the image, which decides its normalisation ("CT" for HU).
        labels: Name → value or values, without the background.
        to_background: Labels that become 0, such as the brain without tumour that the masks of a generator carry.
    """

    folder: str | Path
    dataset_id: int
    name: str
    channel: str
    labels: Mapping[str, int | Sequence[int]]
    to_background: Sequence[int] = ()

    def description(self) -> dict[str, Any]:
        """Id, name, channel and labels as :func:`voxdiff.metrics.nnunet.export_nnunet` takes them."""
        return {
            "dataset_id": self.dataset_id,
            "dataset_name": self.name,
            "channel_names": {"image": self.channel},
            "labels": {"background": 0, **self.labels},
        }


def export_resampled(volumes: Mapping[str, tuple[Path, Path]], dataset: NnUNetDataset) -> Path:
    """Write image and mask of every volume as a training case; returns the data set's folder.

    Args:
        volumes: Name → paths of the image and the mask.
        dataset: Where and how.

    Raises:
        ValueError: No volume was accepted, or nnU-Net would refuse the names, labels or folder.
    """
    if not volumes:
        raise ValueError("Every volume was rejected, so there is nothing to export for nnU-Net; look at the manifest.")
    folder = Path(dataset.folder)
    for unfinished in folder.glob(f".tmp-*-Dataset{dataset.dataset_id:03d}_{dataset.name}"):
        shutil.rmtree(unfinished)  # of an export that was killed
    return export_nnunet(
        [
            _TrainingCase({"subject_id": name, "image": image, "label": mask}, dataset.to_background)
            for name, (image, mask) in volumes.items()
        ],
        folder,
        **dataset.description(),
    )


class _TrainingCase(dict[str, Any]):
    """A case whose label map is read, and rid of what is background, when it is asked for."""

    def __init__(self, paths: Mapping[str, Any], to_background: Sequence[int]) -> None:
        super().__init__(paths)
        self.to_background = list(to_background)

    def __getitem__(self, key: str) -> Any:
        found = super().__getitem__(key)
        return _without(load_volume(found), self.to_background) if key == "label" and self.to_background else found


def _without(mask: nib.Nifti1Image, labels: Sequence[int]) -> nib.Nifti1Image:
    values = np.asarray(mask.dataobj)
    return label_image(np.where(np.isin(values, labels), 0, values), mask)
