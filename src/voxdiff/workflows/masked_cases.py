"""Scans with their masks: what a data set is made of before it is re-sampled."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from voxdiff.data.brain_masks import brain_mask_labels
from voxdiff.data.metadata import read_columns
from voxdiff.data.volume_dataset import find_subjects
from voxdiff.metrics.nnunet import require_same_grid
from voxdiff.volume_files import load_volume, make_image

Volume = str | Path | nib.Nifti1Image
_LABELS = (-128, 255)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class MaskedCase:
    """One scan of a subject.

    Attributes:
        subject: Who it is; several scans of one subject are several cases.
        image: Path or NIfTI image; None where there is a mask only.
        mask: Path or NIfTI image of whole numbers.
        name: Names the case among the others, and its files; empty is the subject.
        tissue: Path or NIfTI image of a tissue map on the mask's grid: the mask then holds tumour labels, and the rest of
            the brain gets a label of its own (:func:`voxdiff.data.brain_masks.brain_mask_labels`).
    """

    subject: str
    image: Volume | None
    mask: Volume
    name: str = ""
    tissue: Volume | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.subject)

    def content_hash(self) -> str:
        """SHA-256 of subject, name and volumes; where the files lie does not matter."""
        digest = hashlib.sha256(f"{self.subject}\n{self.name}\n".encode())
        for kind, volume in (("mask", self.mask), ("image", self.image), ("tissue", self.tissue)):
            digest.update(f"{kind} {None if volume is None else volume_hash(volume)}\n".encode())
        return digest.hexdigest()

    def mask_grid(self) -> tuple[Any, ...]:
        """Shape and directions of the mask; masks of one model that share them can be sampled in one call."""
        image: Any = self.mask
        if isinstance(self.mask, str | Path):
            try:
                image = nib.load(self.mask)
            except nib.filebasedimages.ImageFileError:
                image = load_volume(self.mask)  # says what is wrong with the file
        return (*image.shape, *np.round(image.affine[:3, :3], 4).flatten().tolist())

    def load_mask(self) -> nib.Nifti1Image:
        """The mask as an image of whole numbers.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It cannot be read, holds values that are not whole numbers from -128 to 255, or does not go with
                the tissue map.
        """
        image = load_volume(self.mask)
        values = np.asarray(image.dataobj)
        low, high = _LABELS
        wrong = values[(values != np.rint(values)) | (values < low) | (values > high)]
        if wrong.size:
            raise ValueError(
                f"The mask of {self.name} holds the value {wrong[0]:g}; give whole numbers from {low} to {high}."
            )
        return label_image(values if self.tissue is None else self._with_brain(values, image), image)

    def _with_brain(self, lesion: np.ndarray, image: nib.Nifti1Image) -> np.ndarray:
        assert self.tissue is not None
        tissue = load_volume(self.tissue)
        values = np.asarray(tissue.dataobj)
        if (values != np.rint(values)).any():
            raise ValueError(f"The tissue map of {self.name} holds fractions; give a map of whole numbers, 0 outside.")
        require_same_grid(tissue, image, "the tissue map", self.name)
        try:
            return brain_mask_labels(*(torch.from_numpy(each) for each in (values, lesion))).numpy()
        except ValueError as error:
            raise ValueError(f"The mask of {self.name}: {error}") from error


def read_cases(
    folder: str | Path,
    *,
    mask: str,
    image: str | None = None,
    subject: str | None = None,
    tissue: str | None = None,
    split: str | None = None,
) -> list[MaskedCase]:
    """The cases of a folder of NIfTI files, with a ``metadata.csv`` or with names that end alike.

    Args:
        folder: The folder, such as `voxdiff cohort` writes.
        mask: Column of the masks.
        image: Column of the images; None where masks are enough and no file name has to tell them from images.
        subject: Column of ``metadata.csv`` that says whose scan it is; None is ``subject_id``, or the file name.
        tissue: Column of tissue maps, see :class:`MaskedCase`.
        split: Split of the data set; None is ``train`` where there is such a split.

    Raises:
        FileNotFoundError: If the folder or its volumes are missing.
        ValueError: If there is no such split or column, or a row lacks a volume or a subject.
    """
    rows = find_subjects(folder, [column for column in (image, mask, tissue) if column], split=split)
    owners = read_columns(folder, [subject], split=split)[subject] if subject else [row["subject_id"] for row in rows]
    unknown = sum(owner in (None, "") for owner in owners)
    if unknown:
        raise ValueError(f"Column {subject} of {folder} is empty for {unknown} scans; say of each whose it is.")
    cases = [
        MaskedCase(str(owner), row[image] if image else None, row[mask], tissue=row[tissue] if tissue else None)
        for owner, row in zip(owners, rows, strict=True)
    ]
    return _named(cases)


def check_cases(cases: Sequence[MaskedCase]) -> list[MaskedCase]:
    """The cases by name.

    Raises:
        ValueError: If there is none, a name comes twice, or one is no file name.
    """
    if not cases:
        raise ValueError("There are no cases; give at least one mask.")
    for name, count in Counter(case.name for case in cases).items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"A case is called {name!r}; use letters, digits, '.', '-' and '_'.")
        if count > 1:
            raise ValueError(f"{count} cases are called {name!r}; give each scan a name of its own.")
    return sorted(cases, key=lambda case: case.name)


def _named(cases: Sequence[MaskedCase]) -> list[MaskedCase]:
    """Scans of a subject that has several are numbered in the order of the folder."""
    scans = Counter(case.subject for case in cases)
    seen: Counter[str] = Counter()
    named = []
    for case in cases:
        seen[case.subject] += 1
        several = scans[case.subject] > 1
        named.append(replace(case, name=f"{case.subject}-{seen[case.subject]}") if several else case)
    return named


def label_image(values: np.ndarray, like: nib.Nifti1Image) -> nib.Nifti1Image:
    """Labels on the grid of an image: uint8, or int16 where one is negative (nnU-Net's "outside")."""
    space_code = int(like.header["sform_code"]) or int(like.header["qform_code"]) or 2
    dtype = np.int16 if values.min() < 0 else np.uint8
    return make_image(values.astype(dtype), like.affine, unit="label", space_code=space_code)


def cases_hash(cases: Sequence[MaskedCase]) -> str:
    """SHA-256 of what cases hold, in any order."""
    return hashlib.sha256("".join(sorted(case.content_hash() for case in cases)).encode()).hexdigest()


def volume_hash(volume: Any) -> str:
    """SHA-256 of a file, of a NIfTI image with its affine, or of an array or tensor.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if isinstance(volume, str | Path):
        if not Path(volume).is_file():
            raise FileNotFoundError(f"There is no file {str(volume)!r}; give the path of a NIfTI volume.")
        with Path(volume).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    values = np.ascontiguousarray(getattr(volume, "dataobj", volume))
    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes())
    if hasattr(volume, "affine"):
        digest.update(np.asarray(volume.affine, dtype=np.float64).tobytes())
    return digest.hexdigest()
